// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

use super::*;
use crate::DEFAULT_QUOTA;

const ALL: RangeInclusive<Ioasid> = 1..=MAX_ID;

fn allocator() -> Allocator<&'static str> {
    Allocator::new(ALL).unwrap()
}

/// A machine of the host that gives ids from above.
#[derive(Clone, Default)]
struct FromAbove {
    interface: &'static str,
    out: Arc<Mutex<Vec<Ioasid>>>,
    /// Given in place of the right one.
    lie: Option<Ioasid>,
}

impl CustomAllocator for FromAbove {
    fn interface(&self) -> &'static str {
        self.interface
    }

    fn allocate(&mut self, range: RangeInclusive<Ioasid>) -> Option<Ioasid> {
        let mut out = self.out.lock().unwrap();
        let id = match self.lie {
            Some(id) => id,
            None => range.rev().find(|id| !out.contains(id))?,
        };
        out.push(id);
        Some(id)
    }

    fn free(&mut self, id: Ioasid) {
        let mut out = self.out.lock().unwrap();
        let index = out.iter().position(|&other| other == id).expect("freed once");
        out.remove(index);
    }
}

#[test]
fn the_lowest_free_id_of_the_range_is_given() {
    let mut ids = allocator();
    let set = ids.create_set(DEFAULT_QUOTA).unwrap();
    assert_eq!(ids.allocate(set, 5..=6, None), Ok(5));
    assert_eq!(ids.allocate(set, 1..=6, None), Ok(1));
    assert_eq!(ids.allocate(set, 5..=6, None), Ok(6));
    assert_eq!(ids.allocate(set, 5..=6, None), Err(Error::NoSpace));
    assert_eq!(ids.free(set, 5), Ok(None));
    assert_eq!(ids.allocate(set, 2..=6, None), Ok(2));
    assert_eq!(ids.allocated(), 3);
}

#[test]
fn ranges_are_checked_against_the_allocator() {
    let mut ids = Allocator::<()>::new(0x10..=0x1f).unwrap();
    let set = ids.create_set(16).unwrap();
    for (first, last) in [(0xf, 0x1f), (0x10, 0x20), (0x18, 0x17)] {
        assert_eq!(ids.allocate(set, first..=last, None), Err(Error::InvalidRange { first, last }));
    }
    let beyond = Allocator::<()>::new(1..=MAX_ID + 1);
    assert_eq!(beyond.err(), Some(Error::InvalidRange { first: 1, last: MAX_ID + 1 }));
}

#[test]
fn a_quota_bounds_a_set_and_moves_only_above_what_it_holds() {
    let mut ids = allocator();
    let set = ids.create_set(2).unwrap();
    let first = ids.allocate(set, ALL, None).unwrap();
    ids.allocate(set, ALL, None).unwrap();
    assert_eq!(ids.allocate(set, ALL, None), Err(Error::QuotaExceeded { quota: 2 }));
    assert_eq!(ids.set_quota(set, 1), Err(Error::QuotaTooSmall { quota: 1, allocated: 2 }));
    ids.set_quota(set, 3).unwrap();
    ids.allocate(set, ALL, None).unwrap();
    ids.free(set, first).unwrap();
    ids.set_quota(set, 2).unwrap();
    assert_eq!(ids.usage(set), Ok((2, 2)));
}

#[test]
fn quotas_are_promises_that_the_ids_can_keep() {
    let mut ids = Allocator::<()>::new(1..=10).unwrap();
    let greedy = ids.create_set(6).unwrap();
    assert_eq!(ids.create_set(5), Err(Error::NoCapacity { quota: 5, available: 4 }));
    let modest = ids.create_set(4).unwrap();
    assert_eq!(ids.set_quota(modest, 5), Err(Error::NoCapacity { quota: 5, available: 4 }));
    ids.release_set(greedy, |_, _| ()).unwrap();
    assert_eq!(ids.set_quota(modest, 10), Ok(()));
}

