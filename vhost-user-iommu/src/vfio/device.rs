// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A physical device as this process has it: a duplicate of the cdev that the VMM has bound.

use std::fmt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use viommu_nested::object::{Context, PageTable};
use viommu_nested::{Attach, Cdev, DeviceId, Result};

/// A duplicate of a device's cdev.
pub struct Device {
    cdev: Cdev,
    /// How long a reset of the device is waited for.
    patience: Duration,
}

/// How long to wait before the kernel is asked again.
const PAUSE: Duration = Duration::from_millis(5);

impl Device {
    /// The device of `cdev`. Who moves it during its reset waits, but no longer than `patience`.
    pub fn new(cdev: Cdev, patience: Duration) -> Device {
        Device { cdev, patience }
    }

    /// Whether the device does no DMA, whatever it is attached to: its bus mastering is off, or nobody has it. One that
    /// cannot be asked may do some.
    pub fn is_quiet(&self) -> bool {
        !self.is_bound() || self.cdev.is_bus_master().is_ok_and(|is_master| !is_master)
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

impl Attach for Device {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        self.when_not_busy(|| self.cdev.attach(table, pasid))
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        self.when_not_busy(|| self.cdev.detach(pasid))
    }

    fn number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        self.cdev.number(context)
    }

    fn is_bound(&self) -> bool {
        self.cdev.is_bound()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cdev.fmt(f)
    }
}
