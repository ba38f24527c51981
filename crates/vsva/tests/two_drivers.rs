// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same driver on both sides: as the guest's kernel on the virtual unit, and inside the soft host on the physical one.
//! Whatever the one tells its unit has to come out right at a device that is behind the other.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patience::Raise;
use rig::common::{Messages, SOURCE_ID, Sink};
use rig::kernel::{Kernel, Process};
use rig::shared_memory;
use vm_memory::{Bytes, GuestAddress};
use vsva::{Assigned, DeviceId, HostIommu, HostMemory, Joint, SoftHost, SoftHostConfig};
use vtd_driver::vcmd::{self, Encoding};
use vtd_driver::{Access, Ats, Error, Stage, cache, sva};
use vtd_spec::descriptors::{HptCache, HptGranularity, HptLevels};
use vtd_spec::{
    AddressRange, Descriptor, DomainId, FirstStagePagingMode, Pasid, PasidGranularTranslationType,
    QueueError, ResponseCode, SourceId,
};
use vtd_unit::{
    DmaError, Endpoint, EndpointSink, Notify, PageRequest, Requester, Unit, UnitConfig,
    VirtualCommandEncoding,
};

const ADDRESS: u64 = 0x7f12_3456_7000;

/// Everything in one process. The machine outlives its kernels.
struct Machine {
    memory: Arc<rig::common::Memory>,
    unit: Unit<rig::common::Memory>,
    host: Arc<SoftHost>,
    joint: Joint<rig::common::Memory>,
    assigned: Arc<Assigned<rig::common::Memory>>,
    device: DeviceId,
    port: Endpoint<HostMemory>,
    sink: Arc<Sink>,
}

impl Machine {
    fn new(config: &UnitConfig, host: &SoftHostConfig) -> Self {
        let memory = Arc::new(shared_memory());
        let unit = Unit::new(config, Arc::clone(&memory), Arc::new(Messages::default())).unwrap();
        let host = SoftHost::new(host, &memory).unwrap();
        let sink = Arc::new(Sink::default());
        let messages = Arc::new(Messages::default()) as Arc<dyn Notify>;
        let (device, port) = host.function(Arc::clone(&sink) as Arc<dyn EndpointSink>, messages).unwrap();
        let joint = Joint::new(&unit, Arc::clone(&host) as Arc<dyn HostIommu>, None).unwrap();
        let assigned = joint.assign(SOURCE_ID, device).unwrap();
        port.set_ats_enabled(true);
        Self { memory, unit, host, joint, assigned, device, port, sink }
    }

    fn boot(&self) -> Kernel {
        let mut kernel = Kernel::boot(&self.unit, &self.memory);
        kernel.add_device(SOURCE_ID);
        kernel
    }

    /// PASID 0 stands for requests without.
    fn write(&self, pasid: Pasid, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.port.write(requester(pasid), address, data)
    }

    fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn eventually(&self, what: &str, done: impl Fn() -> bool) {
        patience::eventually(what, done);
    }
}

fn requester(pasid: Pasid) -> Requester {
    Requester { pasid: (pasid != Pasid::ZERO).then_some(pasid), privileged: false }
}

fn machine() -> Machine {
    Machine::new(&UnitConfig::default(), &SoftHostConfig::default())
}

#[test]
fn before_and_after_the_kernel_devices_reach_guest_memory_as_it_is() {
    let machine = machine();
    machine.port.set_ats_enabled(false);
    machine.write(Pasid::ZERO, 0x5000, b"1").unwrap();
    let kernel = machine.boot();
    assert!(machine.write(Pasid::ZERO, 0x5000, b"2").is_err(), "nothing is attached");
    kernel.shut_down(0);
    machine.write(Pasid::ZERO, 0x5001, b"3").unwrap();
    assert_eq!((machine.byte(0x5000), machine.byte(0x5001)), (b'1', b'3'));
}

