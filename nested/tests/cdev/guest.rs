// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's memory, and tables in it as an SMMUv3 walks them: 48 bits of addresses in pages of 4 KiB.
//!
//! To read first: "Context Descriptor" in Arm's SMMUv3 specification, "VMSAv8-64" in the architecture's.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, VolatileMemory};

use super::testdev::{PATTERN, Testdev};
use super::*;

/// Where the memory is.
pub const GPA: u64 = 0x4000_0000;
pub const BYTES: u64 = 8 << 20;
/// Pages that devices write to: two of 4 KiB, and two of 2 MiB.
pub const PAGES: [u64; 2] = [GPA + 0x10_0000, GPA + 0x10_1000];
pub const BLOCKS: [u64; 2] = [GPA + 0x20_0000, GPA + 0x40_0000];

/// What a page allows.
#[derive(Clone, Copy)]
pub enum Allows {
    All,
    Reading,
}

/// The memory. Tables are made in it one after another.
pub struct Memory {
    region: MmapRegion,
    next: AtomicU64,
}

impl Memory {
    pub fn range() -> IovaRange {
        IovaRange::from_length(GPA, BYTES).expect("it fits")
    }

    /// In memory that lies there.
    pub fn of(region: MmapRegion) -> Memory {
        Memory { region, next: AtomicU64::new(GPA) }
    }

    pub fn write(&self, gpa: u64, value: u64) {
        let offset = (gpa - GPA) as usize;
        self.region.as_volatile_slice().write_obj(value, offset).expect("it is there");
    }

    fn read(&self, gpa: u64) -> u64 {
        self.region.as_volatile_slice().read_obj((gpa - GPA) as usize).expect("it is there")
    }

    /// An empty page for a table.
    pub fn table(&self) -> u64 {
        self.next.fetch_add(PAGE, Ordering::Relaxed)
    }

    /// Has a context descriptor name a table and an address space.
    pub fn describe(&self, descriptor: u64, root: u64, asid: u64) {
        let size_and_attributes = 16 | 1 << 8 | 1 << 10 | 3 << 12;
        let (one_table_valid, output_44_bits, aarch64) = (3 << 30, 4 << 32, 1 << 41);
        let faults_are_recorded_and_end = 3 << 45;
        let own_asid = 1 << 47 | asid << 48;
        let first =
            size_and_attributes | one_table_valid | output_44_bits | aarch64 | faults_are_recorded_and_end;
        self.write(descriptor, first | own_asid);
        self.write(descriptor + 8, root);
        // Normal memory.
        self.write(descriptor + 24, 0xff);
    }

    /// Has an address lead to a page.
    pub fn map(&self, root: u64, iova: u64, page: u64, allows: Allows) {
        self.write(self.entry(root, iova, 3), page | attributes(allows) | 3);
    }

    /// Has 2 MiB of addresses lead to a block.
    pub fn map_block(&self, root: u64, iova: u64, block: u64) {
        self.write(self.entry(root, iova, 2), block | attributes(Allows::All) | 1);
    }

    /// Has an address lead nowhere.
    pub fn unmap(&self, root: u64, iova: u64) {
        self.write(self.entry(root, iova, 3), 0);
    }

    /// Where the entry of this level is; tables above are made as needed.
    fn entry(&self, root: u64, iova: u64, level: u64) -> u64 {
        let index = |level| iova >> (39 - 9 * level) & 511;
        (0..level).fold(root, |table, above| {
            let entry = table + 8 * index(above);
            if self.read(entry) == 0 {
                self.write(entry, self.table() | 3);
            }
            self.read(entry) & !0xfff
        }) + 8 * index(level)
    }

    /// The first word of a page, which is taken away.
    fn take(&self, gpa: u64) -> u64 {
        let value = self.read(gpa);
        self.write(gpa, 0);
        value
    }

    /// Which of these a write reaches, if it is carried out.
    pub fn written(&self, testdev: &Testdev, iova: u64, pages: [u64; 2]) -> Option<[bool; 2]> {
        let is_done = testdev.writes(iova);
        let reached = pages.map(|page| self.take(page) == u64::from(PATTERN));
        assert!(is_done || reached == [false; 2]);
        is_done.then_some(reached)
    }
}

fn attributes(allows: Allows) -> u64 {
    let (access, inner_shareable, not_global) = (1 << 10, 3 << 8, 1 << 11);
    let permissions = match allows {
        Allows::All => 1 << 6,
        Allows::Reading => 3 << 6,
    };
    access | inner_shareable | not_global | permissions
}

/// The words of an entry with stage 1: valid; caching and shareability of the descriptor.
pub fn stage_1(descriptor: u64) -> [u64; 2] {
    [1 | 0b101 << 1 | descriptor, 1 << 2 | 1 << 4 | 3 << 6]
}
