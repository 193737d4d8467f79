// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that can be given to another process: regions of one memfd, with holes between them.
//!
//! Addresses are guest-physical (GPA). An address outside the regions is a mistake of the test and panics.

use std::{fs::File, io, sync::atomic::Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The memory of a guest. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    mmap: GuestMemoryMmap,
}

impl GuestMemory {
    /// Zeroed memory in `regions` of (first GPA, bytes), which ascend and do not overlap. They lie one
    /// after the other in one file, as the memory of a PC does on both sides of its hole.
    ///
    /// # Errors
    /// A host that is out of memory or file descriptors.
    pub fn new(regions: &[(u64, u64)]) -> io::Result<GuestMemory> {
        let file = File::from(memfd_create("guest-memory", MemfdFlags::CLOEXEC)?);
        file.set_len(regions.iter().map(|(_, length)| length).sum())?;
        let mut offset = 0;
        let mut ranges = Vec::new();
        for (start, length) in regions {
            let place = FileOffset::new(file.try_clone()?, offset);
            ranges.push((GuestAddress(*start), usize::try_from(*length).expect("fits"), Some(place)));
            offset += length;
        }
        let mmap = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        Ok(GuestMemory { mmap })
    }

    /// The regions with their files, as the rust-vmm crates take them.
    pub fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// Writes `bytes` from `address` on.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.mmap.write_slice(bytes, GuestAddress(address)).expect("in guest memory");
    }

    /// Reads `length` bytes from `address` on.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.mmap.read_slice(&mut bytes, GuestAddress(address)).expect("in guest memory");
        bytes
    }

    /// Writes two bytes at once, after everything that was written before.
    pub fn store_u16(&self, address: u64, value: u16) {
        self.mmap.store(value.to_le(), GuestAddress(address), Ordering::Release).expect("in guest memory");
    }

    /// Reads two bytes at once, before everything that is read after.
    pub fn load_u16(&self, address: u64) -> u16 {
        let value: u16 = self.mmap.load(GuestAddress(address), Ordering::Acquire).expect("in guest memory");
        u16::from_le(value)
    }

    /// Where `address` lies in this process, which plays the VMM.
    pub fn vmm_address(&self, address: u64) -> u64 {
        self.mmap.get_host_address(GuestAddress(address)).expect("in guest memory") as u64
    }
}

/// A stretch of guest memory that is given out piece by piece.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// The `length` bytes from `start` on.
    pub fn new(start: u64, length: u64) -> Arena {
        Arena { next: start, end: start + length }
    }

    /// The GPA of `length` bytes that nobody else has, at a multiple of `alignment`.
    pub fn take(&mut self, length: u64, alignment: u64) -> u64 {
        let start = self.next.next_multiple_of(alignment);
        self.next = start + length;
        assert!(self.next <= self.end, "the arena is too small");
        start
    }
}
