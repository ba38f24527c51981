// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The remapping unit's place in the machine: its register page, and the I/O APIC as one of its functions.

use std::sync::Arc;

use vtd_unit::{Endpoint, Message, SourceId, SourceIdInUse, Unit, UnitConfig};

use crate::acpi::Remapping;
use crate::bus::BusDevice;
use crate::ioapic::{InterruptSink, PINS};
use crate::kvm::Messages;
use crate::layout;
use crate::memory::Memory;

/// What the user said about the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The guest sees the unit. If not, it stays as after reset: DMA passes untranslated.
    pub visible: bool,
    /// Its capabilities.
    pub config: UnitConfig,
}

/// Why the argument of `--iommu` cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// An option, its value, or a combination.
    #[error(transparent)]
    Config(#[from] vtd_unit::ConfigError),
    /// An option more than once.
    #[error("IOMMU option '{0}' is given twice")]
    Twice(String),
    /// `off` and something else.
    #[error("'off' stands alone: without a remapping unit there is nothing to set")]
    OffAndMore,
}

/// Parses the argument of `--iommu`: `off`, or options of [`UnitConfig`] that can go together.
pub fn parse(text: &str) -> Result<Choice, ParseError> {
    let options = || text.split(',').map(str::trim).filter(|option| !option.is_empty());
    let names: Vec<_> =
        options().map(|option| option.split_once('=').map_or(option, |(name, _)| name)).collect();
    if let Some((_, twice)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(ParseError::Twice((*twice).to_owned()));
    }
    if options().any(|option| option == "off") {
        return match names.len() {
            1 => Ok(Choice { visible: false, config: UnitConfig::default() }),
            _ => Err(ParseError::OffAndMore),
        };
    }
    let config: UnitConfig = text.parse()?;
    config.capabilities()?;
    Ok(Choice { visible: true, config })
}

/// What the DMAR table says about `unit`.
pub fn description(unit: &Unit<Memory>) -> Remapping {
    let capabilities = unit.capabilities();
    Remapping {
        address_width: capabilities.haw,
        interrupt_remapping: capabilities.ecap.ir(),
        x2apic_opt_out: !capabilities.ecap.eim(),
    }
}

/// The unit's register page on the memory bus.
pub struct RegisterPage(pub Unit<Memory>);

impl BusDevice for RegisterPage {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The I/O APIC's way out, through the unit by its source-id.
pub struct IoApicPort {
    endpoint: Endpoint<Memory>,
    messages: Messages,
}

impl IoApicPort {
    /// The port into `unit`; what comes out of it goes to `messages`.
    ///
    /// # Errors
    ///
    /// The unit has one already.
    pub fn new(unit: &Unit<Memory>, messages: Messages) -> Result<Self, SourceIdInUse> {
        let source_id = SourceId(u16::from(layout::IOAPIC_BUS) << 8 | u16::from(layout::IOAPIC_DEVFN));
        Ok(Self { endpoint: unit.endpoint(source_id, Arc::new(()))?, messages })
    }
}

impl InterruptSink for IoApicPort {
    fn deliver(&self, message: Message) {
        self.endpoint.message(message);
    }

    fn level_routes(&self, routes: &[Option<Message>; PINS]) {
        self.messages.level_routes(routes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_off_or_options_that_go_together() {
        assert!(!parse("off").unwrap().visible);
        assert_eq!(parse("").unwrap(), Choice { visible: true, config: UnitConfig::default() });
        assert!(!parse("cm=off").unwrap().config.cm);
        for text in ["warp=on", "cm=perhaps", "pss=20", "dt=off"] {
            assert!(matches!(parse(text), Err(ParseError::Config(_))), "{text}");
        }
        for text in ["off,cm=on", "on,off"] {
            assert_eq!(parse(text), Err(ParseError::OffAndMore), "{text}");
        }
        for text in ["cm=on,cm=off", "cm,cm", "pss=5,dt=on,pss=5"] {
            assert!(matches!(parse(text), Err(ParseError::Twice(_))), "{text}");
        }
    }
}
