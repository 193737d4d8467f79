// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with tables of the guest's own: what devices reach through them on hardware that walks them.
//!
//! Runs as root on a host with QEMU's devices, an SMMUv3 and iommufd, one test at a time: `tests/nested.rs` boots that. A
//! VMM's double has the daemon as a process; its guest makes tables in its memory and sends requests through the rings.
//! What hardware that is not there would do is in `tests/conformance`.

mod bad_input;
mod descriptors;
mod events;
mod interrupts;
mod invalidation;
mod life;
mod memory;
mod properties;
mod scene;
mod translation;
