// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Thousands of PASIDs on a whole system: what one change among them costs the host, on one device and on twenty.

mod rig;

use std::sync::Arc;

use rig::common::descriptors as d;
use rig::common::{Guest, pasid};
use rig::ledger::{Counts, Ledger};
use rig::{Device, Rig};
use vm_memory::{Bytes, GuestAddress};
use vsva::SoftHostConfig;
use vtd_spec::descriptors::{IotlbGranularity, PasidCacheGranularity};
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, PasidEntry, SourceId};
use vtd_unit::UnitConfig;

const ADDRESS: u64 = 0x40_0000;
/// The domains that PASIDs are spread over.
const DOMAINS: u32 = 4;

struct Scene {
    rig: Rig,
    ledger: Arc<Ledger>,
    devices: Vec<Device>,
    /// Two tables that map [`ADDRESS`] to a page each.
    tables: [u64; 2],
    pages: [u64; 2],
}

fn global() -> Descriptor {
    d::pasid_cache(PasidCacheGranularity::Global, DomainId(0), Pasid::ZERO)
}

fn of_domain(domain: u16) -> Descriptor {
    d::pasid_cache(PasidCacheGranularity::Domain, DomainId(domain), Pasid::ZERO)
}

/// Some PASIDs in runs, some alone, up to the last.
fn numbers(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |index| match index % 10 {
        0 => 0xf_ffff - index,
        _ => 1 + index + (index / 64) * 3,
    })
}

fn domain(number: u32) -> u16 {
    1 + (number % DOMAINS) as u16
}

impl Scene {
    fn new(devices: u8, quota: u32) -> Self {
        let host = SoftHostConfig { pasid_quota: quota, ..SoftHostConfig::default() };
        let (rig, ledger) = Rig::with_ledger(&UnitConfig::default(), &host);
        let mut all = vec![rig.first()];
        all.extend((1..devices).map(|number| rig.plug(SourceId::new(number, number & 0x1f, 1))));
        let scratch = pasid(0xf_0000);
        let [(first, page), (second, other)] = [(); 2].map(|()| {
            rig.guest.bind(scratch);
            let page = rig.guest.page();
            rig.guest.map(scratch, ADDRESS, page, rig::common::entry::USER);
            (rig.guest.walk_addresses(scratch, ADDRESS)[0] & !0xfff, page)
        });
        rig.guest.write_pasid_entry(scratch, PasidEntry::new());
        Self { rig, ledger, devices: all, tables: [first, second], pages: [page, other] }
    }

    /// Writes an entry that points at one of the tables; announces nothing.
    fn write(&self, number: u32, table: usize) {
        let entry = Guest::first_stage(DomainId(domain(number)), self.tables[table]);
        self.rig.guest.write_pasid_entry(pasid(number), entry);
    }

    fn bind_all(&self, count: u32) {
        numbers(count).for_each(|number| self.write(number, 0));
        self.rig.guest.submit(&global());
    }

    /// What one announcement makes the host do.
    fn cost(&self, announcement: Descriptor) -> Counts {
        self.ledger.take_counts();
        self.rig.guest.submit(&announcement);
        self.ledger.take_counts()
    }

    #[track_caller]
    fn reaches(&self, device: usize, number: u32, table: usize) {
        let byte = (number as u8) ^ (device as u8) ^ 0x5a;
        let requester = Guest::with_pasid(pasid(number));
        self.devices[device].port.write(requester, ADDRESS, &[byte]).unwrap();
        let at = GuestAddress(self.pages[table]);
        assert_eq!(self.rig.guest.memory.read_obj::<u8>(at).unwrap(), byte);
    }
}

#[test]
fn one_change_among_ten_thousand_costs_the_host_one_change() {
    const COUNT: u32 = 10_000;
    let scene = Scene::new(1, COUNT + 1);
    scene.bind_all(COUNT);
    assert_eq!(scene.devices[0].assigned.bound_count(), COUNT as usize);
    assert_eq!(scene.rig.host.allocated_pasids(), COUNT);
    let nothing = Counts::default();
    assert_eq!(scene.cost(global()), nothing, "nothing has changed");
    let chosen: Vec<u32> = numbers(COUNT).step_by(1111).collect();
    for number in chosen {
        scene.reaches(0, number, 0);
        // Changed, taken away, brought back: each by a global and by a domain-selective announcement.
        for (announcement, elsewhere) in
            [(global(), None), (of_domain(domain(number)), Some(of_domain(domain(number + 1))))]
        {
            scene.write(number, 1);
            if let Some(elsewhere) = elsewhere {
                assert_eq!(scene.cost(elsewhere), nothing, "another domain's");
            }
            assert_eq!(scene.cost(announcement), Counts { attach: 1, ..nothing });
            scene.reaches(0, number, 1);
            scene.rig.guest.write_pasid_entry(pasid(number), PasidEntry::new());
            assert_eq!(scene.cost(announcement), Counts { translate: 1, block: 1, free: 1, ..nothing });
            scene.write(number, 0);
            assert_eq!(scene.cost(announcement), Counts { allocate: 1, attach: 1, translate: 1, ..nothing });
            scene.reaches(0, number, 0);
        }
    }
    let Scene { rig, ledger, .. } = scene;
    drop(rig.joint);
    assert_eq!(rig.host.allocated_pasids(), 0);
    assert!(ledger.is_empty());
}

