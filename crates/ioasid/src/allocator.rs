// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The allocator.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::custom::{CustomAllocator, CustomAllocatorId, CustomAllocators};
use crate::id_map::IdMap;
use crate::notification::{Event, Notification, NotifierId, Notifiers};
use crate::set::{Set, SetId};
use crate::{Error, Ioasid, MAX_ID};

/// What is known of an allocated id.
struct Slot<D> {
    set: SetId,
    /// Its place among the set's members.
    place: usize,
    /// How often it is bound.
    bound: u32,
    data: Option<D>,
}

/// The allocator; `D` is what owners attach to an id.
pub struct Allocator<D> {
    range: RangeInclusive<Ioasid>,
    ids: IdMap<Slot<D>>,
    sets: BTreeMap<SetId, Set>,
    next_set: u64,
    /// Ids that the quotas leave over.
    available: u32,
    custom: CustomAllocators,
    notifiers: Notifiers,
}

impl<D> Allocator<D> {
    /// An allocator of the ids in `range`, none of them allocated. PASID 0 is what requests without PASID use, so
    /// ranges begin at 1 as a rule.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRange`] for an empty range and for one beyond [`MAX_ID`].
    pub fn new(range: RangeInclusive<Ioasid>) -> Result<Self, Error> {
        let (first, last) = (*range.start(), *range.end());
        if first > last || last > MAX_ID {
            return Err(Error::InvalidRange { first, last });
        }
        Ok(Self {
            range,
            ids: IdMap::new(),
            sets: BTreeMap::new(),
            next_set: 0,
            available: last - first + 1,
            custom: CustomAllocators::default(),
            notifiers: Notifiers::default(),
        })
    }

    /// Ids that are allocated, of all sets.
    pub fn allocated(&self) -> u32 {
        self.ids.len()
    }

    /// The ids this allocator manages.
    pub fn range(&self) -> RangeInclusive<Ioasid> {
        self.range.clone()
    }

    /// A new, empty set that may hold up to `quota` ids. They are promised to it: no other set can get them all.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapacity`] where fewer ids are left to promise.
    pub fn create_set(&mut self, quota: u32) -> Result<SetId, Error> {
        let available = self.available;
        self.available = available.checked_sub(quota).ok_or(Error::NoCapacity { quota, available })?;
        let id = SetId(self.next_set);
        self.next_set += 1;
        self.sets.insert(id, Set { quota, members: Vec::new() });
        Ok(id)
    }

    /// The quota of a set and the number of ids it holds.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`].
    pub fn usage(&self, set: SetId) -> Result<(u32, u32), Error> {
        let set = self.sets.get(&set).ok_or(Error::NoSuchSet)?;
        Ok((set.quota, set.allocated()))
    }

    /// Changes the quota of a set.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`]; [`Error::QuotaTooSmall`] below what the set holds; [`Error::NoCapacity`] as in
    /// [`create_set`](Self::create_set).
    pub fn set_quota(&mut self, set: SetId, quota: u32) -> Result<(), Error> {
        let set = self.sets.get_mut(&set).ok_or(Error::NoSuchSet)?;
        let allocated = set.allocated();
        if quota < allocated {
            return Err(Error::QuotaTooSmall { quota, allocated });
        }
        let available = self.available + set.quota;
        self.available = available.checked_sub(quota).ok_or(Error::NoCapacity { quota, available })?;
        set.quota = quota;
        Ok(())
    }

