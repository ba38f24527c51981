// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual IOMMU in a VMM of one's own: guest memory, the trapped register page, one device, and a host in software.
//! A device writes through a pointer of a guest process. `cargo run -p vsva --example embed`

use std::sync::Arc;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;
use vsva::{Event, Joint, SoftHost, SoftHostConfig, Tracer};
use vtd_spec::{Pasid, SourceId, offset};
use vtd_unit::{EndpointSink, Message, Notify, PageGroupResponse, Requester, Unit, UnitConfig};

/// What the VMM hears: interrupts to inject, answers to its device's page requests, and what happens at the joint.
struct Vmm;

impl Notify for Vmm {
    fn message(&self, message: Message) {
        println!("interrupt   {:#x} to {:#x}", message.data, message.address);
    }
}

impl EndpointSink for Vmm {
    fn page_group_response(&self, response: PageGroupResponse) {
        println!("response    {response:?}");
    }
}

impl Tracer for Vmm {
    fn event(&self, function: SourceId, event: &Event) {
        println!("joint       {function}: {event:x?}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Guest memory: 16 MiB that the host can map a second time, so backed by a file.
    let file = TempFile::new()?.into_file();
    file.set_len(16 << 20)?;
    let range = (GuestAddress(0), 16 << 20, Some(FileOffset::new(file, 0)));
    let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files([range])?);

    // The guest's unit, the host with a unit of its own, and the joint between the two.
    let viommu = Unit::new(&UnitConfig::default(), Arc::clone(&ram), Arc::new(Vmm))?;
    let host = SoftHost::new(&SoftHostConfig::default(), &ram)?;
    let joint = Joint::new(&viommu, Arc::clone(&host) as Arc<_>, Some(Arc::new(Vmm)))?;
    // A device: `port` is all that its model needs. The host knows it as `device`, the guest as 00:03.0.
    let (device, port) = host.function(Arc::new(Vmm), Arc::new(Vmm))?;
    let assigned = joint.assign(SourceId::new(0, 3, 0), device).unwrap();

    // From here on the guest's kernel. A VMM calls these where the guest touches the page that the DMAR table names.
    let write32 = |at, value: u32| viommu.write(at, &value.to_le_bytes());
    let write64 = |at, value: u64| viommu.write(at, &value.to_le_bytes());
    let store = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at));
    let (root, context, directory, pasids, queue, status) = (0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000);
    let (cr3, page, pointer, pasid) = (0x10_0000, 0x20_0000, 0x7f12_3456_7000_u64, Pasid::truncated(5));

    // Bring-up: the queue with its descriptors of 256 bits, the root table, translation on.
    write64(offset::IQA, queue | 1 << 11);
    write32(offset::GCMD, 1 << 26);
    store(root, context | 1)?;
    store(context + 3 * 8 * 32, directory | 0x1d)?;
    write64(offset::RTADDR, root | 1 << 10);
    write32(offset::GCMD, 1 << 26 | 1 << 30);
    write32(offset::GCMD, 1 << 26 | 1 << 31);

    // A process whose page table maps `pointer` to `page`, and its PASID entry: first stage, domain 1, present.
    for (level, table) in (1..=4).rev().zip((cr3..).step_by(4096)) {
        let next = if level == 1 { page } else { table + 4096 };
        store(table + (pointer >> (9 * level) & 0xff8), next | 7)?;
    }
    store(directory, pasids | 1)?;
    for (word, value) in [1 << 6 | 1, 1 << 23 | 1, cr3].into_iter().enumerate().rev() {
        store(pasids + u64::from(pasid.get()) * 64 + word as u64 * 8, value)?;
    }

    // The announcement, a PASID-cache invalidation, and a wait that tells when it is in effect.
    store(queue, 1 << 4 | 7 | 1 << 16 | u64::from(pasid.get()) << 32)?;
    store(queue + 32, 1 << 5 | 5 | 1 << 32)?;
    store(queue + 40, status)?;
    write32(offset::IQT, 64);
    while ram.read_obj::<u32>(GuestAddress(status))? != 1 {
        std::thread::yield_now();
    }

    // The device is given the process's pointer, and writes through both stages.
    let requester = Requester { pasid: Some(pasid), privileged: false };
    port.write(requester, pointer + 0x10, b"through both stages")?;
    let host_pasid = assigned.host_pasid(pasid).ok_or("the PASID is not bound")?;
    let way = host.follow(device, host_pasid, pointer + 0x10).ok_or("the pointer leads nowhere")?;
    println!("the byte    {:#x} > {:#x} > {:#x}", way.guest_virtual, way.guest_physical, way.host_physical);
    let seen = &mut [0; 19];
    ram.read_slice(seen, GuestAddress(page + 0x10))?;
    println!("guest reads {:?}", String::from_utf8_lossy(seen));
    if seen == b"through both stages" {
        Ok(())
    } else {
        Err("the guest does not see what the device wrote".into())
    }
}
