// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSI-X table and pending bit array. \[PCIe 6.1.4, 7.7.2\]

pub use msi::Message;
use std::sync::{Mutex, MutexGuard, PoisonError};

const ENTRY_SIZE: usize = 16;
const VECTOR_CONTROL_MASK: u8 = 1;
/// Table Size is an 11-bit field that holds the count less one.
const MAX_VECTORS: u16 = 2048;

/// The writable bits of the capability's message control register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixControl {
    /// MSI-X Enable.
    pub enabled: bool,
    /// Function Mask: all vectors are masked, whatever their own mask bits say.
    pub function_mask: bool,
}

/// How many vectors there are and where their table and pending bits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds the table.
    pub table_bar: usize,
    /// The table's offset in that BAR, a multiple of 8.
    pub table_offset: u32,
    /// The BAR that holds the pending bits.
    pub pba_bar: usize,
    /// The pending bits' offset in that BAR, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixLayout {
    /// Table and pending bits in one BAR.
    pub const fn in_bar(bar: usize, vectors: u16, table_offset: u32, pba_offset: u32) -> Self {
        Self { vectors, table_bar: bar, table_offset, pba_bar: bar, pba_offset }
    }

    /// Size of the table in bytes.
    pub const fn table_size(&self) -> u64 {
        self.vectors as u64 * ENTRY_SIZE as u64
    }

    /// Size of the pending bit array in bytes: whole QWORDs.
    pub const fn pba_size(&self) -> u64 {
        (self.vectors as u64).div_ceil(64) * 8
    }

    pub(crate) const fn has_valid_vectors(&self) -> bool {
        self.vectors >= 1 && self.vectors <= MAX_VECTORS
    }
}

struct State {
    control: MsixControl,
    table: Vec<u8>,
    pending: Vec<u8>,
}

impl State {
    fn new(vectors: u16) -> Self {
        let mut state =
            Self { control: MsixControl::default(), table: Vec::new(), pending: vec![0; pba_bytes(vectors)] };
        state.table = vec![0; usize::from(vectors) * ENTRY_SIZE];
        for entry in state.table.chunks_exact_mut(ENTRY_SIZE) {
            entry[12] = VECTOR_CONTROL_MASK;
        }
        state
    }

    fn entry(&self, vector: usize) -> Option<&[u8; ENTRY_SIZE]> {
        self.table.get(vector * ENTRY_SIZE..)?.first_chunk()
    }

    fn deliverable(&self, entry: &[u8; ENTRY_SIZE]) -> bool {
        self.control.enabled && !self.control.function_mask && entry[12] & VECTOR_CONTROL_MASK == 0
    }

    /// Takes the message of a vector that is pending and can be delivered.
    fn take_pending(&mut self, vector: usize) -> Option<Message> {
        let entry = self.entry(vector)?;
        if !self.deliverable(entry) {
            return None;
        }
        let message = message(entry);
        let byte = self.pending.get_mut(vector / 8)?;
        let bit = 1 << (vector % 8);
        if *byte & bit == 0 {
            return None;
        }
        *byte &= !bit;
        Some(message)
    }
}

const fn pba_bytes(vectors: u16) -> usize {
    (vectors as usize).div_ceil(64) * 8
}

fn message(entry: &[u8; ENTRY_SIZE]) -> Message {
    let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = *entry;
    Message {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        data: u32::from_le_bytes([d0, d1, d2, d3]),
    }
}

/// The MSI-X table and pending bits of a function, shared between the guest's accesses and the device's threads.
///
/// The table never sends: its methods return the messages that are due, and the device model sends them through its
/// own port (which is also where a clear Bus Master Enable stops them).
pub struct MsixTable {
    layout: MsixLayout,
    state: Mutex<State>,
}

impl MsixTable {
    /// A table after reset: MSI-X disabled, every vector masked, none pending. A count of vectors outside 1 to 2048
    /// is clamped ([`crate::ConfigSpaceBuilder`] refuses it).
    pub fn new(layout: MsixLayout) -> Self {
        let layout = MsixLayout { vectors: layout.vectors.clamp(1, MAX_VECTORS), ..layout };
        Self { layout, state: Mutex::new(State::new(layout.vectors)) }
    }

