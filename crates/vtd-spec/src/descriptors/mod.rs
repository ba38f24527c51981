// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidation queue descriptors. \[S 6.5.2, 7.6.1\]
//!
//! Types 1 to 5 are 128-bit descriptors, padded with zeros in a 256-bit queue; types 6 to 0xA exist only there. Either
//! way they are four 64-bit words here, the upper two ignored in a 128-bit queue.

mod context_cache;
mod device_tlb;
mod hpt_cache;
mod interrupt_entry_cache;
mod iotlb;
mod page_group_response;
mod pasid_cache;
mod range;
mod wait;

pub use context_cache::{ContextCache, ContextGranularity, FunctionMask};
pub use device_tlb::{DeviceTlb, PasidDeviceTlb};
pub use hpt_cache::{HptCache, HptGranularity, HptLevels};
pub use interrupt_entry_cache::{InterruptEntryCache, InterruptGranularity};
pub use iotlb::{Iotlb, IotlbGranularity, PasidIotlb, PasidIotlbGranularity};
pub use page_group_response::{PageGroupResponse, ResponseCode};
pub use pasid_cache::{PasidCache, PasidCacheGranularity};
pub use range::AddressRange;
pub use wait::Wait;

use crate::{Capabilities, QueueError, TranslationTableMode};

/// Width of the descriptors in a queue: IQA.DW. \[S 11.4.9.3\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorWidth {
    /// DW=0: 16 bytes; legacy mode only.
    Bits128,
    /// DW=1: 32 bytes.
    Bits256,
}

impl DescriptorWidth {
    /// From IQA.DW.
    pub const fn from_dw(dw: bool) -> Self {
        if dw { Self::Bits256 } else { Self::Bits128 }
    }

    /// Size of one descriptor in bytes: 16 or 32.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }
}

/// The type of a descriptor: bits 11:9 and 3:0. \[S 6.5.2\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DescriptorType {
    /// Context-cache invalidate (cc_inv_dsc).
    ContextCache = 1,
    /// IOTLB invalidate (iotlb_inv_dsc).
    Iotlb = 2,
    /// Device-TLB invalidate (dev_tlb_inv_dsc).
    DeviceTlb = 3,
    /// Interrupt entry cache invalidate (iec_inv_dsc).
    InterruptEntryCache = 4,
    /// Invalidation wait (inv_wait_dsc).
    Wait = 5,
    /// PASID-based IOTLB invalidate (p_iotlb_inv_dsc).
    PasidIotlb = 6,
    /// PASID-cache invalidate (pc_inv_dsc).
    PasidCache = 7,
    /// PASID-based device-TLB invalidate (p_dev_tlb_inv_dsc).
    PasidDeviceTlb = 8,
    /// Page group response (page_grp_resp_dsc).
    PageGroupResponse = 9,
    /// HPT cache invalidate (hpt_inv_dsc).
    HptCache = 0xa,
}

impl DescriptorType {
    /// From the first word of a descriptor; `None` for an undefined type.
    pub const fn from_qword0(qword: u64) -> Option<Self> {
        if qword & 0xe00 != 0 {
            return None;
        }
        Some(match qword & 0xf {
            1 => Self::ContextCache,
            2 => Self::Iotlb,
            3 => Self::DeviceTlb,
            4 => Self::InterruptEntryCache,
            5 => Self::Wait,
            6 => Self::PasidIotlb,
            7 => Self::PasidCache,
            8 => Self::PasidDeviceTlb,
            9 => Self::PageGroupResponse,
            0xa => Self::HptCache,
            _ => return None,
        })
    }

    /// Whether the type needs a 256-bit queue.
    pub const fn needs_256_bits(self) -> bool {
        self as u8 >= Self::PasidIotlb as u8
    }

    /// Whether a unit with these capabilities has the type: 3 and 8 need DT, 4 IR, 9 PRS, 0xA HPTS.
    pub const fn is_supported(self, caps: &Capabilities) -> bool {
        match self {
            Self::DeviceTlb | Self::PasidDeviceTlb => caps.ecap.dt(),
            Self::InterruptEntryCache => caps.ecap.ir(),
            Self::PageGroupResponse => caps.ecap.prs(),
            Self::HptCache => caps.ecap.hpts(),
            _ => true,
        }
    }

