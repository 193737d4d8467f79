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

/// Entries of one call at most: the kernel takes a copy, for which it needs memory in one piece.
pub const ENTRIES_MAX: usize = 4096;

/// Entries in batches, each of which has to be done before the next begins.
pub type Batches = [Entries; 3];

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

    /// Adds these, which have to be of the type of those that are there, if any are.
    pub fn extend<E: IntoBytes + Immutable>(&mut self, data_type: u32, entries: impl IntoIterator<Item = E>) {
        const { assert!(size_of::<E>() > 0, "an entry has bytes") };
        debug_assert!(self.is_empty() || (self.data_type, self.size) == (data_type, size_of::<E>()));
        (self.data_type, self.size) = (data_type, size_of::<E>());
        let mut entries = entries.into_iter();
        // Thousands may come, for which to ask each time whether there is room takes longer than to write them.
        let mut end = self.bytes.len();
        self.bytes.resize(end + entries.size_hint().0 * self.size, 0);
        for (place, entry) in self.bytes[end..].chunks_exact_mut(size_of::<E>()).zip(entries.by_ref()) {
            place.copy_from_slice(entry.as_bytes());
            end += size_of::<E>();
        }
        self.bytes.truncate(end);
        entries.for_each(|entry| self.bytes.extend_from_slice(entry.as_bytes()));
    }

    /// Forgets all of them, and keeps their memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl Default for Entries {
    /// None, of no type yet.
    fn default() -> Entries {
        Entries { data_type: 0, size: 1, bytes: Vec::new() }
    }
}

/// An invalidation on a nested HWPT or a vIOMMU.
pub(super) fn invalidate(
    context: &Context,
    id: u32,
    entries: &mut Entries,
) -> std::result::Result<(), Invalidated> {
    let call = Call { context, id, data_type: entries.data_type, size: entries.size };
    let mut calls = entries.bytes.chunks_mut(ENTRIES_MAX * call.size);
    // None at all ask whether the kernel knows their type.
    let mut bytes = calls.next().unwrap_or_default();
    let mut before = 0;
    loop {
        let count = bytes.len() / call.size;
        call.invalidate(bytes).map_err(|stopped| Invalidated { done: before + stopped.done, ..stopped })?;
        before += count;
        match calls.next() {
            Some(next) => bytes = next,
            None => return Ok(()),
        }
    }
}

/// What the calls for entries of one type on one object have in common.
struct Call<'a> {
    context: &'a Context,
    id: u32,
    data_type: u32,
    size: usize,
}

impl Call<'_> {
    /// Some of the entries, by their bytes, which the kernel does not change.
    fn invalidate(&self, bytes: &mut [u8]) -> std::result::Result<(), Invalidated> {
        let &Call { context, id, data_type, size } = self;
        let count = bytes.len() / size;
        let mut command =
            iommu_hwpt_invalidate { hwpt_id: id, data_type, entry_len: size as u32, ..Default::default() };
        let about = format_args!("id {id}, {count} entries of type {data_type}");
        let Err(error) = context.call(&mut command, Buffer::of(bytes), about) else {
            return Ok(());
        };
        // All of them were done, it says, when the kernel fails before it comes to the first.
        let done = Some(command.entry_num as usize).filter(|done| *done < count).unwrap_or(0);
        if let Some(bytes) = bytes.get_mut(..done * size)
            && done > 0
        {
            // SMMUv3's driver counts entries that it has read and not sent to the hardware. To do them twice does no harm.
            self.invalidate(bytes)?;
        }
        Err(Invalidated { done, error })
    }
}
