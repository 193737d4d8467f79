// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space.

use zerocopy::IntoBytes;

use crate::reserved::{PROBE_SIZE, TABLE_PROBE_SIZE};
use crate::wire::{self, BYPASS_OFFSET};
use crate::{Change, Features};

use super::reply::Form;
use super::{Device, UnderWay};

/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = size_of::<wire::Config>();

impl Device {
    /// The configuration space as the driver reads it.
    pub fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let config = wire::Config {
            page_size_mask: self.config.page_size_mask.into(),
            input_start: self.config.aperture.start().into(),
            input_last: self.config.aperture.last().into(),
            domain_start: (*self.config.domain_ids.start()).into(),
            domain_last: (*self.config.domain_ids.end()).into(),
            probe_size: (self.probe_size() as u32).into(),
            bypass: u8::from(self.bypass),
            reserved: [0; 3],
        };
        let mut bytes = [0; CONFIG_SIZE];
        bytes.copy_from_slice(config.as_bytes());
        bytes
    }

    /// Bytes of properties in a PROBE reply.
    pub fn probe_size(&self) -> usize {
        if self.config.mode.is_table() { TABLE_PROBE_SIZE } else { PROBE_SIZE }
    }

    /// Begins a driver's write of `data` at `offset` of the configuration space. If that changes anything, the outside
    /// applies the change, and [`finish`](Device::finish) ends it. Only `bypass` can be written: other bytes of the
    /// write are ignored, as is a value that is neither 0 nor 1, and everything without BYPASS_CONFIG.
    pub fn begin_config_write(&mut self, offset: usize, data: &[u8]) -> Option<Change> {
        self.abandon();
        //= virtio#devicenormative:IOMMU/Device configuration layout A7
        // The field never shows anything but 0 and 1.
        let value = BYPASS_OFFSET.checked_sub(offset).and_then(|at| data.get(at));
        let enabled = match value {
            Some(value @ (0 | 1)) => *value == 1,
            _ => return None,
        };
        if enabled == self.bypass || !self.negotiated.contains(Features::BYPASS_CONFIG) {
            return None;
        }
        let change = Change::SetBypass { enabled };
        Some(self.start(UnderWay { change, form: Form::NONE }))
    }
}
