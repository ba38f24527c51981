// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which functions' caches this thread holds while it runs code of a device model. Who holds them must not wait for
//! somebody who waits for that to end.

use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// One hold of a thread; it stays on it.
pub(crate) struct Held {
    id: usize,
    _of_this_thread: PhantomData<*const ()>,
}

impl Held {
    pub(super) fn new(id: usize) -> Self {
        HELD.with_borrow_mut(|held| held.push(id));
        Self { id, _of_this_thread: PhantomData }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            // Mostly the last; pins may end in any order.
            if let Some(at) = held.iter().rposition(|id| *id == self.id) {
                held.swap_remove(at);
            }
        });
    }
}

/// Whether this thread holds `id`.
pub(super) fn holds(id: usize) -> bool {
    HELD.with_borrow(|held| held.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hold_counts_on_its_own_thread() {
        let first = Held::new(1);
        let second = Held::new(1);
        let other = Held::new(2);
        drop(first);
        assert!(holds(1) && holds(2));
        assert!(!std::thread::spawn(|| holds(1)).join().unwrap());
        drop(other);
        drop(second);
        assert!(!holds(1) && !holds(2));
    }
}