    /// Whether the type is valid in a mode with this descriptor width. \[S 6.5.2.11, table 26\]
    pub const fn is_valid_in(self, mode: TranslationTableMode, width: DescriptorWidth) -> bool {
        match (mode, width) {
            (TranslationTableMode::Legacy, _) => !self.needs_256_bits(),
            (TranslationTableMode::Scalable | TranslationTableMode::AbortDma, DescriptorWidth::Bits256) => {
                true
            }
            _ => false,
        }
    }
}

/// Whether the unit may fetch descriptors at all in this mode and width. \[S 11.4.9.9\]
///
/// # Errors
///
/// [`QueueError::InvalidTtm`] for a mode that the unit does not have, [`QueueError::InvalidWidth`] for 128-bit
/// descriptors outside legacy mode and for 256-bit ones on a unit with neither scalable nor abort-DMA mode.
pub const fn check_queue_mode(
    mode: TranslationTableMode,
    width: DescriptorWidth,
    caps: &Capabilities,
) -> Result<(), QueueError> {
    let mode_exists = match mode {
        TranslationTableMode::Legacy => true,
        TranslationTableMode::Scalable => caps.ecap.smts(),
        TranslationTableMode::Reserved => false,
        TranslationTableMode::AbortDma => caps.ecap.adms(),
    };
    if !mode_exists {
        return Err(QueueError::InvalidTtm);
    }
    let width_fits = match width {
        DescriptorWidth::Bits128 => matches!(mode, TranslationTableMode::Legacy),
        DescriptorWidth::Bits256 => caps.ecap.smts() || caps.ecap.adms(),
    };
    if width_fits { Ok(()) } else { Err(QueueError::InvalidWidth) }
}

/// A decoded descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Descriptor {
    /// Type 1.
    ContextCache(ContextCache),
    /// Type 2.
    Iotlb(Iotlb),
    /// Type 3.
    DeviceTlb(DeviceTlb),
    /// Type 4.
    InterruptEntryCache(InterruptEntryCache),
    /// Type 5.
    Wait(Wait),
    /// Type 6.
    PasidIotlb(PasidIotlb),
    /// Type 7.
    PasidCache(PasidCache),
    /// Type 8.
    PasidDeviceTlb(PasidDeviceTlb),
    /// Type 9.
    PageGroupResponse(PageGroupResponse),
    /// Type 0xA.
    HptCache(HptCache),
}

