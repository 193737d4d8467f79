// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side of the device: its memory, its virtqueues and its virtio-iommu driver.
//!
//! Everything a guest can do, and much that only a hostile one does; what carries it to the device is
//! [`front_end`](crate::front_end)'s matter. Calls panic where a test misuses them, and return errors
//! where the device misbehaves. To read: virtio 1.4, "Split Virtqueues" and "IOMMU device".

mod iommu;
mod layout;
mod memory;
mod queue;
mod tables;
#[cfg(test)]
mod tests;

pub use iommu::{DriverError, Event, IommuDriver, Reply, UNTOUCHED};
pub use layout::{Buffer, Descriptor, Rings, flags};
pub use memory::{Arena, GuestMemory};
pub use queue::{EventIdx, SplitQueue, Used, WaitError};
pub use tables::{TableEvent, attach_table, invalidate};
