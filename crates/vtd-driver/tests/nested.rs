// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests' address spaces nested on a machine's second stage, against a unit in software. What is at a guest address lies
//! at another host address, so that a stage left out would show.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Device, Driver, Host, Process, System, asked};
use patience::{Raise, eventually};
use vtd_driver::fault_ring::{self, Fault, FaultRing};
use vtd_driver::nested::{self, BindData, Invalidate, cache_type};
use vtd_driver::{Access, DomainHandle, Error, Memory, NestedTable, Stage, sva};
use vtd_spec::{AddressWidth, FirstStageEntry, Pasid, ResponseCode, SourceId};
use vtd_unit::UnitConfig;

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const OTHER: SourceId = SourceId::new(1, 0, 0);
const ADDRESS: u64 = 0x7f12_3456_7000;

fn config() -> UnitConfig {
    UnitConfig { ssts: true, nest: true, ..UnitConfig::default() }
}

/// A guest's memory: pages of the host at guest addresses of their own.
struct Guest {
    domain: DomainHandle,
    pages: BTreeMap<u64, u64>,
}

impl Guest {
    fn new(iommu: &mut Driver) -> Self {
        Self { domain: iommu.create_nest_parent(AddressWidth::Bits48).unwrap(), pages: BTreeMap::new() }
    }

    /// A fresh page; its guest physical address.
    fn page(&mut self, system: &mut System) -> u64 {
        let host = system.host.allocate(1).unwrap();
        let guest = 0x4000_0000 + 0x3000 * self.pages.len() as u64;
        system.iommu.map(self.domain, guest, host, 4096, Access::ReadWrite).unwrap();
        self.pages.insert(guest, host);
        guest
    }

    fn at(&self, guest: u64) -> u64 {
        self.pages[&(guest & !0xfff)] + (guest & 0xfff)
    }

    /// A new address space with one page mapped at [`ADDRESS`]; the guest addresses of its top table and of the page.
    fn process(&mut self, system: &mut System, levels: u32) -> (u64, u64) {
        let root = self.page(system);
        let page = self.map(system, root, levels, ADDRESS);
        (root, page)
    }

    fn leaf(&mut self, system: &mut System, root: u64, levels: u32, address: u64) -> u64 {
        let mut table = root;
        for level in (2..=levels).rev() {
            let slot = self.at(table) + 8 * (address >> (12 + 9 * (level - 1)) & 511);
            let entry = FirstStageEntry::from_bits(system.host.load(slot));
            table = if entry.p() {
                entry.address(4)
            } else {
                let next = self.page(system);
                let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(next);
                system.host.store(slot, entry.into_bits());
                next
            };
        }
        self.at(table) + 8 * (address >> 12 & 511)
    }

    fn map(&mut self, system: &mut System, root: u64, levels: u32, address: u64) -> u64 {
        let page = self.page(system);
        let leaf = self.leaf(system, root, levels, address);
        let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(page);
        system.host.store(leaf, entry.into_bits());
        page
    }

    fn unmap(&mut self, system: &mut System, root: u64, address: u64) {
        let leaf = self.leaf(system, root, 4, address);
        system.host.store(leaf, 0);
    }

    fn bind(&self, system: &mut System, device: SourceId, pasid: Pasid, root: u64) -> Result<(), Error> {
        let data = BindData::new(root, pasid);
        nested::bind_gpasid(&mut system.iommu, &mut system.pasids, system.set, self.domain, device, &data)
    }

    fn unbind(&self, system: &mut System, device: SourceId, pasid: Pasid) -> Result<(), Error> {
        let hpasid = pasid.get().into();
        nested::unbind_gpasid(&mut system.iommu, &mut system.pasids, system.set, device, hpasid)
    }

    fn invalidate(&self, system: &mut System, device: SourceId, info: &Invalidate) {
        nested::invalidate(&mut system.iommu, &system.pasids, system.set, self.domain, device, info).unwrap();
    }
}

fn devices(system: &mut System) -> [Device; 2] {
    [system.add_device(DEVICE, true), system.add_device(OTHER, false)]
}

#[test]
fn dma_walks_both_stages() {
    for (levels, width) in [(4, 48), (5, 57)] {
        let mut system = System::with(&config());
        let devices = devices(&mut system);
        let mut guest = Guest::new(&mut system.iommu);
        let (root, page) = guest.process(&mut system, levels);
        let pasid = system.allocate_pasid();
        for device in &devices {
            let data = BindData { addr_width: width, ..BindData::new(root, pasid) };
            nested::bind_gpasid(
                &mut system.iommu,
                &mut system.pasids,
                system.set,
                guest.domain,
                device.source_id,
                &data,
            )
            .unwrap();
            let value = u64::from(device.source_id.0) + 1;
            assert!(device.write(pasid, ADDRESS + 8, &value.to_le_bytes()));
            assert_eq!(system.host.load(guest.at(page) + 8), value);
            assert_eq!(device.read(pasid, ADDRESS + 8), Some(value));
        }
        for device in &devices {
            guest.unbind(&mut system, device.source_id, pasid).unwrap();
            assert_eq!(device.read(pasid, ADDRESS), None);
        }
    }
}

