// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Register-based invalidation: for software in legacy mode that has not enabled the invalidation queue.
//! \[S 6.5.1, 11.4.6\]
//!
//! A command is done by whoever works off the queue, as if it were a descriptor; ICC and IVT tell that it is pending.

use vtd_spec::descriptors::{ContextCache, ContextGranularity, FunctionMask, Iotlb, IotlbGranularity};
use vtd_spec::registers::offset;
use vtd_spec::{
    ContextCommand, Descriptor, DomainId, InvalidateAddress, IotlbInvalidate, SourceId, TranslationTableMode,
};

use super::page::Registers;

/// The registers whose writes invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidationRegister {
    /// CCMD.
    ContextCommand,
    /// IOTLB, with IVA.
    Iotlb,
}

/// A command of such a register, and the granularity that is reported once it has been carried out.
pub(crate) struct Command {
    pub register: InvalidationRegister,
    /// What to do, or nothing where it is not valid.
    pub descriptor: Option<Descriptor>,
    granularity: u8,
}

impl Registers {
    /// Sets the attributes of the registers.
    pub(crate) fn register_invalidation_attributes(&mut self) {
        let command = ContextCommand::new().with_did(!0).with_sid(!0).with_fm(3).with_cirg(3).into_bits();
        self.writable64(offset::CCMD, command);
        self.write_only64(offset::CCMD, ContextCommand::new().with_sid(!0).with_fm(3).into_bits());
        let ecap = self.capabilities.ecap;
        let address = InvalidateAddress::new().with_am(0x3f).with_ih(true).with_addr(!0).into_bits();
        self.writable64(ecap.iva_offset(), address);
        self.write_only64(ecap.iva_offset(), address);
        let iotlb = IotlbInvalidate::new().with_did(!0).with_dw(true).with_dr(true).with_iirg(3);
        self.writable64(ecap.iotlb_offset(), iotlb.into_bits());
    }

    /// The register whose upper doubleword lies at `at`: the one with the bit that starts a command.
    pub(crate) fn invalidation_register_at(&self, at: u64) -> Option<InvalidationRegister> {
        const CONTEXT: u64 = offset::CCMD + 4;
        match at {
            CONTEXT => Some(InvalidationRegister::ContextCommand),
            _ if at == self.capabilities.ecap.iotlb_offset() + 4 => Some(InvalidationRegister::Iotlb),
            _ => None,
        }
    }

    /// Takes a command that software has started. In another mode, and where the queue is enabled, it is ignored, which
    /// the actual granularity 0 tells.
    pub(crate) fn start_register_invalidation(&mut self, register: InvalidationRegister) {
        let served = self.root_table.ttm() == TranslationTableMode::Legacy && !self.queue_enabled;
        self.set_command_state(register, served, 0);
    }

    /// A command that was started and is not done.
    pub(crate) fn pending_register_invalidation(&self) -> Option<Command> {
        let context = ContextCommand::from_bits(self.get64(offset::CCMD));
        if context.icc() {
            let granularity = match context.cirg() {
                1 => Some(ContextGranularity::Global),
                2 => Some(ContextGranularity::Domain),
                3 => Some(ContextGranularity::Device),
                _ => None,
            };
            let descriptor = granularity.map(|granularity| {
                Descriptor::ContextCache(ContextCache {
                    granularity,
                    did: DomainId(context.did() & self.capabilities.did_mask()),
                    sid: SourceId(context.sid()),
                    fm: FunctionMask::from_bits(context.fm()),
                })
            });
            let register = InvalidationRegister::ContextCommand;
            return Some(Command { register, descriptor, granularity: context.cirg() });
        }
        let ecap = self.capabilities.ecap;
        let iotlb = IotlbInvalidate::from_bits(self.get64(ecap.iotlb_offset()));
        if !iotlb.ivt() {
            return None;
        }
        let address = InvalidateAddress::from_bits(self.get64(ecap.iva_offset()));
        let cap = self.capabilities.cap;
        let granularity = match iotlb.iirg() {
            1 => Some(IotlbGranularity::Global),
            2 => Some(IotlbGranularity::Domain),
            3 if cap.psi() && address.am() <= cap.mamv() => Some(IotlbGranularity::Page),
            _ => None,
        };
        let descriptor = granularity.map(|granularity| {
            Descriptor::Iotlb(Iotlb {
                granularity,
                dw: iotlb.dw(),
                dr: iotlb.dr(),
                did: DomainId(iotlb.did() & self.capabilities.did_mask()),
                am: address.am(),
                ih: address.ih(),
                addr: address.addr() & (u64::MAX >> (63 - cap.mgaw())),
            })
        });
        Some(Command { register: InvalidationRegister::Iotlb, descriptor, granularity: iotlb.iirg() })
    }

    /// The command has been carried out, or was not valid.
    pub(crate) fn finish_register_invalidation(&mut self, command: &Command) {
        let granularity = if command.descriptor.is_some() { command.granularity } else { 0 };
        // Unless the unit was reset meanwhile.
        if self.command_is_pending(command.register) {
            self.set_command_state(command.register, false, granularity);
        }
    }

    fn command_is_pending(&self, register: InvalidationRegister) -> bool {
        match register {
            InvalidationRegister::ContextCommand => ContextCommand::from_bits(self.get64(offset::CCMD)).icc(),
            InvalidationRegister::Iotlb => {
                IotlbInvalidate::from_bits(self.get64(self.capabilities.ecap.iotlb_offset())).ivt()
            }
        }
    }

    /// Sets the bits of a register that are the unit's: whether a command is pending, and what the last one did.
    fn set_command_state(&mut self, register: InvalidationRegister, pending: bool, granularity: u8) {
        match register {
            InvalidationRegister::ContextCommand => {
                let command = ContextCommand::from_bits(self.get64(offset::CCMD));
                self.set64(offset::CCMD, command.with_icc(pending).with_caig(granularity).into_bits());
            }
            InvalidationRegister::Iotlb => {
                let at = self.capabilities.ecap.iotlb_offset();
                let iotlb = IotlbInvalidate::from_bits(self.get64(at));
                self.set64(at, iotlb.with_ivt(pending).with_iaig(granularity).into_bits());
            }
        }
    }
}
