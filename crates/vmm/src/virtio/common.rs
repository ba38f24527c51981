// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The common configuration registers and the device status. \[V 2.1, 2.2, 3.1, 4.1.4.3\]

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};

/// Size of the register block in bytes.
pub const COMMON_SIZE: u64 = 0x40;
/// A configuration or queue event without interrupt.
pub const NO_VECTOR: u16 = 0xffff;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

/// Without these there is no agreement: the registers are those of version 1, and addresses go through the unit.
const REQUIRED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The registers of the queue as the driver wrote them, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of entries.
    pub size: u16,
    /// The MSI-X vector of used buffers, or [`NO_VECTOR`].
    pub vector: u16,
    /// The driver finished the set-up.
    pub enabled: bool,
    /// Address of the descriptor area.
    pub descriptors: u64,
    /// Address of the driver area (available ring).
    pub driver: u64,
    /// Address of the device area (used ring).
    pub device: u64,
}

/// What a register write asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the registers.
    None,
    /// The driver reset the device.
    Reset,
    /// The queue is set up and the driver is ready.
    Start,
    /// The driver gave up.
    Stop,
}

/// The registers of a device with one queue.
#[derive(Clone, Debug)]
pub struct CommonConfig {
    offered: u64,
    max_size: u16,
    vectors: u16,
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queue: QueueSetup,
}

impl CommonConfig {
    /// The registers after reset, for a device that offers these feature bits (bit n is feature n), a queue of at
    /// most `max_size` entries (a power of two) and this many MSI-X vectors.
    pub fn new(offered: u64, max_size: u16, vectors: u16) -> Self {
        Self {
            offered: offered | REQUIRED,
            max_size,
            vectors,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queue: QueueSetup {
                size: max_size,
                vector: NO_VECTOR,
                enabled: false,
                descriptors: 0,
                driver: 0,
                device: 0,
            },
        }
    }

