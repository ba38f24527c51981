// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random histories against the simplest allocator there is.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use ioasid::{Allocator, CustomAllocator, CustomAllocatorId, Error, Event, Ioasid, SetId};
use proptest::prelude::*;

const FIRST: Ioasid = 1;
const LAST: Ioasid = 200;

#[derive(Clone, Debug)]
enum Step {
    CreateSet(u32),
    SetQuota(usize, u32),
    Allocate(usize, Ioasid, Ioasid),
    Free(usize, Ioasid),
    Bind(usize, Ioasid),
    Unbind(usize, Ioasid),
    Release(usize),
    Register,
    Unregister,
}

fn step() -> impl Strategy<Value = Step> {
    let set = 0..4usize;
    let id = FIRST - 1..=LAST + 2;
    prop_oneof![
        2 => (0..120u32).prop_map(Step::CreateSet),
        1 => (set.clone(), 0..120u32).prop_map(|(set, quota)| Step::SetQuota(set, quota)),
        30 => (set.clone(), id.clone(), id.clone()).prop_map(|(set, a, b)| Step::Allocate(set, a, b)),
        15 => (set.clone(), id.clone()).prop_map(|(set, id)| Step::Free(set, id)),
        8 => (set.clone(), id.clone()).prop_map(|(set, id)| Step::Bind(set, id)),
        8 => (set.clone(), id).prop_map(|(set, id)| Step::Unbind(set, id)),
        1 => set.prop_map(Step::Release),
        1 => Just(Step::Register),
        1 => Just(Step::Unregister),
    ]
}

/// Gives the highest id.
struct FromAbove(Arc<Mutex<Vec<Ioasid>>>);

impl CustomAllocator for FromAbove {
    fn interface(&self) -> &'static str {
        "from above"
    }

    fn allocate(&mut self, range: RangeInclusive<Ioasid>) -> Option<Ioasid> {
        let mut out = self.0.lock().unwrap();
        let id = range.rev().find(|id| !out.contains(id))?;
        out.push(id);
        Some(id)
    }

    fn free(&mut self, id: Ioasid) {
        self.0.lock().unwrap().retain(|&other| other != id);
    }
}

#[derive(Default)]
struct Model {
    quotas: BTreeMap<usize, u32>,
    /// Set, bindings and data of each id.
    ids: BTreeMap<Ioasid, (usize, u32, usize)>,
    custom: bool,
    events: Vec<(Event, Ioasid)>,
}

impl Model {
    fn promised(&self) -> u32 {
        self.quotas.values().sum()
    }

    fn held(&self, set: usize) -> u32 {
        self.ids.values().filter(|id| id.0 == set).count() as u32
    }

    fn create_set(&mut self, set: usize, quota: u32) -> Result<(), Error> {
        let available = LAST - FIRST + 1 - self.promised();
        if quota > available {
            return Err(Error::NoCapacity { quota, available });
        }
        self.quotas.insert(set, quota);
        Ok(())
    }

    fn set_quota(&mut self, set: usize, quota: u32) -> Result<(), Error> {
        let old = *self.quotas.get(&set).ok_or(Error::NoSuchSet)?;
        let (available, allocated) = (LAST - FIRST + 1 - self.promised() + old, self.held(set));
        if quota < allocated {
            return Err(Error::QuotaTooSmall { quota, allocated });
        }
        if quota > available {
            return Err(Error::NoCapacity { quota, available });
        }
        self.quotas.insert(set, quota);
        Ok(())
    }

    fn allocate(&mut self, set: usize, first: Ioasid, last: Ioasid, data: usize) -> Result<Ioasid, Error> {
        let quota = *self.quotas.get(&set).ok_or(Error::NoSuchSet)?;
        if first > last || first < FIRST || last > LAST {
            return Err(Error::InvalidRange { first, last });
        }
        if self.held(set) >= quota {
            return Err(Error::QuotaExceeded { quota });
        }
        let mut free = (first..=last).filter(|id| !self.ids.contains_key(id));
        let id = if self.custom {
            free.next_back().ok_or(Error::CustomExhausted)?
        } else {
            free.next().ok_or(Error::NoSpace)?
        };
        self.ids.insert(id, (set, 0, data));
        Ok(id)
    }

    fn check(&mut self, set: usize, id: Ioasid) -> Result<&mut (usize, u32, usize), Error> {
        let entry = self.ids.get_mut(&id).ok_or(Error::NotAllocated { id })?;
        if entry.0 == set { Ok(entry) } else { Err(Error::NotInSet { id }) }
    }

    fn free(&mut self, set: usize, id: Ioasid) -> Result<Option<usize>, Error> {
        let &mut (_, bound, data) = self.check(set, id)?;
        if bound != 0 {
            return Err(Error::Bound { id });
        }
        self.ids.remove(&id);
        self.events.push((Event::Free, id));
        Ok(Some(data))
    }