    /// Allocates an id in `range` for a set: the lowest free one, or what the custom allocator chooses.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`]; [`Error::InvalidRange`] unless the range lies within the allocator's and holds an id;
    /// [`Error::QuotaExceeded`]; [`Error::NoSpace`]; [`Error::CustomExhausted`] and [`Error::CustomMisbehaved`] while a
    /// custom allocator is in use.
    pub fn allocate(
        &mut self,
        set: SetId,
        range: RangeInclusive<Ioasid>,
        data: Option<D>,
    ) -> Result<Ioasid, Error> {
        let members = self.sets.get_mut(&set).ok_or(Error::NoSuchSet)?;
        let (first, last) = (*range.start(), *range.end());
        if first > last || first < *self.range.start() || last > *self.range.end() {
            return Err(Error::InvalidRange { first, last });
        }
        if members.allocated() >= members.quota {
            return Err(Error::QuotaExceeded { quota: members.quota });
        }
        let slot = Slot { set, place: members.members.len(), bound: 0, data };
        let id = match self.custom.active() {
            None => self.ids.lowest_free(first, last).ok_or(Error::NoSpace)?,
            Some(custom) => {
                let id = custom.allocate(first..=last).ok_or(Error::CustomExhausted)?;
                // An id that is out already is not given back: it belongs to whoever has it.
                if self.ids.get(id).is_some() {
                    return Err(Error::CustomMisbehaved { id });
                }
                if !(first..=last).contains(&id) {
                    custom.free(id);
                    return Err(Error::CustomMisbehaved { id });
                }
                id
            }
        };
        self.ids.insert(id, slot).map_err(|_| Error::CustomMisbehaved { id })?;
        members.members.push(id);
        Ok(id)
    }

    /// Frees an id of a set; returns its data.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find), and [`Error::Bound`] while the id is bound.
    pub fn free(&mut self, set: SetId, id: Ioasid) -> Result<Option<D>, Error> {
        if self.slot(Some(set), id)?.bound != 0 {
            return Err(Error::Bound { id });
        }
        Ok(self.remove(id))
    }

    /// Takes an allocated, unbound id out of the books and tells everybody.
    fn remove(&mut self, id: Ioasid) -> Option<D> {
        let slot = self.ids.remove(id)?;
        if let Some(set) = self.sets.get_mut(&slot.set) {
            set.members.swap_remove(slot.place);
            if let Some(moved) = set.members.get(slot.place).and_then(|&moved| self.ids.get_mut(moved)) {
                moved.place = slot.place;
            }
        }
        // Nobody may still use the id when the custom allocator gives it to somebody else.
        self.notifiers.notify(Event::Free, id, slot.set);
        if let Some(custom) = self.custom.active() {
            custom.free(id);
        }
        slot.data
    }

    fn slot(&self, set: Option<SetId>, id: Ioasid) -> Result<&Slot<D>, Error> {
        let slot = self.ids.get(id).ok_or(Error::NotAllocated { id })?;
        if set.is_some_and(|set| set != slot.set) {
            return Err(Error::NotInSet { id });
        }
        Ok(slot)
    }

    fn slot_mut(&mut self, set: Option<SetId>, id: Ioasid) -> Result<&mut Slot<D>, Error> {
        let slot = self.ids.get_mut(id).ok_or(Error::NotAllocated { id })?;
        if set.is_some_and(|set| set != slot.set) {
            return Err(Error::NotInSet { id });
        }
        Ok(slot)
    }

    /// The data of an id, which must belong to `set` (`None`: to any set). An id without data is `Ok(None)`.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllocated`], [`Error::NotInSet`].
    pub fn find(&self, set: Option<SetId>, id: Ioasid) -> Result<Option<&D>, Error> {
        Ok(self.slot(set, id)?.data.as_ref())
    }

    /// As [`find`](Self::find), to change it.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find).
    pub fn find_mut(&mut self, set: Option<SetId>, id: Ioasid) -> Result<Option<&mut D>, Error> {
        Ok(self.slot_mut(set, id)?.data.as_mut())
    }

    /// Replaces the data of an id; returns what was there.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find).
    pub fn set_data(&mut self, set: Option<SetId>, id: Ioasid, data: Option<D>) -> Result<Option<D>, Error> {
        Ok(core::mem::replace(&mut self.slot_mut(set, id)?.data, data))
    }

    /// The set an id belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllocated`].
    pub fn set_of(&self, id: Ioasid) -> Result<SetId, Error> {
        Ok(self.slot(None, id)?.set)
    }

    /// The ids of a set, in no order.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`].
    pub fn ids(&self, set: SetId) -> Result<&[Ioasid], Error> {
        Ok(&self.sets.get(&set).ok_or(Error::NoSuchSet)?.members)
    }