#[test]
fn an_id_is_found_by_its_own_set_only() {
    let mut ids = allocator();
    let (mine, yours) = (ids.create_set(10).unwrap(), ids.create_set(10).unwrap());
    let id = ids.allocate(mine, ALL, Some("a")).unwrap();
    assert_eq!(ids.find(Some(mine), id), Ok(Some(&"a")));
    assert_eq!(ids.find(None, id), Ok(Some(&"a")));
    assert_eq!(ids.set_of(id), Ok(mine));
    for error in [
        ids.find(Some(yours), id).unwrap_err(),
        ids.free(yours, id).unwrap_err(),
        ids.bind(Some(yours), id).unwrap_err(),
        ids.unbind(Some(yours), id).unwrap_err(),
        ids.set_data(Some(yours), id, None).unwrap_err(),
    ] {
        assert_eq!(error, Error::NotInSet { id });
    }
    assert_eq!(ids.find(None, 99), Err(Error::NotAllocated { id: 99 }));
    assert_eq!(ids.set_data(None, id, Some("b")), Ok(Some("a")));
    *ids.find_mut(None, id).unwrap().unwrap() = "c";
    assert_eq!(ids.free(mine, id), Ok(Some("c")));
    assert_eq!(ids.free(mine, id), Err(Error::NotAllocated { id }));
}

#[test]
fn a_bound_id_is_not_freed_and_the_first_bind_and_last_unbind_are_announced() {
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    let notifier =
        ids.register_notifier(Some(set), move |n| listener.lock().unwrap().push((n.event, n.id))).unwrap();
    let id = ids.allocate(set, ALL, None).unwrap();
    assert_eq!(ids.unbind(None, id), Err(Error::NotBound { id }));
    ids.bind(Some(set), id).unwrap();
    ids.bind(None, id).unwrap();
    assert_eq!(ids.free(set, id), Err(Error::Bound { id }));
    ids.unbind(None, id).unwrap();
    assert_eq!(ids.is_bound(id), Ok(true));
    ids.unbind(Some(set), id).unwrap();
    assert_eq!(ids.is_bound(id), Ok(false));
    ids.free(set, id).unwrap();
    assert_eq!(*heard.lock().unwrap(), [(Event::Bind, id), (Event::Unbind, id), (Event::Free, id)]);
    ids.unregister_notifier(notifier).unwrap();
    assert_eq!(ids.unregister_notifier(notifier), Err(Error::NoSuchNotifier));
    let id = ids.allocate(set, ALL, None).unwrap();
    ids.free(set, id).unwrap();
    assert_eq!(heard.lock().unwrap().len(), 3);
}

#[test]
fn a_notifier_hears_of_its_own_set() {
    let mut ids = allocator();
    let (mine, yours) = (ids.create_set(10).unwrap(), ids.create_set(10).unwrap());
    let heard = Arc::new(Mutex::new((0, 0)));
    let (own, all) = (Arc::clone(&heard), Arc::clone(&heard));
    ids.register_notifier(Some(mine), move |_| own.lock().unwrap().0 += 1).unwrap();
    ids.register_notifier(None, move |_| all.lock().unwrap().1 += 1).unwrap();
    let id = ids.allocate(yours, ALL, None).unwrap();
    ids.free(yours, id).unwrap();
    assert_eq!(*heard.lock().unwrap(), (0, 1));
    ids.release_set(mine, |_, _| ()).unwrap();
    assert_eq!(ids.register_notifier(Some(mine), |_| ()), Err(Error::NoSuchSet));
}

