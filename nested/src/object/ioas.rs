// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An I/O address space: what lies at which IOVA for the devices attached to it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use iommufd_bindings::*;
use rustix::io::Errno;
use viommu_core::{Access, Iova, IovaRange};
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::context::{Context, HugePages};
use super::{Object, same_context, too_long};
use crate::error::Result;
use crate::uapi::ioctl::Buffer;
use crate::uapi::types::iommu_ioas_noiommu_get_pa;

/// An I/O address space (`IOMMU_IOAS_ALLOC`). Mappings keep their boundaries; none overlaps another.
#[derive(Debug)]
pub struct Ioas {
    context: Arc<Context>,
    id: u32,
    /// Of ours; an address space that others made is not destroyed.
    _object: Option<Object>,
}

/// Where an address space can have mappings (`IOMMU_IOAS_IOVA_RANGES`). It changes with what is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// The ranges, in order.
    pub allowed: Vec<IovaRange>,
    /// Mappings begin and end on a multiple of so many bytes.
    pub alignment: u64,
}

/// What a device may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFlags(u32);

impl From<Access> for MapFlags {
    fn from(access: Access) -> MapFlags {
        let flag = |of, flag| if access.contains(of) { flag } else { 0 };
        MapFlags(
            iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
                | flag(Access::READ, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE)
                | flag(Access::WRITE, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE),
        )
    }
}

