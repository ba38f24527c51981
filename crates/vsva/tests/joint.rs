// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The joint between a guest's unit and a host that writes down what it is asked.

#[path = "../../vtd-unit/tests/common/mod.rs"]
mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use common::{Guest, SOURCE_ID, pasid};
use vsva::{
    Attachment, DeviceId, FaultPasid, HostError, HostEvents, HostFault, HostIommu, Invalidation,
    InvalidationKind, Joint, NestingInfo,
};
use vtd_spec::descriptors::{
    Iotlb, IotlbGranularity, PageGroupResponse as ResponseDescriptor, PasidCache, PasidCacheGranularity,
    PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity,
};
use vtd_spec::{
    AddressRange, Descriptor, DomainId, FaultReason, Pasid, PasidEntry, PasidGranularTranslationType,
    SourceId,
};
use vtd_unit::{
    Access, PageGroupResponse, PageRequest, Requester, ResponseCode, UnitConfig, VirtualCommandEncoding,
};

const DEVICE: DeviceId = DeviceId(1);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Attach(Option<u32>, Attachment),
    Block(Option<u32>),
    Translate(u32, Option<u32>),
    Invalidate(Invalidation),
    Respond(Option<u32>, u16, ResponseCode),
}

struct Host {
    calls: Mutex<Vec<Call>>,
    allocated: Mutex<HashSet<u32>>,
    refuse: Mutex<Option<HostError>>,
    events: Mutex<Option<Weak<dyn HostEvents>>>,
    identical: bool,
    /// PASIDs that may be allocated at a time.
    quota: Mutex<usize>,
    /// Invalidations done per call.
    pace: usize,
    /// It answers groups of what it detaches itself.
    ends_groups: AtomicBool,
    /// What came back with responses.
    cookies: Mutex<Vec<u64>>,
}

impl Host {
    fn new(identical: bool) -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::default(),
            allocated: Mutex::default(),
            refuse: Mutex::default(),
            events: Mutex::default(),
            identical,
            quota: Mutex::new(usize::MAX),
            pace: usize::MAX,
            ends_groups: AtomicBool::new(false),
            cookies: Mutex::default(),
        })
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn call(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn events(&self) -> Arc<dyn HostEvents> {
        self.events.lock().unwrap().as_ref().unwrap().upgrade().unwrap()
    }
}

impl HostIommu for Host {
    fn nesting_info(&self) -> NestingInfo {
        NestingInfo {
            fs1gp: true,
            fs5lp: true,
            prs: true,
            srs: false,
            eafs: false,
            pasid_bits: 20,
            address_width: 48,
            identical_pasids: self.identical,
            ends_groups: self.ends_groups.load(Ordering::Relaxed),
            ..NestingInfo::default()
        }
    }

    fn listen(&self, _: DeviceId, events: Weak<dyn HostEvents>) {
        *self.events.lock().unwrap() = Some(events);
    }

    fn allocate_pasid(&self) -> Result<Pasid, HostError> {
        let mut allocated = self.allocated.lock().unwrap();
        if allocated.len() >= *self.quota.lock().unwrap() {
            return Err(HostError::NoPasid);
        }
        let free = (1000..1000 + 20_000).find(|number| !allocated.contains(number));
        let number = free.ok_or(HostError::NoPasid)?;
        allocated.insert(number);
        Ok(pasid(number))
    }

    fn allocate_this_pasid(&self, pasid: Pasid) -> Result<(), HostError> {
        if self.allocated.lock().unwrap().insert(pasid.get()) { Ok(()) } else { Err(HostError::NoPasid) }
    }

    fn free_pasid(&self, pasid: Pasid) {
        assert!(self.allocated.lock().unwrap().remove(&pasid.get()), "{pasid} is not allocated");
    }

    fn attach(&self, _: DeviceId, pasid: Option<Pasid>, to: Attachment) -> Result<(), HostError> {
        if let Some(error) = self.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        self.call(Call::Attach(pasid.map(Pasid::get), to));
        Ok(())
    }

    fn block(&self, _: DeviceId, pasid: Option<Pasid>) {
        self.call(Call::Block(pasid.map(Pasid::get)));
    }

    fn set_pasid_translation(&self, _: DeviceId, guest: Pasid, host: Option<Pasid>) -> Result<(), HostError> {
        self.call(Call::Translate(guest.get(), host.map(Pasid::get)));
        Ok(())
    }

    fn invalidate(&self, batch: &[Invalidation]) -> usize {
        let done = batch.len().min(self.pace);
        self.calls.lock().unwrap().extend(batch[..done].iter().copied().map(Call::Invalidate));
        done
    }

    fn respond(&self, _: DeviceId, response: PageGroupResponse, cookie: u64) {
        self.cookies.lock().unwrap().push(cookie);
        self.call(Call::Respond(response.pasid.map(Pasid::get), response.group, response.code));
    }
}

