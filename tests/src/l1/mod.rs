// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots the hosts in which iommufd and VFIO are tested: "L1", since guests can run inside.
//!
//! | host | its IOMMU | its kernel |
//! |---|---|---|
//! | arm64 ([`Machine::new`]) | QEMU's SMMUv3, which translates both stages for real | has iommufd's mock devices, too |
//! | x86-64 ([`Machine::with_vtd`]) | QEMU's VT-d, which does not nest | is made to believe that it does (`tests/l1/vtd.claims`): what it tells the hardware can be read, and DMA through nested tables is refused |
//!
//! It tests nothing by itself: a job runs in it, and what that wrote comes back. To read first: `scripts/testbed --help` (where
//! the pieces come from), `tests/l1/kernel.config` (what the kernel has), `tests/l1/init` (what runs in it) and
//! `job-library.sh` beside it (what a job can call).
//!
//! ```no_run
//! # use std::time::Duration;
//! # use viommu_tests::l1::{self, Machine, Testbed};
//! let testbed = Testbed::find()?;
//! let report = Machine::new(&testbed)
//!     .device("edu,dma_mask=0xffffffffffff")
//!     .program("daemon", &l1::build("vhost-user-iommu", "vhost-user-iommu")?)
//!     .job("give_to_vfio $(pci_functions 1234:11e8); daemon --version")
//!     .run(Duration::from_secs(120))?;
//! assert_eq!(report.status, 0);
//! # anyhow::Ok(())
//! ```

mod acpi;
mod board;
mod cross;
mod iort;
mod machine;
mod qtest;
mod testbed;

pub use cross::{
    TARGET, TARGET_X86_64, build, build_bench, build_example, build_for_x86_64, build_release,
    build_release_with, build_test, build_test_for_x86_64,
};
pub use machine::{Machine, Report};
pub use testbed::{Testbed, VtdTestbed};