impl Descriptor {
    /// Decodes a descriptor. With [`DescriptorWidth::Bits128`] the upper two words are not looked at.
    ///
    /// What hardware ignores is not in the result: domain-id bits beyond CAP.ND, second-stage address bits beyond
    /// CAP.MGAW, status and HPT address bits beyond HAW. The mode is not checked: see [`decode_in`](Self::decode_in).
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidType`] for a type that does not exist, needs a wider queue or a missing capability;
    /// [`QueueError::ReservedField`] for a set reserved bit, a reserved granularity or response code, page-selective
    /// type 2 without CAP.PSI, AM beyond CAP.MAMV (type 2 only) and IM beyond ECAP.MHMV.
    pub fn decode(qwords: [u64; 4], width: DescriptorWidth, caps: &Capabilities) -> Result<Self, QueueError> {
        let Some(kind) = DescriptorType::from_qword0(qwords[0]) else {
            return Err(QueueError::InvalidType);
        };
        if !kind.is_supported(caps) || (kind.needs_256_bits() && width == DescriptorWidth::Bits128) {
            return Err(QueueError::InvalidType);
        }
        if width == DescriptorWidth::Bits256 && qwords[2] | qwords[3] != 0 {
            return Err(QueueError::ReservedField);
        }
        let words = [qwords[0], qwords[1]];
        match kind {
            DescriptorType::ContextCache => ContextCache::decode(words).map(Self::ContextCache),
            DescriptorType::Iotlb => Iotlb::decode(words, caps).map(Self::Iotlb),
            DescriptorType::DeviceTlb => DeviceTlb::decode(words, caps).map(Self::DeviceTlb),
            DescriptorType::InterruptEntryCache => {
                InterruptEntryCache::decode(words, caps).map(Self::InterruptEntryCache)
            }
            DescriptorType::Wait => Wait::decode(words, caps).map(Self::Wait),
            DescriptorType::PasidIotlb => PasidIotlb::decode(words, caps).map(Self::PasidIotlb),
            DescriptorType::PasidCache => PasidCache::decode(words, caps).map(Self::PasidCache),
            DescriptorType::PasidDeviceTlb => PasidDeviceTlb::decode(words, caps).map(Self::PasidDeviceTlb),
            DescriptorType::PageGroupResponse => {
                PageGroupResponse::decode(words).map(Self::PageGroupResponse)
            }
            DescriptorType::HptCache => HptCache::decode(words, caps).map(Self::HptCache),
        }
    }

    /// Decodes a descriptor of a queue in this mode: [`decode`](Self::decode) behind the checks of the mode.
    ///
    /// # Errors
    ///
    /// Those of [`check_queue_mode`], then [`QueueError::InvalidType`] for a type the mode does not have, then those of
    /// [`decode`](Self::decode).
    pub fn decode_in(
        mode: TranslationTableMode,
        qwords: [u64; 4],
        width: DescriptorWidth,
        caps: &Capabilities,
    ) -> Result<Self, QueueError> {
        check_queue_mode(mode, width, caps)?;
        match DescriptorType::from_qword0(qwords[0]) {
            Some(kind) if kind.is_valid_in(mode, width) => Self::decode(qwords, width, caps),
            _ => Err(QueueError::InvalidType),
        }
    }

    /// The descriptor as four 64-bit words; types 1 to 5 use the lower two.
    pub const fn encode(&self) -> [u64; 4] {
        let [w0, w1] = match self {
            Self::ContextCache(descriptor) => descriptor.encode(),
            Self::Iotlb(descriptor) => descriptor.encode(),
            Self::DeviceTlb(descriptor) => descriptor.encode(),
            Self::InterruptEntryCache(descriptor) => descriptor.encode(),
            Self::Wait(descriptor) => descriptor.encode(),
            Self::PasidIotlb(descriptor) => descriptor.encode(),
            Self::PasidCache(descriptor) => descriptor.encode(),
            Self::PasidDeviceTlb(descriptor) => descriptor.encode(),
            Self::PageGroupResponse(descriptor) => descriptor.encode(),
            Self::HptCache(descriptor) => descriptor.encode(),
        };
        [w0, w1, 0, 0]
    }

    /// The type.
    pub const fn descriptor_type(&self) -> DescriptorType {
        match self {
            Self::ContextCache(_) => DescriptorType::ContextCache,
            Self::Iotlb(_) => DescriptorType::Iotlb,
            Self::DeviceTlb(_) => DescriptorType::DeviceTlb,
            Self::InterruptEntryCache(_) => DescriptorType::InterruptEntryCache,
            Self::Wait(_) => DescriptorType::Wait,
            Self::PasidIotlb(_) => DescriptorType::PasidIotlb,
            Self::PasidCache(_) => DescriptorType::PasidCache,
            Self::PasidDeviceTlb(_) => DescriptorType::PasidDeviceTlb,
            Self::PageGroupResponse(_) => DescriptorType::PageGroupResponse,
            Self::HptCache(_) => DescriptorType::HptCache,
        }
    }
}

/// Fails where a bit outside `allowed` is set.
fn check_reserved(words: [u64; 2], allowed: [u64; 2]) -> Result<(), QueueError> {
    if words[0] & !allowed[0] | words[1] & !allowed[1] == 0 { Ok(()) } else { Err(QueueError::ReservedField) }
}

#[cfg(test)]
mod tests;