#[test]
fn a_set_whose_owner_goes_is_unbound_first_and_then_freed() {
    let mut ids = allocator();
    let (dying, other) = (ids.create_set(10).unwrap(), ids.create_set(10).unwrap());
    let kept = ids.allocate(other, ALL, Some("kept")).unwrap();
    let bound = ids.allocate(dying, ALL, Some("bound")).unwrap();
    let unbound = ids.allocate(dying, ALL, Some("unbound")).unwrap();
    ids.bind(None, bound).unwrap();
    ids.bind(None, bound).unwrap();
    ids.bind(None, kept).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (listener, caller) = (Arc::clone(&heard), Arc::clone(&heard));
    ids.register_notifier(None, move |n| listener.lock().unwrap().push((Some(n.event), n.id))).unwrap();
    ids.release_set(dying, |id, data| {
        assert_eq!(data, Some(&mut "bound"));
        caller.lock().unwrap().push((None, id));
    })
    .unwrap();
    let expected = [
        (None, bound),
        (Some(Event::Unbind), bound),
        (Some(Event::Free), bound),
        (Some(Event::Free), unbound),
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
    assert_eq!((ids.allocated(), ids.ids(other)), (1, Ok(&[kept][..])));
    assert_eq!(ids.release_set(dying, |_, _| ()), Err(Error::NoSuchSet));
    assert_eq!(ids.allocate(dying, ALL, None), Err(Error::NoSuchSet));
}

#[test]
fn a_custom_allocator_takes_over_only_while_nothing_is_allocated() {
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    let id = ids.allocate(set, ALL, None).unwrap();
    let custom = FromAbove { interface: "vcmd", ..FromAbove::default() };
    assert_eq!(ids.register_allocator(custom.clone()), Err(Error::Outstanding { allocated: 1 }));
    ids.free(set, id).unwrap();
    let registered = ids.register_allocator(custom.clone()).unwrap();
    assert_eq!(ids.custom_interface(), Some("vcmd"));
    let id = ids.allocate(set, ALL, None).unwrap();
    assert_eq!((id, custom.out.lock().unwrap().clone()), (MAX_ID, vec![MAX_ID]));
    assert_eq!(ids.unregister_allocator(registered).err(), Some(Error::Outstanding { allocated: 1 }));
    ids.free(set, id).unwrap();
    assert!(custom.out.lock().unwrap().is_empty());
    ids.unregister_allocator(registered).unwrap();
    assert_eq!(ids.allocate(set, ALL, None), Ok(1), "the built-in allocator is back");
    assert_eq!(ids.unregister_allocator(registered).err(), Some(Error::NoSuchAllocator));
}

#[test]
fn allocators_of_one_interface_stand_in_for_each_other() {
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    let space = FromAbove { interface: "vcmd", ..FromAbove::default() };
    let first = ids.register_allocator(space.clone()).unwrap();
    let waiting = FromAbove { interface: "other", ..FromAbove::default() };
    let other = ids.register_allocator(waiting).unwrap();
    let id = ids.allocate(set, ALL, None).unwrap();
    let second = ids.register_allocator(space.clone()).unwrap();
    ids.unregister_allocator(first).unwrap();
    ids.free(set, id).unwrap();
    assert!(space.out.lock().unwrap().is_empty(), "the second one took the id back");
    ids.unregister_allocator(second).unwrap();
    assert_eq!(ids.custom_interface(), Some("other"));
    ids.unregister_allocator(other).unwrap();
    assert_eq!(ids.custom_interface(), None);
}

#[test]
fn a_custom_allocator_that_misbehaves_gives_nothing() {
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    let honest = FromAbove { interface: "honest", ..FromAbove::default() };
    ids.register_allocator(honest.clone()).unwrap();
    assert_eq!(ids.allocate(set, 7..=7, None), Ok(7));
    assert_eq!(ids.allocate(set, 7..=7, None), Err(Error::CustomExhausted));

    let liar = FromAbove { interface: "liar", lie: Some(7), ..FromAbove::default() };
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    ids.register_allocator(liar.clone()).unwrap();
    assert_eq!(ids.allocate(set, 8..=9, None), Err(Error::CustomMisbehaved { id: 7 }));
    assert!(liar.out.lock().unwrap().is_empty(), "an id outside the range is given back");
    assert_eq!(ids.allocate(set, 7..=9, None), Ok(7));
    assert_eq!(ids.allocate(set, 7..=9, None), Err(Error::CustomMisbehaved { id: 7 }));
    assert_eq!(ids.allocated(), 1);
    let mut ids = allocator();
    let set = ids.create_set(10).unwrap();
    ids.register_allocator(FromAbove { lie: Some(u32::MAX), ..liar }).unwrap();
    assert_eq!(ids.allocate(set, ALL, None), Err(Error::CustomMisbehaved { id: u32::MAX }));
}
