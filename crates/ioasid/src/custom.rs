// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Custom allocators: somebody else chooses the ids, this crate keeps the books.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::{Error, Ioasid};

/// A source of ids that takes the place of the built-in one (Linux include/linux/ioasid.h:ioasid_allocator_ops).
pub trait CustomAllocator: Send {
    /// Names the interface behind it. Allocators with the same interface give ids of one and the same space: they share
    /// one instance, in which each stands in for the others.
    fn interface(&self) -> &'static str;

    /// An id in the range, or `None`.
    fn allocate(&mut self, range: RangeInclusive<Ioasid>) -> Option<Ioasid>;

    /// Takes an id back that [`allocate`](Self::allocate) of this interface gave.
    fn free(&mut self, id: Ioasid);
}

/// A registered custom allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CustomAllocatorId(u64);

struct Instance {
    interface: &'static str,
    members: Vec<(CustomAllocatorId, Box<dyn CustomAllocator>)>,
}

/// The registered allocators: the first instance is in use, the others wait (as in ioasid.c).
#[derive(Default)]
pub(crate) struct CustomAllocators {
    instances: Vec<Instance>,
    next: u64,
}

impl CustomAllocators {
    /// The allocator in use; `None` for the built-in one.
    pub(crate) fn active(&mut self) -> Option<&mut dyn CustomAllocator> {
        let (_, allocator) = self.instances.first_mut()?.members.first_mut()?;
        Some(&mut **allocator)
    }

    pub(crate) fn interface(&self) -> Option<&'static str> {
        Some(self.instances.first()?.interface)
    }

    /// `allocated` ids are out.
    pub(crate) fn register(
        &mut self,
        allocator: Box<dyn CustomAllocator>,
        allocated: u32,
    ) -> Result<CustomAllocatorId, Error> {
        if self.instances.is_empty() && allocated != 0 {
            return Err(Error::Outstanding { allocated });
        }
        let id = CustomAllocatorId(self.next);
        self.next += 1;
        let interface = allocator.interface();
        match self.instances.iter_mut().find(|instance| instance.interface == interface) {
            Some(instance) => instance.members.push((id, allocator)),
            None => {
                self.instances.push(Instance { interface, members: vec![(id, allocator)] });
            }
        }
        Ok(id)
    }

    /// `allocated` ids are out.
    pub(crate) fn unregister(
        &mut self,
        id: CustomAllocatorId,
        allocated: u32,
    ) -> Result<Box<dyn CustomAllocator>, Error> {
        let find = |(index, instance): (usize, &Instance)| {
            Some((index, instance.members.iter().position(|member| member.0 == id)?))
        };
        let (index, member) =
            self.instances.iter().enumerate().find_map(find).ok_or(Error::NoSuchAllocator)?;
        let last = self.instances[index].members.len() == 1;
        if index == 0 && last && allocated != 0 {
            return Err(Error::Outstanding { allocated });
        }
        let (_, allocator) = self.instances[index].members.remove(member);
        if last {
            self.instances.remove(index);
        }
        Ok(allocator)
    }
}
