// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory to be mapped: files of small or of huge pages, and where this process has them.

use std::fmt;
use std::fs::File;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::Result;

/// Most that is mapped at once.
const BYTES_MAX: u64 = 1 << 30;
const SMALL_PAGE: u64 = 4 << 10;
const HUGE_PAGE: u64 = 2 << 20;

/// What memory consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of 4 KiB that lie anywhere.
    Small,
    /// Pages of 2 MiB.
    Huge,
}

/// A file of memory.
pub struct Memory {
    pages: Pages,
    file: File,
    /// The kernel keeps its addresses.
    region: &'static MmapRegion,
}

impl Pages {
    /// Smaller mappings than this take what they do of smaller pages.
    pub fn smallest_mapping(self) -> u64 {
        match self {
            Pages::Small => SMALL_PAGE,
            Pages::Huge => HUGE_PAGE,
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pages::Small => "small",
            Pages::Huge => "huge",
        })
    }
}

impl Memory {
    /// As much as this machine has, up to a limit; none if it has no such pages.
    pub fn largest(pages: Pages) -> Option<Memory> {
        let sizes = std::iter::successors(Some(BYTES_MAX), |bytes| Some(bytes / 2));
        sizes.take_while(|bytes| *bytes >= HUGE_PAGE).find_map(|bytes| Memory::new(pages, bytes).ok())
    }

    fn new(pages: Pages, bytes: u64) -> Result<Memory> {
        let flags = match pages {
            Pages::Small => MemfdFlags::CLOEXEC,
            Pages::Huge => MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let file = File::from(memfd_create("memory", flags)?);
        ftruncate(&file, bytes)?;
        match pages {
            Pages::Small => allocate_scattered(&file, bytes)?,
            Pages::Huge => fallocate(&file, FallocateFlags::empty(), 0, bytes)?,
        }
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), bytes.try_into()?)?;
        let memory = Memory { pages, file, region: Box::leak(Box::new(region)) };
        memory.touch()?;
        Ok(memory)
    }

    /// Has this process use each page, so that no ioctl is the first to.
    fn touch(&self) -> Result<()> {
        for start in (0..self.bytes()).step_by(self.pages.smallest_mapping() as usize) {
            self.slice(start, 1)?.write_obj(1u8, 0)?;
        }
        Ok(())
    }

    /// What it consists of.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.region.size() as u64
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A part of it.
    pub fn slice(&self, start: u64, bytes: u64) -> Result<VolatileSlice<'static>> {
        Ok(self.region.get_slice(start.try_into()?, bytes.try_into()?)?)
    }
}

/// Gets the pages in an order that keeps neighbours apart: what happens to be contiguous is mapped as if it were one
/// huge page.
fn allocate_scattered(file: &File, bytes: u64) -> Result<()> {
    // Odd, and the count is a power of two: so each page comes up once.
    const STRIDE: u64 = 7919;
    let count = bytes / SMALL_PAGE;
    for number in 0..count {
        let page = number * STRIDE % count;
        fallocate(file, FallocateFlags::empty(), page * SMALL_PAGE, SMALL_PAGE)?;
    }
    Ok(())
}