struct Rig {
    guest: Guest,
    host: Arc<Host>,
    joint: Joint<common::Memory>,
    assigned: Arc<vsva::Assigned<common::Memory>>,
}

fn rig_with(config: &UnitConfig, host: Arc<Host>) -> Rig {
    let guest = Guest::with_config(config);
    // What it has there is assigned.
    guest.unit.remove_endpoint(SOURCE_ID);
    let joint = Joint::new(&guest.unit, Arc::clone(&host) as Arc<dyn HostIommu>, None).unwrap();
    let assigned = joint.assign(SOURCE_ID, DEVICE).unwrap();
    host.take();
    Rig { guest, host, joint, assigned }
}

fn rig() -> Rig {
    rig_with(&UnitConfig::default(), Host::new(false))
}

fn pasid_cache(granularity: PasidCacheGranularity, did: u16, number: u32) -> Descriptor {
    Descriptor::PasidCache(PasidCache { granularity, did: DomainId(did), pasid: pasid(number) })
}

fn psi(did: u16, number: u32) -> Descriptor {
    pasid_cache(PasidCacheGranularity::Pasid, did, number)
}

fn nested(guest: &Guest, number: u32) -> Attachment {
    let binding = guest.unit.binding(SOURCE_ID, pasid(number)).unwrap();
    let vtd_unit::Translation::FirstStage(table) = binding.translation else { panic!() };
    Attachment::Nested(table)
}

fn iotlb(device: DeviceId, host: Option<u32>, range: AddressRange, leaf_only: bool) -> Call {
    let kind = InvalidationKind::Iotlb { leaf_only };
    Call::Invalidate(Invalidation { device, pasid: host.map(pasid), range, kind })
}

#[test]
fn an_entry_that_becomes_present_is_attached_under_a_pasid_of_the_host() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    let to = nested(&rig.guest, 5);
    assert_eq!(rig.host.take(), [Call::Attach(Some(1000), to), Call::Translate(5, Some(1000))]);
    assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(1000)));
    // Announcing what has not changed changes nothing.
    rig.guest.submit_all(&[psi(1, 5), pasid_cache(PasidCacheGranularity::Global, 0, 0)]);
    assert_eq!(rig.host.take(), []);
}

#[test]
fn an_entry_that_changes_replaces_and_one_that_goes_is_unbound() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take(), [Call::Attach(Some(1000), nested(&rig.guest, 5))]);
    rig.guest.write_pasid_entry(pasid(5), Default::default());
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take(), [Call::Translate(5, None), Call::Block(Some(1000))]);
    assert!(rig.host.allocated.lock().unwrap().is_empty(), "the PASID is given back");
}

#[test]
fn an_invalidation_of_another_domain_is_not_heard() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit_all(&[psi(2, 5), pasid_cache(PasidCacheGranularity::Domain, 2, 0)]);
    assert_eq!(rig.host.take(), []);
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Domain, 1, 0));
    assert_eq!(rig.host.take().len(), 2);
    // The domain changes in place: an invalidation that names the old one is enough.
    let table = nested(&rig.guest, 5);
    let Attachment::Nested(first) = table else { unreachable!() };
    rig.guest.write_pasid_entry(pasid(5), Guest::first_stage(DomainId(7), first.address));
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take(), [], "the host has domain-ids of its own");
    let piotlb = |did| {
        let granularity = PasidIotlbGranularity::Pasid;
        let (pasid, did) = (pasid(5), DomainId(did));
        Descriptor::PasidIotlb(PasidIotlb { granularity, did, pasid, am: 0, ih: false, addr: 0 })
    };
    rig.guest.submit(&piotlb(1));
    assert_eq!(rig.host.take(), []);
    rig.guest.submit(&piotlb(7));
    assert_eq!(rig.host.take(), [iotlb(DEVICE, Some(1000), AddressRange::ALL, false)]);
}

#[test]
fn invalidations_go_down_with_the_hosts_ids_before_the_wait_completes() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    let page = PasidIotlb {
        granularity: PasidIotlbGranularity::Page,
        did: DomainId(1),
        pasid: pasid(5),
        am: 2,
        ih: true,
        addr: 0x1234_5000,
    };
    let range = AddressRange::new(0x1234_4000, 2);
    let device =
        PasidDeviceTlb { sid: SOURCE_ID, pfsid: SourceId(0), mip: 0, pasid: pasid(5), gi: false, range };
    rig.guest.submit_all(&[Descriptor::PasidIotlb(page), Descriptor::PasidDeviceTlb(device)]);
    let down =
        Invalidation { device: DEVICE, pasid: Some(pasid(1000)), range, kind: InvalidationKind::DeviceTlb };
    assert_eq!(rig.host.take(), [iotlb(DEVICE, Some(1000), range, true), Call::Invalidate(down)]);
    // A domain-selective one takes every first stage of the domain with it.
    let domain = Iotlb {
        granularity: IotlbGranularity::Domain,
        dw: false,
        dr: false,
        did: DomainId(1),
        am: 0,
        ih: false,
        addr: 0,
    };
    rig.guest.submit(&Descriptor::Iotlb(domain));
    assert_eq!(rig.host.take(), [iotlb(DEVICE, Some(1000), AddressRange::ALL, false)]);
    rig.guest.submit(&Descriptor::Iotlb(Iotlb { did: DomainId(3), ..domain }));
    assert_eq!(rig.host.take(), []);
}

