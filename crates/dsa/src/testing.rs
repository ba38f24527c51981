// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A memory with faults to order, for the tests.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use patience::Patience;
use vtd_unit::{Access, DmaError, PageGroupResponse, PageRequest, Pasid, Requester, ResponseCode};

use crate::bus::{Bus, PciState};
use crate::page_request::PageRequests;
use crate::work_queue::tests::PCI;

pub(crate) const PAGE: u64 = 0x1000;
/// What happens to a page request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnRequest {
    /// The page is mapped with all rights, and the answer is Success.
    Map,
    /// The answer is Success, and nothing else happens.
    Ignore,
    Answer(ResponseCode),
    /// No answer before [`TestBus::answer`].
    Hold,
}

struct Page {
    data: Box<[u8; PAGE as usize]>,
    readable: bool,
    writable: bool,
}

#[derive(Default)]
struct Memory {
    pages: HashMap<(Option<Pasid>, u64), Page>,
    /// Pages whose requests are answered Unsupported Request.
    refused: HashSet<u64>,
    /// Pages whose translation requests are refused.
    untranslatable: HashSet<u64>,
}

pub(crate) struct TestBus {
    pub requests: Arc<PageRequests>,
    pub pci: Mutex<PciState>,
    pub on_request: Mutex<OnRequest>,
    /// Every page request that was sent.
    pub sent: Mutex<Vec<PageRequest>>,
    pub writes: AtomicUsize,
    /// Who accessed memory.
    pub accessors: Mutex<HashSet<ThreadId>>,
    memory: Mutex<Memory>,
    held: Mutex<Vec<PageRequest>>,
    interrupts: Mutex<Vec<u16>>,
    changed: Condvar,
}

/// The PASID that tests use.
pub(crate) fn pasid() -> Option<Pasid> {
    Pasid::new(0x2a)
}

