// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that keeps books: what is attached, translated and allocated; counts what it is asked; holds the joint to the
//! rules of `HostIommu`; refuses now and then, where it is told to. On its own, or in front of a host that does the work.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vsva::{Attachment, DeviceId, HostError, HostEvents, HostIommu, Invalidation, NestingInfo};
use vtd_spec::Pasid;
use vtd_unit::PageGroupResponse;

/// How often each thing was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub allocate: u64,
    pub free: u64,
    pub attach: u64,
    pub block: u64,
    pub translate: u64,
    pub invalidate: u64,
    pub respond: u64,
    pub refused: u64,
}

impl Counts {
    /// Calls that change what is attached.
    pub fn changes(&self) -> u64 {
        self.attach + self.block + self.translate
    }
}

#[derive(Default)]
struct State {
    allocated: BTreeSet<Pasid>,
    attached: BTreeMap<(DeviceId, Option<Pasid>), Attachment>,
    translated: BTreeMap<(DeviceId, Pasid), Pasid>,
    counts: Counts,
    responses: Vec<(DeviceId, PageGroupResponse)>,
    events: BTreeMap<DeviceId, Weak<dyn HostEvents>>,
    /// Every attachment that was ever made.
    history: Vec<Attachment>,
    refuse: Option<Refusals>,
}

/// Refusals by chance, the same ones for the same seed.
struct Refusals {
    one_in: u64,
    state: u64,
}

impl State {
    /// Draws whether to refuse.
    fn refuses(&mut self) -> bool {
        let Some(refusals) = &mut self.refuse else { return false };
        refusals.state ^= refusals.state << 13;
        refusals.state ^= refusals.state >> 7;
        refusals.state ^= refusals.state << 17;
        let refused = refusals.state.is_multiple_of(refusals.one_in);
        self.counts.refused += u64::from(refused);
        refused
    }
}

/// See the module's documentation.
pub struct Ledger {
    behind: Option<Arc<dyn HostIommu>>,
    identical: bool,
    quota: usize,
    state: Mutex<State>,
}

/// The first PASID that a ledger on its own allocates: not one that its guests choose.
const FIRST: u32 = 0x8_0000;

impl Ledger {
    /// A host that does nothing but keep books.
    pub fn new(identical: bool, quota: usize) -> Arc<Self> {
        Arc::new(Self { behind: None, identical, quota, state: Mutex::default() })
    }

    /// Books in front of a host.
    pub fn of(behind: Arc<dyn HostIommu>) -> Arc<Self> {
        let identical = behind.nesting_info().identical_pasids;
        Arc::new(Self { behind: Some(behind), identical, quota: usize::MAX, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A rule that was broken has been reported: what counts is that one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on one call in `one_in`, of those that may be refused, is; none for 0.
    pub fn refuse(&self, one_in: u64, seed: u64) {
        self.state().refuse = (one_in > 0).then_some(Refusals { one_in, state: seed | 1 });
    }

    /// What was asked since the last time.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.state().counts)
    }

    /// Responses to a device, oldest first.
    pub fn take_responses(&self) -> Vec<(DeviceId, PageGroupResponse)> {
        std::mem::take(&mut self.state().responses)
    }

    /// Every attachment made since the last time.
    pub fn take_history(&self) -> Vec<Attachment> {
        std::mem::take(&mut self.state().history)
    }

    pub fn allocated(&self) -> usize {
        self.state().allocated.len()
    }

    /// What requests without PASID are attached to.
    pub fn without_pasid(&self, device: DeviceId) -> Option<Attachment> {
        self.state().attached.get(&(device, None)).copied()
    }

    /// What a device reaches, by the guest's PASIDs.
    pub fn reached(&self, device: DeviceId) -> BTreeMap<Pasid, Attachment> {
        let state = self.state();
        if self.identical {
            let of_device = state.attached.iter().filter(|((owner, _), _)| *owner == device);
            return of_device.filter_map(|((_, pasid), to)| Some(((*pasid)?, *to))).collect();
        }
        let of_device = state.translated.iter().filter(|((owner, _), _)| *owner == device);
        of_device
            .filter_map(|((_, guest), host)| Some((*guest, *state.attached.get(&(device, Some(*host)))?)))
            .collect()
    }

    /// All that is attached for a device under a PASID of the host.
    pub fn attached(&self, device: DeviceId) -> BTreeMap<Pasid, Attachment> {
        let state = self.state();
        let of_device = state.attached.iter().filter(|((owner, _), _)| *owner == device);
        of_device.filter_map(|((_, pasid), to)| Some(((*pasid)?, *to))).collect()
    }

    /// Nothing is attached, translated or allocated.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.attached.is_empty() && state.translated.is_empty() && state.allocated.is_empty()
    }

    /// Who hears of a device.
    pub fn events(&self, device: DeviceId) -> Option<Arc<dyn HostEvents>> {
        self.state().events.get(&device)?.upgrade()
    }

    fn take_number(&self, number: Option<Pasid>) -> Result<Pasid, HostError> {
        let mut state = self.state();
        state.counts.allocate += 1;
        if state.refuses() || state.allocated.len() >= self.quota {
            return Err(HostError::NoPasid);
        }
        drop(state);
        let pasid = match (&self.behind, number) {
            (Some(behind), Some(number)) => behind.allocate_this_pasid(number).map(|()| number)?,
            (Some(behind), None) => behind.allocate_pasid()?,
            (None, Some(number)) if self.state().allocated.contains(&number) => {
                return Err(HostError::NoPasid);
            }
            (None, Some(number)) => number,
            (None, None) => {
                let state = self.state();
                let free = |number: &u32| !state.allocated.contains(&Pasid::truncated(*number));
                Pasid::truncated((FIRST..=Pasid::MAX.get()).find(free).ok_or(HostError::NoPasid)?)
            }
        };
        assert!(self.state().allocated.insert(pasid), "{pasid} was allocated already");
        Ok(pasid)
    }
}

impl HostIommu for Ledger {
    fn nesting_info(&self) -> NestingInfo {
        match &self.behind {
            Some(behind) => behind.nesting_info(),
            None => NestingInfo {
                fs1gp: true,
                fs5lp: true,
                prs: true,
                srs: true,
                eafs: true,
                pasid_bits: 20,
                address_width: 48,
                identical_pasids: self.identical,
                ..NestingInfo::default()
            },
        }
    }

