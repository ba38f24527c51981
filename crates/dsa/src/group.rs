// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A group: which work queues feed which engines. \[D 9.2.23\]

use crate::registers::{ENGINES, QUEUES};

const ENGINE_DWORD: usize = 8;
const FLAGS_DWORD: usize = 10;
/// Traffic classes A and B; there is nothing else without read buffer controls.
const FLAGS_MASK: u32 = 0x3f;

/// An entry of the GRPCFG table.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Group {
    /// Bit n: work queue n belongs to the group.
    pub queues: u8,
    /// Bit n: engine n belongs to the group.
    pub engines: u8,
    flags: u32,
}

impl Group {
    pub const fn has_queue(&self, queue: usize) -> bool {
        self.queues as usize >> queue & 1 == 1
    }

    pub const fn has_engine(&self, engine: usize) -> bool {
        self.engines as usize >> engine & 1 == 1
    }

    pub const fn read(&self, dword: usize) -> u32 {
        match dword {
            0 => self.queues as u32,
            ENGINE_DWORD => self.engines as u32,
            FLAGS_DWORD => self.flags,
            _ => 0,
        }
    }

    /// A write of the bits in `mask`. Queues and engines that do not exist cannot be set.
    pub fn write(&mut self, dword: usize, value: u32, mask: u32) {
        let merged = self.read(dword) & !mask | value & mask;
        match dword {
            0 => self.queues = (merged & ((1 << QUEUES) - 1)) as u8,
            ENGINE_DWORD => self.engines = (merged & ((1 << ENGINES) - 1)) as u8,
            FLAGS_DWORD => self.flags = merged & FLAGS_MASK,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exists_can_be_configured() {
        let mut group = Group::default();
        for dword in 0..16 {
            group.write(dword, u32::MAX, u32::MAX);
        }
        for dword in 0..16 {
            let expected = match dword {
                0 => 0xff,
                8 => 0xf,
                10 => 0x3f,
                _ => 0,
            };
            assert_eq!(group.read(dword), expected, "{dword}");
        }
        group.write(0, 0, 0x0f);
        assert!(!group.has_queue(3) && group.has_queue(4) && group.has_engine(3) && !group.has_engine(4));
    }
}
