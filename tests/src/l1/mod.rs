// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots the arm64 host in which iommufd and VFIO are tested: "L1", since guests can run inside it.
//!
//! Its SMMUv3 is QEMU's, which translates both stages for real; its kernel also has iommufd's mock devices. It tests
//! nothing by itself: a job runs in it, and what that wrote comes back. To read first: `scripts/testbed --help` (where
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
mod cross;
mod iort;
mod machine;
mod qtest;
mod testbed;

pub use cross::{TARGET, build, build_bench, build_example, build_release, build_release_with, build_test};
pub use machine::{Machine, Report};
pub use testbed::Testbed;
