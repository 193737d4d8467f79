// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The manual: how the whole project works and why, as documentation that is compiled with the code.
//!
//! - [`architecture`]: the pieces, the life of a request, who trusts whom.
//! - [`device`]: what the device offers, and how it answers where the specification leaves a choice.
//! - [`rules`]: what the specification demands of a device, numbered; the tests name these numbers.
//! - [`tables`]: our extension for stage-1 tables of the guest: layouts, and what it demands of a device.
//! - [`endpoints`]: how endpoints are enforced, what they reach when the IOMMU itself is reset or gone.

pub mod architecture;
pub mod device;
pub mod endpoints;
pub mod rules;
pub mod tables;