#[test]
fn a_domain_of_the_guest_is_nested_on_the_host() {
    let machine = machine();
    let mut kernel = machine.boot();
    let mode = FirstStagePagingMode::Level4;
    let domain = kernel.iommu.create_domain(Stage::First(mode)).unwrap();
    kernel.iommu.attach(domain, SOURCE_ID, Pasid::ZERO).unwrap();
    // Two large pages and some small ones, to memory that is in several pieces on the host.
    let memory = vtd_driver::Memory::allocate(&*kernel.pages, 2048).unwrap();
    for (address, physical, length) in
        [(0x4000_0000, memory, 0x40_0000), (0x5000_0000, memory + 0x40_0000, 0x5000)]
    {
        kernel.iommu.map(domain, address, physical, length, Access::ReadWrite).unwrap();
        for at in (0..length).step_by(0x1000) {
            machine.write(Pasid::ZERO, address + at + 7, &[at as u8 ^ (at >> 12) as u8 ^ 0x55]).unwrap();
            assert_eq!(machine.byte(physical + at + 7), at as u8 ^ (at >> 12) as u8 ^ 0x55);
        }
    }
    kernel.iommu.unmap(domain, 0x4000_0000, 0x20_0000).unwrap();
    assert!(machine.write(Pasid::ZERO, 0x4000_0000, b"!").is_err());
    machine.write(Pasid::ZERO, 0x4020_0000, b"!").unwrap();
    // A read-only mapping.
    kernel.iommu.map(domain, 0x6000_0000, memory, 0x1000, Access::Read).unwrap();
    machine.port.read(Requester::default(), 0x6000_0000, &mut [0]).unwrap();
    assert!(machine.write(Pasid::ZERO, 0x6000_0000, b"!").is_err());
    kernel.iommu.detach(SOURCE_ID, Pasid::ZERO).unwrap();
    assert!(machine.write(Pasid::ZERO, 0x4020_0000, b"?").is_err());
    assert!(machine.host.statistics().nested_walks > 0);
    // Without translation: the guest's physical addresses.
    kernel.iommu.attach_pass_through(SOURCE_ID, Pasid::ZERO).unwrap();
    machine.write(Pasid::ZERO, memory + 9, b"p").unwrap();
    assert_eq!(machine.byte(memory + 9), b'p');
    kernel.iommu.destroy_domain(domain).unwrap();
    vtd_driver::Memory::free(&*kernel.pages, memory, 2048);
    kernel.shut_down(0);
}

#[test]
fn a_domain_is_attached_by_pasid_as_well() {
    let machine = machine();
    let mut kernel = machine.boot();
    let pasid = kernel.allocate_pasid().unwrap();
    let domain = kernel.iommu.create_domain(Stage::First(FirstStagePagingMode::Level5)).unwrap();
    let page = vtd_driver::Memory::allocate(&*kernel.pages, 1).unwrap();
    // Far beyond four levels.
    let address = 0x12_3456_789a_b000;
    kernel.iommu.map(domain, address, page, 4096, Access::ReadWrite).unwrap();
    kernel.iommu.attach(domain, SOURCE_ID, pasid).unwrap();
    machine.write(pasid, address, b"5").unwrap();
    assert_eq!(machine.byte(page), b'5');
    kernel.iommu.unmap(domain, address, 4096).unwrap();
    assert!(machine.write(pasid, address, b"6").is_err());
    kernel.iommu.detach(SOURCE_ID, pasid).unwrap();
    assert_eq!(machine.assigned.bound_count(), 0);
    assert_eq!(machine.host.allocated_pasids(), 0);
}

