// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests under PASIDs that the guest has not bound, or no longer has: a device always gets its answer.

use std::sync::{Arc, Mutex};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;
use vsva::{Attachment, HostIommu, SoftHost, SoftHostConfig};
use vtd_spec::{Pasid, ResponseCode};
use vtd_unit::{EndpointSink, FirstStageTable, Message, Notify, PageGroupResponse, PageRequest, Requester};

#[derive(Default)]
struct Device(Mutex<Vec<PageGroupResponse>>);

impl EndpointSink for Device {
    fn page_group_response(&self, response: PageGroupResponse) {
        self.0.lock().unwrap().push(response);
    }
}

impl Notify for Device {
    fn message(&self, _: Message) {}
}

#[test]
fn an_unbound_pasid_is_answered_under_its_own_number_whatever_the_hosts_pasids_stand_for() {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(16 << 20).unwrap();
    let range = (GuestAddress(0), 16 << 20, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    let host = SoftHost::new(&SoftHostConfig::default(), &memory).unwrap();
    let device = Arc::new(Device::default());
    let (id, endpoint) = host.function(device.clone(), device.clone()).unwrap();
    endpoint.set_ats_enabled(true);
    host.attach(id, None, Attachment::SecondStage).unwrap();

    // The host's PASID stands for the guest's next one.
    let bound = host.allocate_pasid().unwrap();
    let other = Pasid::truncated(bound.get() + 1);
    let table = FirstStageTable { address: 0x1_0000, levels: 4, sre: false, eafe: false, wpe: false };
    host.attach(id, Some(bound), Attachment::Nested(table)).unwrap();
    host.set_pasid_translation(id, other, Some(bound)).unwrap();

    // The guest has bound nothing under the host's number: the device asks all the same, and later under the other
    // one, which has gone meanwhile.
    let ask = |pasid, group| {
        let requester = Requester { pasid: Some(pasid), privileged: false };
        endpoint.page_request(PageRequest {
            requester,
            address: 0x5000,
            read: true,
            write: false,
            last: true,
            group,
        });
    };
    ask(bound, 1);
    host.set_pasid_translation(id, other, None).unwrap();
    ask(other, 2);
    let answers = device.0.lock().unwrap().clone();
    let refused = |pasid, group| {
        let code = ResponseCode::InvalidRequest;
        PageGroupResponse { pasid: Some(pasid), group, code }
    };
    assert_eq!(answers, [refused(bound, 1), refused(other, 2)]);
}