#[test]
fn a_host_that_does_a_batch_in_pieces_gets_the_rest_again() {
    let host = Arc::new(Host { pace: 1, ..Arc::into_inner(Host::new(false)).unwrap() });
    let rig = rig_with(&UnitConfig::default(), host);
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    let piotlb = PasidIotlb {
        granularity: PasidIotlbGranularity::Pasid,
        did: DomainId(1),
        pasid: pasid(5),
        am: 0,
        ih: false,
        addr: 0,
    };
    rig.guest.submit_all(&[Descriptor::PasidIotlb(piotlb); 5]);
    assert_eq!(rig.host.take().len(), 5);
}

#[test]
fn what_a_host_does_not_invalidate_is_unbound() {
    let host = Arc::new(Host { pace: 0, ..Arc::into_inner(Host::new(false)).unwrap() });
    let rig = rig_with(&UnitConfig::default(), host);
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    let granularity = IotlbGranularity::Global;
    let (did, am, ih, addr) = (DomainId(0), 0, false, 0);
    rig.guest.submit(&Descriptor::Iotlb(Iotlb { granularity, dw: false, dr: false, did, am, ih, addr }));
    assert_eq!(rig.host.take(), [Call::Translate(5, None), Call::Block(Some(1000))]);
    assert_eq!(rig.assigned.host_pasid(pasid(5)), None, "the shadow knows");
    // Announced again, it is bound again.
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take().len(), 2);
}

#[test]
fn requests_without_pasid_follow_the_guests_state() {
    let guest = Guest::powered_up(&UnitConfig::default());
    let host = Host::new(false);
    // What it has there is assigned.
    guest.unit.remove_endpoint(SOURCE_ID);
    let joint = Joint::new(&guest.unit, Arc::clone(&host) as Arc<dyn HostIommu>, None).unwrap();
    let _assigned = joint.assign(SOURCE_ID, DEVICE).unwrap();
    assert_eq!(host.take(), [Call::Attach(None, Attachment::SecondStage)], "remapping is off");
    guest.enable_queue();
    guest.add_function(SOURCE_ID);
    guest.write64(vtd_spec::offset::RTADDR, common::ROOT_TABLE | 0x400);
    guest.command(1 << 30);
    guest.command(1 << 31);
    assert_eq!(host.take(), [Call::Block(None)], "no entry for RID_PASID");
    guest.bind(Pasid::ZERO);
    guest.submit(&psi(1, 0));
    let RequestsOf::Nested(to) = requests(&guest) else { panic!() };
    assert_eq!(host.take(), [Call::Attach(None, to)]);
    let entry = Guest::first_stage(DomainId(1), 0).with_pgtt(PasidGranularTranslationType::PassThrough);
    guest.write_pasid_entry(Pasid::ZERO, entry);
    guest.submit(&psi(1, 0));
    assert_eq!(host.take(), [Call::Attach(None, Attachment::SecondStage)]);
    guest.command_off(1 << 31);
    assert_eq!(host.take(), [], "untranslated is what pass-through was");
}

enum RequestsOf {
    Nested(Attachment),
    Other,
}

fn requests(guest: &Guest) -> RequestsOf {
    match guest.unit.requests_without_pasid(SOURCE_ID) {
        vtd_unit::RequestsWithoutPasid::Remapped(binding) => match binding.translation {
            vtd_unit::Translation::FirstStage(table) => RequestsOf::Nested(Attachment::Nested(table)),
            _ => RequestsOf::Other,
        },
        _ => RequestsOf::Other,
    }
}

#[test]
fn page_requests_go_up_and_responses_come_down_with_each_sides_pasid() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    let requester = Requester { pasid: Some(pasid(1000)), privileged: false };
    let request =
        PageRequest { requester, address: 0x7000_1000, read: true, write: true, last: true, group: 9 };
    rig.host.events().page_request(DEVICE, request, 77);
    let queued = rig.guest.load(common::PAGE_REQUEST_QUEUE);
    assert_eq!(queued, 1 | 1 << 8 | u64::from(SOURCE_ID.0) << 16 | 5 << 32);
    let response = |number: u32, prgi| {
        let (pasid, rid, rc) = (Some(pasid(number)), SOURCE_ID, ResponseCode::Success);
        Descriptor::PageGroupResponse(ResponseDescriptor { pasid, rid, rc, prgi })
    };
    // Answers to no request are discarded.
    rig.guest.submit_all(&[response(5, 8), response(6, 9), response(1000, 9)]);
    assert_eq!(rig.host.take(), []);
    rig.guest.submit_all(&[response(5, 9), response(5, 9)]);
    assert_eq!(rig.host.take(), [Call::Respond(Some(1000), 9, ResponseCode::Success)]);
    // A PASID that the guest has not bound.
    let requester = Requester { pasid: Some(pasid(1001)), privileged: false };
    rig.host.events().page_request(DEVICE, PageRequest { requester, ..request }, 77);
    assert_eq!(rig.host.take(), [Call::Respond(Some(1001), 9, ResponseCode::InvalidRequest)]);
}

