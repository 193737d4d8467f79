// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots small Linux guests under an unmodified QEMU: for tests, the demo and the benchmarks.
//!
//! It starts no vIOMMU daemon and knows nothing of virtio-iommu's rules: what a guest gets are QEMU arguments, what it
//! says are lines on its serial console. To read first: `scripts/testbed --help` (where the pieces come from),
//! `tests/guest-init/init` (what runs in the guest) and `job-library.sh` beside it (what a job can call).
//!
//! ```no_run
//! # use std::time::Duration;
//! # use viommu_tests::guest::{Guest, Testbed};
//! let testbed = Testbed::find()?;
//! let mut guest = Guest::new(&testbed)
//!     .device("virtio-iommu-pci")
//!     .kernel_arg("iommu.strict=1")
//!     .job("iommu_log")
//!     .spawn()?;
//! guest.wait_for("guest: job ended 0", Duration::from_secs(60))?;
//! # anyhow::Ok(())
//! ```

mod archive;
mod console;
mod disk;
mod initramfs;
mod machine;
mod qmp;
mod running;
mod testbed;

pub(crate) use archive::Archive;
pub use disk::Disk;
pub use initramfs::Initramfs;
pub(crate) use initramfs::without_modules;
pub use machine::{BootFrom, Guest, OnReset};
pub use running::RunningGuest;
pub(crate) use running::dying_with_us;
pub use testbed::{Accelerator, Testbed};
pub(crate) use testbed::{Pieces, or_skip};
