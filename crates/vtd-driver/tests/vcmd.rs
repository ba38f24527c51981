// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASIDs by virtual command, from a driver to the host behind a unit in software, in both encodings.

mod common;

use std::sync::{Arc, Mutex};

use common::{PASIDS, Process, System};
use vtd_driver::vcmd::{self, Encoding, VirtualCommand};
use vtd_driver::{Error, Pasids, sva};
use vtd_spec::{Pasid, SourceId};
use vtd_unit::{PasidAllocator, UnitConfig, VirtualCommandEncoding};

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const ENCODINGS: [(Encoding, VirtualCommandEncoding); 2] =
    [(Encoding::Early, VirtualCommandEncoding::Early), (Encoding::Final, VirtualCommandEncoding::Final)];

/// The host's PASIDs, of which the machine may have two.
struct HostPasids(Mutex<(Pasids, ioasid::SetId)>);

impl HostPasids {
    fn new() -> Arc<Self> {
        let mut pasids = Pasids::new(0x1000..=ioasid::MAX_ID).unwrap();
        let machine = pasids.create_set(2).unwrap();
        Arc::new(Self(Mutex::new((pasids, machine))))
    }

    fn allocated(&self) -> u32 {
        self.0.lock().unwrap().0.allocated()
    }
}

impl PasidAllocator for HostPasids {
    fn allocate(&self) -> Option<Pasid> {
        let (pasids, machine) = &mut *self.0.lock().unwrap();
        pasids.allocate(*machine, 0x1000..=ioasid::MAX_ID, None).ok().and_then(Pasid::new)
    }

    fn free(&self, pasid: Pasid) -> bool {
        let (pasids, machine) = &mut *self.0.lock().unwrap();
        pasids.free(*machine, pasid.get()).is_ok()
    }
}

fn system(encoding: VirtualCommandEncoding) -> (System, Arc<HostPasids>) {
    let system = System::with(&UnitConfig { vcmd: Some(encoding), ..UnitConfig::default() });
    let host = HostPasids::new();
    let allocator = Arc::clone(&host) as Arc<dyn PasidAllocator>;
    system.unit.set_pasid_allocator(&allocator);
    (system, host)
}

#[test]
fn the_host_gives_and_takes_each_pasid() {
    for (encoding, of_unit) in ENCODINGS {
        let (mut system, host) = system(of_unit);
        let registered = vcmd::register(&system.iommu, &mut system.pasids, encoding).unwrap().unwrap();
        let pasids = [system.allocate_pasid(), system.allocate_pasid()];
        assert_eq!(pasids.map(Pasid::get), [0x1000, 0x1001]);
        let third = system.pasids.allocate(system.set, PASIDS, None);
        assert_eq!(third, Err(ioasid::Error::CustomExhausted), "the machine's quota");
        let device = system.add_device(DEVICE, true);
        let process = Process::new(&system.host);
        process.map(0x5000);
        let table = process.table();
        sva::bind(&mut system.iommu, &mut system.pasids, system.set, DEVICE, pasids[1], table).unwrap();
        assert!(device.write(pasids[1], 0x5000, &[1]));
        let bound = system.pasids.free(system.set, pasids[1].get());
        assert_eq!((bound, host.allocated()), (Err(ioasid::Error::Bound { id: 0x1001 }), 2));
        sva::unbind(&mut system.iommu, &mut system.pasids, system.set, DEVICE, pasids[1]).unwrap();
        for pasid in pasids {
            system.pasids.free(system.set, pasid.get()).unwrap();
        }
        assert_eq!(host.allocated(), 0);
        system.pasids.unregister_allocator(registered).unwrap();
        assert_eq!(system.allocate_pasid().get(), 1, "the driver's own again");
    }
}

#[test]
fn a_pasid_that_is_not_the_machines_is_not_taken_back() {
    for (encoding, of_unit) in ENCODINGS {
        let (system, host) = system(of_unit);
        let mut interface = VirtualCommand::discover(system.iommu.registers().clone(), encoding).unwrap();
        assert_eq!(interface.free(Pasid::truncated(0x1000)), Err(Error::VirtualCommandNoPasid));
        let pasid = interface.allocate().unwrap();
        interface.free(pasid).unwrap();
        assert_eq!(interface.free(pasid), Err(Error::VirtualCommandNoPasid));
        assert_eq!(host.allocated(), 0);
    }
}

#[test]
fn a_unit_without_the_interface_leaves_pasids_to_the_driver() {
    let mut system = System::new();
    for (encoding, _) in ENCODINGS {
        assert_eq!(vcmd::register(&system.iommu, &mut system.pasids, encoding), Ok(None));
    }
    assert_eq!(system.allocate_pasid().get(), 1);
}