#[test]
fn what_the_guest_unmaps_is_out_of_reach_after_its_invalidation() {
    let mut system = System::with(&config());
    let devices = devices(&mut system);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, _) = guest.process(&mut system, 4);
    let pasid = system.allocate_pasid();
    for page in 1..16 {
        guest.map(&mut system, root, 4, ADDRESS + 4096 * page);
    }
    let reached = |device: &Device| {
        (0..16).map(|page| device.write(pasid, ADDRESS + 4096 * page, &[1])).collect::<Vec<_>>()
    };
    for device in &devices {
        guest.bind(&mut system, device.source_id, pasid, root).unwrap();
        assert_eq!(reached(device), [true; 16]);
    }
    guest.unmap(&mut system, root, ADDRESS + 4096 * 3);
    for device in &devices {
        // The device-TLB is implied: a guest in caching mode does not ask for it.
        let info = Invalidate::of_pages(cache_type::IOTLB, pasid, ADDRESS + 4096 * 3, 1, true);
        guest.invalidate(&mut system, device.source_id, &info);
        let expected: Vec<bool> = (0..16).map(|page| page != 3).collect();
        assert_eq!(reached(device), expected);
    }
    for page in 0..16 {
        guest.unmap(&mut system, root, ADDRESS + 4096 * page);
    }
    for device in &devices {
        guest.invalidate(&mut system, device.source_id, &Invalidate::of_pasid(cache_type::IOTLB, pasid));
        assert_eq!(reached(device), [false; 16]);
    }
}

#[test]
fn what_the_host_unmaps_is_out_of_reach_for_every_guest_pasid() {
    let mut system = System::with(&config());
    let devices = devices(&mut system);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, page) = guest.process(&mut system, 4);
    let pasids = [0; 5].map(|_| system.allocate_pasid());
    for device in &devices {
        for pasid in pasids {
            guest.bind(&mut system, device.source_id, pasid, root).unwrap();
            assert!(device.write(pasid, ADDRESS, &[1]));
        }
    }
    system.iommu.unmap(guest.domain, page, 4096).unwrap();
    for device in &devices {
        assert!(pasids.iter().all(|pasid| !device.write(*pasid, ADDRESS, &[1])));
    }
    let other = system.host.allocate(1).unwrap();
    system.iommu.map(guest.domain, page, other, 4096, Access::ReadWrite).unwrap();
    assert!(devices[1].write(pasids[0], ADDRESS, &[7]));
    assert_eq!(system.host.load(other), 7, "the guest's page lies elsewhere now");
}

#[test]
fn a_guest_exchanges_its_table_under_dma_without_a_gap() {
    let mut system = System::with(&config());
    // Without ATS: a posted write that is blocked would be a fault in the record.
    let device = system.add_device(DEVICE, false);
    let mut guest = Guest::new(&mut system.iommu);
    let spaces = [guest.process(&mut system, 4), guest.process(&mut system, 4)];
    let pages = spaces.map(|(_, page)| guest.at(page));
    let pasid = system.allocate_pasid();
    guest.bind(&mut system, DEVICE, pasid, spaces[0].0).unwrap();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if !device.write(pasid, ADDRESS, &1u64.to_le_bytes()) {
                    break;
                }
                done.fetch_add(1, Ordering::Release);
            }
        });
        for round in 1..=100 {
            let data = BindData::new(spaces[round % 2].0, pasid);
            nested::rebind_gpasid(
                &mut system.iommu,
                &mut system.pasids,
                system.set,
                guest.domain,
                DEVICE,
                &data,
            )
            .unwrap();
            // Nothing goes to the table before from now on.
            pages.iter().for_each(|page| system.host.store(*page, 0));
            let seen = done.load(Ordering::Acquire);
            let mut waited = 0;
            while done.load(Ordering::Acquire) < seen + 2 && waited < 5_000_000 {
                std::thread::yield_now();
                waited += 1;
            }
            let written = pages.map(|page| system.host.load(page));
            assert_eq!(written, if round % 2 == 0 { [1, 0] } else { [0, 1] }, "round {round}");
        }
    });
    assert_eq!(system.take_faults(), []);
}

