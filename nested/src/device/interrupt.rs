// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first message-signalled interrupt of a PCI device, for tests that play its VMM.
//!
//! To read first: `VFIO_DEVICE_SET_IRQS` in `linux/vfio.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::*;

use super::Cdev;
use crate::error::Result;
use crate::uapi::types::IrqSetEventfd;

impl Cdev {
    /// Has the device use its first MSI, which `event` is signalled for. The kernel takes that back when the file is
    /// closed.
    ///
    /// # Errors
    /// Of `VFIO_DEVICE_SET_IRQS`: EINVAL for a device without MSI.
    pub fn set_interrupt(&self, event: BorrowedFd<'_>) -> Result<()> {
        let mut command = IrqSetEventfd {
            flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            index: VFIO_PCI_MSI_IRQ_INDEX,
            start: 0,
            count: 1,
            eventfd: event.as_raw_fd(),
            ..Default::default()
        };
        self.call(&mut command, format_args!("its first MSI"))
    }
}
