// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What someone who mirrors the unit's tables elsewhere reads: its software's PASID entries, each once.

use std::collections::HashMap;
use std::ops::ControlFlow;

use vm_memory::GuestMemoryBackend;
use vtd_spec::{DomainId, FaultReason, Pasid, SourceId};

use crate::address_space::{AddressSpace, Stage};
use crate::function::{RequestKind, find_context, pasid_of};
use crate::notify::Message;
use crate::outcome::Blocked;
use crate::request::Requester;
use crate::tables::{Context, read_directory_entry, read_pasid_entry, read_table_entry};
use crate::unit::Unit;

/// How a function's requests are translated, as its tables say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Output address is input address.
    PassThrough,
    /// By a first-stage table.
    FirstStage(FirstStageTable),
    /// By a second-stage table, or by both stages: what only a unit that offers them to its software finds.
    SecondStage,
}

/// A first-stage table of the unit's software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstStageTable {
    /// Address of the top table, 4 KiB aligned, in the unit's memory.
    pub address: u64,
    /// Levels: 4 (48-bit addresses) or 5 (57-bit).
    pub levels: u8,
    /// Supervisor requests are allowed (SRE).
    pub sre: bool,
    /// The extended-accessed flag is kept (EAFE).
    pub eafe: bool,
    /// Supervisor writes honour R/W (WPE).
    pub wpe: bool,
}

/// A PASID entry of the unit's software, from one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The PASID.
    pub pasid: Pasid,
    /// Its domain-id, which invalidations name.
    pub domain: DomainId,
    /// What it stands for.
    pub translation: Translation,
}

impl Binding {
    fn new(space: &AddressSpace) -> Self {
        let translation = match space.stage {
            Stage::PassThrough => Translation::PassThrough,
            Stage::First(first) => Translation::FirstStage(FirstStageTable {
                address: first.table,
                levels: first.levels,
                sre: space.sre,
                eafe: first.eafe,
                wpe: first.wpe,
            }),
            Stage::Second(_) | Stage::Nested(..) => Translation::SecondStage,
        };
        Self { pasid: space.pasid, domain: space.domain, translation }
    }
}

/// What becomes of requests without PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestsWithoutPasid {
    /// Remapping is off: they go to memory untranslated.
    NotRemapped,
    /// They are translated as RID_PASID's entry says.
    Remapped(Binding),
    /// They are blocked: an entry on the way is not present or not valid.
    Blocked,
}