#[test]
fn nothing_is_written_after_unbinding_under_dma() {
    let mut system = System::with(&config());
    let device = system.add_device(DEVICE, true);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, page) = guest.process(&mut system, 4);
    let page = guest.at(page);
    let pasid = system.allocate_pasid();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                device.write(pasid, ADDRESS, &1u64.to_le_bytes());
            }
        });
        for _ in 0..50 {
            guest.bind(&mut system, DEVICE, pasid, root).unwrap();
            eventually("a write of the device", || system.host.load(page) != 0);
            guest.unbind(&mut system, DEVICE, pasid).unwrap();
            system.host.store(page, 0);
            (0..50).for_each(|_| std::thread::yield_now());
            assert_eq!(system.host.load(page), 0);
        }
    });
}

#[test]
fn page_requests_of_a_guest_go_up_and_its_answers_down() {
    let mut system = System::with(&config());
    let device = system.add_device(DEVICE, true);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, _) = guest.process(&mut system, 4);
    let pasid = system.allocate_pasid();
    guest.bind(&mut system, DEVICE, pasid, root).unwrap();
    let address = ADDRESS + 0x1000;
    assert!(!device.write(pasid, address, &[1]));
    device.ask(pasid, address, true, 5, true);
    let requests = system.iommu.take_page_requests().unwrap().requests;
    assert_eq!(requests, [asked(&device, pasid, address, true, 5, true)]);
    let page = guest.map(&mut system, root, 4, address);
    let code = ResponseCode::Success;
    let stranger = system.pasids.create_set(1).unwrap();
    let respond = |system: &mut System, set| {
        nested::respond(&mut system.iommu, &system.pasids, set, &requests[0], code)
    };
    assert!(matches!(respond(&mut system, stranger), Err(Error::Pasid(_))));
    assert_eq!(device.sink.take_responses(), []);
    let own = system.set;
    respond(&mut system, own).unwrap();
    assert_eq!(device.sink.take_responses(), [(5, code)]);
    assert!(device.write(pasid, address, &[9]));
    assert_eq!(system.host.load(guest.at(page)), 9);
}

#[test]
fn requests_beyond_a_full_fault_ring_are_answered_for_the_guest() {
    let mut system = System::with(&config());
    let device = system.add_device(DEVICE, true);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, _) = guest.process(&mut system, 4);
    let pasid = system.allocate_pasid();
    guest.bind(&mut system, DEVICE, pasid, root).unwrap();
    device.ask(pasid, ADDRESS, true, 5, true);
    let request = system.iommu.take_page_requests().unwrap().requests[0];
    let mut ring = FaultRing::new();
    for _ in 0..fault_ring::ENTRIES {
        ring.request(&mut system.iommu, &system.pasids, request).unwrap();
    }
    assert_eq!(device.sink.take_responses(), [], "what is in the ring waits for the guest");
    ring.request(&mut system.iommu, &system.pasids, request).unwrap();
    assert_eq!(device.sink.take_responses(), [(5, ResponseCode::InvalidRequest)]);
    assert_eq!((ring.lost(), ring.take()), (1, Some(Fault::PageRequest { request, guest_pasid: None })));
}

#[test]
fn the_guest_hears_of_faults_by_its_own_pasid() {
    let mut system = System::with(&config());
    let devices = devices(&mut system);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, _) = guest.process(&mut system, 4);
    let (pasid, own) = (system.allocate_pasid(), Pasid::truncated(0x777));
    let data = BindData { flags: nested::FLAG_GUEST_PASID, gpasid: 0x777, ..BindData::new(root, pasid) };
    let group = devices.each_ref().map(|device| device.source_id);
    let System { iommu, pasids, set, .. } = &mut system;
    nested::bind_gpasid_group(iommu, pasids, *set, guest.domain, &group, &data).unwrap();
    let mut ring = FaultRing::new();
    // Without ATS the access itself is blocked.
    assert!(!devices[1].write(pasid, ADDRESS + 0x1000, &[1]));
    for record in system.iommu.take_faults().records {
        ring.report(&system.pasids, &record);
    }
    devices[0].ask(pasid, ADDRESS + 0x2000, true, 5, true);
    for request in system.iommu.take_page_requests().unwrap().requests {
        ring.request(&mut system.iommu, &system.pasids, request).unwrap();
    }
    let Some(Fault::Unrecoverable { pasid: host, guest_pasid, address, reason, .. }) = ring.take() else {
        panic!("a fault");
    };
    assert_eq!((host, guest_pasid, address), (Some(pasid), Some(own), ADDRESS + 0x1000));
    assert_eq!(reason, fault_ring::Reason::PteFetch);
    let fault = ring.take().unwrap();
    assert_eq!(fault.to_bytes()[12..16], 0x777u32.to_le_bytes());
    let Fault::PageRequest { request, guest_pasid } = fault else { panic!("a page request") };
    assert_eq!((request.pasid, guest_pasid), (Some(pasid), Some(own)));
    let code = ResponseCode::InvalidRequest;
    nested::respond(&mut system.iommu, &system.pasids, system.set, &request, code).unwrap();
    assert_eq!(devices[0].sink.take_responses(), [(5, code)]);
}