    fn bind(&mut self, set: usize, id: Ioasid) -> Result<(), Error> {
        let entry = self.check(set, id)?;
        entry.1 += 1;
        if entry.1 == 1 {
            self.events.push((Event::Bind, id));
        }
        Ok(())
    }

    fn unbind(&mut self, set: usize, id: Ioasid) -> Result<(), Error> {
        let entry = self.check(set, id)?;
        entry.1 = entry.1.checked_sub(1).ok_or(Error::NotBound { id })?;
        if entry.1 == 0 {
            self.events.push((Event::Unbind, id));
        }
        Ok(())
    }

    fn release(&mut self, set: usize, order: &[Ioasid]) -> Result<(), Error> {
        self.quotas.remove(&set).ok_or(Error::NoSuchSet)?;
        for id in order {
            if self.ids[id].1 != 0 {
                self.events.push((Event::Unbind, *id));
            }
        }
        for id in order {
            self.ids.remove(id);
            self.events.push((Event::Free, *id));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_allocator_is_the_model(steps in proptest::collection::vec(step(), 1..400)) {
        let mut ids: Allocator<usize> = Allocator::new(FIRST..=LAST).unwrap();
        let mut model = Model::default();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        ids.register_notifier(None, move |n| heard.lock().unwrap().push((n.event, n.id))).unwrap();
        let out = Arc::new(Mutex::new(Vec::new()));
        let mut custom: Option<CustomAllocatorId> = None;
        let mut sets: Vec<SetId> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            // Steps that name a set which does not exist yet are left out; ones that is gone are not.
            match step {
                Step::CreateSet(quota) => {
                    let created = ids.create_set(quota);
                    prop_assert_eq!(created.map(|_| ()), model.create_set(sets.len(), quota));
                    sets.extend(created);
                }
                Step::SetQuota(set, quota) if set < sets.len() => {
                    prop_assert_eq!(ids.set_quota(sets[set], quota), model.set_quota(set, quota));
                }
                Step::Allocate(set, a, b) if set < sets.len() => {
                    // Empty ranges are rare, not every second one.
                    let (first, last) = if number % 16 == 0 { (a, b) } else { (a.min(b), a.max(b)) };
                    let got = ids.allocate(sets[set], first..=last, Some(number));
                    prop_assert_eq!(got, model.allocate(set, first, last, number));
                }
                Step::Free(set, id) if set < sets.len() => {
                    prop_assert_eq!(ids.free(sets[set], id), model.free(set, id));
                }
                Step::Bind(set, id) if set < sets.len() => {
                    prop_assert_eq!(ids.bind(Some(sets[set]), id), model.bind(set, id));
                }
                Step::Unbind(set, id) if set < sets.len() => {
                    prop_assert_eq!(ids.unbind(Some(sets[set]), id), model.unbind(set, id));
                }
                Step::Release(set) if set < sets.len() => {
                    let order = ids.ids(sets[set]).map(<[_]>::to_vec).unwrap_or_default();
                    prop_assert_eq!(ids.release_set(sets[set], |_, _| ()), model.release(set, &order));
                }
                Step::Register if custom.is_none() => {
                    let registered = ids.register_allocator(FromAbove(Arc::clone(&out)));
                    prop_assert_eq!(registered.is_ok(), model.ids.is_empty());
                    custom = registered.ok();
                    model.custom = custom.is_some();
                }
                Step::Unregister => if let Some(allocator) = custom {
                    let gone = ids.unregister_allocator(allocator).is_ok();
                    prop_assert_eq!(gone, model.ids.is_empty());
                    if gone {
                        custom = None;
                        model.custom = false;
                    }
                },
                _ => {}
            }
            prop_assert_eq!(&*events.lock().unwrap(), &model.events);
            prop_assert_eq!(ids.allocated() as usize, model.ids.len());
            if model.custom {
                let mut out = out.lock().unwrap().clone();
                out.sort_unstable();
                prop_assert_eq!(out, model.ids.keys().copied().collect::<Vec<_>>());
            }
        }
        for (id, (set, bound, data)) in &model.ids {
            prop_assert_eq!(ids.find(Some(sets[*set]), *id), Ok(Some(data)));
            prop_assert_eq!(ids.is_bound(*id), Ok(*bound != 0));
        }
        for set in model.quotas.keys() {
            let mut held = ids.ids(sets[*set]).unwrap().to_vec();
            held.sort_unstable();
            let expected: Vec<_> = model.ids.iter().filter(|id| id.1.0 == *set).map(|id| *id.0).collect();
            prop_assert_eq!(held, expected);
        }
    }
}
