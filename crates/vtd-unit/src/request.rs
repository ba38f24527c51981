// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a function sends and receives: who asks for what, and what becomes of it.

use vtd_spec::{AddressRange, Pasid, ResponseCode};

/// Who asks: what a request carries besides address, length and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Requester {
    /// The PASID prefix of the request; `None` for a request without PASID.
    pub pasid: Option<Pasid>,
    /// Privileged Mode Requested; meaningful with a PASID only.
    pub privileged: bool,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads memory.
    Read,
    /// Writes memory.
    Write,
    /// An AtomicOp: needs both rights.
    Atomic,
    /// A read of no byte, which asks whether there is a page. \[S 11.4.2: CAP.ZLR\]
    ZeroLengthRead,
}

impl Access {
    /// Needs the right to read.
    pub(crate) const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::Atomic)
    }

    /// Needs the right to write.
    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Atomic)
    }
}

/// Why a DMA did not happen. The unit has recorded its fault, where one is due, before this is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// ATS is on and the translation request succeeded without the wanted right: a page request may cure it.
    #[error("no translation for {address:#x} (write: {write})")]
    PageFault {
        /// The first address that could not be accessed, as the device named it.
        address: u64,
        /// The access wanted to write.
        write: bool,
    },
    /// ATS is on and the translation request was answered Unsupported Request or Completer Abort.
    #[error("translation request for {address:#x} refused")]
    TranslationRefused {
        /// The address of the request.
        address: u64,
        /// Completer Abort rather than Unsupported Request.
        completer_abort: bool,
    },
    /// An untranslated or translated request was answered Unsupported Request: a fault of the unit, or no memory
    /// behind the translated address. A posted write fails without the device seeing it on real hardware.
    #[error("request for {address:#x} refused")]
    Refused {
        /// The first address that could not be accessed.
        address: u64,
    },
}

/// A page request message. \[PCIe 10.4.1; S 7.4\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// PASID and privilege of the request.
    pub requester: Requester,
    /// The page: bits 11:0 are ignored.
    pub address: u64,
    /// Read access requested. A request with neither right that is `last` is a stop marker.
    pub read: bool,
    /// Write access requested.
    pub write: bool,
    /// Last request of its group: the only one that is answered.
    pub last: bool,
    /// Page request group index, 9 bits.
    pub group: u16,
}

impl PageRequest {
    /// Whether this says that no more requests of a PASID follow, and asks for nothing. \[PCIe 10.4.1.2.1\]
    pub(crate) const fn is_stop_marker(&self) -> bool {
        self.last && !self.read && !self.write
    }
}

/// A page group response message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGroupResponse {
    /// The PASID of the request, where it had one.
    pub pasid: Option<Pasid>,
    /// The group index of the request.
    pub group: u16,
    /// The answer.
    pub code: ResponseCode,
}

/// A device-TLB invalidation as the function receives it. \[PCIe 10.3; S 6.5.2.5, 6.5.2.6\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlbInvalidation {
    /// The PASID whose translations go; `None` for those of requests without PASID.
    pub pasid: Option<Pasid>,
    /// Global Invalidate: all PASIDs.
    pub global: bool,
    /// The pages.
    pub range: AddressRange,
}