#[test]
fn a_pasid_selective_announcement_reads_one_entry_however_many_are_bound() {
    const COUNT: u32 = 10_000;
    let scene = Scene::new(1, COUNT + 1);
    scene.bind_all(COUNT);
    let number = numbers(COUNT).nth(5003).unwrap();
    // All have changed, and it finds the one that it names.
    numbers(COUNT).for_each(|number| scene.write(number, 1));
    let named = d::pasid_cache_entry(DomainId(domain(number)), pasid(number));
    assert_eq!(scene.cost(named), Counts { attach: 1, ..Counts::default() });
    assert_eq!(scene.cost(named), Counts::default());
    scene.reaches(0, number, 1);
    let rest = u64::from(COUNT) - 1;
    assert_eq!(scene.cost(global()), Counts { attach: rest, ..Counts::default() });
}

#[test]
fn a_pasid_on_twenty_devices_is_one_pasid_of_the_host_and_one_change_on_each() {
    const DEVICES: u8 = 20;
    const COUNT: u32 = 500;
    let scene = Scene::new(DEVICES, COUNT);
    scene.bind_all(COUNT);
    assert_eq!(scene.rig.host.allocated_pasids(), COUNT, "the quota counts PASIDs, not bindings");
    assert_eq!(
        scene.devices.iter().map(|device| device.assigned.bound_count()).sum::<usize>(),
        usize::from(DEVICES) * COUNT as usize
    );
    let number = numbers(COUNT).nth(333).unwrap();
    let hosts: Vec<_> =
        scene.devices.iter().map(|device| device.assigned.host_pasid(pasid(number))).collect();
    assert!(hosts.iter().all(|host| host.is_some() && *host == hosts[0]));
    scene.write(number, 1);
    let each = u64::from(DEVICES);
    assert_eq!(scene.cost(global()), Counts { attach: each, ..Counts::default() });
    (0..usize::from(DEVICES)).for_each(|device| scene.reaches(device, number, 1));
    // An invalidation of a domain's first stages concerns the PASIDs of the domain, in batches.
    let counts = scene.cost(d::iotlb(IotlbGranularity::Domain, DomainId(2), AddressRange::ALL));
    assert_eq!(counts.changes(), 0);
    assert_eq!(counts.invalidate, each, "{counts:?}");
    numbers(COUNT).for_each(|number| scene.rig.guest.write_pasid_entry(pasid(number), PasidEntry::new()));
    let counts = scene.cost(of_domain(1));
    assert_eq!(counts.block, each * numbers(COUNT).filter(|number| domain(*number) == 1).count() as u64);
    scene.rig.guest.submit(&global());
    assert_eq!(scene.rig.host.allocated_pasids(), 0);
    assert!(scene.devices.iter().all(|device| device.assigned.bound_count() == 0));
    // Requests without PASID are attached for each device on its own.
    scene.rig.guest.command_off(1 << 31);
    let page = scene.pages[0];
    scene.devices[7].port.write(Default::default(), page, b"7").unwrap();
    assert_eq!(scene.rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), b'7');
}

#[test]
fn a_reset_of_the_machine_gives_everything_back() {
    let scene = Scene::new(3, 2000);
    scene.bind_all(2000);
    scene.rig.guest.unit.reset();
    assert_eq!(scene.rig.host.allocated_pasids(), 0);
    assert!(scene.devices.iter().all(|device| device.assigned.bound_count() == 0));
    for device in &scene.devices {
        assert!(device.port.write(Guest::with_pasid(pasid(2)), ADDRESS, &[1]).is_err());
        assert_eq!(scene.ledger.attached(device.id).len(), 0);
    }
}
