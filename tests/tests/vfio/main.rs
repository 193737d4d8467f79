// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are passed through to guests, in the arm64 host whose SMMUv3 translates their DMA for real.

mod baselines;
mod disks;
mod hotplug;
mod lifecycle;
mod recipe;
mod stage;
mod stray;
