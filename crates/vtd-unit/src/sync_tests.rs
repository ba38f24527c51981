// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Unit tests of the files that the models compile as well.

use vtd_spec::{DomainId, Pasid};

use crate::function::Tags;
use crate::in_flight::InFlight;

#[test]
fn a_turn_waits_for_what_began_before_it_alone() {
    let in_flight = InFlight::default();
    assert!(in_flight.is_empty());
    let first = in_flight.enter();
    let before = in_flight.turn();
    let second = in_flight.enter();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| in_flight.wait(&before));
        assert!(!waiter.is_finished());
        drop(first);
        waiter.join().unwrap();
    });
    assert!(!in_flight.is_empty());
    drop(second);
    in_flight.wait(&in_flight.turn());
    assert!(in_flight.is_empty());
}

#[test]
fn what_was_put_in_is_held_and_most_else_is_not() {
    let tags = Tags::default();
    let pasids = || (0..20).map(|number| (DomainId(1 + number % 2), Pasid::truncated(number.into())));
    pasids().for_each(|(domain, pasid)| tags.add(domain, pasid));
    assert!(pasids().all(|(domain, pasid)| tags.may_hold_pasid(domain, pasid)));
    assert!([1, 2].iter().all(|domain| tags.may_hold_domain(DomainId(*domain))));
    let others = |domain| (100..1100).filter(move |n| tags_hold(domain, *n));
    fn tags_hold(domain: &Tags, number: u32) -> bool {
        domain.may_hold_pasid(DomainId(1), Pasid::truncated(number))
    }
    assert!(others(&tags).count() < 100, "{}", others(&tags).count());
    assert!((3..1000).filter(|domain| tags.may_hold_domain(DomainId(*domain))).count() < 20);
    tags.clear();
    assert!(!pasids().any(|(domain, pasid)| tags.may_hold_pasid(domain, pasid)));
}
