// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that drives physical devices through VFIO and shares them with the daemon, as QEMU does with what a launcher
//! gave to both: it opens the devices, starts the daemon with duplicates, binds them, pins the guest's memory, and plays
//! the guest's drivers.
//!
//! The devices are those of QEMU that do DMA when they are told to. It runs on the host that has them, see
//! [`l1`](crate::l1). To read first: QEMU's `docs/devel/vfio-iommufd.rst`.

mod engine;
mod function;
mod launch;
mod registers;
mod stage1;
mod vmm;

pub use engine::{Edu, TestDevice, Written};
pub use function::Function;
pub use launch::{Launch, SharedDevice};
pub use registers::Registers;
pub use stage1::{ABORT, Allows, BYPASS, Descriptor, Stage1};
pub use vmm::{Guest, VfioVmm};