    /// Back to the state after reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.offered, self.max_size, self.vectors);
    }

    /// The queue's registers.
    pub fn queue(&self) -> &QueueSetup {
        &self.queue
    }

    /// The MSI-X vector of configuration changes, or [`NO_VECTOR`].
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// Whether feature `bit` was agreed on.
    pub fn negotiated(&self, bit: u32) -> bool {
        self.status & FEATURES_OK != 0 && self.accepted.checked_shr(bit).is_some_and(|bits| bits & 1 != 0)
    }

    /// Says that only a reset helps. Returns whether the driver is to be told by a configuration interrupt.
    pub fn set_needs_reset(&mut self) -> bool {
        let tell = self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        self.status |= NEEDS_RESET;
        tell
    }

    /// Reads `data.len()` bytes at `offset`; what does not exist reads 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(index).and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes one register. Accesses that do not have the register's width are ignored (64-bit registers take their
    /// halves as well). \[V 4.1.3.1\]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (DEVICE_STATUS, &[value]) => return self.write_status(value),
            (_, &[a, b]) => return self.write16(offset, u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            (QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE, &[a, b, c, d, e, f, g, h]) => {
                self.write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Action::None
    }

    fn image(&self) -> [u8; COMMON_SIZE as usize] {
        let mut image = [0; COMMON_SIZE as usize];
        let mut put = |at: u64, bytes: &[u8]| image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        put(DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(DEVICE_FEATURE, &word(self.offered, self.device_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(DRIVER_FEATURE, &word(self.accepted, self.driver_select).to_le_bytes());
        put(CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(NUM_QUEUES, &1_u16.to_le_bytes());
        put(DEVICE_STATUS, &[self.status]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0. The notify offset of queue 0 is 0, and so is the configuration
        // generation: the configuration never changes.
        if self.queue_select == 0 {
            put(QUEUE_SIZE, &self.queue.size.to_le_bytes());
            put(QUEUE_MSIX_VECTOR, &self.queue.vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(self.queue.enabled).to_le_bytes());
            put(QUEUE_DESC, &self.queue.descriptors.to_le_bytes());
            put(QUEUE_DRIVER, &self.queue.driver.to_le_bytes());
            put(QUEUE_DEVICE, &self.queue.device.to_le_bytes());
        }
        image
    }

    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            self.reset();
            return Action::Reset;
        }
        // The driver sets bits one after another and clears none but by a reset. \[V 2.1.1\]
        self.status |= value & (ACKNOWLEDGE | DRIVER | FAILED);
        if value & FEATURES_OK != 0 && self.features_agreed() {
            self.status |= FEATURES_OK;
        }
        if value & FAILED != 0 {
            return Action::Stop;
        }
        let starts = value & DRIVER_OK != 0 && self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        if starts {
            self.status |= DRIVER_OK;
        }
        if starts && self.queue.enabled { Action::Start } else { Action::None }
    }

    fn features_agreed(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & REQUIRED == REQUIRED
    }

    fn vector(&self, value: u16) -> u16 {
        // A vector that cannot be had reads back as none. \[V 4.1.5.1.2\]
        if value < self.vectors { value } else { NO_VECTOR }
    }

    fn write16(&mut self, offset: u64, value: u16) -> Action {
        match offset {
            CONFIG_MSIX_VECTOR => self.config_vector = self.vector(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_MSIX_VECTOR if self.queue_select == 0 => self.queue.vector = self.vector(value),
            QUEUE_SIZE if self.is_queue_open() => self.queue.size = value,
            QUEUE_ENABLE if self.is_queue_open() && value == 1 => {
                self.queue.enabled = true;
                if self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK {
                    return Action::Start;
                }
            }
            _ => {}
        }
        Action::None
    }

    fn write32(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_select = value,
            DRIVER_FEATURE_SELECT => self.driver_select = value,
            DRIVER_FEATURE if self.status & FEATURES_OK == 0 => {
                let shift = match self.driver_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            QUEUE_DESC.. if offset < QUEUE_DEVICE + 8 && self.is_queue_open() => {
                let register = match offset & !4 {
                    QUEUE_DESC => &mut self.queue.descriptors,
                    QUEUE_DRIVER => &mut self.queue.driver,
                    QUEUE_DEVICE => &mut self.queue.device,
                    _ => return,
                };
                let shift = if offset & 4 == 0 { 0 } else { 32 };
                *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }

    /// The selected queue exists and can still be set up.
    fn is_queue_open(&self) -> bool {
        self.queue_select == 0 && !self.queue.enabled && self.status & FEATURES_OK != 0
    }
}

/// 32 of the feature bits.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(config: &CommonConfig, offset: u64) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read16(config: &CommonConfig, offset: u64) -> u16 {
        read32(config, offset) as u16
    }

    fn negotiate(config: &mut CommonConfig, features: u64) -> u8 {
        assert_eq!(config.write(DEVICE_STATUS, &[1]), Action::None);
        assert_eq!(config.write(DEVICE_STATUS, &[3]), Action::None);
        for (select, value) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            config.write(DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            config.write(DRIVER_FEATURE, &value.to_le_bytes());
        }
        config.write(DEVICE_STATUS, &[0xb]);
        read32(config, DEVICE_STATUS) as u8
    }

    #[test]
    fn features_are_agreed_on_only_with_version_1_and_access_platform_and_none_unoffered() {
        let version_1 = 1 << 32;
        let platform = 1 << 33;
        let fresh = || CommonConfig::new(1 << 9, 256, 2);
        assert_eq!(negotiate(&mut fresh(), version_1), 3);
        assert_eq!(negotiate(&mut fresh(), platform), 3);
        assert_eq!(negotiate(&mut fresh(), version_1 | platform | 1 << 5), 3);
        let mut config = fresh();
        assert_eq!(negotiate(&mut config, version_1 | platform | 1 << 9), 0xb);
        assert!(config.negotiated(9) && config.negotiated(33) && !config.negotiated(5));
        config.write(DRIVER_FEATURE, &[0; 4]);
        assert!(config.negotiated(33), "the agreement is final");
        config.write(DEVICE_FEATURE_SELECT, &1_u32.to_le_bytes());
        assert_eq!(read32(&config, DEVICE_FEATURE), 3);
        config.write(DEVICE_FEATURE_SELECT, &7_u32.to_le_bytes());
        assert_eq!(read32(&config, DEVICE_FEATURE), 0);
    }

    #[test]
    fn the_queue_starts_when_it_is_enabled_and_the_driver_is_ready_in_either_order() {
        for driver_first in [false, true] {
            let mut config = CommonConfig::new(0, 256, 2);
            config.write(QUEUE_SIZE, &64_u16.to_le_bytes());
            assert_eq!(read16(&config, QUEUE_SIZE), 256, "no agreement yet");
            negotiate(&mut config, REQUIRED);
            config.write(QUEUE_SIZE, &64_u16.to_le_bytes());
            config.write(QUEUE_DESC, &0x1_0000_2000_u64.to_le_bytes());
            config.write(QUEUE_DRIVER, &0x3000_u32.to_le_bytes());
            config.write(QUEUE_DRIVER + 4, &2_u32.to_le_bytes());
            config.write(QUEUE_DEVICE, &[1, 2]);
            let ok: (u64, &[u8]) = (DEVICE_STATUS, &[0xf]);
            let enable: (u64, &[u8]) = (QUEUE_ENABLE, &[1, 0]);
            let [first, second] = if driver_first { [ok, enable] } else { [enable, ok] };
            assert_eq!(config.write(first.0, first.1), Action::None);
            assert_eq!(config.write(second.0, second.1), Action::Start);
            let expected = QueueSetup {
                size: 64,
                vector: NO_VECTOR,
                enabled: true,
                descriptors: 0x1_0000_2000,
                driver: 0x2_0000_3000,
                device: 0,
            };
            assert_eq!(config.queue(), &expected);
            config.write(QUEUE_DESC, &[0; 8]);
            config.write(QUEUE_ENABLE, &[0, 0]);
            assert_eq!(config.queue(), &expected, "an enabled queue cannot be changed");
            assert_eq!(config.write(DEVICE_STATUS, &[0xf]), Action::None, "already started");
            assert_eq!(config.write(DEVICE_STATUS, &[0]), Action::Reset);
            assert_eq!((read32(&config, DEVICE_STATUS) as u8, config.queue().enabled), (0, false));
        }
    }

    #[test]
    fn a_driver_is_not_ready_without_agreement_and_can_fail() {
        let mut config = CommonConfig::new(0, 256, 2);
        assert_eq!(config.write(DEVICE_STATUS, &[7]), Action::None);
        assert_eq!(read32(&config, DEVICE_STATUS) as u8, 3);
        assert_eq!(config.write(DEVICE_STATUS, &[0xc0]), Action::Stop);
        assert_eq!(read32(&config, DEVICE_STATUS) as u8, 0x83, "only the device sets NEEDS_RESET");
    }

    #[test]
    fn needs_reset_is_told_once_and_to_a_ready_driver_only() {
        let mut config = CommonConfig::new(0, 256, 2);
        assert!(!config.set_needs_reset());
        config.reset();
        negotiate(&mut config, REQUIRED);
        config.write(DEVICE_STATUS, &[0xf]);
        assert!(config.set_needs_reset());
        assert!(!config.set_needs_reset());
        assert_eq!(read32(&config, DEVICE_STATUS) as u8, 0x4f);
    }

    #[test]
    fn vectors_and_queues_that_do_not_exist_are_not_taken() {
        let mut config = CommonConfig::new(0, 256, 2);
        config.write(CONFIG_MSIX_VECTOR, &1_u16.to_le_bytes());
        config.write(QUEUE_MSIX_VECTOR, &2_u16.to_le_bytes());
        assert_eq!((read16(&config, CONFIG_MSIX_VECTOR), config.config_vector()), (1, 1));
        assert_eq!(read16(&config, QUEUE_MSIX_VECTOR), NO_VECTOR);
        config.write(QUEUE_SELECT, &1_u16.to_le_bytes());
        config.write(QUEUE_MSIX_VECTOR, &0_u16.to_le_bytes());
        assert_eq!((read16(&config, QUEUE_SIZE), read16(&config, QUEUE_MSIX_VECTOR)), (0, 0));
        config.write(QUEUE_SELECT, &0_u16.to_le_bytes());
        assert_eq!(read16(&config, QUEUE_MSIX_VECTOR), NO_VECTOR);
        assert_eq!(read16(&config, NUM_QUEUES), 1);
        let mut far = [0x5a; 9];
        config.read(u64::MAX - 3, &mut far);
        assert_eq!(far, [0; 9]);
    }
}
