// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that writes anything anywhere, from two processors, in the middle of its work: nothing panics or hangs, and
//! a function level reset gives back a device that works.

use pci::PciFunction;
use proptest::prelude::*;
use vtd_spec::descriptors::PageGroupResponse;
use vtd_spec::registers::offset;
use vtd_spec::{Descriptor, ResponseCode};

use crate::machine::*;

#[derive(Clone, Debug)]
enum Op {
    Config(u16, Vec<u8>),
    Register(u64, Vec<u8>),
    Command(u32, u32),
    Portal(u64, Vec<u8>),
    Submit { queue: u64, operation: u32, first: u64, second: u64, size: u32 },
    Respond(u16, ResponseCode),
    Invalidate(u64),
    Read(usize, u64, usize),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), Just(1), any::<u8>()], 0..=9)
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (prop_oneof![Just(SOURCE), Just(DESTINATION), Just(RECORD)], 0_u64..0x4000).prop_map(|(a, b)| a + b),
        1 => any::<u64>(),
    ]
}

/// Registers, the tables, the MSI-X table, and any other place.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..0x100,
        4 => 0x400_u64..0x900,
        2 => 0x2000_u64..0x20a0,
        1 => 0_u64..0x1_0000,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let code = prop_oneof![
        Just(ResponseCode::Success),
        Just(ResponseCode::InvalidRequest),
        Just(ResponseCode::ResponseFailure)
    ];
    let operation = (0_u32..0x24, any::<[bool; 2]>()).prop_map(|(opcode, [blocks, odd])| {
        opcode << 24 | if blocks { BLOCK } else { RECORDED } | u32::from(odd) << 20
    });
    let size = prop_oneof![3 => 0_u32..0x3000, 1 => any::<u32>()];
    prop_oneof![
        2 => (0_u16..0x140, bytes()).prop_map(|(at, data)| Op::Config(at, data)),
        3 => (register(), bytes()).prop_map(|(at, data)| Op::Register(at, data)),
        4 => (0_u32..20, prop_oneof![Just(0_u32), Just(1), 0_u32..0x400, any::<u32>()])
            .prop_map(|(code, operand)| Op::Command(code, operand)),
        1 => (0_u64..0x2_0000, bytes()).prop_map(|(at, data)| Op::Portal(at, data)),
        8 => (0_u64..9, operation, address(), address(), size)
            .prop_map(|(queue, operation, first, second, size)| Op::Submit { queue, operation, first, second, size }),
        2 => (prop_oneof![0_u16..8, any::<u16>()], code).prop_map(|(group, code)| Op::Respond(group, code)),
        1 => address().prop_map(Op::Invalidate),
        1 => (0_usize..6, any::<u64>(), 0_usize..=9).prop_map(|(bar, at, length)| Op::Read(bar, at, length)),
    ]
}

impl Machine {
    fn carry_out(&self, op: &Op) {
        match op {
            Op::Config(at, data) => self.dsa.config_write(*at, data),
            Op::Register(at, data) => self.dsa.bar_write(0, *at, data),
            Op::Command(code, operand) => self.write(CMD, 1 << 31 | code << 20 | operand & 0xf_ffff),
            Op::Portal(at, data) => self.dsa.bar_write(2, *at, data),
            Op::Submit { queue, operation, first, second, size } => {
                self.submit(*queue, RECORD, *operation, *first, *second, *size);
            }
            Op::Respond(prgi, rc) => {
                let response =
                    PageGroupResponse { pasid: Some(PASID), rid: SOURCE_ID, rc: *rc, prgi: prgi & 0x1ff };
                self.invalidate(&[Descriptor::PageGroupResponse(response)]);
            }
            Op::Invalidate(at) => self.unmap(PASID, at & 0x7fff_ffff_f000),
            Op::Read(bar, at, length) => self.dsa.bar_read(*bar, *at, &mut vec![0; *length]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_reset_recovers_the_device_from_any_traffic(ops in prop::collection::vec(op(), 1..60)) {
        let machine = Machine::ready();
        let pcie = machine.capability(0x10);
        // Two processors at once.
        std::thread::scope(|scope| {
            for part in ops.chunks(ops.len().div_ceil(2)) {
                let machine = &machine;
                scope.spawn(move || part.iter().for_each(|op| machine.carry_out(op)));
            }
        });
        machine.dsa.config_write(pcie + 8, &[0x10, 0xa8]);
        prop_assert_eq!(machine.read(GENSTS), 0);
        machine.write_unit(offset::PQH, machine.read_unit(offset::PQT));
        machine.enable_function();
        machine.enable_device();
        let data = noise(0x2100);
        machine.put(PASID, SOURCE + 0x10_0000, &data);
        machine.unmap(PASID, DESTINATION + 0x10_0000);
        let record = machine.run(MOVE | BLOCK, SOURCE + 0x10_0000, DESTINATION + 0x10_0000, 0x2100, |_| true);
        prop_assert_eq!(record[0], 1);
        prop_assert_eq!(machine.get(PASID, DESTINATION + 0x10_0000, 0x2100), data);
    }
}
