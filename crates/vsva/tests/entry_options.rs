// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest's PASID entry asks for beside its table is in the host's entry as well.

use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;
use vsva::{Attachment, HostIommu, SoftHost, SoftHostConfig};
use vtd_spec::{Pasid, PasidEntry};
use vtd_unit::{EndpointSink, FirstStageTable, Message, Notify, PageGroupResponse, UnitConfig};

struct Deaf;

impl EndpointSink for Deaf {
    fn page_group_response(&self, _: PageGroupResponse) {}
}

impl Notify for Deaf {
    fn message(&self, _: Message) {}
}

#[test]
fn the_options_of_a_first_stage_reach_the_hosts_entry() {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(16 << 20).unwrap();
    let range = (GuestAddress(0), 16 << 20, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    let config = SoftHostConfig::default();
    let unit = UnitConfig { srs: true, eafs: true, ..config.unit.clone() };
    let host = SoftHost::new(&SoftHostConfig { unit, ..config }, &memory).unwrap();
    let device = Arc::new(Deaf);
    let (id, _) = host.function(device.clone(), device).unwrap();
    let pasid = host.allocate_pasid().unwrap();
    let plain = FirstStageTable { address: 0x1_0000, levels: 4, sre: false, eafe: false, wpe: false };
    let options = |entry: PasidEntry| [entry.sre(), entry.wpe(), entry.eafe()];
    // By PASID and without, each bound and then replaced.
    for (attached, entry) in [(Some(pasid), pasid), (None, Pasid::ZERO)] {
        for [sre, wpe, eafe] in
            [[true, true, false], [false; 3], [true, false, true], [true; 3], [false, false, true]]
        {
            let table = FirstStageTable { sre, wpe, eafe, ..plain };
            host.attach(id, attached, Attachment::Nested(table)).unwrap();
            assert_eq!(options(host.entry(id, entry).unwrap()), [sre, wpe, eafe], "{attached:?}");
        }
    }
}
