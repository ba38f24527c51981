// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The software error register: the first error that no completion record could tell. \[D 5.7, 9.2.18\]

use vtd_unit::Pasid;

const VALID: u64 = 1 << 0;
const OVERFLOW: u64 = 1 << 1;

/// Codes that are no operation status. \[D table 5-7\]
pub(crate) mod code {
    /// A control of configuration space changed while the device was not Disabled.
    pub const CONFIG_CHANGED: u8 = 0x51;
    /// CMD was written while a command was active.
    pub const COMMAND_ACTIVE: u8 = 0x52;
    /// A descriptor for a full dedicated work queue was dropped.
    pub const QUEUE_FULL: u8 = 0x53;
}

/// An error as it is reported.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct SoftwareError {
    pub code: u8,
    /// The faulting access was a write.
    pub write: bool,
    /// The descriptor that met the error.
    pub origin: Option<Origin>,
    /// Error information, by code.
    pub information: Option<u32>,
    /// Fault address.
    pub address: u64,
}

/// Which descriptor an error belongs to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    pub queue: u8,
    pub operation: u8,
    pub pasid: Option<Pasid>,
    pub privileged: bool,
    /// Its position in a batch.
    pub batch_index: Option<u16>,
}

/// The register.
#[derive(Clone, Copy, Default)]
pub(crate) struct SoftwareErrorRegister([u64; 4]);

impl SoftwareErrorRegister {
    /// Records an error, or that there was one more. Returns whether the register became valid.
    pub fn record(&mut self, error: &SoftwareError) -> bool {
        if self.0[0] & VALID != 0 {
            self.0[0] |= OVERFLOW;
            return false;
        }
        let mut first = VALID | u64::from(error.write) << 5 | u64::from(error.code) << 8;
        let mut second = 0;
        if let Some(origin) = &error.origin {
            first |= 1 << 2 | 1 << 3 | u64::from(origin.privileged) << 6;
            first |= u64::from(origin.queue) << 16 | u64::from(origin.operation) << 32;
            first |= origin.pasid.map_or(0, |pasid| u64::from(pasid.get())) << 40;
            if let Some(index) = origin.batch_index {
                first |= 1 << 4;
                second |= u64::from(index);
            }
        }
        if let Some(information) = error.information {
            first |= 1 << 7;
            second |= u64::from(information) << 32;
        }
        self.0 = [first, second, error.address, 0];
        true
    }

    /// One of the four QWORDs.
    pub fn read(&self, qword: usize) -> u64 {
        self.0.get(qword).copied().unwrap_or(0)
    }

    /// A write of the first DWORD: ones clear valid and overflow.
    pub fn clear(&mut self, value: u32) {
        self.0[0] &= !(u64::from(value) & (VALID | OVERFLOW));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_kept_and_later_ones_set_overflow() {
        let mut register = SoftwareErrorRegister::default();
        let origin = Origin {
            queue: 3,
            operation: 0x11,
            pasid: Pasid::new(0xabcde),
            privileged: true,
            batch_index: Some(7),
        };
        let error = SoftwareError {
            code: 0x1a,
            write: true,
            origin: Some(origin),
            information: Some(0x55),
            address: 0x1234,
        };
        assert!(register.record(&error));
        assert!(!register.record(&SoftwareError { code: 0x53, ..Default::default() }));
        assert_eq!(register.read(0), 0x0abc_de11_0003_1aff);
        assert_eq!(register.read(1), 0x55_0000_0007);
        assert_eq!(register.read(2), 0x1234);
        assert_eq!(register.read(3), 0);
        register.clear(3);
        assert!(register.record(&SoftwareError { code: 0x52, ..Default::default() }));
        assert_eq!(register.read(0), 0x5201);
        assert_eq!(register.read(1), 0);
    }
}
