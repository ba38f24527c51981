// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that writes anything anywhere: nothing panics, read-only bits never change, and the BARs decode what they
//! say.

mod common;

use common::Guest;
use pci::PciFunction;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    EcamRead(u64, usize),
    EcamWrite(u64, Vec<u8>),
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
    Trigger(u16),
    PriStatus(u8),
    Reset,
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let interesting = prop_oneof![Just(0_u8), Just(0xff), Just(0x80), any::<u8>()];
    prop::collection::vec(interesting, 0..=9)
}

fn ecam_offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        // The header and the capabilities of the two functions that exist.
        8 => (prop_oneof![Just(0_u64), Just(0x8000)], 0_u64..0x140).prop_map(|(function, at)| function + at),
        1 => 0_u64..(2 << 20),
        1 => any::<u64>(),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..0x4000, 0xffff_0000_u64..0x1_0000_4000, Just(u64::MAX), any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (ecam_offset(), 0_usize..=9).prop_map(|(at, length)| Op::EcamRead(at, length)),
        8 => (ecam_offset(), data()).prop_map(|(at, data)| Op::EcamWrite(at, data)),
        1 => (0xcf0_u16..0xd08, 0_usize..=9).prop_map(|(port, length)| Op::PortRead(port, length)),
        2 => (0xcf0_u16..0xd08, data()).prop_map(|(port, data)| Op::PortWrite(port, data)),
        2 => (address(), 0_usize..=9).prop_map(|(at, length)| Op::MmioRead(at, length)),
        2 => (address(), data()).prop_map(|(at, data)| Op::MmioWrite(at, data)),
        1 => (0_u16..20).prop_map(Op::Trigger),
        1 => (0_u8..3).prop_map(Op::PriStatus),
        1 => Just(Op::Reset),
    ]
}

/// Bits of the test function's header and capabilities that anything may change, found in the specification rather
/// than in the crate's masks.
fn changeable(guest: &Guest) -> Vec<u8> {
    let mut mask = vec![0_u8; 4096];
    let mut allow = |at: u16, bytes: &[u8]| {
        let at = usize::from(at);
        mask[at..at + bytes.len()].copy_from_slice(bytes);
    };
    allow(0x04, &[0x46, 0x05]);
    allow(0x0c, &[0xff]);
    allow(0x10, &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    allow(0x18, &[0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    allow(0x20, &[0, 0xf0, 0xff, 0xff]);
    allow(0x3c, &[0xff]);
    let capabilities = guest.capabilities(0x08);
    allow(guest.find(0x08, 0x10) + 8, &[0xff, 0x79]);
    allow(guest.find(0x08, 0x11) + 2, &[0, 0xc0]);
    allow(capabilities[3].1 + 3, &[0xf0]);
    allow(guest.find_extended(0x08, 0x0f) + 6, &[0x1f, 0x80]);
    allow(guest.find_extended(0x08, 0x1b) + 6, &[0x05, 0]);
    allow(guest.find_extended(0x08, 0x13) + 4, &[1, 0, 3, 1]);
    allow(guest.find_extended(0x08, 0x13) + 12, &[0xff; 4]);
    mask
}

fn image(guest: &Guest) -> Vec<u8> {
    let mut image = vec![0; 4096];
    guest.root.ecam_read(0x8000, &mut image);
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_traffic_leaves_read_only_bits_alone(ops in prop::collection::vec(op(), 1..80)) {
        let guest = Guest::new();
        let mask = changeable(&guest);
        let before = image(&guest);
        for op in ops {
            match op {
                Op::EcamRead(at, length) => guest.root.ecam_read(at, &mut vec![0; length]),
                Op::EcamWrite(at, data) => guest.root.ecam_write(at, &data),
                Op::PortRead(port, length) => guest.root.io_read(port, &mut vec![0; length]),
                Op::PortWrite(port, data) => guest.root.io_write(port, &data),
                Op::MmioRead(at, length) => { guest.root.mmio_read(at, &mut vec![0; length]); }
                Op::MmioWrite(at, data) => { guest.root.mmio_write(at, &data); }
                Op::Trigger(vector) => { guest.function.msix.trigger(vector); }
                Op::PriStatus(0) => guest.function.config().set_pri_stopped(),
                Op::PriStatus(1) => guest.function.config().set_pri_response_failure(),
                Op::PriStatus(_) => guest.function.config().set_pri_unexpected_group(),
                Op::Reset => guest.root.reset(),
            }
        }
        let after = image(&guest);
        for (at, ((before, after), mask)) in before.iter().zip(&after).zip(&mask).enumerate() {
            prop_assert_eq!((before ^ after) & !mask, 0, "read-only bits changed at {:#x}", at);
        }

        // The root complex follows the BARs: what a function decodes reaches it, unless a BAR before it overlaps.
        guest.function.take_decoded();
        let ranges: Vec<_> = guest.function.bars().into_iter().flatten().collect();
        for (index, range) in ranges.iter().enumerate() {
            prop_assert_eq!(range.base % range.size, 0);
            for address in [range.base, range.last()] {
                let owner = ranges[..index].iter().find(|r| r.base <= address && address <= r.last());
                let owner = owner.unwrap_or(range);
                prop_assert!(guest.root.mmio_read(address, &mut [0]));
                prop_assert_eq!(guest.function.take_decoded(), [(owner.bar, address - owner.base, 1)]);
            }
        }
        guest.root.reset();
        prop_assert_eq!(image(&guest), before);
    }

    #[test]
    fn any_write_equals_the_same_bytes_one_at_a_time(at in 0_u64..0x140, data in data()) {
        // Not across control registers whose bits act in the order in which they are written.
        let (whole, bytewise) = (Guest::new(), Guest::new());
        whole.root.ecam_write(0x8000 + at, &data);
        for (index, byte) in data.iter().enumerate() {
            bytewise.root.ecam_write(0x8000 + at + index as u64, &[*byte]);
        }
        let flr = u64::from(whole.find(0x08, 0x10)) + 9;
        prop_assume!(!(at..at + data.len() as u64).contains(&flr));
        prop_assert_eq!(image(&whole), image(&bytewise));
    }
}

/// Found by the fuzz target `pci`.
#[test]
fn an_access_of_no_bytes_reaches_no_function() {
    let guest = Guest::new();
    // Enabled, device 1; the function checks what it gets.
    guest.root.io_write(0xcf8, &(1_u32 << 31 | 1 << 11).to_le_bytes());
    for port in 0xcf8..0xd00 {
        guest.root.io_write(port, &[]);
        guest.root.io_read(port, &mut []);
    }
    guest.root.ecam_write(0x8000, &[]);
    assert!(!guest.root.mmio_write(0, &[]));
}
