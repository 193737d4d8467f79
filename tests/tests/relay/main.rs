// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks behind the daemon, on real sockets: what passes between a VMM and a back-end, and what does not.
//!
//! The daemon is the real process, which has to be built; VMM, guest and disk are doubles in this one. To read:
//! `vhost-user-iommu/src/relay` and `vhost-user-iommu/src/iommu/serving.rs`.

mod back_end;
mod back_end_messages;
mod bed;
mod blocked;
mod come_and_go;
mod conversation;
mod endurance;
mod invalidation;
mod lifecycle;
mod translation;
mod vmm;
