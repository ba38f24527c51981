// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! GCMD and GSTS: commands to the whole unit and what became of them.

use bitfield_struct::bitfield;

/// GCMD, write-only. \[S 11.4.4.1\]
///
/// Software writes the current state from GSTS (masked with [`GlobalStatus::PERSISTENT`]) with one bit changed, and
/// polls GSTS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalCommand {
    #[bits(23)]
    __: u32,
    /// Compatibility format interrupts pass; effective with IRES=1 and EIME=0.
    pub cfi: bool,
    /// Set interrupt remap table pointer: latch IRTA. One-shot.
    pub sirtp: bool,
    /// Interrupt remapping enable.
    pub ire: bool,
    /// Queued invalidation enable.
    pub qie: bool,
    /// Write buffer flush. One-shot; only with CAP.RWBF.
    pub wbf: bool,
    #[bits(2)]
    __: u8,
    /// Set root table pointer: latch RTADDR. One-shot.
    pub srtp: bool,
    /// Translation enable.
    pub te: bool,
}

/// GSTS, read-only. \[S 11.4.4.2\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    #[bits(23)]
    __: u32,
    /// Compatibility format interrupts pass.
    pub cfis: bool,
    /// Interrupt remap table pointer has been set.
    pub irtps: bool,
    /// Interrupt remapping is enabled.
    pub ires: bool,
    /// Queued invalidation is enabled.
    pub qies: bool,
    /// Write buffer flush is running.
    pub wbfs: bool,
    #[bits(2)]
    __: u8,
    /// Root table pointer has been set.
    pub rtps: bool,
    /// Translation is enabled.
    pub tes: bool,
}

impl GlobalStatus {
    /// The bits software carries over from GSTS to GCMD: all but the one-shot commands. \[S 11.4.4.1\]
    pub const PERSISTENT: u32 = 0x96ff_ffff;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_a_linux_boot_decode() {
        let qie_sirtp = GlobalCommand::from_bits(0x0500_0000);
        assert_eq!(qie_sirtp, GlobalCommand::new().with_qie(true).with_sirtp(true));
        let srtp = GlobalCommand::from_bits(0x4600_0000);
        assert_eq!(srtp, GlobalCommand::new().with_srtp(true).with_qie(true).with_ire(true));
        assert_eq!(GlobalCommand::new().with_te(true).into_bits(), 1 << 31);
        assert_eq!(GlobalCommand::new().with_cfi(true).into_bits(), 1 << 23);
    }

    #[test]
    fn status_bits_lie_where_the_command_bits_do() {
        let status = GlobalStatus::from_bits(0xcf80_0000);
        assert!(status.tes() && status.rtps() && status.wbfs() && status.qies());
        assert!(status.ires() && status.irtps() && status.cfis());
    }

    #[test]
    fn persistent_bits_leave_out_the_one_shot_commands() {
        let command = GlobalCommand::from_bits(!GlobalStatus::PERSISTENT);
        assert!(command.srtp() && command.wbf() && command.sirtp());
        assert!(!command.te() && !command.qie() && !command.ire() && !command.cfi());
    }
}
