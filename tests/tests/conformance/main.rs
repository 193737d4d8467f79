// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device against the rules of the specification, and against what drivers really do.
//!
//! One behaviour, one test; the ids above a test are those of rules in `viommu_core::manual::rules`. Whether
//! the rules hold in any order of requests is the matter of `model`. Read beside it: virtio 1.4, "IOMMU
//! device", the device-normative sections.

mod attach;
mod bed;
mod changes;
mod config;
mod detach;
mod events;
mod exhaustive;
mod framing;
mod limits;
mod linux;
mod map;
mod probe;
mod reset;
mod state;
mod translate;
mod unmap;
