// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What nothing can beat, and nothing can use: an array with a word for each page of one stretch.
//!
//! It is the least that the memory of a machine costs for mappings in random order; a domain's would span all 64 bits.

use viommu_core::mapping::Mapping;
use viommu_core::{Access, Gpa, IovaRange};

use super::{Lookup, PAGE, Store};

/// Mappings of single pages, all readable and writable, from the first page on.
#[derive(Debug)]
pub struct Array {
    first: u64,
    /// The GPA, with the lowest bit set; 0 where nothing is mapped.
    words: Vec<u64>,
}

const IS_MAPPED: u64 = 1;

impl Array {
    /// For so many pages from an IOVA on.
    pub fn new(first: u64, pages: usize) -> Array {
        Array { first, words: vec![0; pages] }
    }

    #[inline]
    fn word(&mut self, iova: u64) -> Option<&mut u64> {
        self.words.get_mut((iova.checked_sub(self.first)? / PAGE) as usize)
    }
}

impl Lookup for Array {
    #[inline]
    fn lookup(&mut self, iova: u64, length: u64, _: Access) -> Option<Gpa> {
        let offset = iova % PAGE;
        let word = *self.word(iova)?;
        (word != 0 && length <= PAGE - offset).then(|| Gpa((word & !IS_MAPPED) + offset))
    }
}

impl Store for Array {
    #[inline]
    fn map(&mut self, mapping: Mapping) -> bool {
        let Some(word) = self.word(mapping.range.start()).filter(|word| **word == 0) else { return false };
        *word = mapping.target.gpa.0 | IS_MAPPED;
        true
    }

    #[inline]
    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        let word = self.word(range.start())?;
        Some(usize::from(std::mem::take(word) != 0))
    }
}
