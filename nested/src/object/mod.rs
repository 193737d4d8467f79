// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Owners of the kernel's objects.
//!
//! Each holds what it was made of, so that the last to go is the first that was made:
//!
//! ```text
//! Context ── Ioas ── Hwpt (paging) ── Viommu ── Vdevice, Veventq, HwQueue
//!        │                  └────────────┴── Hwpt (nested)
//!        └── FaultQueue ─────────────────────────┘
//! ```
//!
//! Who drops the last owner destroys the object; the kernel refuses that while a device is attached to it, so
//! [`Attached`](crate::Attached) holds what its device is attached to.

mod context;
mod hwpt;
mod invalidate;
mod ioas;
mod queues;
mod viommu;

use std::fmt;
use std::sync::Arc;

use iommufd_bindings::iommu_destroy;
use rustix::io::Errno;
use viommu_core::IovaRange;

use crate::error::{Error, Result};
use crate::uapi::ioctl::{Buffer, Command};

pub use context::{Context, HugePages, NotIommufd, RlimitMode};
pub use hwpt::{Clearing, DirtyTracking, Hwpt, HwptFlags, HwptKind, NestedParent, PageTable};
pub use invalidate::{Batches, ENTRIES_MAX, Entries, Invalidated};
pub use ioas::{Ioas, IovaRanges, MapFlags};
pub use queues::{FaultQueue, PageRequest, PageResponse, PageResponseCode, Vevent, Veventq};
pub use viommu::{HwQueue, Vdevice, Viommu};

/// An object of a context by its id, which goes with its owner.
#[derive(Debug)]
pub(crate) struct Object {
    context: Arc<Context>,
    id: u32,
}

impl Object {
    pub(crate) fn new(context: &Arc<Context>, id: u32) -> Object {
        Object { context: context.clone(), id }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        match destroy(&self.context, self.id) {
            // A vDEVICE goes with its device.
            Err(error) if error.errno() == Errno::NOENT => log::debug!("{error}: it is gone already"),
            Err(error) => log::error!("{error}: it stays until the last user of /dev/iommu closes it"),
            Ok(()) => {}
        }
    }
}

fn destroy(context: &Context, id: u32) -> Result<()> {
    let mut command = iommu_destroy { id, ..Default::default() };
    context.call(&mut command, Buffer::NONE, format_args!("id {id}"))
}

/// The error of a range that iommufd cannot say: it counts bytes, and there are fewer than 2^64.
fn too_long(call: &'static str, range: &IovaRange) -> Error {
    Error::of_call(call, Errno::OVERFLOW, format_args!("{range} is too long"))
}

/// Refuses what is made of objects of two contexts: the number of one would be another object's in the other.
fn same_context<C: Command>(
    one: &Arc<Context>,
    other: &Arc<Context>,
    about: fmt::Arguments<'_>,
) -> Result<()> {
    let is_same = Arc::ptr_eq(one, other);
    is_same.then_some(()).ok_or_else(|| Error::of::<C>(Errno::XDEV, about))
}
