// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A physical device as this process has it, which the VMM has bound.

use std::fmt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use viommu_nested::object::{Context, PageTable};
use viommu_nested::{Attach, Cdev, DeviceId, Result};

/// By what a device is known: a duplicate of its cdev, or a stand-in where there is no device.
pub trait HostDevice: Attach {
    /// Whether the device does no DMA, whatever it is attached to. One that cannot be asked may do some.
    fn is_quiet(&self) -> bool;
}

/// A device of the host.
pub struct Device {
    file: Box<dyn HostDevice>,
    /// How long a reset of the device is waited for.
    patience: Duration,
}

/// How long to wait before the kernel is asked again.
const PAUSE: Duration = Duration::from_millis(5);

impl Device {
    /// The device of `file`. Who moves it during its reset waits, but no longer than `patience`.
    pub fn new(file: Box<dyn HostDevice>, patience: Duration) -> Device {
        Device { file, patience }
    }

    /// Whether it does no DMA, whatever it is attached to.
    pub fn is_quiet(&self) -> bool {
        self.file.is_quiet()
    }

    /// The kernel refuses an attachment while the device is being reset, which ends by itself.
    fn when_not_busy(&self, act: impl Fn() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        loop {
            match act() {
                Err(error) if error.errno() == Errno::BUSY && begin.elapsed() < self.patience => sleep(PAUSE),
                done => return done,
            }
        }
    }
}

impl HostDevice for Cdev {
    /// Its bus mastering is off, or nobody has it.
    fn is_quiet(&self) -> bool {
        !self.is_bound() || self.is_bus_master().is_ok_and(|is_master| !is_master)
    }
}

impl Attach for Device {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        self.when_not_busy(|| self.file.attach(table, pasid))
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        self.when_not_busy(|| self.file.detach(pasid))
    }

    fn number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        self.file.number(context)
    }

    fn is_bound(&self) -> bool {
        self.file.is_bound()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}