impl TestBus {
    pub fn new() -> Self {
        Self {
            requests: Arc::new(PageRequests::new()),
            pci: Mutex::new(PCI),
            on_request: Mutex::new(OnRequest::Map),
            sent: Mutex::default(),
            writes: AtomicUsize::new(0),
            accessors: Mutex::default(),
            memory: Mutex::default(),
            held: Mutex::default(),
            interrupts: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub fn on_request(&self, action: OnRequest) {
        *self.on_request.lock().unwrap() = action;
    }

    /// Maps what holds `data` at `address`, and stores it.
    pub fn store(&self, pasid: Option<Pasid>, address: u64, data: &[u8]) {
        let mut memory = self.memory.lock().unwrap();
        for (n, byte) in data.iter().enumerate() {
            let at = address.wrapping_add(n as u64);
            memory.page(pasid, at).data[(at % PAGE) as usize] = *byte;
        }
    }

    /// Maps zeroes.
    pub fn map(&self, pasid: Option<Pasid>, address: u64) {
        self.memory.lock().unwrap().page(pasid, address);
    }

    pub fn unmap(&self, pasid: Option<Pasid>, address: u64) {
        self.memory.lock().unwrap().pages.remove(&(pasid, address / PAGE));
    }

    pub fn protect(&self, pasid: Option<Pasid>, address: u64) {
        self.memory.lock().unwrap().page(pasid, address).writable = false;
    }

    pub fn refuse(&self, address: u64) {
        self.memory.lock().unwrap().refused.insert(address / PAGE);
    }

    pub fn refuse_translation(&self, address: u64) {
        self.memory.lock().unwrap().untranslatable.insert(address / PAGE);
    }

    /// What memory holds; unmapped memory holds zeroes.
    pub fn load(&self, pasid: Option<Pasid>, address: u64, length: usize) -> Vec<u8> {
        let memory = self.memory.lock().unwrap();
        let byte = |n| {
            let at = address.wrapping_add(n as u64);
            memory.pages.get(&(pasid, at / PAGE)).map_or(0, |page| page.data[(at % PAGE) as usize])
        };
        (0..length).map(byte).collect()
    }

    pub fn interrupts(&self) -> Vec<u16> {
        self.interrupts.lock().unwrap().clone()
    }

    /// Waits until `count` interrupts have been raised, since the beginning.
    pub fn wait_for_interrupts(&self, count: usize) {
        let mut patience = Patience::default();
        while self.interrupts.lock().unwrap().len() < count {
            patience.pause("interrupts");
        }
    }

    /// Waits until `count` page requests are held.
    pub fn wait_for_held(&self, count: usize) -> MutexGuard<'_, Vec<PageRequest>> {
        let mut patience = Patience::default();
        loop {
            let held = self.held.lock().unwrap();
            if held.len() >= count {
                return held;
            }
            drop(held);
            patience.pause("page requests");
        }
    }

    /// Answers the page request that has been held longest; before Success, the page is mapped.
    pub fn answer(&self, code: ResponseCode) {
        let request = self.wait_for_held(1).remove(0);
        if code == ResponseCode::Success {
            self.map(request.requester.pasid, request.address);
        }
        self.respond(&request, code);
    }

    pub fn respond(&self, request: &PageRequest, code: ResponseCode) {
        let response = PageGroupResponse { pasid: request.requester.pasid, group: request.group, code };
        let expected = self.requests.respond(response);
        if expected && code == ResponseCode::ResponseFailure {
            self.pci.lock().unwrap().pri = false;
            self.requests.fail_all();
        }
    }

    fn access(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        write: bool,
        mut copy: impl FnMut(usize, &mut u8),
    ) -> Result<(), DmaError> {
        self.accessors.lock().unwrap().insert(thread::current().id());
        let ats = self.pci.lock().unwrap().ats;
        let mut memory = self.memory.lock().unwrap();
        for n in 0..length {
            let at = address.checked_add(n as u64).expect("an access over the end of the address space");
            if memory.untranslatable.contains(&(at / PAGE)) {
                return Err(DmaError::TranslationRefused { address: at, completer_abort: false });
            }
            if memory.refused.contains(&(at / PAGE)) {
                return Err(DmaError::Refused { address: at });
            }
            match memory.pages.get_mut(&(requester.pasid, at / PAGE)) {
                Some(page) if if write { page.writable } else { page.readable } => {
                    copy(n, &mut page.data[(at % PAGE) as usize]);
                }
                _ if ats => return Err(DmaError::PageFault { address: at, write }),
                _ => return Err(DmaError::Refused { address: at }),
            }
        }
        Ok(())
    }
}

impl Memory {
    fn page(&mut self, pasid: Option<Pasid>, address: u64) -> &mut Page {
        self.pages.entry((pasid, address / PAGE)).or_insert_with(|| Page {
            data: Box::new([0; PAGE as usize]),
            readable: true,
            writable: true,
        })
    }
}

impl Bus for TestBus {
    fn read(&self, requester: Requester, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.access(requester, address, data.len(), false, |n, byte| data[n] = *byte)
    }

    fn write(&self, requester: Requester, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.access(requester, address, data.len(), true, |n, byte| *byte = data[n])
    }

    fn probe(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<(), DmaError> {
        self.access(requester, address, length, access != Access::Read, |_, _| {})
    }

    fn page_request(&self, request: PageRequest) {
        assert!(request.last && request.read != request.write && request.address.is_multiple_of(PAGE));
        self.sent.lock().unwrap().push(request);
        let action = *self.on_request.lock().unwrap();
        match action {
            OnRequest::Map => {
                let mut memory = self.memory.lock().unwrap();
                let page = memory.page(request.requester.pasid, request.address);
                (page.readable, page.writable) = (true, true);
                drop(memory);
                self.respond(&request, ResponseCode::Success);
            }
            OnRequest::Ignore => self.respond(&request, ResponseCode::Success),
            OnRequest::Answer(code) => self.respond(&request, code),
            OnRequest::Hold => {
                self.held.lock().unwrap().push(request);
                self.changed.notify_all();
            }
        }
    }

    fn interrupt(&self, vector: u16) {
        self.interrupts.lock().unwrap().push(vector);
        self.changed.notify_all();
    }

    fn pci(&self) -> PciState {
        *self.pci.lock().unwrap()
    }
}

/// Bytes that look random, the same ones each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}
