// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CRC generation and copy with CRC. \[D 8.3.11, 8.3.12\]

use super::task::{Task, advance, at, pieces};
use crate::bus::Bus;
use crate::crc::Crc;
use crate::descriptor::CrcSetup;
use crate::dma::Aborted;
use crate::status::{Record, Status};

impl<B: Bus> Task<'_, B> {
    /// The CRC of a range, which is copied too where there is a destination. A partial CRC is the seed of the rest.
    pub(super) fn crc(
        &mut self,
        source: u64,
        destination: Option<u64>,
        size: u32,
        setup: &CrcSetup,
    ) -> Result<Record, Aborted> {
        let mut seed = setup.seed;
        if let Some(address) = setup.seed_address {
            let mut bytes = [0; 4];
            let read = self.dma.read(address, &mut bytes, self.on_fault)?;
            if let Some(fault) = read.fault {
                return Ok(Record::partial(fault, 0));
            }
            seed = u32::from_le_bytes(bytes);
        }
        let mut crc = Crc::new(seed, setup.bypass_inversion, setup.bypass_data_reflection);
        for (offset, length) in pieces(size) {
            let Some(buffer) = self.scratch.first.get_mut(..length) else { break };
            let mut end = self.dma.read(at(source, offset), buffer, self.on_fault)?;
            if let Some(destination) = destination {
                let data = buffer.get(..end.done).unwrap_or_default();
                let written = self.dma.write(at(destination, offset), data, self.on_fault)?;
                end.done = written.done;
                end.fault = written.fault.or(end.fault);
            }
            crc.update(buffer.get(..end.done).unwrap_or_default());
            if let Some(fault) = end.fault {
                return Ok(Record::partial(fault, advance(offset, end.done)).with_extra(crc.value().into()));
            }
        }
        Ok(Record::new(Status::SUCCESS).with_extra(crc.value().into()))
    }
}
