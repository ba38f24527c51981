// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each power of two and its neighbours in every register, every part of a descriptor, and every part of a table's entry:
//! no arithmetic on what a guest says overflows (tests are built with overflow checks), and the unit goes on.

mod common;

use common::{CONTEXT_TABLE, Guest, PASID_DIRECTORY, ROOT_TABLE, entry};
use vtd_spec::Pasid;
use vtd_spec::registers::offset;
use vtd_unit::{PageRequest, Requester, UnitConfig, VirtualCommandEncoding};

const PASID: Pasid = Pasid::truncated(0x42);
const ADDRESS: u64 = 0x7f12_3456_7000;

/// 0, all ones, each power of two, one more and one less.
fn boundaries() -> impl Iterator<Item = u64> {
    let around = |bit: u32| [(1u64 << bit).wrapping_sub(1), 1 << bit, (1 << bit) + 1];
    (0..64).flat_map(around).chain([0, u64::MAX, u64::MAX - 1])
}

fn configs() -> [UnitConfig; 3] {
    let all = UnitConfig {
        ir: true,
        eim: true,
        ssts: true,
        ssads: true,
        nest: true,
        srs: true,
        eafs: true,
        rps: true,
        ..UnitConfig::default()
    };
    [
        UnitConfig::default(),
        UnitConfig { vcmd: Some(VirtualCommandEncoding::Final), ..all.clone() },
        UnitConfig { vcmd: Some(VirtualCommandEncoding::Early), haw: 52, ..all },
    ]
}

fn guest(config: &UnitConfig) -> Guest {
    let guest = Guest::with_config(config);
    guest.bind(PASID);
    guest.map(PASID, ADDRESS, guest.page(), entry::USER);
    guest
}

/// What a function does, whatever becomes of it.
fn traffic(guest: &Guest, address: u64) {
    for pasid in [Some(PASID), None, Some(Pasid::MAX)] {
        for privileged in [false, true] {
            let requester = Requester { pasid, privileged };
            let _ = guest.endpoint.read(requester, address, &mut [0; 16]);
            let _ = guest.endpoint.write(requester, address, &[1; 16]);
            let request =
                PageRequest { requester, address, read: true, write: true, last: true, group: 0x1ff };
            guest.endpoint.page_request(request);
        }
    }
}

/// As a kernel does after an error, so that what follows is looked at too.
fn clear(guest: &Guest) {
    guest.write32(offset::FSTS, !0);
    guest.write32(offset::PRS, !0);
}

#[test]
fn no_value_of_a_register_does_harm() {
    for config in configs() {
        let guest = guest(&config);
        for at in (0..0x1000).step_by(4) {
            for value in boundaries() {
                guest.write64(at, value);
                guest.write32(at, value as u32);
                guest.read64(at);
            }
            clear(&guest);
            traffic(&guest, ADDRESS);
        }
        guest.unit.reset();
        assert_eq!(guest.read32(offset::GSTS), 0);
    }
}

#[test]
fn no_value_in_a_descriptor_does_harm() {
    for config in configs() {
        let guest = guest(&config);
        for kind in 0..16 {
            for part in 0..4 {
                for value in boundaries() {
                    let mut qwords = [(kind & 7) | (kind >> 3) << 9, 0, 0, 0];
                    qwords[part] |= value;
                    guest.queue_qwords(qwords);
                    guest.ring();
                    let head = || guest.read64(offset::IQH) == guest.read64(offset::IQT);
                    patience::eventually("the descriptor", || {
                        head() || guest.read32(offset::FSTS) & 0x70 != 0
                    });
                    if guest.read32(offset::FSTS) & 0x70 != 0 {
                        // It stays at the head where it is not valid: the queue is set up anew.
                        clear(&guest);
                        guest.command_off(1 << 26);
                        guest.restart_queue();
                    }
                }
            }
            traffic(&guest, ADDRESS);
        }
        clear(&guest);
        guest.command_off(1 << 26);
        guest.restart_queue();
        guest.submit(&common::descriptors::pasid_iotlb(vtd_spec::DomainId(1), PASID));
    }
}

#[test]
fn no_value_in_a_table_does_harm() {
    for config in configs() {
        let guest = guest(&config);
        let context = CONTEXT_TABLE + 8 * 32 * 3;
        let walk = guest.walk_addresses(PASID, ADDRESS);
        let mut places = vec![ROOT_TABLE, PASID_DIRECTORY + 8, guest.pasid_entry_address(PASID)];
        places.extend((0..4).map(|part| context + 8 * part));
        places.extend((1..8).map(|part| guest.pasid_entry_address(PASID) + 8 * part));
        places.extend(walk);
        for place in places {
            let before = guest.load(place);
            for value in boundaries() {
                for what in [value, before ^ value, before | value] {
                    guest.store(place, what);
                    guest.submit(&common::descriptors::context_device(common::SOURCE_ID));
                    traffic(&guest, ADDRESS);
                    guest.unit.look_up(common::SOURCE_ID, Some(PASID));
                }
            }
            guest.store(place, before);
            clear(&guest);
        }
        // And every address.
        for address in boundaries() {
            traffic(&guest, address);
        }
        // The device may have written anywhere, into tables too; the queue still goes on.
        guest.submit(&common::descriptors::context_device(common::SOURCE_ID));
    }
}
