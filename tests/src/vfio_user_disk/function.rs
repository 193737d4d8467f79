// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI function: its configuration space and the registers of virtio.

use std::os::fd::OwnedFd;

/// VFIO's numbers of a function's regions, and how large they are here.
pub(super) const REGION_SIZES: [u64; 9] = [BAR_SIZE, MSIX_SIZE, 0, 0, 0, 0, 0, CONFIG_SIZE as u64, 0];
/// VFIO's numbers of a function's kinds of interrupts, and how many there are here: MSI-X alone.
pub(super) const IRQ_COUNTS: [u32; 5] = [0, 0, VECTORS as u32, 0, 0];
/// VFIO's number of MSI-X.
pub(super) const MSIX: u32 = 2;
/// VFIO's number of the configuration space.
pub(super) const CONFIG: u32 = 7;

const CONFIG_SIZE: usize = 256;
const BAR_SIZE: u64 = 0x4000;
const MSIX_SIZE: u64 = 0x1000;
/// One for changes of the configuration, one for the ring.
const VECTORS: u16 = 2;
const RING_SIZE: u16 = 64;
const NO_VECTOR: u16 = 0xffff;
/// VIRTIO_BLK_F_SEG_MAX, VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM.
const FEATURES: u64 = 1 << 2 | 1 << 32 | 1 << 33;
/// What BAR 0 holds, a page each: common configuration, interrupt status, the disk's configuration, notifications.
const ISR: u64 = 0x1000;
const DISK: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;

/// What a write to a register came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// There may be something in the ring.
    Notified,
}

/// Where the ring is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) is_enabled: bool,
    /// The available index that comes next.
    pub(super) next: u16,
    vector: u16,
}

/// The function's registers.
pub(super) struct Function {
    config: [u8; CONFIG_SIZE],
    sectors: u64,
    feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    status: u8,
    pub(super) ring: Ring,
    pub(super) vectors: Vec<Option<OwnedFd>>,
}

impl Function {
    pub(super) fn new(sectors: u64) -> Function {
        let vectors = (0..VECTORS).map(|_| None).collect();
        let mut function = Function {
            config: config_space(),
            sectors,
            feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            ring: Ring::default(),
            vectors,
        };
        function.reset();
        function
    }

    /// Resets the virtio device.
    pub(super) fn reset(&mut self) {
        (self.feature_select, self.driver_feature_select, self.status) = (0, 0, 0);
        self.config_vector = NO_VECTOR;
        self.ring = Ring { size: RING_SIZE, vector: NO_VECTOR, ..Ring::default() };
    }

    /// Where the driver is told of the ring.
    pub(super) fn ring_interrupt(&self) -> Option<&OwnedFd> {
        self.vectors.get(usize::from(self.ring.vector))?.as_ref()
    }

    pub(super) fn read(&self, region: u32, offset: u64, length: usize) -> Vec<u8> {
        let bytes: Vec<u8> = match (region, offset) {
            (CONFIG, _) => self.config.to_vec(),
            (0, ..ISR) => self.common(),
            (0, DISK..NOTIFY) => {
                let mut disk = vec![0; 64];
                disk[..8].copy_from_slice(&self.sectors.to_le_bytes());
                disk[12..16].copy_from_slice(&(u32::from(RING_SIZE) - 2).to_le_bytes());
                disk
            }
            _ => Vec::new(),
        };
        let start = if region == CONFIG { offset } else { offset & 0xfff };
        let from = bytes.into_iter().chain(std::iter::repeat(0)).skip(start as usize);
        from.take(length).collect()
    }

    pub(super) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Effect {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match (region, offset) {
            (CONFIG, _) => {
                let places = self.config.iter_mut().enumerate().skip(offset as usize);
                for ((at, place), byte) in places.zip(data) {
                    // What drivers write: the command register, addresses of BARs, the control of MSI-X.
                    let writable =
                        matches!(at, 4 | 5 | 0x0c | 0x11 | 0x12 | 0x13 | 0x15 | 0x16 | 0x17 | 0x3c | 0x93);
                    if writable {
                        *place = *byte;
                    }
                }
            }
            (0, ..ISR) => self.write_common(offset, value),
            (0, NOTIFY..) if self.ring.is_enabled => return Effect::Notified,
            _ => {}
        }
        Effect::Nothing
    }

    /// The common configuration, as it reads.
    fn common(&self) -> Vec<u8> {
        let features =
            if self.feature_select < 2 { (FEATURES >> (32 * self.feature_select)) as u32 } else { 0 };
        let ring = &self.ring;
        let words = [self.feature_select, features, self.driver_feature_select, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend([self.config_vector, 1].iter().flat_map(|half| half.to_le_bytes()));
        bytes.extend([self.status, 0, 0, 0]);
        let halves = [ring.size, ring.vector, u16::from(ring.is_enabled), 0];
        bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        bytes.extend([ring.descriptors, ring.driver, ring.device].iter().flat_map(|long| long.to_le_bytes()));
        bytes
    }

    fn write_common(&mut self, offset: u64, value: u64) {
        let ring = &mut self.ring;
        let [low, high] = [(value & 0xffff_ffff), value << 32];
        match offset {
            0 => self.feature_select = value as u32,
            8 => self.driver_feature_select = value as u32,
            16 => self.config_vector = value as u16,
            20 if value == 0 => self.reset(),
            20 => self.status = value as u8,
            24 => ring.size = (value as u16).clamp(1, RING_SIZE),
            26 => ring.vector = value as u16,
            28 => ring.is_enabled = value != 0,
            32 => ring.descriptors = ring.descriptors & !0xffff_ffff | low,
            36 => ring.descriptors = ring.descriptors & 0xffff_ffff | high,
            40 => ring.driver = ring.driver & !0xffff_ffff | low,
            44 => ring.driver = ring.driver & 0xffff_ffff | high,
            48 => ring.device = ring.device & !0xffff_ffff | low,
            52 => ring.device = ring.device & 0xffff_ffff | high,
            _ => {}
        }
    }
}

/// The configuration space at power-on: a modern virtio-blk function with MSI-X.
fn config_space() -> [u8; CONFIG_SIZE] {
    const VENDOR: u16 = 0x1af4;
    let mut config = [0; CONFIG_SIZE];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &VENDOR.to_le_bytes());
    put(2, &0x1042u16.to_le_bytes());
    // A list of capabilities; revision 1; mass storage.
    put(6, &[0x10, 0, 1, 0, 0, 1]);
    put(0x2c, &VENDOR.to_le_bytes());
    put(0x2e, &0x1100u16.to_le_bytes());
    put(0x34, &[0x40]);
    // Which part of the virtio device, where in BAR 0; the last is the notifications', all at one place.
    let parts = [
        (0x40, 0x50, 1, 0, 0x40),
        (0x50, 0x60, 3, ISR, 4),
        (0x60, 0x70, 4, DISK, 64),
        (0x70, 0x90, 2, NOTIFY, 4),
    ];
    for (at, next, kind, offset, length) in parts {
        put(at, &[9, next, if kind == 2 { 20 } else { 16 }, kind]);
        put(at + 8, &(offset as u32).to_le_bytes());
        put(at + 12, &(length as u32).to_le_bytes());
    }
    // MSI-X: its table and pending bits are in BAR 1.
    put(0x90, &[0x11, 0]);
    put(0x92, &(VECTORS - 1).to_le_bytes());
    put(0x94, &1u32.to_le_bytes());
    put(0x98, &0x801u32.to_le_bytes());
    config
}
