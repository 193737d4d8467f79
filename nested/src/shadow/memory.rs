// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All of the guest's memory in one address space, at IOVA = GPA: what endpoints in bypass mode reach, and where the
//! mappings of domains are copied from, so that memory is pinned once for all of them.
//!
//! The VMM has the same memory in an address space of its own. What it has pinned there is shared, if it can be found:
//! that costs nothing and needs no right to lock memory. Its address space may go at any time; what was copied stays.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::fs::fstat;
use rustix::io::Errno;
use viommu_core::{Access, Iova, IovaRange, Target};
use vm_memory::VolatileSlice;

use crate::error::{Error, Result};
use crate::object::{Context, Ioas};

/// A part of the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion<'a> {
    /// Its GPAs.
    pub range: IovaRange,
    /// The file that it is a part of, and the first byte there.
    pub file: Option<(BorrowedFd<'a>, u64)>,
}

/// Finds memory of this process by the range of its GPAs; it stays for ever, since nobody can say when the kernel looks
/// there for the last time. Used where the kernel cannot map the file itself.
pub type Lasting<'a> = &'a dyn Fn(&IovaRange) -> Option<VolatileSlice<'static>>;

/// The address space of the guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    space: Arc<Ioas>,
    /// What is in it, by the first GPA.
    regions: BTreeMap<u64, Held>,
    /// What should be.
    missing: Vec<Held>,
}

/// A region that is in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    range: IovaRange,
    /// Device, file number and first byte of its file.
    file: Option<(u64, u64, u64)>,
}

impl GuestMemory {
    /// None yet.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC`.
    pub fn new(context: &Arc<Context>) -> Result<GuestMemory> {
        Ok(GuestMemory { space: Ioas::new(context)?, regions: BTreeMap::new(), missing: Vec::new() })
    }

    /// The address space.
    pub fn space(&self) -> &Arc<Ioas> {
        &self.space
    }

    /// Makes `regions` all that there is. Those that were there stay as they are.
    ///
    /// # Errors
    /// Of the last call that could have brought a region in, for the first that could not be had.
    pub fn set(
        &mut self,
        regions: &[MemoryRegion<'_>],
        lasting: Lasting<'_>,
        ours: &BTreeSet<u32>,
    ) -> Result<()> {
        let wanted: BTreeMap<u64, Held> =
            regions.iter().map(|region| (region.range.start(), Held::of(region))).collect();
        self.missing.clear();
        self.drop_all_but(&wanted)?;
        let mut result = Ok(());
        for region in regions {
            if self.regions.contains_key(&region.range.start()) {
                continue;
            }
            match self.add(region, lasting, ours) {
                Ok(()) => drop(self.regions.insert(region.range.start(), Held::of(region))),
                Err(error) => {
                    self.missing.push(Held::of(region));
                    result = result.and(Err(error));
                }
            }
        }
        result
    }

    /// Whether all of a range of GPAs is in it.
    pub fn has(&self, range: &IovaRange) -> bool {
        let mut next = range.start();
        loop {
            let Some((_, held)) = self.regions.range(..=next).next_back() else { return false };
            if held.range.last() >= range.last() {
                return true;
            }
            match held.range.last().checked_add(1) {
                Some(after) if after > next => next = after,
                _ => return false,
            }
        }
    }

    /// Looks once more for what could not be had: the VMM may have bound its first device meanwhile.
    pub fn complete(&mut self, ours: &BTreeSet<u32>) {
        for held in std::mem::take(&mut self.missing) {
            let start = held.range.start();
            match copy_from_vmm(&self.space, &held.range, Iova(start), Access::all(), ours) {
                Some(()) => drop(self.regions.insert(start, held)),
                None => self.missing.push(held),
            }
        }
    }

    /// Puts a copy of what lies at the target into another address space. What is no memory that we know of may be
    /// in the VMM's address space still, a device's own memory for example. `ours` are the numbers of all address
    /// spaces that are not the VMM's.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_COPY`: ENOENT when nothing is there.
    pub fn copy(
        &self,
        to: &Ioas,
        range: &IovaRange,
        target: Target,
        ours: impl FnOnce() -> BTreeSet<u32>,
    ) -> Result<()> {
        let source = Iova(target.gpa.0);
        match to.copy_from(range, &self.space, source, target.access.into()) {
            Err(error) if error.errno() == Errno::NOENT => {
                let mut ours = ours();
                ours.insert(to.id());
                copy_from_vmm(to, range, source, target.access, &ours).ok_or(error)
            }
            copied => copied,
        }
    }

    fn drop_all_but(&mut self, wanted: &BTreeMap<u64, Held>) -> Result<()> {
        let gone: Vec<Held> = self
            .regions
            .values()
            .filter(|held| !wanted.values().any(|other| other == *held))
            .copied()
            .collect();
        for held in gone {
            match self.space.unmap(&held.range) {
                Err(error) if error.errno() != Errno::NOENT => return Err(error),
                _ => drop(self.regions.remove(&held.range.start())),
            }
        }
        Ok(())
    }

    fn add(&self, region: &MemoryRegion<'_>, lasting: Lasting<'_>, ours: &BTreeSet<u32>) -> Result<()> {
        let range = &region.range;
        if copy_from_vmm(&self.space, range, Iova(range.start()), Access::all(), ours).is_some() {
            log::debug!("guest memory {range}: shared with the VMM's address space");
            return Ok(());
        }
        log::debug!("guest memory {range}: not in any address space of the VMM, so it is mapped anew");
        let by_file =
            region.file.map(|(file, start)| self.space.map_file(range, file, start, Access::all().into()));
        match by_file {
            Some(Err(error)) if !is_unknown(&error) => Err(error),
            Some(Ok(())) => Ok(()),
            // A kernel older than the command, or a file that it does not take.
            _ => match lasting(range) {
                Some(memory) => self.space.map(range, &memory, Access::all().into()),
                None => by_file.unwrap_or_else(|| {
                    let about = format_args!("guest memory {range}, which has neither a file nor an address");
                    Err(Error::of_call("IOMMU_IOAS_MAP", Errno::INVAL, about))
                }),
            },
        }
    }
}

impl Held {
    fn of(region: &MemoryRegion<'_>) -> Held {
        let file = region.file.and_then(|(file, start)| {
            let stat = fstat(file).ok()?;
            Some((stat.st_dev, stat.st_ino, start))
        });
        Held { range: region.range, file }
    }
}

/// Whether the kernel has no such command, or does not map such files.
fn is_unknown(error: &Error) -> bool {
    [Errno::NOTTY, Errno::INVAL, Errno::OPNOTSUPP].contains(&error.errno())
}

/// The highest number that an address space of the VMM is looked for at: it makes its own before the guest runs.
const NUMBERS_MAX: u32 = 256;

/// Copies from the first address space that has it all and is not ours; none is asked by its number alone, since the
/// kernel gives numbers anew.
fn copy_from_vmm(
    to: &Ioas,
    range: &IovaRange,
    source: Iova,
    access: Access,
    ours: &BTreeSet<u32>,
) -> Option<()> {
    let numbers = (1..=NUMBERS_MAX).filter(|number| !ours.contains(number) && *number != to.id());
    let mut others = numbers.filter_map(|number| Ioas::of_another(to.context(), number).ok());
    others.find_map(|other| to.copy_from(range, &other, source, access.into()).ok())
}
