// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are passed through: what mappings take in the kernel, what a guest's disk loses, what memory is pinned.
//!
//! All of it in an arm64 host that QEMU emulates, with an SMMUv3 that translates for real.

mod figures;
mod guests;
mod mapping;

use anyhow::Result;
use viommu_tests::l1;

/// Measures `rounds` rounds and prints them.
pub fn run(rounds: usize) -> Result<()> {
    println!("an arm64 host under TCG (software emulation: good for ratios only); {rounds} rounds");
    let daemon = l1::build_release("vhost-user-iommu", "vhost-user-iommu")?;
    mapping::run(rounds)?;
    guests::run(rounds, &daemon)
}
