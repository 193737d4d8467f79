// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! iommufd and VFIO: the host side of a virtual IOMMU.
//!
//! | folder   | holds                                                                     |
//! |----------|---------------------------------------------------------------------------|
//! | `uapi`   | the kernel's structures, and the one call that hands them over             |
//! | [`object`] | owners of what lives in a context, destroyed in the reverse of their order |
//! | [`device`] | devices: bound to a context, attached to page tables                       |
//! | [`mod@format`] | vendors' stage-1 tables: what iommufd wants of them, and what it says of them |
//! | [`shadow`] | a guest's domains as address spaces, which follow their mappings, or as its own tables |
//!
//! Knows no wire format of virtio. Read `Documentation/userspace-api/iommufd.rst` of the kernel first.

pub mod device;
mod error;
pub mod format;
#[cfg(feature = "mock")]
pub mod mock;
pub mod object;
pub mod shadow;
pub mod uapi;

pub use device::{Attach, Attached, Cdev, ConfigSpace, DeviceId, HwInfo, PciAddress, ResetPeer};
pub use error::{Error, Result};