#[test]
fn a_group_that_waits_is_the_guests_to_answer_until_it_drains() {
    for answered in [true, false] {
        let rig = rig();
        rig.guest.bind(pasid(5));
        rig.guest.submit(&psi(1, 5));
        let requester = Requester { pasid: Some(pasid(1000)), privileged: false };
        let request =
            PageRequest { requester, address: 0x1000, read: true, write: false, last: true, group: 3 };
        rig.host.events().page_request(DEVICE, request, 77);
        rig.host.take();
        // The process dies: its entry goes, with the invalidations that Linux sends then.
        rig.guest.write_pasid_entry(pasid(5), Default::default());
        let device = Descriptor::PasidDeviceTlb(PasidDeviceTlb {
            sid: SOURCE_ID,
            pfsid: SourceId(0),
            mip: 0,
            pasid: pasid(5),
            gi: false,
            range: AddressRange::ALL,
        });
        rig.guest.submit_all(&[psi(1, 5), device]);
        assert_eq!(rig.host.take(), [Call::Translate(5, None), Call::Block(Some(1000))], "not answered");
        assert!(rig.host.allocated.lock().unwrap().contains(&1000), "nor may the PASID stand for another");
        // A PASID that takes the guest's number meanwhile keeps the host's.
        rig.guest.bind(pasid(5));
        rig.guest.submit(&psi(1, 5));
        assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(1000)));
        rig.guest.write_pasid_entry(pasid(5), Default::default());
        rig.guest.submit(&psi(1, 5));
        rig.host.take();
        let code = if answered {
            let (pasid, rid, rc, prgi) = (Some(pasid(5)), SOURCE_ID, ResponseCode::ResponseFailure, 3);
            rig.guest.submit(&Descriptor::PageGroupResponse(ResponseDescriptor { pasid, rid, rc, prgi }));
            rc
        } else {
            rig.guest.queue(&device);
            rig.guest.submit_wait(1 << 7);
            ResponseCode::InvalidRequest
        };
        assert_eq!(rig.host.take(), [Call::Respond(Some(1000), 3, code)]);
        assert!(rig.host.allocated.lock().unwrap().is_empty());
    }
}

#[test]
fn a_refused_attachment_leaves_the_old_and_is_a_fault_for_the_guest() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    *rig.host.refuse.lock().unwrap() = Some(HostError::Levels(5));
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take(), []);
    assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(1000)), "what was there stays");
    let fault = rig.guest.take_fault(0).unwrap();
    assert_eq!((fault.fr(), fault.pv(), fault.sid()), (FaultReason::Spt4_3.code(), pasid(5), SOURCE_ID));
    rig.guest.bind(pasid(6));
    rig.guest.submit(&psi(1, 6));
    assert_eq!(rig.assigned.host_pasid(pasid(6)), None);
    assert_eq!(rig.host.allocated.lock().unwrap().len(), 1, "nothing leaks");
    *rig.host.refuse.lock().unwrap() = None;
    rig.guest.submit_all(&[psi(1, 5), psi(1, 6)]);
    assert_eq!(rig.assigned.bound_count(), 2);
}

#[test]
fn what_stays_after_a_refusal_goes_by_the_domain_that_the_guest_now_names() {
    for number in [5, 0] {
        let rig = rig();
        rig.guest.bind(pasid(number));
        rig.guest.submit(&psi(1, number));
        rig.host.take();
        *rig.host.refuse.lock().unwrap() = Some(HostError::Levels(5));
        // Another table in another domain: announced by the old one, as the unit has it cached.
        rig.guest.write_pasid_entry(pasid(number), Guest::first_stage(DomainId(7), rig.guest.page()));
        rig.guest.submit(&psi(1, number));
        assert_eq!(rig.host.take(), []);
        // The guest takes away what it believes to be there.
        rig.guest.write_pasid_entry(pasid(number), Default::default());
        rig.guest.submit(&psi(7, number));
        let gone = match number {
            0 => vec![Call::Block(None)],
            _ => vec![Call::Translate(5, None), Call::Block(Some(1000))],
        };
        assert_eq!(rig.host.take(), gone, "PASID {number}");
    }
}