#[test]
fn processes_share_their_address_spaces_with_a_device() {
    for identical_pasids in [false, true] {
        let host = SoftHostConfig { identical_pasids, ..SoftHostConfig::default() };
        let machine = Machine::new(&UnitConfig::default(), &host);
        let mut kernel = machine.boot();
        let processes: Vec<(Process, Pasid)> =
            (0..10).map(|_| (Process::new(&kernel), kernel.allocate_pasid().unwrap())).collect();
        let mut pages = Vec::new();
        for (number, (process, pasid)) in processes.iter().enumerate() {
            kernel.bind(SOURCE_ID, *pasid, process).unwrap();
            pages.push(process.map(ADDRESS));
            machine.write(*pasid, ADDRESS, &[number as u8 + 1]).unwrap();
            let host_pasid = machine.assigned.host_pasid(*pasid).unwrap();
            assert!(!identical_pasids || host_pasid == *pasid);
            let followed = machine.host.follow(machine.device, host_pasid, ADDRESS).unwrap();
            assert_eq!(followed.entry.pgtt(), Some(PasidGranularTranslationType::Nested));
            assert_eq!(followed.guest_physical, pages[number]);
            let there = machine.host.memory().read_obj::<u8>(GuestAddress(followed.host_physical)).unwrap();
            assert_eq!(there, number as u8 + 1);
        }
        for (number, page) in pages.iter().enumerate() {
            assert_eq!(machine.byte(*page), number as u8 + 1, "the same pointer, another byte");
        }
        // munmap in one of them.
        let (process, pasid) = &processes[3];
        process.unmap(ADDRESS);
        let Kernel { iommu, pasids, .. } = &mut kernel;
        sva::invalidate(iommu, pasids, *pasid, AddressRange::new(ADDRESS, 0), true).unwrap();
        assert!(machine.write(*pasid, ADDRESS, b"!").is_err());
        assert_eq!(machine.byte(pages[3]), 4);
        machine.write(processes[4].1, ADDRESS, b"!").unwrap();
        // Another dies while its device goes on: its faults are nobody's business.
        kernel.iommu.take_faults();
        let pasid = processes[5].1;
        let Kernel { iommu, pasids, .. } = &mut kernel;
        sva::release(iommu, pasids, pasid).unwrap();
        assert!(machine.write(pasid, ADDRESS, b"!").is_err());
        assert!(kernel.iommu.take_faults().records.is_empty());
        for (_, pasid) in &processes {
            kernel.unbind(SOURCE_ID, *pasid);
            assert!(machine.write(*pasid, ADDRESS, b"!").is_err());
        }
        assert_eq!(machine.assigned.bound_count(), 0);
        assert_eq!(machine.host.allocated_pasids(), 0);
    }
}

#[test]
fn a_fault_of_the_device_is_served_by_the_kernel() {
    let machine = machine();
    let mut kernel = machine.boot();
    let (process, pasid) = (Process::new(&kernel), kernel.allocate_pasid().unwrap());
    kernel.bind(SOURCE_ID, pasid, &process).unwrap();
    for (group, code) in
        [(7, ResponseCode::Success), (8, ResponseCode::InvalidRequest), (9, ResponseCode::ResponseFailure)]
    {
        let address = ADDRESS + u64::from(group) * 4096;
        let fault = machine.write(pasid, address, b"x").unwrap_err();
        assert_eq!(fault, DmaError::PageFault { address, write: true });
        let requester = requester(pasid);
        let request = PageRequest { requester, address, read: true, write: true, last: true, group };
        machine.port.page_request(request);
        let mut taken = Vec::new();
        while taken.is_empty() {
            taken = kernel.iommu.take_page_requests().unwrap().requests;
            std::thread::yield_now();
        }
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].source_id, taken[0].pasid, taken[0].group), (SOURCE_ID, Some(pasid), group));
        assert_eq!((taken[0].address, taken[0].read, taken[0].write), (address, true, true));
        let page = (code == ResponseCode::Success).then(|| process.map(address));
        kernel.iommu.respond(&taken[0], code).unwrap();
        machine.eventually("the answer", || !machine.sink.responses.lock().unwrap().is_empty());
        let response = machine.sink.responses.lock().unwrap().pop().unwrap();
        assert_eq!((response.pasid, response.group, response.code), (Some(pasid), group, code));
        assert_eq!(machine.write(pasid, address, b"x").is_ok(), page.is_some());
        assert!(page.is_none_or(|page| machine.byte(page) == b'x'));
    }
    // One that waits when the process goes: the driver drains, and the device is told.
    let requester = requester(pasid);
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 1 };
    machine.port.page_request(request);
    kernel.unbind(SOURCE_ID, pasid);
    machine.eventually("an answer", || !machine.sink.responses.lock().unwrap().is_empty());
    assert!(kernel.iommu.take_page_requests().unwrap().requests.is_empty());
    assert_eq!(machine.sink.responses.lock().unwrap()[0].code, ResponseCode::InvalidRequest);
}

