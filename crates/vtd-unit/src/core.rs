// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit's parts and its endpoints share.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use vtd_spec::Capabilities;

use crate::config::{Entries, VirtualCommandEncoding};
use crate::function::Function;
use crate::notify::Notify;
use crate::observer::Observer;
use crate::pasid_allocator::PasidAllocator;
use crate::registers::Registers;
use crate::unit_state::InterruptRemapping;

/// What endpoints and the unit share.
pub(crate) struct Core<M> {
    pub(crate) memory: Arc<M>,
    pub(crate) capabilities: Capabilities,
    pub(crate) notify: Arc<dyn Notify>,
    pub(crate) virtual_command: Option<VirtualCommandEncoding>,
    pub(crate) functions: RwLock<Vec<Arc<Function>>>,
    pub(crate) interrupts: RwLock<InterruptRemapping>,
    pub(crate) registers: Box<Mutex<Registers>>,
    pub(crate) observer: OnceLock<Weak<dyn Observer>>,
    pub(crate) pasids: OnceLock<Weak<dyn PasidAllocator>>,
    /// Sizes of the caches that each function gets.
    pub(crate) entries: Entries,
}

impl<M> Core<M> {
    /// The register page. The innermost lock: nothing is called with it held.
    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn functions(&self) -> RwLockReadGuard<'_, Vec<Arc<Function>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::functions`], to add or to take out.
    pub(crate) fn functions_mut(&self) -> RwLockWriteGuard<'_, Vec<Arc<Function>>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of interrupt requests, for one of them.
    pub(crate) fn interrupts(&self) -> RwLockReadGuard<'_, InterruptRemapping> {
        self.interrupts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::interrupts`], for a change or an invalidation: waits for the requests in flight.
    pub(crate) fn interrupts_mut(&self) -> RwLockWriteGuard<'_, InterruptRemapping> {
        self.interrupts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who mirrors this unit's tables, if somebody does.
    pub(crate) fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.get()?.upgrade()
    }
}