#[test]
fn what_was_not_present_may_be_announced_under_domain_zero() {
    // As it is cached in caching mode.
    for announcement in [psi(0, 5), pasid_cache(PasidCacheGranularity::Domain, 0, 0)] {
        let rig = rig();
        rig.guest.bind(pasid(5));
        rig.guest.submit(&announcement);
        assert_eq!(rig.host.take().len(), 2, "{announcement:?}");
        // What is bound is of its own domain.
        rig.guest.bind(pasid(5));
        rig.guest.submit(&announcement);
        assert_eq!(rig.host.take(), [], "{announcement:?}");
    }
}

#[test]
fn an_entry_that_is_not_announced_is_not_taken_over() {
    let rig = rig();
    rig.guest.bind(Pasid::ZERO);
    rig.guest.submit(&psi(1, 0));
    rig.host.take();
    // A kernel is at work on the entry for requests without PASID, while another processor announces something else.
    rig.guest.write_pasid_entry(Pasid::ZERO, Guest::first_stage(DomainId(1), rig.guest.page()));
    rig.guest.submit_all(&[psi(1, 5), psi(2, 0), pasid_cache(PasidCacheGranularity::Domain, 2, 0)]);
    assert_eq!(rig.host.take(), []);
    rig.guest.submit(&psi(1, 0));
    assert_eq!(rig.host.take().len(), 1);
}

#[test]
fn what_one_announcement_takes_away_makes_room_for_what_it_brings() {
    let rig = rig();
    let second = SourceId::new(0, 9, 0);
    rig.guest.add_function(second);
    let other = rig.joint.assign(second, DeviceId(2)).unwrap();
    *rig.host.quota.lock().unwrap() = 3;
    let table = rig.guest.page();
    let write = |numbers: [u32; 3], entry: PasidEntry| {
        numbers.iter().for_each(|number| rig.guest.write_pasid_entry(pasid(*number), entry));
    };
    let (first, next) = ([70, 71, 72], [1, 71, 5]);
    write(first, Guest::first_stage(DomainId(1), table));
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    assert_eq!((rig.assigned.bound_count(), other.bound_count()), (3, 3));
    write(first, PasidEntry::new());
    write(next, Guest::first_stage(DomainId(1), table));
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    for function in [&rig.assigned, &other] {
        let bound: Vec<u32> = function.bound().iter().map(|(guest, ..)| guest.get()).collect();
        assert_eq!(bound, [1, 5, 71]);
    }
    assert!(rig.guest.take_faults().is_empty(), "nothing was refused");
    // One too many is.
    rig.guest.write_pasid_entry(pasid(2), Guest::first_stage(DomainId(1), table));
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    assert_eq!(rig.assigned.bound_count(), 3);
    assert_eq!(rig.guest.take_faults()[0].pv(), pasid(2));
}

#[test]
fn faults_of_the_host_are_recorded_with_the_guests_ids() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    let fault = HostFault {
        reason: FaultReason::Sgn6,
        pasid: FaultPasid::Host(pasid(1000)),
        address: 0x7000_1234,
        access: Access::Write,
        privileged: false,
    };
    let cases = [
        (fault.pasid, fault.reason, 0x85, Some(5)),
        (fault.pasid, FaultReason::Sss2, 0x70, Some(5)),
        (FaultPasid::Device(pasid(7)), FaultReason::Spt2, 0x59, Some(7)),
        (FaultPasid::None, FaultReason::Sfs2, 0x71, None),
    ];
    for (index, (from, reason, code, guest)) in cases.into_iter().enumerate() {
        rig.host.events().fault(DEVICE, HostFault { pasid: from, reason, ..fault });
        let record = rig.guest.take_fault(index as u64).unwrap();
        assert_eq!((record.fr(), record.sid(), record.pp()), (code, SOURCE_ID, guest.is_some()));
        assert_eq!(record.pv().get(), guest.unwrap_or(0));
    }
    rig.host.events().fault(DEVICE, HostFault { pasid: FaultPasid::Host(pasid(1001)), ..fault });
    assert!(rig.guest.take_fault(4).is_none(), "of nobody's PASID");
}

#[test]
fn identical_pasids_are_taken_by_number() {
    let rig = rig_with(&UnitConfig::default(), Host::new(true));
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(5)));
}

#[test]
fn a_pasid_on_two_functions_is_one_pasid_of_the_host() {
    let rig = rig();
    let second = SourceId::new(0, 9, 0);
    rig.guest.add_function(second);
    let other = rig.joint.assign(second, DeviceId(2)).unwrap();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(1000)));
    assert_eq!(other.host_pasid(pasid(5)), Some(pasid(1000)));
    rig.guest.write_pasid_entry(pasid(5), Default::default());
    rig.guest.submit(&psi(1, 5));
    assert!(rig.host.allocated.lock().unwrap().is_empty());
}