    /// Where table and pending bits lie.
    pub fn layout(&self) -> &MsixLayout {
        &self.layout
    }

    /// Back to the state after reset.
    pub fn reset(&self) {
        *self.lock() = State::new(self.layout.vectors);
    }

    /// An interrupt condition of `vector` arose. Returns the message to send now; a masked vector becomes pending
    /// instead. With MSI-X disabled, or for a vector that does not exist, nothing happens.
    pub fn trigger(&self, vector: u16) -> Option<Message> {
        let mut state = self.lock();
        if !state.control.enabled {
            return None;
        }
        let vector = usize::from(vector);
        let entry = state.entry(vector)?;
        if state.deliverable(entry) {
            return Some(message(entry));
        }
        if let Some(byte) = state.pending.get_mut(vector / 8) {
            *byte |= 1 << (vector % 8);
        }
        None
    }

    /// Takes over the capability's control bits ([`crate::ConfigChanges::msix`]). Returns the messages of pending
    /// vectors that can go now. Disabling MSI-X forgets what is pending.
    pub fn set_control(&self, control: MsixControl) -> Vec<Message> {
        let mut state = self.lock();
        state.control = control;
        if !control.enabled {
            state.pending.fill(0);
            return Vec::new();
        }
        if control.function_mask || state.pending.iter().all(|byte| *byte == 0) {
            return Vec::new();
        }
        (0..usize::from(self.layout.vectors)).filter_map(|vector| state.take_pending(vector)).collect()
    }

    /// Serves a read of a BAR if it starts in the table or in the pending bits; otherwise returns `false` and leaves
    /// `data` alone. Bytes beyond the end of the structure read 0.
    pub fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> bool {
        if let Some(at) = self.in_table(bar, offset) {
            copy_from(&self.lock().table, at, data);
            true
        } else if let Some(at) = self.in_pba(bar, offset) {
            copy_from(&self.lock().pending, at, data);
            true
        } else {
            false
        }
    }

