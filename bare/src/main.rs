// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a kernel uses vtd-driver: registers by volatile accesses, memory that it maps one to one, an allocator of its own.
//!
//! It is linked, not run: `cargo build --target x86_64-unknown-none` succeeds only as long as neither the driver nor
//! anything below it needs the standard library, which that target does not have.
#![no_std]
#![no_main]

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vtd_driver::{Config, DeviceConfig, Iommu, Memory, NestedTable, Registers};
use vtd_spec::{AddressWidth, Pasid, SourceId};

/// Where a chipset has its first unit.
const REGISTERS: usize = 0xfed9_0000;

/// A unit's register page, mapped uncached.
struct Mmio(usize);

impl Registers for Mmio {
    fn read32(&self, offset: u64) -> u32 {
        // SAFETY: the page is mapped for as long as the kernel runs, and the driver's offsets are inside it and aligned.
        unsafe { core::ptr::read_volatile((self.0 + offset as usize) as *const u32) }
    }

    fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as `read32`.
        unsafe { core::ptr::read_volatile((self.0 + offset as usize) as *const u64) }
    }

    fn write32(&self, offset: u64, value: u32) {
        // SAFETY: as `read32`.
        unsafe { core::ptr::write_volatile((self.0 + offset as usize) as *mut u32, value) }
    }

    fn write64(&self, offset: u64, value: u64) {
        // SAFETY: as `read32`.
        unsafe { core::ptr::write_volatile((self.0 + offset as usize) as *mut u64, value) }
    }
}

/// Memory that is mapped at its physical addresses, handed out from a pool.
struct OneToOne;

/// Size of the pool of table pages in bytes.
const POOL_BYTES: usize = 1 << 20;

/// The pool; atomic because the unit reads and writes it too.
#[repr(align(4096))]
struct Pool([AtomicU64; POOL_BYTES / 8]);

static POOL: Pool = Pool([const { AtomicU64::new(0) }; POOL_BYTES / 8]);
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

impl OneToOne {
    fn cell(address: u64) -> Option<&'static AtomicU64> {
        POOL.0.get((address as usize).checked_sub(POOL.0.as_ptr() as usize)? / 8)
    }
}

impl Memory for OneToOne {
    fn allocate(&self, pages: usize) -> Option<u64> {
        let bytes = pages.checked_mul(4096)?;
        let first = POOL_USED.fetch_add(bytes, Ordering::Relaxed);
        (first + bytes <= POOL_BYTES).then(|| POOL.0.as_ptr() as u64 + first as u64)
    }

    fn free(&self, _address: u64, _pages: usize) {}

    fn load(&self, address: u64) -> u64 {
        Self::cell(address).map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    fn store(&self, address: u64, value: u64) {
        if let Some(cell) = Self::cell(address) {
            cell.store(value, Ordering::Release);
        }
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        let cell = Self::cell(address).ok_or(!current)?;
        cell.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

/// Brings the first unit up, and binds a guest's table to PASID 1 of a device, nested on a domain.
fn kernel() -> Result<(), vtd_driver::Error> {
    let mut iommu = Iommu::bring_up(Mmio(REGISTERS), OneToOne, Config::new(46))?;
    let device = SourceId::new(0, 3, 0);
    iommu.add_device(DeviceConfig::with_sva(device))?;
    let domain = iommu.create_nest_parent(AddressWidth::Bits48)?;
    iommu.map(domain, 0, 0x1_0000_0000, 1 << 30, vtd_driver::Access::ReadWrite)?;
    iommu.enable_translation()?;
    iommu.setup_nested(device, Pasid::truncated(1), domain, NestedTable::new(0x10_0000, 48))
}

/// Where a boot loader jumps to.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let _ = kernel();
    loop {
        core::hint::spin_loop();
    }
}

/// Hands out memory that it never takes back.
struct Bump;

const HEAP_BYTES: usize = 1 << 20;

#[repr(align(4096))]
struct Heap(core::cell::UnsafeCell<[u8; HEAP_BYTES]>);

// SAFETY: `Bump` gives each byte out once, so no two owners share one.
unsafe impl Sync for Heap {}

static HEAP: Heap = Heap(core::cell::UnsafeCell::new([0; HEAP_BYTES]));
static HEAP_USED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: each call returns a part of `HEAP` that no other call returns, aligned as asked (the heap's own alignment is
// larger than any the driver asks for), or null.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() + layout.align();
        let first = HEAP_USED.fetch_add(size, Ordering::Relaxed);
        if first + size > HEAP_BYTES {
            return core::ptr::null_mut();
        }
        let base = HEAP.0.get() as usize + first;
        base.next_multiple_of(layout.align()) as *mut u8
    }

    unsafe fn dealloc(&self, _pointer: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
