// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An address space as its tables describe it, and what its stages permit.

use vtd_spec::{AddressWidth, Capabilities, DomainId, FaultReason, Pasid};

use crate::outcome::Blocked;
use crate::rights;

/// A valid PASID entry, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressSpace {
    /// The PASID it stands under in its table.
    pub pasid: Pasid,
    /// The tag of its cached translations.
    pub domain: DomainId,
    /// FPD met on the way to the entry.
    pub fpd: bool,
    /// Privileged requests are allowed.
    pub sre: bool,
    /// It is a context entry's of legacy mode, whose faults have names of their own.
    pub legacy: bool,
    /// The translation itself.
    pub stage: Stage,
}

impl AddressSpace {
    /// A request for this space is blocked.
    pub(crate) fn blocked(&self, reason: FaultReason, write: bool) -> Blocked {
        let reason = if self.legacy { legacy_reason(reason, write) } else { reason };
        Blocked::new(reason, self.fpd)
    }
}

/// What a PASID entry says how to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// PGTT 001.
    First(FirstStage),
    /// PGTT 010.
    Second(SecondStage),
    /// PGTT 011: the first stage's tables and pages are translated by the second.
    Nested(FirstStage, SecondStage),
    /// PGTT 100.
    PassThrough,
}

impl Stage {
    /// Whether the rights that a walk has found allow an access (with the dirty bits or without).
    pub(crate) fn permits(
        &self,
        found: u64,
        read: bool,
        write: bool,
        privileged: bool,
    ) -> Result<(), FaultReason> {
        if let Self::First(first) | Self::Nested(first, _) = self {
            first.permits(found, write, privileged)?;
        }
        Self::second_permits(found, read, write)
    }

    /// The same of the second stage alone.
    pub(crate) fn second_permits(found: u64, read: bool, write: bool) -> Result<(), FaultReason> {
        if write && found & rights::SECOND_WRITE == 0 {
            return Err(FaultReason::Sgn6);
        }
        if read && found & rights::READ == 0 {
            return Err(FaultReason::Sgn7);
        }
        Ok(())
    }
}

/// A first-stage table, as its PASID entry describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstStage {
    /// Address of the top table: a guest physical one if nested.
    pub table: u64,
    /// 4 or 5.
    pub levels: u8,
    /// Supervisor writes honour R/W.
    pub wpe: bool,
    /// The extended-accessed bit is kept too.
    pub eafe: bool,
    /// Walks are coherent: accessed and dirty bits can be set.
    pub snooped: bool,
}

impl FirstStage {
    /// Bits 63 down to the top bit of the input must be equal. \[S 3.6: SGN.1\]
    pub(crate) fn canonical(&self, address: u64) -> bool {
        sign_extended(address, self.levels) == address
    }

    /// Whether rights that a walk has found allow an access at all (with the dirty bit or without).
    pub(crate) fn permits(&self, found: u64, write: bool, privileged: bool) -> Result<(), FaultReason> {
        if !privileged && found & rights::USER == 0 {
            return Err(FaultReason::Sgn2);
        }
        if write && found & rights::WRITE == 0 && (!privileged || self.wpe) {
            return Err(FaultReason::Sgn6);
        }
        Ok(())
    }
}

/// A second-stage table, as its PASID entry describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecondStage {
    /// Address of the top table.
    pub table: u64,
    /// Width of the input address.
    pub width: AddressWidth,
    /// Accessed and dirty bits are kept.
    pub ade: bool,
    /// Walks are coherent: those bits can be set.
    pub snooped: bool,
}

impl SecondStage {
    /// The largest input address. \[S 3.7\]
    pub(crate) fn max_input(&self, capabilities: &Capabilities) -> u64 {
        capabilities.max_second_stage_input(self.width)
    }
}

/// The canonical form of what an address has in the bits that tables of `levels` levels use. Invalidations come with any
/// bits above.
pub(crate) const fn sign_extended(address: u64, levels: u8) -> u64 {
    let unused = 64 - (12 + 9 * levels as u32);
    ((address << unused) as i64 >> unused) as u64
}

/// What a reason of scalable mode is called in legacy mode. \[S table 30\]
pub(crate) const fn legacy_reason(reason: FaultReason, write: bool) -> FaultReason {
    use FaultReason as R;
    match reason {
        R::Sss1 => R::Lss1,
        R::Sss3 => R::Lss2,
        R::Sss4 => R::Lct4_3,
        R::Sgn4_1 => R::Lgn1_2,
        R::Sgn4_2 => R::Lgn1_3,
        R::Sgn5 => R::Lgn1_1,
        R::Sgn8_1 | R::Sgn8_2 | R::Sgn8_3 => R::Lgn4,
        // An entry that grants nothing is one without the right that was wanted.
        R::Sss2 if write => R::Lgn2,
        R::Sss2 => R::Lgn3,
        R::Sgn6 => R::Lgn2,
        R::Sgn7 => R::Lgn3,
        other => other,
    }
}
