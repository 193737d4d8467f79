// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finding mappings from other threads than the one that maps.

use alloc::sync::Arc;

use crate::{Granule, Mapping};

use super::Mappings;
use super::arena::{Arena, Shared, Torn};
use super::find;
use super::sync::spin_loop;

/// Finds mappings of one domain from any thread, while another maps and unmaps. Each thread has a clone.
///
/// # How it synchronises
///
/// A lookup takes no lock and stores nothing that others read. It walks the tree while the writer changes it, and
/// looks again when words it may have read were used anew meanwhile, which takes the writer dozens of small changes or
/// two large ones. It takes a lock, for the time of copying a pointer, when the writer got itself more memory since
/// the last lookup.
///
/// A mapping that exists during the whole lookup is found. One that comes or goes during it may be found or not,
/// each of a request's mappings by itself. Whoever keeps what was found must therefore order itself with
/// the removal: look up and store under a lock that the one who invalidates takes as well.
///
/// When the domain ends, nothing is found any more. A reader keeps the memory of the domain as it was when it last
/// looked, beyond every limit: [`rest`](Reader::rest), or drop it, when no lookup is near.
#[derive(Clone, Debug)]
pub struct Reader {
    granule: Granule,
    shared: Arc<Shared>,
    arena: Arc<Arena>,
    generation: u64,
}

impl Reader {
    pub(super) fn new(mappings: &Mappings) -> Reader {
        let shared = mappings.tree.shared.clone();
        let generation = shared.generation();
        Reader { granule: mappings.granule, arena: shared.arena(), shared, generation }
    }

    /// The mapping that holds `iova`.
    #[inline]
    pub fn find(&mut self, iova: u64) -> Option<Mapping> {
        // First of all: by the time that a mapping is found, it may be removed and its range open again.
        if self.shared.closed().contains(iova) {
            return None;
        }
        self.find_at_once(iova).or_else(|| self.find_in_the_end(iova))
    }

    /// A short mapping that the first steps lead to, while the writer does nothing that matters.
    #[inline]
    fn find_at_once(&self, iova: u64) -> Option<Mapping> {
        let epoch = self.shared.epoch();
        if self.shared.generation() != self.generation {
            return None;
        }
        let entry = find::short_at(&self.arena, self.granule.number_of(iova))?;
        self.shared.is_sound_since(epoch).then(|| entry.unpacked(self.granule).ok()).flatten()
    }

    /// Any mapping, as soon as the writer lets one look.
    #[cold]
    #[inline(never)]
    fn find_in_the_end(&mut self, iova: u64) -> Option<Mapping> {
        loop {
            // In this order: what left the tree before this epoch is not in the arena that is then found.
            let epoch = self.shared.epoch();
            let generation = self.shared.generation();
            if generation != self.generation {
                self.arena = self.shared.arena();
                self.generation = generation;
            }
            let found = self.look(iova);
            if let (Ok(mapping), true) = (found, self.shared.is_sound_since(epoch)) {
                return mapping;
            }
            spin_loop();
        }
    }

    /// Keeps no memory of the domain until the next lookup, which finds as any other.
    pub fn rest(&mut self) {
        self.arena = Arc::new(Arena::new(0));
        // The number of no arena that can still be published.
        self.generation = self.shared.generation().wrapping_sub(1);
    }

    fn look(&self, iova: u64) -> Result<Option<Mapping>, Torn> {
        let Some(entry) = find::floor(&self.arena, self.granule.number_of(iova))? else {
            return Ok(None);
        };
        let mapping = entry.unpacked(self.granule)?;
        Ok(Some(mapping).filter(|mapping| mapping.range.contains(iova)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Gpa, IovaRange, Target};

    fn page(number: u64) -> Mapping {
        let range = IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page");
        Mapping { range, target: Target { gpa: Gpa(number << 12), access: Access::READ, mmio: false } }
    }

    #[test]
    fn in_a_dense_tree_a_page_is_found_at_once_but_not_where_the_tree_was_before_it_moved() {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        (0..20_000).for_each(|number| mappings.insert(page(number)));
        let mut reader = mappings.reader();
        assert_eq!(reader.find_at_once(0x432_1123), Some(page(0x4321)));
        let generation = mappings.tree.shared.generation();
        let from_the_second_on = IovaRange::new(0x1000, u64::MAX).expect("start <= last");
        assert_eq!(mappings.remove_within(&from_the_second_on), 19_999);
        assert!(mappings.tree.shared.generation() != generation, "the tree has moved");
        assert_eq!((reader.find_at_once(0x432_1123), reader.find(0x432_1123)), (None, None));
    }
}