#[test]
fn pasids_of_the_virtual_command_are_bound_under_their_own_number_and_unbound_when_they_are_freed() {
    for encoding in [VirtualCommandEncoding::Early, VirtualCommandEncoding::Final] {
        let config = UnitConfig { vcmd: Some(encoding), ..UnitConfig::default() };
        let rig = rig_with(&config, Host::new(false));
        let (command, response, shift) = match encoding {
            VirtualCommandEncoding::Final => (0xe00, 0xe10, 16),
            _ => (0xe10, 0xe20, 8),
        };
        let execute = |value| {
            rig.guest.write64(command, value);
            patience::eventually("the virtual command", || rig.guest.read64(response) & 1 == 0);
            rig.guest.read64(response)
        };
        let number = (execute(1) >> shift) as u32;
        assert_eq!(number, 1000);
        rig.guest.bind(pasid(number));
        rig.guest.submit(&psi(1, number));
        assert_eq!(rig.assigned.host_pasid(pasid(number)), Some(pasid(number)));
        rig.guest.write_pasid_entry(pasid(number), Default::default());
        rig.guest.submit(&psi(1, number));
        assert!(rig.host.allocated.lock().unwrap().contains(&number), "unbinding does not free");
        rig.guest.bind(pasid(number));
        rig.guest.submit(&psi(1, number));
        rig.host.take();
        // Whoever frees one that is bound relies on that it no longer is.
        assert_eq!(execute(2 | 1000 << shift), 0);
        assert_eq!(rig.host.take(), [Call::Translate(number, None), Call::Block(Some(number))]);
        assert!(rig.host.allocated.lock().unwrap().is_empty());
        assert_ne!(execute(2 | 1000 << shift), 0, "the guest no longer has it");
    }
}

#[test]
fn one_change_among_ten_thousand_is_one_change_on_the_host() {
    let rig = rig();
    let table = rig.guest.page();
    for number in 1..=10_000 {
        rig.guest.write_pasid_entry(pasid(number), Guest::first_stage(DomainId(1), table));
    }
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    assert_eq!(rig.assigned.bound_count(), 10_000);
    rig.host.take();
    rig.guest.write_pasid_entry(pasid(5000), Guest::first_stage(DomainId(1), rig.guest.page()));
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    assert_eq!(rig.host.take().len(), 1);
    // The whole directory goes at once.
    for index in 0..1 << 14 {
        rig.guest.store(common::PASID_DIRECTORY + index * 8, 0);
    }
    rig.guest.submit(&pasid_cache(PasidCacheGranularity::Global, 0, 0));
    assert_eq!(rig.assigned.bound_count(), 0);
    assert!(rig.host.allocated.lock().unwrap().is_empty());
}

#[test]
fn dropping_the_joint_unbinds_everything() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    let host = Arc::clone(&rig.host);
    drop(rig.joint);
    assert!(host.allocated.lock().unwrap().is_empty());
    assert!(host.take().contains(&Call::Block(None)));
}

#[test]
fn a_guest_unit_that_promises_too_much_is_refused() {
    for (config, lacks) in [
        (UnitConfig { srs: true, ..UnitConfig::default() }, "supervisor"),
        (UnitConfig { haw: 52, ..UnitConfig::default() }, "physical"),
        (UnitConfig { cm: false, ..UnitConfig::default() }, "caching mode"),
    ] {
        let guest = Guest::powered_up(&config);
        let error = Joint::new(&guest.unit, Host::new(false), None).err().unwrap();
        assert!(error.to_string().contains(lacks), "{error}");
    }
}

#[test]
fn nothing_is_bound_while_remapping_is_off() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    rig.guest.command_off(1 << 31);
    assert!(rig.host.take().contains(&Call::Block(Some(1000))), "its tables are no longer looked at");
    rig.guest.submit(&psi(1, 5));
    assert_eq!(rig.host.take(), []);
    rig.guest.command(1 << 31);
    assert_eq!(rig.assigned.bound_count(), 1);
}

#[test]
fn a_reset_gives_back_what_the_virtual_command_allocated_and_answers_all_groups() {
    let config = UnitConfig { vcmd: Some(VirtualCommandEncoding::Final), ..UnitConfig::default() };
    let rig = rig_with(&config, Host::new(false));
    rig.guest.bind(Pasid::ZERO);
    rig.guest.submit(&psi(1, 0));
    rig.host.take();
    for _ in 0..3 {
        rig.guest.write64(0xe00, 1);
    }
    assert_eq!(rig.host.allocated.lock().unwrap().len(), 3);
    let requester = Requester::default();
    let request = PageRequest { requester, address: 0x1000, read: true, write: false, last: true, group: 3 };
    rig.host.events().page_request(DEVICE, request, 77);
    rig.guest.unit.reset();
    assert!(rig.host.allocated.lock().unwrap().is_empty());
    let answer = Call::Respond(None, 3, ResponseCode::InvalidRequest);
    assert_eq!(rig.host.take(), [Call::Attach(None, Attachment::SecondStage), answer]);
}