    /// Counts one more binding of an id; the first is announced.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find).
    pub fn bind(&mut self, set: Option<SetId>, id: Ioasid) -> Result<(), Error> {
        let slot = self.slot_mut(set, id)?;
        slot.bound = slot.bound.saturating_add(1);
        if slot.bound == 1 {
            let set = slot.set;
            self.notifiers.notify(Event::Bind, id, set);
        }
        Ok(())
    }

    /// Counts one binding less; the last is announced.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find), and [`Error::NotBound`].
    pub fn unbind(&mut self, set: Option<SetId>, id: Ioasid) -> Result<(), Error> {
        let slot = self.slot_mut(set, id)?;
        slot.bound = slot.bound.checked_sub(1).ok_or(Error::NotBound { id })?;
        if slot.bound == 0 {
            let set = slot.set;
            self.notifiers.notify(Event::Unbind, id, set);
        }
        Ok(())
    }

    /// Whether an id is bound.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllocated`].
    pub fn is_bound(&self, id: Ioasid) -> Result<bool, Error> {
        Ok(self.slot(None, id)?.bound != 0)
    }

    /// The owner of a set is gone: everything it holds is unbound first, then freed, and the set is no more.
    ///
    /// `unbind` is called once for each id that is bound, and has taken it off every device when it returns.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`].
    pub fn release_set(
        &mut self,
        set: SetId,
        mut unbind: impl FnMut(Ioasid, Option<&mut D>),
    ) -> Result<(), Error> {
        let members = self.sets.get(&set).ok_or(Error::NoSuchSet)?.members.clone();
        for &id in &members {
            let Some(slot) = self.ids.get_mut(id) else { continue };
            if slot.bound != 0 {
                unbind(id, slot.data.as_mut());
                slot.bound = 0;
                self.notifiers.notify(Event::Unbind, id, set);
            }
        }
        for id in members {
            self.remove(id);
        }
        if let Some(set) = self.sets.remove(&set) {
            self.available += set.quota;
        }
        self.notifiers.forget_set(set);
        Ok(())
    }

    /// Has `callback` called for what happens to the ids of `set` (`None`: of all sets). It is called when the change is
    /// made, except for [`Event::Free`] while a custom allocator is in use: that has not got the id back yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSet`].
    pub fn register_notifier(
        &mut self,
        set: Option<SetId>,
        callback: impl FnMut(Notification) + Send + 'static,
    ) -> Result<NotifierId, Error> {
        if set.is_some_and(|set| !self.sets.contains_key(&set)) {
            return Err(Error::NoSuchSet);
        }
        Ok(self.notifiers.register(set, Box::new(callback)))
    }

    /// Ends a registration. Those for a set end with the set.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNotifier`].
    pub fn unregister_notifier(&mut self, notifier: NotifierId) -> Result<(), Error> {
        self.notifiers.unregister(notifier)
    }

    /// Has a custom allocator choose the ids from now on. One of another interface than the one in use waits until
    /// that is gone; one of the same interface shares its instance.
    ///
    /// # Errors
    ///
    /// [`Error::Outstanding`] where the built-in allocator has ids out (Linux: -EAGAIN).
    pub fn register_allocator(
        &mut self,
        allocator: impl CustomAllocator + 'static,
    ) -> Result<CustomAllocatorId, Error> {
        self.custom.register(Box::new(allocator), self.ids.len())
    }

    /// Takes a custom allocator out. When the last of an interface goes, the next interface takes over, or the built-in
    /// allocator.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchAllocator`]; [`Error::Outstanding`] for the last one of the interface in use while ids are out.
    pub fn unregister_allocator(
        &mut self,
        allocator: CustomAllocatorId,
    ) -> Result<Box<dyn CustomAllocator>, Error> {
        self.custom.unregister(allocator, self.ids.len())
    }

    /// The interface of the custom allocator in use; `None` for the built-in allocator.
    pub fn custom_interface(&self) -> Option<&'static str> {
        self.custom.interface()
    }
}

#[cfg(test)]
mod tests;
