// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit's parts and its endpoints share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use crossbeam_utils::CachePadded;
use vtd_spec::Capabilities;

use crate::config::{Entries, VirtualCommandEncoding};
use crate::executor::Executor;
use crate::function::Function;
use crate::in_flight::InFlight;
use crate::notify::Notify;
use crate::observer::Observer;
use crate::pasid_allocator::PasidAllocator;
use crate::registers::Registers;
use crate::unit_state::InterruptRemapping;

/// Replaced as a whole, as functions are.
pub(crate) type Observers = Arc<[Weak<dyn Observer>]>;

/// What endpoints and the unit share. What one endpoint writes in the course of its requests lies apart from what all of them
/// read.
pub(crate) struct Core<M> {
    pub(crate) memory: Arc<M>,
    pub(crate) capabilities: Capabilities,
    pub(crate) notify: Arc<dyn Notify>,
    pub(crate) virtual_command: Option<VirtualCommandEncoding>,
    /// Replaced as a whole: who goes through them holds no lock.
    pub(crate) functions: CachePadded<RwLock<Arc<[Arc<Function>]>>>,
    pub(crate) interrupts: CachePadded<RwLock<InterruptRemapping>>,
    /// Messages that were remapped and are being delivered; begun under `interrupts`.
    pub(crate) messages: CachePadded<InFlight>,
    /// Finishes what register writes begin.
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) registers: Box<CachePadded<Mutex<Registers>>>,
    pub(crate) observers: RwLock<Observers>,
    pub(crate) pasids: Mutex<Option<Weak<dyn PasidAllocator>>>,
    /// Sizes of the caches that each function gets.
    pub(crate) entries: Entries,
}

impl<M> Core<M> {
    /// The register page. The innermost lock: nothing is called with it held.
    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The functions as they are now.
    pub(crate) fn functions(&self) -> Arc<[Arc<Function>]> {
        Arc::clone(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Self::functions`], to add or to take out.
    pub(crate) fn functions_mut(&self) -> RwLockWriteGuard<'_, Arc<[Arc<Function>]>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of interrupt requests, for one of them.
    pub(crate) fn interrupts(&self) -> RwLockReadGuard<'_, InterruptRemapping> {
        self.interrupts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::interrupts`], for a change or an invalidation: waits for the requests that are being remapped.
    pub(crate) fn interrupts_mut(&self) -> RwLockWriteGuard<'_, InterruptRemapping> {
        self.interrupts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who mirrors this unit's tables. Those that are gone are still among them.
    fn observers(&self) -> Observers {
        Arc::clone(&self.observers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether somebody does.
    pub(crate) fn is_observed(&self) -> bool {
        self.observers().iter().filter_map(Weak::upgrade).any(|observer| observer.mirrors_tables())
    }

    /// Tells each of them.
    pub(crate) fn each_observer(&self, f: impl FnMut(Arc<dyn Observer>)) {
        self.observers().iter().filter_map(Weak::upgrade).for_each(f);
    }
}
