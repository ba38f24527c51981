// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The enhanced command registers; all of them reserved if CAP.ECMDS=0.

use bitfield_struct::bitfield;

/// Status 0: the command succeeded.
pub const STATUS_SUCCESS: u8 = 0;
/// Status 1: undefined command.
pub const STATUS_UNDEFINED_COMMAND: u8 = 1;
/// Status 2: aborted, because a GCMD or protected memory command was in progress.
pub const STATUS_ABORTED: u8 = 2;
/// From this status on the meaning is the command's own.
pub const STATUS_COMMAND_SPECIFIC: u8 = 16;

/// ECMD, write-only: writing CMD clears ECRSP, sets its IP, and starts the command; dropped while IP is set. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EnhancedCommand {
    /// Command; 240 to 245 are those of performance monitoring.
    pub cmd: u8,
    #[bits(8)]
    __: u8,
    /// Operand A. Operand B is the whole of ECEO.
    #[bits(48)]
    pub oa: u64,
}

/// ECRSP, read-only. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EnhancedCommandResponse {
    /// In progress.
    pub ip: bool,
    /// Status code.
    #[bits(7)]
    pub sc: u8,
    #[bits(8)]
    __: u8,
    /// Result.
    #[bits(48)]
    pub rslt: u64,
}

/// Whether a unit has a command: bit `command % 64` of capability register `command / 64` (ECCAP0 to ECCAP3).
pub const fn has_command(eccap: [u64; 4], command: u8) -> bool {
    eccap[command as usize / 64] & 1 << (command % 64) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_at_the_specified_bits() {
        assert_eq!(EnhancedCommand::new().with_cmd(0xf0).with_oa(0x1234).into_bits(), 0x1234_00f0);
        let response = EnhancedCommandResponse::new().with_ip(true).with_sc(STATUS_ABORTED).with_rslt(7);
        assert_eq!(response.into_bits(), 0x7_0005);
    }

    #[test]
    fn performance_monitoring_commands_are_told_by_bits_53_to_48_of_the_last_capability() {
        let eccap = [0, 0, 0, 0x3f << 48];
        for command in 0..=u8::MAX {
            assert_eq!(has_command(eccap, command), (240..=245).contains(&command), "{command}");
        }
    }
}