impl Ioas {
    /// A new, empty one.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC`.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Ioas>> {
        let mut command = iommu_ioas_alloc::default();
        context.call(&mut command, Buffer::NONE, format_args!("a new address space"))?;
        let id = command.out_ioas_id;
        Ok(Arc::new(Ioas { context: context.clone(), id, _object: Some(Object::new(context, id)) }))
    }

    /// One that another user of the context made, and keeps.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_IOVA_RANGES`: ENOENT when `id` is no address space.
    pub fn of_another(context: &Arc<Context>, id: u32) -> Result<Arc<Ioas>> {
        let ioas = Ioas { context: context.clone(), id, _object: None };
        ioas.iova_ranges()?;
        Ok(Arc::new(ioas))
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Where it can have mappings, with what is attached now.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_IOVA_RANGES`.
    pub fn iova_ranges(&self) -> Result<IovaRanges> {
        let mut ranges = vec![[0u64; 2]; 16];
        loop {
            let mut command = iommu_ioas_iova_ranges { ioas_id: self.id, ..Default::default() };
            let buffer = Buffer::of(ranges.as_mut_bytes());
            let done = self.context.call(&mut command, buffer, format_args!("IOAS {}", self.id));
            let count = command.num_iovas as usize;
            match done {
                // There are more than fit; another attachment may add some meanwhile.
                Err(error) if error.errno() == Errno::MSGSIZE && count > ranges.len() => {
                    ranges.resize(count, [0; 2]);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    let allowed = ranges.iter().take(count);
                    let allowed = allowed.filter_map(|[start, last]| IovaRange::new(*start, *last)).collect();
                    return Ok(IovaRanges { allowed, alignment: command.out_iova_alignment });
                }
            }
        }
    }

    /// Guarantees that these ranges stay allowed: nothing is attached later that reserves a part of them.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOW_IOVAS`: EADDRINUSE when a part is reserved already.
    pub fn allow_iovas(&self, ranges: &[IovaRange]) -> Result<()> {
        let mut words: Vec<[u64; 2]> = ranges.iter().map(|range| [range.start(), range.last()]).collect();
        let mut command = iommu_ioas_allow_iovas { ioas_id: self.id, ..Default::default() };
        let buffer = Buffer::of(words.as_mut_bytes());
        self.context.call(&mut command, buffer, format_args!("IOAS {}", self.id))
    }

    /// Whether the page tables of this address space may have large pages; they may by default.
    ///
    /// # Errors
    /// Of `IOMMU_OPTION`: EBUSY when there are mappings already.
    pub fn set_huge_pages(&self, pages: HugePages) -> Result<()> {
        let value = u64::from(pages == HugePages::Allowed);
        self.context.option(iommufd_option_IOMMU_OPTION_HUGE_PAGES, self.id, Some(value)).map(drop)
    }

    /// Maps memory of this process at `range`, as many bytes of it from the beginning. It has to stay for ever: the
    /// kernel remembers the address, and looks there for pages whenever a device is attached that reaches the mapping or
    /// a copy of it, be it long after. Prefer [`map_file`](Ioas::map_file), which remembers the file.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_MAP`: EEXIST over another mapping, EINVAL in a reserved range or off the alignment, ENOMEM over
    /// the limit of locked memory; EINVAL when there is less memory than that.
    pub fn map(&self, range: &IovaRange, memory: &VolatileSlice<'static>, flags: MapFlags) -> Result<()> {
        let length = length_of("IOMMU_IOAS_MAP", range)?;
        let about = format_args!("IOAS {}, IOVA {range}", self.id);
        let mut command =
            iommu_ioas_map { flags: flags.0, ioas_id: self.id, iova: range.start(), ..Default::default() };
        let fitting = usize::try_from(length).ok().and_then(|length| memory.subslice(0, length).ok());
        let Some(memory) = fitting else {
            return Err(crate::Error::of::<iommu_ioas_map>(Errno::INVAL, about));
        };
        self.context.call(&mut command, Buffer::of_lasting(&memory), about)
    }

    /// Maps a file at `range`, from its byte `start` on: a memfd, a file of hugetlbfs, or a BAR's dma-buf.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_MAP_FILE`: as for [`map`](Ioas::map), and EINVAL for a file of another kind.
    pub fn map_file(
        &self,
        range: &IovaRange,
        file: BorrowedFd<'_>,
        start: u64,
        flags: MapFlags,
    ) -> Result<()> {
        let mut command = iommu_ioas_map_file {
            flags: flags.0,
            ioas_id: self.id,
            fd: file.as_raw_fd(),
            start,
            length: length_of("IOMMU_IOAS_MAP_FILE", range)?,
            iova: range.start(),
            ..Default::default()
        };
        let about = format_args!("IOAS {}, IOVA {range}, from byte {start:#x} of a file", self.id);
        self.context.call(&mut command, Buffer::NONE, about)
    }

    /// Maps at `range` what another address space of the context has from `source` on, as far as it has it without a
    /// gap. Pins nothing and charges nobody.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_COPY`: ENOENT when the source has a gap there, EEXIST over another mapping, EINVAL in a reserved
    /// range or off the alignment; EXDEV when the source is not of this very [`Context`].
    pub fn copy_from(&self, range: &IovaRange, from: &Ioas, source: Iova, flags: MapFlags) -> Result<()> {
        let about = format_args!("IOAS {}, IOVA {range}, from IOAS {} at {source}", self.id, from.id);
        same_context::<iommu_ioas_copy>(&self.context, &from.context, about)?;
        let mut command = iommu_ioas_copy {
            flags: flags.0,
            dst_ioas_id: self.id,
            src_ioas_id: from.id,
            length: length_of("IOMMU_IOAS_COPY", range)?,
            dst_iova: range.start(),
            src_iova: source.0,
            ..Default::default()
        };
        self.context.call(&mut command, Buffer::NONE, about)
    }

    /// Removes the mappings within `range`; says how many bytes they had.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_UNMAP`: ENOENT when there is none, or one only partly within it: those before that are
    /// gone then.
    pub fn unmap(&self, range: &IovaRange) -> Result<u64> {
        self.unmap_bytes(range.start(), length_of("IOMMU_IOAS_UNMAP", range)?)
    }

    /// Removes all mappings.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_UNMAP`; not for want of mappings.
    pub fn unmap_all(&self) -> Result<()> {
        match self.unmap_bytes(0, u64::MAX) {
            Err(error) if error.errno() != Errno::NOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// Where `range` begins in physical memory and how far it is contiguous, of a device without an IOMMU.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_NOIOMMU_GET_PA`: ENOTTY before Linux 7.3, EPERM without `CAP_SYS_RAWIO`.
    pub fn physical_address(&self, range: &IovaRange) -> Result<(u64, u64)> {
        let mut command = iommu_ioas_noiommu_get_pa {
            ioas_id: self.id,
            iova: range.start(),
            length: length_of("IOMMU_IOAS_NOIOMMU_GET_PA", range)?,
            ..Default::default()
        };
        self.context.call(&mut command, Buffer::NONE, format_args!("IOAS {}, IOVA {range}", self.id))?;
        Ok((command.out_phys, command.length))
    }

    fn unmap_bytes(&self, iova: u64, length: u64) -> Result<u64> {
        let mut command = iommu_ioas_unmap { ioas_id: self.id, iova, length, ..Default::default() };
        let about = format_args!("IOAS {}, {length:#x} bytes at IOVA {iova:#x}", self.id);
        self.context.call(&mut command, Buffer::NONE, about)?;
        Ok(command.length)
    }
}

/// Bytes of a range. The kernel refuses 2^64 - 1 as well, or takes it for all there is.
fn length_of(call: &'static str, range: &IovaRange) -> Result<u64> {
    let length = range.span().checked_add(1).filter(|length| *length != u64::MAX);
    length.ok_or_else(|| too_long(call, range))
}
