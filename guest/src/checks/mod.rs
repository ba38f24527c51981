// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The checks, a file for each subject. A check is a function that runs in a process of its own, gives what it saw
//! or why it failed, and compares every byte with what the CPU computes.

pub mod batch;
pub mod crc;
pub mod delta;
pub mod errors;
pub mod files;
pub mod fork;
pub mod huge;
pub mod invalid;
pub mod isolation;
pub mod killed;
pub mod large;
pub mod latency;
pub mod operations;
pub mod overlap;
pub mod pageout;
pub mod partial;
pub mod protect;
pub mod reconfigure;
pub mod sizes;
pub mod stale;
pub mod unmap;
pub mod untouched;

use std::ops::Range;

use anyhow::{Result, bail, ensure};

use crate::completion::{Completion, status};
use crate::memory::PAGE;
use crate::runner::Check;

/// Every check of the demo, in order.
pub fn all() -> Vec<Check> {
    let quiet = |name, run| Check { name, faults: false, run };
    let faulty = |name, run| Check { name, faults: true, run };
    let mut checks = operations();
    checks.extend([
        quiet("sizes-move", sizes::moves),
        quiet("sizes-all-operations", sizes::all_operations),
        quiet("overlapping-moves", overlap::moves),
        quiet("large-transfers", large::transfers),
        quiet("untouched-destination", untouched::destination),
        quiet("untouched-source", untouched::source),
        quiet("untouched-completion-record", untouched::record),
        quiet("untouched-descriptor-list", untouched::list),
        quiet("file-memfd", files::memfd),
        quiet("file-tmpfs", files::tmpfs),
        quiet("file-initramfs", files::root),
        quiet("file-disk", files::disk),
        quiet("fork-copy-on-write", fork::copy_on_write),
        quiet("paged-out", pageout::anonymous),
        quiet("huge-pages-transparent", huge::transparent),
        quiet("huge-pages-hugetlb", huge::hugetlb),
        faulty("invalid-read-only-destination", invalid::read_only),
        faulty("invalid-unmapped", invalid::unmapped),
        faulty("invalid-kernel-address", invalid::kernel),
        faulty("invalid-non-canonical-address", invalid::non_canonical),
        faulty("invalid-beyond-end-of-file", invalid::beyond_file),
        quiet("partial-completion-move", partial::moves),
        quiet("partial-completion-other-operations", partial::others),
        quiet("queue-without-block-on-fault", reconfigure::without_block_on_fault),
        faulty("munmap-in-flight", unmap::in_flight),
        faulty("munmap-source-in-flight", unmap::source_in_flight),
        faulty("mprotect-in-flight", protect::in_flight),
        faulty("mprotect-between-uses", protect::between_uses),
        faulty("mremap-between-uses", protect::moved),
        quiet("remap-same-address-anonymous", stale::anonymous),
        quiet("remap-same-address-files", stale::files),
        quiet("discarded-pages", stale::discarded),
        faulty("eight-processes-eight-queues", isolation::eight_processes),
        faulty("killed-with-work-in-flight", killed::in_flight),
        quiet("figures-latency", latency::figures),
    ]);
    checks
}

/// The checks of single operations, which the other modes use too.
pub fn operations() -> Vec<Check> {
    let quiet = |name, run| Check { name, faults: false, run };
    vec![
        quiet("operation-no-op", operations::noop),
        quiet("operation-move", operations::copy),
        quiet("operation-fill", operations::fill),
        quiet("operation-compare", operations::compare),
        quiet("operation-compare-pattern", operations::compare_pattern),
        quiet("operation-dualcast", operations::dualcast),
        quiet("operation-cache-flush", operations::cache_flush),
        quiet("operation-create-delta", delta::create),
        quiet("operation-apply-delta", delta::apply),
        quiet("operation-crc", crc::generate),
        quiet("operation-copy-crc", crc::copy),
        quiet("operation-drain", operations::drain),
        quiet("operation-batch", batch::all_operations),
        quiet("operation-batch-fence", batch::fence),
        quiet("operation-errors", errors::refused),
    ]
}

/// Success, fully completed.
pub fn succeeded(completion: &Completion, what: &str) -> Result<()> {
    ensure!(completion.status == status::SUCCESS, "{what}: {completion}");
    Ok(())
}

/// A given status.
pub fn has_status(completion: &Completion, code: u8, what: &str) -> Result<()> {
    ensure!(completion.status == code, "{what}: expected status {code:#04x}, got {completion}");
    Ok(())
}

/// Equal contents; else the first difference.
pub fn same(got: &[u8], expected: &[u8], what: &str) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    ensure!(got.len() == expected.len(), "{what}: {} bytes instead of {}", got.len(), expected.len());
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        Some(at) => {
            let wrong = got.iter().zip(expected).filter(|(a, b)| a != b).count();
            bail!(
                "{what}: byte {at} of {} is {:#04x} instead of {:#04x}, {wrong} bytes differ",
                got.len(),
                got[at],
                expected[at]
            )
        }
        None => Ok(()),
    }
}

/// Every byte has this value.
pub fn all_bytes(got: &[u8], value: u8, what: &str) -> Result<()> {
    match got.iter().position(|b| *b != value) {
        Some(at) => bail!("{what}: byte {at} is {:#04x} instead of {value:#04x}", got[at]),
        None => Ok(()),
    }
}

/// A descriptor that could not go on: `03` without block on fault, `04` with it; the address lies in one of the pages
/// of `pages` and the access was a write or a read as given.
pub fn faulted(
    completion: &Completion,
    blocking: bool,
    pages: &Range<u64>,
    write: bool,
    what: &str,
) -> Result<()> {
    let expected = if blocking { status::PAGE_REQUEST_REFUSED } else { status::PAGE_FAULT };
    has_status(completion, expected, what)?;
    // The device may leave the low bits out [D 8.2].
    let page = |address: u64| address & !(PAGE as u64 - 1);
    let at = page(completion.fault_address);
    ensure!(
        (page(pages.start)..pages.end).contains(&at),
        "{what}: the fault address is outside {:#x}..{:#x}: {completion}",
        pages.start,
        pages.end
    );
    ensure!(
        completion.fault_was_write == write,
        "{what}: the status should tell a {}: {completion}",
        if write { "write" } else { "read" }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_located() {
        let error = same(&[1, 2, 3, 4], &[1, 2, 9, 8], "data").unwrap_err().to_string();
        assert_eq!(error, "data: byte 2 of 4 is 0x03 instead of 0x09, 2 bytes differ");
        assert!(same(&[1], &[1], "").is_ok());
        assert!(same(&[1], &[1, 2], "").is_err());
        assert!(all_bytes(&[7, 7, 8], 7, "x").is_err());
    }

    #[test]
    fn a_fault_must_have_the_right_kind_page_and_direction() {
        let mut c = Completion {
            status: status::PAGE_REQUEST_REFUSED,
            fault_was_write: true,
            result: 0,
            completed: 0,
            fault_address: 0x5000,
            value: 0,
        };
        assert!(faulted(&c, true, &(0x5010..0x6000), true, "").is_ok());
        assert!(faulted(&c, false, &(0x5010..0x6000), true, "").is_err());
        assert!(faulted(&c, true, &(0x5010..0x6000), false, "").is_err());
        c.fault_address = 0x6000;
        assert!(faulted(&c, true, &(0x5010..0x6000), true, "").is_err());
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = all().iter().map(|c| c.name).collect();
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }
}
