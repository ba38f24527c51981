// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every execution that the memory model allows of what holds without a lock: the files of the unit themselves, compiled with
//! loom's atomics in the place of std's.

#![allow(dead_code, reason = "the unit uses all of it")]

/// In the place of the unit's `sync.rs`.
mod sync {
    pub use std::sync::PoisonError;

    pub use loom::sync::{Condvar, Mutex, atomic};
}

#[path = "../src/in_flight.rs"]
mod in_flight;
#[path = "../src/cache/sequence.rs"]
mod sequence;
#[path = "../src/function/tags.rs"]
mod tags;

use in_flight::InFlight;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, RwLock};
use loom::thread;
use sequence::Sequence;
use tags::Tags;
use vtd_spec::{DomainId, Pasid};

/// Words that change as one: an entry of a translation cache, which has a tag, a key and a value.
#[derive(Default)]
struct Words {
    sequence: Sequence,
    words: [AtomicU64; 2],
}

impl Words {
    /// As [`Tlb::fill`](../src/cache/tlb.rs).
    fn write(&self, value: u64) -> bool {
        self.sequence.write(self.sequence.begin(), || {
            self.words.iter().for_each(|word| word.store(value, Ordering::Relaxed));
        })
    }

    /// As [`Tlb::lookup`](../src/cache/tlb.rs).
    fn read(&self) -> Option<[u64; 2]> {
        let begun = self.sequence.begin();
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        self.sequence.is_stable(begun).then_some(words)
    }
}

/// Runs each on a thread of its own: loom tries fewer orders for the thread that starts the others.
fn together<T: 'static>(words: &Arc<Words>, work: impl IntoIterator<Item = fn(&Words) -> T>) -> Vec<T> {
    let threads: Vec<_> = work
        .into_iter()
        .map(|work| {
            let words = Arc::clone(words);
            thread::spawn(move || work(&words))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn read_whole(words: &Words) -> bool {
    if let Some([first, second]) = words.read() {
        assert_eq!(first, second, "words of two writes");
    }
    false
}

#[test]
fn a_reader_never_sees_words_of_two_states() {
    loom::model(|| {
        let written = together(&Arc::new(Words::default()), [|words: &Words| words.write(1), read_whole]);
        assert!(written[0], "nobody else writes");
    });
}

#[test]
fn of_two_writers_one_wins_and_what_it_wrote_stays_whole() {
    loom::model(|| {
        let words = Arc::new(Words::default());
        let written = together(&words, [|words: &Words| words.write(1), |words: &Words| words.write(2)]);
        assert!(written.contains(&true), "one of them wins");
        let [first, second] = words.read().unwrap();
        assert_eq!(first, second);
        assert_ne!(first, 0);
    });
}

/// What is published before a fill is seen by whoever finds what was filled.
#[test]
fn what_was_written_before_an_entry_is_seen_with_it() {
    loom::model(|| {
        let before = Arc::new(AtomicU64::new(0));
        let words = Arc::new(Words::default());
        let writer = {
            let (words, before) = (Arc::clone(&words), Arc::clone(&before));
            thread::spawn(move || {
                before.store(1, Ordering::Relaxed);
                words.write(7)
            })
        };
        let reader = thread::spawn(move || {
            if words.read() == Some([7, 7]) {
                assert_eq!(before.load(Ordering::Relaxed), 1);
            }
        });
        writer.join().unwrap();
        reader.join().unwrap();
    });
}

const OLD: u64 = 1;
const NEW: u64 = 2;

/// As the unit remaps messages: what becomes of one is read under a lock that is held shared, and it is delivered with no lock
/// held.
#[derive(Clone, Default)]
struct Messages {
    in_flight: Arc<InFlight>,
    table: Arc<RwLock<u64>>,
    /// What was delivered by the old table. No atomic: an access that is not ordered before or after the other is an error of
    /// the model.
    delivered: Arc<UnsafeCell<u64>>,
}

impl Messages {
    fn new() -> Self {
        Self { table: Arc::new(RwLock::new(OLD)), ..Self::default() }
    }

    fn send(&self) -> thread::JoinHandle<()> {
        let Self { in_flight, table, delivered } = self.clone();
        thread::spawn(move || {
            let (read, entered) = {
                let table = table.read().unwrap();
                (*table, in_flight.enter())
            };
            if read == OLD {
                // SAFETY: loom checks that nobody else accesses it at the same time.
                delivered.with_mut(|delivered| unsafe { *delivered = OLD });
            }
            drop(entered);
        })
    }

    /// For someone behind whom nobody delivers by the old table.
    fn check(&self) {
        // SAFETY: as above.
        self.delivered.with(|delivered| unsafe { assert!([0, OLD].contains(&*delivered)) });
    }
}

/// Who changes the table waits for what was read before, and then nobody delivers that any more.
#[test]
fn a_drain_ends_when_what_was_read_before_has_been_delivered() {
    loom::model(|| {
        let messages = Messages::new();
        let sender = messages.send();
        let before = {
            let mut table = messages.table.write().unwrap();
            *table = NEW;
            messages.in_flight.turn()
        };
        messages.in_flight.wait(&before);
        messages.check();
        sender.join().unwrap();
    });
}

/// The same where the one who changes the table finds nothing in flight, and so does not turn.
#[test]
fn nothing_in_flight_means_that_all_has_been_delivered() {
    loom::model(|| {
        let messages = Messages::new();
        let sender = messages.send();
        {
            let mut table = messages.table.write().unwrap();
            *table = NEW;
            if messages.in_flight.is_empty() {
                messages.check();
            }
        }
        sender.join().unwrap();
    });
}

/// A function is passed by only if it has nothing with the tag: what it had cached when the request was sent is forgotten.
#[test]
fn a_function_that_was_passed_by_had_nothing_of_the_tag() {
    loom::model(|| {
        let (domain, pasid) = (DomainId(1), Pasid::truncated(5));
        let tags = Arc::new(Tags::default());
        let cached = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicBool::new(false));
        let function = {
            let (tags, cached, asked) = (Arc::clone(&tags), Arc::clone(&cached), Arc::clone(&asked));
            thread::spawn(move || {
                tags.add(domain, pasid);
                cached.store(true, Ordering::Relaxed);
                // The device has faulted, and whoever sends the page request knows it from there.
                asked.store(true, Ordering::Release);
            })
        };
        if asked.load(Ordering::Acquire) {
            assert!(tags.may_hold_pasid(domain, pasid) && tags.may_hold_domain(domain));
            cached.store(false, Ordering::Relaxed);
        }
        function.join().unwrap();
        assert!(
            !cached.load(Ordering::Relaxed) || !asked.load(Ordering::Relaxed) || tags.may_hold_domain(domain)
        );
    });
}
