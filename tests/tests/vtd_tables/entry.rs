// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Entries of the PASID tables that the kernel keeps for the hardware, by its own list of them.
//!
//! To read first: "Scalable-Mode PASID Table Entry" in Intel's specification of VT-d; the kernel's
//! `drivers/iommu/intel/debugfs.c`.

use std::fs;

const LIST: &str = "/sys/kernel/debug/iommu/intel/dmar_translation_struct";

/// An entry that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub translation: Translation,
    /// The number under which caches hold what it leads to.
    pub domain: u16,
    /// Where the kernel's own tables begin, for translations that have them.
    pub second_stage: u64,
    /// All about the guest's table: where it begins, and its flags.
    pub first_stage: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    FirstStage,
    SecondStage,
    Nested,
    PassThrough,
}

/// Flags of [`Entry::first_stage`]: supervisor requests, and write protection for them.
pub const SRE: u64 = 1 << 0;
pub const WPE: u64 = 1 << 4;

impl Entry {
    /// Of a PASID of the function with this bus address, `01:00.0`; PASID 0 is that of accesses without one.
    pub fn of(address: &str, pasid: u32) -> Option<Entry> {
        let text = fs::read_to_string(LIST).expect("a kernel that lists them");
        let mut entries = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The address, entries of two other tables, the PASID, and the words from the highest on.
        let found =
            entries.find(|words| words.len() == 5 && words[0] == address && words[3] == pasid.to_string())?;
        let words: Vec<u64> = found[4].split(':').map(|word| hex(word.trim_start_matches("0x"))).collect();
        let [high, middle, low] = words.try_into().expect("three words");
        Some(Entry::with(low, middle, high))
    }

    fn with(low: u64, middle: u64, high: u64) -> Entry {
        assert_eq!(low & 1, 1, "present");
        let translation = match low >> 6 & 7 {
            1 => Translation::FirstStage,
            2 => Translation::SecondStage,
            3 => Translation::Nested,
            4 => Translation::PassThrough,
            other => panic!("translation {other}"),
        };
        Entry { translation, domain: middle as u16, second_stage: low & !0xfff, first_stage: high }
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a number")
}
