// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page tables of a guest, made by hand in its memory as an SMMUv3 walks them: 48 bits of addresses, pages of 4 KiB.
//!
//! Nothing is invalidated here, and nobody told. To read first: "Stream Table Entry" and "Context Descriptor" in Arm's
//! SMMUv3 specification (IHI 0070); "VMSAv8-64" in the architecture's manual.

use crate::driver::{Arena, GuestMemory};

/// The memory that tables are made in.
#[derive(Debug)]
pub struct Stage1 {
    memory: GuestMemory,
    arena: Arena,
}

/// What an entry lets a device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allows {
    /// Reading and writing.
    All,
    /// Reading.
    Reading,
    /// Nothing as long as the access flag is not set, which hardware is not told to do.
    NotYet,
}

/// A context descriptor: where it is, the table that it names, and the address space's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// GPA.
    pub at: u64,
    /// GPA of the first table.
    pub root: u64,
    /// The address space.
    pub asid: u16,
}

impl Descriptor {
    /// The first two words of a stream table entry that names it: valid, stage 1, descriptors that are cached and shared as
    /// other memory is.
    pub fn entry(&self) -> [u64; 2] {
        const VALID: u64 = 1;
        const STAGE_1: u64 = 0b101 << 1;
        const WRITE_BACK_INNER_SHAREABLE: u64 = 1 << 2 | 1 << 4 | 3 << 6;
        [VALID | STAGE_1 | self.at, WRITE_BACK_INNER_SHAREABLE]
    }
}

/// The words of a stream table entry that lets everything through as it is.
pub const BYPASS: [u64; 2] = [1 | 0b100 << 1, 0];
/// Of one that lets nothing through.
pub const ABORT: [u64; 2] = [1, 0];

const TABLE_BYTES: u64 = 4096;

impl Stage1 {
    /// Tables in `arena`, which is `memory`'s.
    pub fn new(memory: &GuestMemory, arena: Arena) -> Stage1 {
        Stage1 { memory: memory.clone(), arena }
    }

    /// An empty table, or room for anything else of 4 KiB.
    pub fn table(&mut self) -> u64 {
        let table = self.arena.take(TABLE_BYTES, TABLE_BYTES);
        self.memory.write(table, &[0; TABLE_BYTES as usize]);
        table
    }

    /// A descriptor of a new table.
    pub fn descriptor(&mut self, asid: u16) -> Descriptor {
        let descriptor = Descriptor { at: self.table(), root: self.table(), asid };
        self.describe(&descriptor);
        descriptor
    }

    /// Writes a descriptor to where it says.
    pub fn describe(&self, descriptor: &Descriptor) {
        let addresses_of_48_bits = 16;
        let write_back_inner_shareable = 1 << 8 | 1 << 10 | 3 << 12;
        let one_table_valid = 3 << 30;
        let output_of_44_bits = 4 << 32;
        let aarch64 = 1 << 41;
        let faults_are_recorded_and_end = 3 << 45;
        let asid_of_its_own = 1 << 47 | u64::from(descriptor.asid) << 48;
        let first = addresses_of_48_bits
            | write_back_inner_shareable
            | one_table_valid
            | output_of_44_bits
            | aarch64
            | faults_are_recorded_and_end
            | asid_of_its_own;
        self.write(descriptor.at, first);
        self.write(descriptor.at + 8, descriptor.root);
        // Kind 0 is normal memory.
        self.write(descriptor.at + 24, 0xff);
    }

    /// Writes eight bytes of a table.
    pub fn write(&self, gpa: u64, value: u64) {
        self.memory.write(gpa, &value.to_le_bytes());
    }

    /// Has an address lead to a page of 4 KiB.
    pub fn map(&mut self, root: u64, iova: u64, page: u64, allows: Allows) {
        let entry = self.entry(root, iova, 3);
        self.write(entry, page | attributes(allows) | 3);
    }

    /// Has 2 MiB of addresses lead to a block.
    pub fn map_block(&mut self, root: u64, iova: u64, block: u64) {
        let entry = self.entry(root, iova, 2);
        self.write(entry, block | attributes(Allows::All) | 1);
    }

    /// Has the page of an address lead nowhere.
    pub fn unmap(&mut self, root: u64, iova: u64) {
        let entry = self.entry(root, iova, 3);
        self.write(entry, 0);
    }

    /// Where the entry of a level is, 0 to 3; tables above it are made as needed.
    pub fn entry(&mut self, root: u64, iova: u64, level: u64) -> u64 {
        let offset = |level: u64| (iova >> (39 - 9 * level) & 511) * 8;
        let table = (0..level).fold(root, |table, above| {
            let entry = table + offset(above);
            if self.read(entry) == 0 {
                let next = self.table();
                self.write(entry, next | 3);
            }
            self.read(entry) & !0xfff
        });
        table + offset(level)
    }

    fn read(&self, gpa: u64) -> u64 {
        let bytes = self.memory.read(gpa, 8);
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

fn attributes(allows: Allows) -> u64 {
    let (access, inner_shareable, not_global) = (1 << 10, 3 << 8, 1 << 11);
    let unprivileged = 1 << 6;
    let permissions = match allows {
        Allows::All => access | unprivileged,
        Allows::Reading => access | unprivileged | 1 << 7,
        Allows::NotYet => unprivileged,
    };
    inner_shareable | not_global | permissions
}
