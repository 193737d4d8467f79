// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's interface as it is: structures and numbers, and the call that hands them over.
//!
//! Decides nothing. Read `Documentation/userspace-api/iommufd.rst` and the comments of `linux/iommufd.h` first.

pub(crate) mod ioctl;
pub mod types;

pub use ioctl::{COMMANDS, Known};
pub use iommufd_bindings as iommufd;
