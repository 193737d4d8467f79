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

/// An invalidation on a nested HWPT or a vIOMMU.
pub(super) fn invalidate<E: IntoBytes + Immutable>(
    context: &Context,
    id: u32,
    data_type: u32,
    entries: &[E],
) -> std::result::Result<(), Invalidated> {
    const { assert!(size_of::<E>() > 0, "an entry has bytes") };
    let mut batches = entries.chunks(ENTRIES_MAX);
    // None at all ask whether the kernel knows their type.
    let mut batch = batches.next().unwrap_or_default();
    let mut before = 0;
    loop {
        invalidate_batch(context, id, data_type, batch)
            .map_err(|stopped| Invalidated { done: before + stopped.done, ..stopped })?;
        before += batch.len();
        match batches.next() {
            Some(next) => batch = next,
            None => return Ok(()),
        }
    }
}

fn invalidate_batch<E: IntoBytes + Immutable>(
    context: &Context,
    id: u32,
    data_type: u32,
    entries: &[E],
) -> std::result::Result<(), Invalidated> {
    let entry_len = size_of::<E>() as u32;
    let mut command = iommu_hwpt_invalidate { hwpt_id: id, data_type, entry_len, ..Default::default() };
    let mut bytes = entries.as_bytes().to_vec();
    let about = format_args!("id {id}, {} entries of type {data_type}", entries.len());
    let Err(error) = context.call(&mut command, Buffer::of(&mut bytes), about) else {
        return Ok(());
    };
    // All of them were done, it says, when the kernel fails before it comes to the first.
    let done = entries.get(..command.entry_num as usize).filter(|done| done.len() < entries.len());
    let done = done.unwrap_or_default();
    if !done.is_empty() {
        // SMMUv3's driver counts entries that it has read and not sent to the hardware. To do them twice does no harm.
        invalidate_batch(context, id, data_type, done)?;
    }
    Err(Invalidated { done: done.len(), error })
}
