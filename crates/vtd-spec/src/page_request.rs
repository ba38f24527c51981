// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page request descriptors: what hardware writes to the page request queue. \[S 7.4.1.1\]

use crate::bits::{mask, wide};

wide! {
    /// Page request descriptor (page_req_dsc), 256 bit. \[S 7.4.1.1\]
    pub struct PageRequestDescriptor: 4 {
        /// Type: always [`TYPE`](Self::TYPE).
        uint(u8) descriptor_type, with_descriptor_type: 0 : 0, 8;
        /// PASID present.
        flag pp, with_pp: 0 : 8;
        /// Requester-id.
        sid rid, with_rid: 0 : 16;
        /// PASID; undefined with PP=0.
        pasid pasid, with_pasid: 0 : 32;
        /// Execute permission requested.
        flag exr, with_exr: 0 : 52;
        /// Privileged mode requested.
        flag pmr, with_pmr: 0 : 53;
        /// Read permission requested.
        flag rdr, with_rdr: 1 : 0;
        /// Write permission requested.
        flag wrr, with_wrr: 1 : 1;
        /// Last page in group: a response is expected.
        flag lpig, with_lpig: 1 : 2;
        /// Page request group index.
        uint(u16) prgi, with_prgi: 1 : 3, 9;
        /// Address of the page.
        addr addr, with_addr: 1 : 12, 52;
    }
}

impl PageRequestDescriptor {
    /// The type of a page request descriptor.
    pub const TYPE: u8 = 1;

    /// Whether this is a stop marker: no permission requested, last in its group. It gets no response
    /// (Linux prq.c:prq_event_thread) and PRGI is undefined. \[S 7.4.1.1\]
    pub const fn is_stop_marker(&self) -> bool {
        self.lpig() && !self.rdr() && !self.wrr()
    }

    /// Whether a reserved bit is set, or the type is not [`TYPE`](Self::TYPE).
    pub const fn reserved(&self) -> bool {
        self.descriptor_type() != Self::TYPE
            || self.0[0] & (mask(15, 9) | mask(63, 54)) | self.0[2] | self.0[3] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pasid, SourceId};

    #[test]
    fn fields_lie_at_the_specified_bits() {
        let request = PageRequestDescriptor::new()
            .with_descriptor_type(PageRequestDescriptor::TYPE)
            .with_pp(true)
            .with_rid(SourceId(0x0018))
            .with_pasid(Pasid::truncated(0xabcde))
            .with_pmr(true)
            .with_wrr(true)
            .with_lpig(true)
            .with_prgi(0x155)
            .with_addr(0x7fff_1234_5678);
        assert_eq!(request.to_qwords(), [0x002a_bcde_0018_0101, 0x7fff_1234_5aae, 0, 0]);
        assert!(!request.reserved() && !request.is_stop_marker());
    }

    #[test]
    fn reserved_bits() {
        let valid = PageRequestDescriptor::new().with_descriptor_type(1).to_qwords();
        for bit in 8..256 {
            let mut qwords = valid;
            qwords[bit / 64] |= 1 << (bit % 64);
            let reserved = PageRequestDescriptor::from_qwords(qwords).reserved();
            assert_eq!(reserved, matches!(bit, 9..=15 | 54..=63 | 128..=255), "bit {bit}");
        }
        assert!(PageRequestDescriptor::new().reserved(), "type 0");
    }

    #[test]
    fn stop_marker_requests_nothing_and_closes_its_group() {
        let marker = PageRequestDescriptor::new().with_lpig(true);
        assert!(marker.is_stop_marker());
        assert!(!marker.with_rdr(true).is_stop_marker());
        assert!(!PageRequestDescriptor::new().is_stop_marker());
    }
}