#[test]
fn a_table_outside_of_the_guest_reaches_nothing() {
    let mut system = System::with(&config());
    let device = system.add_device(OTHER, false);
    let mut guest = Guest::new(&mut system.iommu);
    let (_, page) = guest.process(&mut system, 4);
    let pasid = system.allocate_pasid();
    // Nothing is mapped there: it is the walk that finds out.
    guest.bind(&mut system, OTHER, pasid, 0x5000).unwrap();
    assert_eq!(device.read(pasid, ADDRESS), None);
    assert_eq!(system.take_faults().len(), 1);
    guest.unbind(&mut system, OTHER, pasid).unwrap();
    // A host address means nothing to the guest.
    guest.bind(&mut system, OTHER, pasid, guest.at(page)).unwrap();
    assert_eq!(device.read(pasid, ADDRESS), None);
    assert_eq!(system.take_faults().len(), 1);
}

#[test]
fn every_kind_of_translation_lives_in_one_device() {
    let mut system = System::with(&config());
    let device = system.add_device(DEVICE, false);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, page) = guest.process(&mut system, 4);
    let process = Process::new(&system.host);
    let process_page = process.map(ADDRESS);
    let second = system.iommu.create_domain(Stage::Second(AddressWidth::Bits39)).unwrap();
    let buffer = 0x800_0000;
    system.iommu.map(second, 0x40_0000, buffer, 0x20_0000, Access::ReadWrite).unwrap();
    let [nested, shared, plain, through] = [0; 4].map(|_| system.allocate_pasid());
    guest.bind(&mut system, DEVICE, nested, root).unwrap();
    sva::bind(&mut system.iommu, &mut system.pasids, system.set, DEVICE, shared, process.table()).unwrap();
    system.iommu.attach(second, DEVICE, plain).unwrap();
    system.iommu.attach_pass_through(DEVICE, through).unwrap();
    // Requests without PASID take the guest's path, as Linux's own DMA does in a first-stage domain.
    system.iommu.setup_nested(DEVICE, Pasid::ZERO, guest.domain, NestedTable::new(root, 48)).unwrap();
    let own = buffer + 0x1f_f000;
    for (pasid, address, host) in [
        (nested, ADDRESS, guest.at(page)),
        (shared, ADDRESS, process_page),
        (plain, 0x40_0000 + 0x1f_f000, own),
        (through, own + 8, own + 8),
        (Pasid::ZERO, ADDRESS + 8, guest.at(page) + 8),
    ] {
        let value = u64::from(pasid.get()) + 100;
        assert!(device.write(pasid, address, &value.to_le_bytes()), "{pasid}");
        assert_eq!(system.host.load(host), value, "{pasid}");
    }
    system.iommu.unmap(second, 0x40_0000, 0x20_0000).unwrap();
    assert!(!device.write(plain, 0x40_0000, &[1]));
    assert!(device.write(nested, ADDRESS, &[1]) && device.write(shared, ADDRESS, &[1]));
    system.iommu.detach(DEVICE, Pasid::ZERO).unwrap();
    assert!(!device.write(Pasid::ZERO, ADDRESS, &[1]));
    assert!(device.write(nested, ADDRESS, &[1]));
}

#[test]
fn a_machine_that_ends_leaves_nothing() {
    let mut system = System::with(&config());
    let devices = devices(&mut system);
    let mut guest = Guest::new(&mut system.iommu);
    let (root, _) = guest.process(&mut system, 4);
    let pasids = [0; 20].map(|_| system.allocate_pasid());
    for pasid in pasids {
        guest.bind(&mut system, DEVICE, pasid, root).unwrap();
        guest.bind(&mut system, OTHER, pasid, root).unwrap();
    }
    assert_eq!(system.iommu.destroy_domain(guest.domain), Err(Error::DomainBusy));
    nested::release_set(&mut system.iommu, &mut system.pasids, system.set).unwrap();
    for device in &devices {
        assert!(pasids.iter().all(|pasid| !device.write(*pasid, ADDRESS, &[1])));
    }
    assert_eq!(system.pasids.allocated(), 0);
    system.iommu.destroy_domain(guest.domain).unwrap();
    let pages: Vec<u64> = guest.pages.values().copied().collect();
    pages.iter().for_each(|page| Host::free(&system.host, *page, 1));
    system.end(0);
}