    fn listen(&self, device: DeviceId, events: Weak<dyn HostEvents>) {
        if let Some(behind) = &self.behind {
            behind.listen(device, events.clone());
        }
        self.state().events.insert(device, events);
    }

    fn allocate_pasid(&self) -> Result<Pasid, HostError> {
        self.take_number(None)
    }

    fn allocate_this_pasid(&self, pasid: Pasid) -> Result<(), HostError> {
        self.take_number(Some(pasid)).map(drop)
    }

    fn free_pasid(&self, pasid: Pasid) {
        {
            let mut state = self.state();
            state.counts.free += 1;
            assert!(state.allocated.remove(&pasid), "{pasid} is freed and was not allocated");
            assert!(
                state.attached.keys().all(|(_, at)| *at != Some(pasid)),
                "{pasid} is freed while attached"
            );
            assert!(
                state.translated.values().all(|at| *at != pasid),
                "{pasid} is freed while it stands for one"
            );
        }
        if let Some(behind) = &self.behind {
            behind.free_pasid(pasid);
        }
    }

    fn attach(&self, device: DeviceId, pasid: Option<Pasid>, to: Attachment) -> Result<(), HostError> {
        {
            let mut state = self.state();
            state.counts.attach += 1;
            let allocated = pasid.is_none_or(|pasid| state.allocated.contains(&pasid));
            assert!(allocated, "{pasid:?} is attached and was not allocated");
            if state.refuses() {
                return Err(HostError::Host("by chance".into()));
            }
        }
        if let Some(behind) = &self.behind {
            behind.attach(device, pasid, to)?;
        }
        let mut state = self.state();
        state.attached.insert((device, pasid), to);
        state.history.push(to);
        Ok(())
    }

    fn block(&self, device: DeviceId, pasid: Option<Pasid>) {
        if let Some(behind) = &self.behind {
            behind.block(device, pasid);
        }
        let mut state = self.state();
        state.counts.block += 1;
        state.attached.remove(&(device, pasid));
    }

    fn set_pasid_translation(
        &self,
        device: DeviceId,
        guest: Pasid,
        host: Option<Pasid>,
    ) -> Result<(), HostError> {
        {
            let mut state = self.state();
            state.counts.translate += 1;
            assert!(!self.identical || host.is_none_or(|host| host == guest));
            // Taking one away is part of unbinding, which cannot fail.
            if host.is_some() && state.refuses() {
                return Err(HostError::Host("by chance".into()));
            }
        }
        if let Some(behind) = &self.behind {
            behind.set_pasid_translation(device, guest, host)?;
        }
        let mut state = self.state();
        match host {
            Some(host) => state.translated.insert((device, guest), host),
            None => state.translated.remove(&(device, guest)),
        };
        Ok(())
    }

    fn invalidate(&self, batch: &[Invalidation]) -> usize {
        assert!(!batch.is_empty());
        let mut state = self.state();
        state.counts.invalidate += 1;
        let offered = if state.refuses() { batch.len() / 2 } else { batch.len() };
        drop(state);
        match &self.behind {
            Some(behind) if offered > 0 => behind.invalidate(&batch[..offered]),
            _ => offered,
        }
    }

    fn respond(&self, device: DeviceId, response: PageGroupResponse, cookie: u64) {
        if let Some(behind) = &self.behind {
            behind.respond(device, response, cookie);
        }
        let mut state = self.state();
        state.counts.respond += 1;
        state.responses.push((device, response));
    }
}
