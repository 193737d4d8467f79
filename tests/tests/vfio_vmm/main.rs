// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with physical devices: what their DMA reaches, whatever guest and VMM do.
//!
//! Runs as root on a host with QEMU's devices, an SMMUv3 and iommufd, one test at a time: `tests/l1.rs` boots that. What
//! the daemon says to requests without such devices is in `tests/protocol` and `tests/conformance`.

mod blocked;
mod boot;
mod domains;
mod endurance;
mod gone;
mod groups;
mod kernel_log;
mod mapping;
mod memory;
mod reserved;
mod reset;
mod scene;