/// What a unit's tables say of requests, before their address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUp {
    /// Why they are blocked; `None` where they lead to a valid PASID entry.
    pub fault: Option<FaultReason>,
    /// FPD was met on the way: qualified faults leave no record. \[S 7.1.1\]
    pub fpd: bool,
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Unit<M> {
    /// How the tables now translate requests of `source_id` without PASID. Reads each entry on the way once.
    pub fn requests_without_pasid(&self, source_id: SourceId) -> RequestsWithoutPasid {
        if !self.core().registers().remapping().enabled {
            return RequestsWithoutPasid::NotRemapped;
        }
        let binding =
            self.context(source_id).and_then(|context| self.binding_of(&context, context.rid_pasid));
        binding.map_or(RequestsWithoutPasid::Blocked, RequestsWithoutPasid::Remapped)
    }

    /// The entry that the tables now hold for `pasid`, if requests with it are translated at all: not while remapping
    /// is off. Reads each entry on the way once.
    pub fn binding(&self, source_id: SourceId, pasid: Pasid) -> Option<Binding> {
        let context = self.context_for_pasids(source_id)?;
        if !self.names_space(&context, pasid) {
            return None;
        }
        self.binding_of(&context, pasid).ok()
    }

    /// Shows `f` the valid entries that the tables now hold for requests with PASID, in order of their PASIDs from `first`
    /// on, until it breaks; none while remapping is off. Reads each directory entry once, and each table once: where a
    /// directory names one again, its valid entries alone. `interrupted` is asked before each table, and ends it. Whether
    /// all were shown, or `f` had seen enough.
    pub fn bindings(
        &self,
        source_id: SourceId,
        first: Pasid,
        interrupted: &dyn Fn() -> bool,
        f: &mut dyn FnMut(Pasid, Binding) -> ControlFlow<()>,
    ) -> bool {
        let Some(context) = self.context_for_pasids(source_id) else { return true };
        let core = self.core();
        let (memory, capabilities) = (&*core.memory, &core.capabilities);
        let limit = context.pasid_limit.min(1 << capabilities.pasid_bits());
        // The tables that were read as a whole, with a bit for each valid entry.
        let mut seen: HashMap<u64, u64> = HashMap::new();
        let mut number = first.get();
        while number < limit {
            if interrupted() {
                return false;
            }
            let start = number & !0x3f;
            if let Ok(directory) =
                read_directory_entry(memory, capabilities, &context, Pasid::truncated(number))
            {
                let known = seen.get(&directory.smptblptr()).copied().unwrap_or(!0);
                let mut valid = 0;
                for index in (number - start..(limit - start).min(64)).filter(|index| known >> index & 1 != 0)
                {
                    let pasid = Pasid::truncated(start + index);
                    let Ok(space) = read_table_entry(memory, capabilities, &context, directory, pasid) else {
                        continue;
                    };
                    valid |= 1 << index;
                    if self.names_space(&context, pasid) && f(pasid, Binding::new(&space)).is_break() {
                        return true;
                    }
                }
                if number == start && limit - start >= 64 {
                    seen.insert(directory.smptblptr(), valid);
                }
            }
            number = start + 64;
        }
        true
    }

    /// Counts enablings and disablings of the invalidation queue, and resets of the unit: what an observer does for a wait
    /// descriptor is in vain once this has changed.
    pub fn queue_generation(&self) -> u64 {
        self.core().registers().queue_epoch
    }

    /// What becomes of a message that the function `source_id` would send now: what is to be delivered, for someone who routes
    /// interrupts past the unit (KVM's irqfd). Nothing is delivered and nothing recorded. How long the answer holds, an
    /// [`Observer`](crate::Observer) hears.
    ///
    /// # Errors
    ///
    /// Why it would be blocked; for a message outside the interrupt range, which is none,
    /// [`FaultReason::Ir29`].
    pub fn remapped(&self, source_id: SourceId, message: Message) -> Result<Message, FaultReason> {
        self.core().look_up_message(source_id, message).map_err(|blocked| blocked.reason)
    }

    /// What the tables now say of a function's requests with `pasid`, or without any, before their address counts. Reads
    /// each entry on the way once.
    pub fn look_up(&self, source_id: SourceId, pasid: Option<Pasid>) -> LookUp {
        match self.space_of(source_id, pasid) {
            Ok(fpd) => LookUp { fault: None, fpd },
            Err(Blocked { reason, suppressed }) => LookUp { fault: Some(reason), fpd: suppressed },
        }
    }

    /// Whether FPD is set on the way to the entry of requests that it does not block.
    fn space_of(&self, source_id: SourceId, pasid: Option<Pasid>) -> Result<bool, Blocked> {
        let core = self.core();
        if !core.registers().remapping().enabled {
            return Ok(false);
        }
        let context = self.context(source_id)?;
        let blocked = |reason| Err(Blocked::new(reason, context.fpd));
        match (context.legacy, pasid) {
            (Some(_), Some(_)) => return blocked(FaultReason::Rta2),
            (Some(space), None) => return Ok(space.fpd),
            (None, Some(_)) if !context.paside => return blocked(FaultReason::Sct6),
            (None, _) => {}
        }
        let pasid = pasid_of(&context, &core.capabilities, pasid)?;
        read_pasid_entry(&*core.memory, &core.capabilities, &context, pasid).map(|space| space.fpd)
    }

    /// RID_PASID is for requests without PASID alone. \[SCT.9\]
    fn names_space(&self, context: &Context, pasid: Pasid) -> bool {
        pasid_of(context, &self.core().capabilities, Some(pasid)).is_ok()
    }

    fn context_for_pasids(&self, source_id: SourceId) -> Option<Context> {
        if !self.core().registers().remapping().enabled {
            return None;
        }
        self.context(source_id).ok().filter(|context| context.paside)
    }

    fn context(&self, source_id: SourceId) -> Result<Context, Blocked> {
        let core = self.core();
        let remapping = core.registers().remapping();
        let requester = Requester::default();
        find_context(
            &*core.memory,
            &core.capabilities,
            &remapping,
            source_id,
            requester,
            RequestKind::Untranslated,
        )
    }

    fn binding_of(&self, context: &Context, pasid: Pasid) -> Result<Binding, Blocked> {
        let core = self.core();
        if let Some(space) = &context.legacy {
            return Ok(Binding::new(space));
        }
        read_pasid_entry(&*core.memory, &core.capabilities, context, pasid).map(|space| Binding::new(&space))
    }
}
