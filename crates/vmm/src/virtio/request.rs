// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptor chains of the block device taken apart: header, data, status. \[V 2.7.4, 5.2.6\]

use std::collections::VecDeque;
use std::ops::Deref;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

const HEADER_SIZE: usize = 16;

/// Why a chain is none that a driver may make: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor cannot be read, is out of bounds or in a loop, or the chain is longer than the queue.
    #[error("descriptor chain {0} is broken or too long")]
    Broken(u16),
    /// A descriptor that the device reads follows one that it writes.
    #[error("descriptor chain {0} has a readable descriptor after a writable one")]
    Order(u16),
    /// No room for header or status.
    #[error("descriptor chain {0} has no header or no status byte")]
    Short(u16),
    /// The header cannot be read.
    #[error("the header of descriptor chain {0} cannot be read: {1}")]
    Header(u16, GuestMemoryError),
}

/// Pieces of memory in the order of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments(VecDeque<(u64, u32)>);

impl Segments {
    fn push(&mut self, address: u64, length: u32) {
        if length > 0 {
            self.0.push_back((address, length));
        }
    }

    /// Length in bytes. A chain has less than 2^32.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// The first address.
    pub fn first(&self) -> Option<u64> {
        self.0.front().map(|(address, _)| *address)
    }

    /// Takes off the first `count` bytes, or all if there are less.
    pub fn split_front(&mut self, count: usize) -> Self {
        let mut front = Self::default();
        let mut left = u32::try_from(count).unwrap_or(u32::MAX);
        while left > 0 {
            let Some((address, length)) = self.0.pop_front() else { break };
            let taken = length.min(left);
            front.push(address, taken);
            left -= taken;
            if taken < length {
                // Wrapping addresses are refused by the memory, not here.
                self.0.push_front((address.wrapping_add(taken.into()), length - taken));
            }
        }
        front
    }

    /// Takes off the last byte and returns its address.
    fn pop_last_byte(&mut self) -> Option<u64> {
        let (address, length) = self.0.pop_back()?;
        self.push(address, length - 1);
        Some(address.wrapping_add(u64::from(length) - 1))
    }

    /// Reads the pieces into the start of `data`; returns how many bytes these were.
    pub fn read<M: GuestMemory>(&self, memory: &M, data: &mut [u8]) -> Result<usize, GuestMemoryError> {
        let mut at = 0;
        for (address, length) in &self.0 {
            let Some(part) = data.get_mut(at..).and_then(|rest| rest.get_mut(..*length as usize)) else {
                break;
            };
            memory.read_slice(part, GuestAddress(*address))?;
            at += part.len();
        }
        Ok(at)
    }

    /// Writes the start of `data` to the pieces.
    pub fn write<M: GuestMemory>(&self, memory: &M, data: &[u8]) -> Result<(), GuestMemoryError> {
        let mut rest = data;
        for (address, length) in &self.0 {
            let Some((part, after)) = rest.split_at_checked(*length as usize) else { break };
            memory.write_slice(part, GuestAddress(*address))?;
            rest = after;
        }
        Ok(())
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read from the disk.
    In,
    /// Write to the disk.
    Out,
    /// Make what was written durable.
    Flush,
    /// The disk's name, 20 bytes.
    GetId,
    /// A type that the device does not know.
    Unknown(u32),
}

/// A checked request. Addresses are the driver's and can be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The chain's first descriptor: what the used ring names.
    pub head: u16,
    /// What is asked for.
    pub kind: Kind,
    /// The first sector of the disk.
    pub sector: u64,
    /// The data: memory to read from for [`Kind::Out`], to write to otherwise.
    pub data: Segments,
    /// Where the status byte goes.
    pub status: u64,
}

impl Request {
    /// How many bytes of data the device writes to memory if all goes well.
    pub fn written_length(&self) -> u64 {
        if self.kind == Kind::Out { 0 } else { self.data.len() }
    }

    /// Takes a chain of a queue with `queue_size` entries apart.
    ///
    /// # Errors
    ///
    /// [`ChainError`] for what no driver may send; there is nowhere to put a status then.
    pub fn parse<M>(chain: DescriptorChain<M>, queue_size: u16) -> Result<Self, ChainError>
    where
        M: Deref + Clone,
        M::Target: GuestMemory + Sized,
    {
        let head = chain.head_index();
        let mut readable = Segments::default();
        let mut writable = Segments::default();
        let mut ended = false;
        let mut wrote = false;
        for (index, descriptor) in chain.clone().enumerate() {
            // A chain is no longer than the queue, in a table of its own neither. [V 2.7.5.2, 2.7.5.3.1]
            if ended || index >= usize::from(queue_size) {
                return Err(ChainError::Broken(head));
            }
            ended = !descriptor.has_next();
            if descriptor.is_write_only() {
                wrote = true;
                writable.push(descriptor.addr().0, descriptor.len());
            } else if wrote {
                return Err(ChainError::Order(head));
            } else {
                readable.push(descriptor.addr().0, descriptor.len());
            }
        }
        // The iterator ends early at a descriptor that it cannot read or that is out of bounds.
        if !ended {
            return Err(ChainError::Broken(head));
        }

        let mut header = [0; HEADER_SIZE];
        let read = readable
            .split_front(HEADER_SIZE)
            .read(chain.memory(), &mut header)
            .map_err(|error| ChainError::Header(head, error))?;
        let status = writable.pop_last_byte().filter(|_| read == HEADER_SIZE);
        let status = status.ok_or(ChainError::Short(head))?;

        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Kind::In,
            VIRTIO_BLK_T_OUT => Kind::Out,
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_GET_ID => Kind::GetId,
            other => Kind::Unknown(other),
        };
        Ok(Self {
            head,
            kind,
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            data: if kind == Kind::Out { readable } else { writable },
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pieces: &[(u64, u32)]) -> Segments {
        Segments(pieces.iter().copied().collect())
    }

    #[test]
    fn pieces_are_split_inside_and_between_descriptors() {
        let mut all = segments(&[(0x1000, 10), (0x2000, 20), (0x3000, 1)]);
        assert_eq!(all.len(), 31);
        assert_eq!(all.split_front(16), segments(&[(0x1000, 10), (0x2000, 6)]));
        assert_eq!(all, segments(&[(0x2006, 14), (0x3000, 1)]));
        assert_eq!(all.pop_last_byte(), Some(0x3000));
        assert_eq!(all.pop_last_byte(), Some(0x2013));
        assert_eq!(all.split_front(100), segments(&[(0x2006, 13)]));
        assert_eq!(all.pop_last_byte(), None);
        assert_eq!(all.split_front(1), Segments::default());
    }

    #[test]
    fn addresses_at_the_end_of_the_space_do_not_overflow() {
        let mut all = segments(&[(u64::MAX, u32::MAX)]);
        assert_eq!(all.split_front(1), segments(&[(u64::MAX, 1)]));
        assert_eq!(all.pop_last_byte(), Some(u64::from(u32::MAX) - 2));
    }
}