#[test]
fn faults_that_the_guest_does_not_want_to_hear_of_are_not_recorded() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    let fault = |pasid| HostFault {
        reason: FaultReason::Spt2,
        pasid: FaultPasid::Device(pasid),
        address: 0x7000_1234,
        access: Access::Write,
        privileged: false,
    };
    // As Linux takes an entry away whose process has ended before its device.
    rig.guest.write_pasid_entry(pasid(5), vtd_spec::PasidEntry::new().with_fpd(true));
    rig.guest.submit(&psi(1, 5));
    rig.host.events().fault(DEVICE, fault(pasid(5)));
    assert!(rig.guest.take_fault(0).is_none());
    rig.host.events().fault(DEVICE, fault(pasid(6)));
    assert_eq!(rig.guest.take_fault(0).unwrap().pv(), pasid(6));
}

#[test]
fn a_function_whose_joint_is_gone_attaches_nothing() {
    let Rig { guest, host, joint, assigned } = rig();
    guest.bind(pasid(5));
    drop(joint);
    host.take();
    assigned.reset();
    let blocked = [Call::Block(None)];
    assert_eq!(host.take(), blocked);
    assert!(host.allocated.lock().unwrap().is_empty());
}

fn device_tlb(number: Option<u32>) -> Descriptor {
    let range = AddressRange::new(0x1000, 0);
    match number {
        Some(number) => common::descriptors::pasid_device_tlb(SOURCE_ID, pasid(number), range),
        None => common::descriptors::device_tlb(SOURCE_ID, range),
    }
}

/// A host may have no means to invalidate what is attached to its own stage.
#[test]
fn invalidations_go_down_for_nested_attachments_alone() {
    let rig = rig();
    let passing = Guest::first_stage(DomainId(1), 0).with_pgtt(PasidGranularTranslationType::PassThrough);
    rig.guest.write_pasid_entry(pasid(0), passing);
    rig.guest.write_pasid_entry(pasid(5), passing);
    rig.guest.submit_all(&[psi(1, 0), psi(1, 5)]);
    assert_eq!(rig.assigned.bound().len(), 1);
    rig.host.take();
    let global = common::descriptors::global_device_tlb(SOURCE_ID, AddressRange::ALL);
    let everything = [
        device_tlb(None),
        device_tlb(Some(5)),
        global,
        common::descriptors::pasid_iotlb(DomainId(1), pasid(5)),
        common::descriptors::iotlb_domain(DomainId(1)),
    ];
    rig.guest.submit_all(&everything);
    assert_eq!(rig.host.take(), []);
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    rig.host.take();
    rig.guest.submit_all(&everything);
    let heard = rig.host.take();
    assert_eq!(heard.len(), 4, "{heard:?}");
    assert!(
        heard.iter().all(|call| matches!(call, Call::Invalidate(down) if down.pasid == Some(pasid(1000))))
    );
}

#[test]
fn a_cookie_comes_back_with_the_response() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.submit(&psi(1, 5));
    let requester = Requester { pasid: Some(pasid(1000)), privileged: false };
    let request = PageRequest { requester, address: 0x1000, read: true, write: false, last: true, group: 3 };
    rig.host.events().page_request(DEVICE, request, 0x1234_5678_9abc);
    rig.guest.submit(&common::descriptors::response(SOURCE_ID, Some(pasid(5)), 3, ResponseCode::Success));
    // What nobody can answer as well.
    let stranger = Requester { pasid: Some(pasid(1001)), privileged: false };
    rig.host.events().page_request(DEVICE, PageRequest { requester: stranger, ..request }, 9);
    assert_eq!(*rig.host.cookies.lock().unwrap(), [0x1234_5678_9abc, 9]);
}

#[test]
fn a_host_that_ends_groups_is_not_answered_and_may_use_their_numbers_again() {
    for replaced in [false, true] {
        let rig = rig();
        rig.host.ends_groups.store(true, Ordering::Relaxed);
        rig.guest.bind(pasid(5));
        rig.guest.submit(&psi(1, 5));
        let requester = Requester { pasid: Some(pasid(1000)), privileged: false };
        let request =
            PageRequest { requester, address: 0x1000, read: true, write: false, last: true, group: 3 };
        rig.host.events().page_request(DEVICE, request, 1);
        if !replaced {
            rig.guest.write_pasid_entry(pasid(5), Default::default());
            rig.guest.submit(&psi(1, 5));
        }
        rig.guest.bind(pasid(5));
        rig.guest.submit(&psi(1, 5));
        assert_eq!(rig.assigned.host_pasid(pasid(5)), Some(pasid(1000)), "it was given back at once");
        rig.host.take();
        // The answer to what is no more reaches nobody; the next group of that number is the guest's to answer.
        let response = common::descriptors::response(SOURCE_ID, Some(pasid(5)), 3, ResponseCode::Success);
        rig.guest.submit(&response);
        assert_eq!(rig.host.take(), []);
        rig.host.events().page_request(DEVICE, request, 2);
        rig.guest.submit(&response);
        assert_eq!(rig.host.take(), [Call::Respond(Some(1000), 3, ResponseCode::Success)]);
        assert_eq!(*rig.host.cookies.lock().unwrap(), [2], "replaced: {replaced}");
    }
}

