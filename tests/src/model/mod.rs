// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, naive virtio-iommu device, and what it takes to run it beside the real one.
//!
//! [`Reference`] is written from the specification, in code that is slow and obvious; [`Bench`] gives
//! both devices the same steps and compares all that can be seen of them; [`plan`] makes up the steps.
//! Nothing here is used at run time. Read beside it: virtio 1.4, "IOMMU device".

mod bench;
mod host;
pub mod plan;
pub mod reference;
pub mod request;

pub use bench::Bench;
pub use host::MirrorHost;
pub use plan::{HostAnswer, Op, Plan};
pub use reference::Reference;
