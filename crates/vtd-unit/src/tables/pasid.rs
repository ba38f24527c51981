// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a PASID to its entry in the function's PASID table. \[S 3.4.3, 9.5, 9.6\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, FaultReason, FirstStagePagingMode, Pasid, PasidDirectoryEntry, PasidEntry};

use super::context::Context;
use crate::address_space::{AddressSpace, FirstStage, SecondStage, Stage};
use crate::memory::{load_qwords, load_u64};
use crate::outcome::Blocked;

/// Reads the directory entry and the entry of `pasid`, which the caller has checked against the context's limit.
pub(crate) fn read_pasid_entry<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    context: &Context,
    pasid: Pasid,
) -> Result<AddressSpace, Blocked> {
    let directory = read_directory_entry(memory, capabilities, context, pasid)?;
    read_table_entry(memory, capabilities, context, directory, pasid)
}

/// Reads the directory entry of the table that `pasid` is in.
pub(crate) fn read_directory_entry<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    context: &Context,
    pasid: Pasid,
) -> Result<PasidDirectoryEntry, Blocked> {
    let address = context.directory + u64::from(pasid.get() >> 6) * 8;
    let directory = load_u64(memory, address).map_err(|_| Blocked::new(FaultReason::Spd1, context.fpd))?;
    let directory = PasidDirectoryEntry::from_bits(directory);
    let fpd = context.fpd || directory.fpd();
    if !directory.p() {
        return Err(Blocked::new(FaultReason::Spd2, fpd));
    }
    if directory.reserved(capabilities) {
        return Err(Blocked::new(FaultReason::Spd3, fpd));
    }
    Ok(directory)
}

/// Reads the entry of `pasid` in the table that a directory entry names.
pub(crate) fn read_table_entry<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    context: &Context,
    directory: PasidDirectoryEntry,
    pasid: Pasid,
) -> Result<AddressSpace, Blocked> {
    let fpd = context.fpd || directory.fpd();
    let address = directory.smptblptr() + u64::from(pasid.get() & 0x3f) * 64;
    let qwords = load_qwords(memory, address).map_err(|_| Blocked::new(FaultReason::Spt1, fpd))?;
    let entry = PasidEntry::from_qwords(qwords);
    let fpd = fpd || entry.fpd();
    let blocked = |reason| Err(Blocked::new(reason, fpd));
    if !entry.p() {
        return blocked(FaultReason::Spt2);
    }
    if entry.reserved(capabilities) {
        return blocked(FaultReason::Spt3);
    }
    let ecap = capabilities.ecap;
    let Some(pgtt) = entry.pgtt().filter(|pgtt| pgtt.is_supported(capabilities)) else {
        return blocked(FaultReason::Spt4_2);
    };
    let snooped = ecap.smpwc() && entry.pwsnp();
    let second = if pgtt.uses_second_stage() {
        let Some(width) = entry.address_width().filter(|width| width.is_supported(capabilities.cap)) else {
            return blocked(FaultReason::Spt4_1);
        };
        Some(SecondStage { table: entry.ssptptr(), width, ade: ecap.ssads() && entry.ssade(), snooped })
    } else {
        None
    };
    let first = if pgtt.uses_first_stage() {
        let levels = match entry.paging_mode() {
            Some(FirstStagePagingMode::Level4) => 4,
            Some(FirstStagePagingMode::Level5) if capabilities.cap.fs5lp() => 5,
            _ => return blocked(FaultReason::Spt4_3),
        };
        let table = entry.fsptptr();
        if second.is_some_and(|second| table > second.max_input(capabilities)) {
            return blocked(FaultReason::Spt4_4);
        }
        Some(FirstStage { table, levels, wpe: entry.wpe(), eafe: entry.eafe(), snooped })
    } else {
        None
    };
    let stage = match (first, second) {
        (Some(first), None) => Stage::First(first),
        (None, Some(second)) => Stage::Second(second),
        (Some(first), Some(second)) => Stage::Nested(first, second),
        (None, None) => Stage::PassThrough,
    };
    Ok(AddressSpace { pasid, domain: entry.did(), fpd, sre: ecap.srs() && entry.sre(), legacy: false, stage })
}
