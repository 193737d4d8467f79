// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of what hardware caches of a guest's tables, in the guest's order.
//!
//! Knows no vendor's entries: it hands them over, and says how many were done.

use iommufd_bindings::iommu_hwpt_invalidate;
use zerocopy::{Immutable, IntoBytes};

use super::context::Context;
use crate::error::Error;
use crate::uapi::ioctl::Buffer;

/// A batch of invalidations that stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {done} entries were done before")]
pub struct Invalidated {
    /// How many were done; the one after these was refused.
    pub done: usize,
    /// Why.
    pub error: Error,
}

/// Entries of one call: the kernel takes a copy, for which it needs memory in one piece.
const ENTRIES_MAX: usize = 4096;

/// Invalidations in order, all of one vendor's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    data_type: u32,
    /// Of an entry; not 0.
    size: usize,
    bytes: Vec<u8>,
}

impl Entries {
    /// These, of the vendor's `data_type` (`enum iommu_hwpt_invalidate_data_type`).
    pub fn of<E: IntoBytes + Immutable>(data_type: u32, entries: &[E]) -> Entries {
        const { assert!(size_of::<E>() > 0, "an entry has bytes") };
        Entries { data_type, size: size_of::<E>(), bytes: entries.as_bytes().to_vec() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// An invalidation on a nested HWPT or a vIOMMU.
pub(super) fn invalidate(
    context: &Context,
    id: u32,
    entries: &Entries,
) -> std::result::Result<(), Invalidated> {
    let mut batches = entries.bytes.chunks(ENTRIES_MAX * entries.size);
    // None at all ask whether the kernel knows their type.
    let mut batch = batches.next().unwrap_or_default();
    let mut before = 0;
    loop {
        invalidate_batch(context, id, entries, batch)
            .map_err(|stopped| Invalidated { done: before + stopped.done, ..stopped })?;
        before += batch.len() / entries.size;
        match batches.next() {
            Some(next) => batch = next,
            None => return Ok(()),
        }
    }
}

/// A part of the entries, by its bytes.
fn invalidate_batch(
    context: &Context,
    id: u32,
    entries: &Entries,
    batch: &[u8],
) -> std::result::Result<(), Invalidated> {
    let &Entries { data_type, size, .. } = entries;
    let count = batch.len() / size;
    let mut command =
        iommu_hwpt_invalidate { hwpt_id: id, data_type, entry_len: size as u32, ..Default::default() };
    let about = format_args!("id {id}, {count} entries of type {data_type}");
    let Err(error) = context.call(&mut command, Buffer::of(&mut batch.to_vec()), about) else {
        return Ok(());
    };
    // All of them were done, it says, when the kernel fails before it comes to the first.
    let done = Some(command.entry_num as usize).filter(|done| *done < count).unwrap_or(0);
    if let Some(batch) = batch.get(..done * size)
        && done > 0
    {
        // SMMUv3's driver counts entries that it has read and not sent to the hardware. To do them twice does no harm.
        invalidate_batch(context, id, entries, batch)?;
    }
    Err(Invalidated { done, error })
}