#[test]
fn a_queue_that_stops_is_repaired_and_loses_nothing() {
    let machine = machine();
    let mut kernel = machine.boot();
    let (process, pasid) = (Process::new(&kernel), kernel.allocate_pasid().unwrap());
    kernel.bind(SOURCE_ID, pasid, &process).unwrap();
    let page = process.map(ADDRESS);
    machine.write(pasid, ADDRESS, &[1]).unwrap();
    process.unmap(ADDRESS);
    // A descriptor that the unit refuses, and one for a device that is not there, around those that matter.
    let unknown = Descriptor::HptCache(HptCache {
        granularity: HptGranularity::Global,
        hptdid: DomainId(0),
        am: 0,
        ih: HptLevels::All,
        addr: 0,
    });
    let gone = SourceId::new(9, 9, 0);
    let ats = Ats::default();
    let range = AddressRange::new(ADDRESS, 0);
    let refused = kernel.iommu.submit(&[
        unknown,
        cache::pasid_iotlb_pages(DomainId(1), pasid, range, true),
        unknown,
        cache::pasid_device_tlb(SOURCE_ID, ats, pasid, range),
    ]);
    assert_eq!(refused, Err(Error::InvalidDescriptor { index: 0, reason: Some(QueueError::InvalidType) }));
    assert!(machine.write(pasid, ADDRESS, &[2]).is_err());
    assert_eq!(machine.byte(page), 1);
    let timed_out = kernel.iommu.submit(&[
        cache::device_tlb(gone, ats, AddressRange::ALL),
        cache::pasid_cache_pasid(DomainId(1), pasid),
    ]);
    assert_eq!(timed_out, Err(Error::DeviceTimedOut { source_id: gone }));
    // And everything goes on.
    process.map(ADDRESS);
    machine.write(pasid, ADDRESS, &[3]).unwrap();
    kernel.unbind(SOURCE_ID, pasid);
    assert_eq!(machine.host.allocated_pasids(), 0);
}

#[test]
fn pasids_come_from_the_host_where_the_guest_uses_the_virtual_command() {
    for (config, encoding) in
        [(VirtualCommandEncoding::Early, Encoding::Early), (VirtualCommandEncoding::Final, Encoding::Final)]
    {
        let config = UnitConfig { vcmd: Some(config), ..UnitConfig::default() };
        let machine = Machine::new(&config, &SoftHostConfig { pasid_quota: 6, ..SoftHostConfig::default() });
        let mut kernel = machine.boot();
        let Kernel { iommu, pasids, .. } = &mut kernel;
        assert!(vcmd::register(iommu, pasids, encoding).unwrap().is_some());
        let process = Process::new(&kernel);
        let page = process.map(ADDRESS);
        let held: Vec<Pasid> = (0..6).map(|_| kernel.allocate_pasid().unwrap()).collect();
        assert!(kernel.allocate_pasid().is_err(), "the host's quota");
        assert_eq!(machine.host.allocated_pasids(), 6);
        for pasid in &held {
            kernel.bind(SOURCE_ID, *pasid, &process).unwrap();
            assert_eq!(machine.assigned.host_pasid(*pasid), Some(*pasid), "the host's own number");
            machine.write(*pasid, ADDRESS, &[pasid.get() as u8]).unwrap();
            assert_eq!(machine.byte(page), pasid.get() as u8);
        }
        assert_eq!(machine.host.allocated_pasids(), 6, "each counts once");
        for (number, pasid) in held.iter().enumerate() {
            kernel.unbind(SOURCE_ID, *pasid);
            assert_eq!(machine.host.allocated_pasids() as usize, 6 - number, "it is still the guest's");
            kernel.pasids.free(kernel.set, pasid.get()).unwrap();
            assert_eq!(machine.host.allocated_pasids() as usize, 5 - number);
        }
        // A kernel that dies without giving anything back, and the next one.
        assert!((0..6).all(|_| kernel.allocate_pasid().is_ok()));
        machine.unit.reset();
        assert_eq!(machine.host.allocated_pasids(), 0);
        let mut kernel = machine.boot();
        let Kernel { iommu, pasids, .. } = &mut kernel;
        vcmd::register(iommu, pasids, encoding).unwrap();
        assert!((0..6).all(|_| kernel.allocate_pasid().is_ok()));
        let Machine { joint, host, .. } = machine;
        drop(joint);
        assert_eq!(host.allocated_pasids(), 0, "the machine went");
        assert!(kernel.allocate_pasid().is_err());
    }
}