    /// Serves a write of a BAR if it starts in the table or in the pending bits (which are read-only); otherwise
    /// returns `None`. Returns the messages that unmasking released.
    pub fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> Option<Vec<Message>> {
        let Some(at) = self.in_table(bar, offset) else {
            return self.in_pba(bar, offset).map(|_| Vec::new());
        };
        let mut state = self.lock();
        let mut messages = Vec::new();
        for (index, byte) in data.iter().enumerate() {
            let at = at + index;
            let Some(target) = state.table.get_mut(at) else { break };
            match at % ENTRY_SIZE {
                // The message address is a DWORD address.
                0 => *target = byte & !3,
                1..=11 => *target = *byte,
                12 => {
                    *target = byte & VECTOR_CONTROL_MASK;
                    messages.extend(state.take_pending(at / ENTRY_SIZE));
                }
                // The rest of vector control is reserved.
                _ => {}
            }
        }
        Some(messages)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_table(&self, bar: usize, offset: u64) -> Option<usize> {
        let start = u64::from(self.layout.table_offset);
        within(bar == self.layout.table_bar, offset, start, self.layout.table_size())
    }

    fn in_pba(&self, bar: usize, offset: u64) -> Option<usize> {
        let start = u64::from(self.layout.pba_offset);
        within(bar == self.layout.pba_bar, offset, start, self.layout.pba_size())
    }
}

fn within(same_bar: bool, offset: u64, start: u64, size: u64) -> Option<usize> {
    let at = offset.checked_sub(start).filter(|at| same_bar && *at < size)?;
    usize::try_from(at).ok()
}

fn copy_from(source: &[u8], at: usize, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = source.get(at + index).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLED: MsixControl = MsixControl { enabled: true, function_mask: false };
    const FUNCTION_MASKED: MsixControl = MsixControl { enabled: true, function_mask: true };

    fn table() -> MsixTable {
        MsixTable::new(MsixLayout::in_bar(0, 9, 0x2000, 0x3000))
    }

    fn program(table: &MsixTable, vector: u64, address: u64, data: u32) {
        let entry = 0x2000 + vector * 16;
        assert_eq!(table.bar_write(0, entry, &address.to_le_bytes()), Some(vec![]));
        assert_eq!(table.bar_write(0, entry + 8, &data.to_le_bytes()), Some(vec![]));
    }

    fn set_mask(table: &MsixTable, vector: u64, masked: bool) -> Vec<Message> {
        table.bar_write(0, 0x2000 + vector * 16 + 12, &u32::from(masked).to_le_bytes()).unwrap()
    }

    fn read_u32(table: &MsixTable, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        assert!(table.bar_read(0, offset, &mut data));
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_vector_is_masked_after_reset_and_its_message_follows_the_table() {
        let table = table();
        assert_eq!(read_u32(&table, 0x2000 + 8 * 16 + 12), 1);
        table.set_control(ENABLED);
        program(&table, 8, 0xfee0_1003, 0x4041);
        set_mask(&table, 8, false);
        assert_eq!(table.trigger(8), Some(Message { address: 0xfee0_1000, data: 0x4041 }));
        assert_eq!(table.trigger(9), None);
        table.reset();
        assert_eq!(read_u32(&table, 0x2000 + 8 * 16), 0);
        assert_eq!(read_u32(&table, 0x2000 + 8 * 16 + 12), 1);
    }

    #[test]
    fn a_masked_vector_becomes_pending_and_unmasking_releases_one_message() {
        let table = table();
        table.set_control(ENABLED);
        program(&table, 3, 0xfee0_0000, 0x33);
        assert_eq!(table.trigger(3), None);
        assert_eq!(table.trigger(3), None);
        assert_eq!(read_u32(&table, 0x3000), 1 << 3);
        assert_eq!(set_mask(&table, 3, false), [Message { address: 0xfee0_0000, data: 0x33 }]);
        assert_eq!(read_u32(&table, 0x3000), 0);
        assert_eq!(set_mask(&table, 3, false), []);
    }

    #[test]
    fn the_function_mask_holds_back_unmasked_vectors_only_until_it_is_cleared() {
        let table = table();
        table.set_control(FUNCTION_MASKED);
        program(&table, 0, 0xfee0_0000, 0x20);
        program(&table, 1, 0xfee0_0000, 0x21);
        set_mask(&table, 0, false);
        assert_eq!((table.trigger(0), table.trigger(1)), (None, None));
        assert_eq!(read_u32(&table, 0x3000), 3);
        assert_eq!(table.set_control(ENABLED), [Message { address: 0xfee0_0000, data: 0x20 }]);
        assert_eq!(read_u32(&table, 0x3000), 2);
    }

    #[test]
    fn a_disabled_table_neither_sends_nor_remembers() {
        let table = table();
        program(&table, 0, 0xfee0_0000, 0x20);
        set_mask(&table, 0, false);
        assert_eq!(table.trigger(0), None);
        assert_eq!(table.set_control(ENABLED), []);
        assert_eq!(read_u32(&table, 0x3000), 0);
    }

    #[test]
    fn reserved_bits_and_pending_bits_are_read_only() {
        let table = table();
        table.bar_write(0, 0x200c, &[0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(read_u32(&table, 0x200c), 0);
        assert_eq!(table.bar_write(0, 0x3000, &[0xff; 8]), Some(vec![]));
        assert_eq!(read_u32(&table, 0x3000), 0);
    }

    #[test]
    fn accesses_outside_the_structures_are_not_taken() {
        let table = table();
        let mut data = [0x55; 4];
        for (bar, offset) in [(0, 0x1ffc), (0, 0x2090), (0, 0x3008), (1, 0x2000), (0, u64::MAX)] {
            assert!(!table.bar_read(bar, offset, &mut data), "{bar} {offset:#x}");
            assert_eq!(table.bar_write(bar, offset, &data), None, "{bar} {offset:#x}");
        }
        assert_eq!(data, [0x55; 4]);
        let mut wide = [0x55; 16];
        assert!(table.bar_read(0, 0x2088, &mut wide));
        assert_eq!(&wide[8..], [0; 8]);
    }
}