fn attaches_without_pasid(calls: &[Call]) -> bool {
    calls.iter().any(|call| matches!(call, Call::Attach(None, Attachment::Nested(_))))
}

#[test]
fn a_busy_host_is_asked_again_at_the_next_wait_and_is_no_fault_of_the_guest() {
    let rig = rig();
    let say = |error: Option<HostError>| *rig.host.refuse.lock().unwrap() = error;
    rig.guest.bind(pasid(5));
    rig.guest.bind(pasid(0));
    say(Some(HostError::Busy));
    rig.guest.submit_all(&[psi(1, 5), psi(1, 0)]);
    assert_eq!(rig.assigned.bound_count(), 0);
    say(None);
    rig.guest.submit_wait(0);
    assert_eq!(rig.assigned.bound_count(), 1);
    assert!(attaches_without_pasid(&rig.host.take()));
    // A replacement: what the guest has taken away is not used until then.
    rig.guest.bind(pasid(5));
    say(Some(HostError::Busy));
    rig.guest.submit(&psi(1, 5));
    assert!(rig.host.take().contains(&Call::Block(Some(1000))));
    // By a reset of the function, too.
    say(None);
    rig.assigned.reset();
    assert!(rig.host.take().contains(&Call::Attach(Some(1000), nested(&rig.guest, 5))));
    rig.guest.submit_wait(0);
    assert_eq!(rig.host.take(), [], "and not once more");
    assert_eq!(rig.guest.take_faults(), []);
}

#[test]
fn a_replacement_that_lost_what_was_there_is_forgotten() {
    let rig = rig();
    rig.guest.bind(pasid(5));
    rig.guest.bind(pasid(0));
    rig.guest.submit_all(&[psi(1, 5), psi(1, 0)]);
    *rig.host.refuse.lock().unwrap() = Some(HostError::Lost("no memory".into()));
    rig.guest.bind(pasid(5));
    rig.guest.bind(pasid(0));
    rig.guest.submit_all(&[psi(1, 5), psi(1, 0)]);
    assert_eq!(rig.assigned.bound_count(), 0);
    assert!(rig.host.allocated.lock().unwrap().is_empty());
    assert_ne!(rig.guest.take_faults(), []);
    // Announced again, both are attached anew.
    *rig.host.refuse.lock().unwrap() = None;
    rig.host.take();
    rig.guest.submit_all(&[psi(1, 5), psi(1, 0)]);
    let heard = rig.host.take();
    assert!(heard.contains(&Call::Attach(Some(1000), nested(&rig.guest, 5))), "{heard:?}");
    assert!(attaches_without_pasid(&heard), "{heard:?}");
}

#[test]
fn a_function_can_be_taken_out_and_the_unit_be_joined_anew() {
    let Rig { guest, host, joint, assigned } = rig();
    guest.bind(pasid(5));
    guest.submit(&psi(1, 5));
    assert!(joint.assign(SOURCE_ID, DeviceId(2)).is_err(), "it has one there");
    assert!(joint.unassign(SOURCE_ID));
    assert!(!joint.unassign(SOURCE_ID));
    assert!(host.allocated.lock().unwrap().is_empty());
    assert_eq!(assigned.bound_count(), 0);
    // To a function that is gone: a time-out, as the specification has it.
    guest.queue(&device_tlb(Some(5)));
    guest.queue(&common::descriptors::wait(common::WAIT_STATUS + 0x40, 2));
    guest.ring();
    assert_ne!(guest.read32(vtd_spec::offset::FSTS) & 1 << 6, 0, "ITE");
    guest.write32(vtd_spec::offset::FSTS, 1 << 6);
    joint.assign(SOURCE_ID, DEVICE).unwrap();
    assert_eq!(host.allocated.lock().unwrap().len(), 1);
    drop(joint);
    assert!(host.allocated.lock().unwrap().is_empty());
    let joint = Joint::new(&guest.unit, Arc::clone(&host) as Arc<dyn HostIommu>, None).unwrap();
    let assigned = joint.assign(SOURCE_ID, DEVICE).unwrap();
    assert_eq!(assigned.bound_count(), 1);
}

#[test]
fn everything_that_is_lacking_is_said_at_once_and_can_be_turned_off() {
    let host =
        NestingInfo { pasid_bits: 12, address_width: 42, pasid_zero_is_rid: true, ..Default::default() };
    let mut config = UnitConfig { rps: true, srs: true, eafs: true, ..UnitConfig::default() };
    let error = host.check(&config.capabilities().unwrap()).unwrap_err();
    let text = error.to_string();
    for lacking in ["fs1gp", "prs", "srs", "eafs", "pss", "haw", "rps"] {
        assert!(text.contains(lacking), "{lacking}: {text}");
    }
    host.restrict(&mut config);
    assert_eq!(host.check(&config.capabilities().unwrap()), Ok(()));
}