#[test]
fn a_guest_that_picks_its_own_pasids_may_do_so_beside_the_virtual_command() {
    let config = UnitConfig { vcmd: Some(VirtualCommandEncoding::Final), ..UnitConfig::default() };
    let machine = Machine::new(&config, &SoftHostConfig::default());
    let mut kernel = machine.boot();
    let process = Process::new(&kernel);
    let page = process.map(ADDRESS);
    // Not the numbers that the host has for them.
    let own: Vec<Pasid> = (0..24).map(|_| kernel.allocate_pasid().unwrap()).skip(4).collect();
    for pasid in &own {
        kernel.bind(SOURCE_ID, *pasid, &process).unwrap();
    }
    // What the host gives out never collides with a number that the guest uses for something else.
    let page_of_registers = vsva::UnitRegisters(machine.unit.clone());
    let mut interface = vcmd::VirtualCommand::discover(page_of_registers, Encoding::Final).unwrap();
    let mut given = Vec::new();
    for _ in 0..30 {
        let pasid = interface.allocate().unwrap();
        assert!(!own.contains(&pasid) && !given.contains(&pasid), "{pasid} is in use");
        given.push(pasid);
    }
    for (number, pasid) in own.iter().enumerate() {
        machine.write(*pasid, ADDRESS, &[number as u8]).unwrap();
        assert_eq!(machine.byte(page), number as u8);
    }
    assert_eq!(interface.free(own[0]), Err(Error::VirtualCommandNoPasid), "it was not allocated there");
    given.iter().for_each(|pasid| interface.free(*pasid).unwrap());
    assert_eq!(interface.free(given[0]), Err(Error::VirtualCommandNoPasid), "twice");
    own.iter().for_each(|pasid| kernel.unbind(SOURCE_ID, *pasid));
    assert_eq!(machine.host.allocated_pasids(), 0);
}

#[test]
fn a_process_is_bound_and_unbound_under_dma() {
    let machine = machine();
    let mut kernel = machine.boot();
    let (first, second) = (Process::new(&kernel), Process::new(&kernel));
    let pages = [first.map(ADDRESS), second.map(ADDRESS)];
    let pasid = kernel.allocate_pasid().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = machine.write(pasid, ADDRESS, &[1; 8]);
                std::thread::yield_now();
            }
        });
        for round in 0..300 {
            let (process, page) = if round % 2 == 0 { (&first, pages[0]) } else { (&second, pages[1]) };
            machine.memory.write_obj(0u8, GuestAddress(page)).unwrap();
            kernel.bind(SOURCE_ID, pasid, process).unwrap();
            machine.eventually("a byte of the process that is bound", || machine.byte(page) == 1);
            kernel.unbind(SOURCE_ID, pasid);
            machine.memory.write_obj(9u8, GuestAddress(page)).unwrap();
            (0..10).for_each(|_| std::thread::yield_now());
            assert_eq!(machine.byte(page), 9, "round {round}: a write came too late");
        }
    });
    assert_eq!(machine.host.allocated_pasids(), 0);
}
