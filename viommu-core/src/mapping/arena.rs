// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The words that the tree is made of, in chunks, and how readers come by them.
//!
//! All words are atomic: a reader that comes too late reads words that mean something else by now, never
//! memory that is not there. Knows nothing of nodes, except that word 0 is the root.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use std::sync::PoisonError;

use crate::IovaRange;

use super::shortcuts::Shortcuts;
use super::sync::{AtomicU64, Mutex, fence, spin_loop};

/// The numbers of words in a chunk: a word's number is its chunk's and its place there.
pub(super) const CHUNK_LG2: u32 = 12;
/// Words of the largest chunk.
pub(super) const CHUNK_WORDS_MAX: u32 = 1 << CHUNK_LG2;
const CHUNK_MASK: u32 = CHUNK_WORDS_MAX - 1;
/// Bytes of a chunk besides its words: its counts and its reference.
const CHUNK_BYTES: usize = 2 * size_of::<Arc<[AtomicU64]>>();

/// What was read makes no sense: it was overwritten meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn;

/// Chunks of words. Chunks may be shorter than their numbers would allow.
#[derive(Debug)]
pub(super) struct Arena {
    chunks: Vec<Arc<[AtomicU64]>>,
    pub(super) shortcuts: Shortcuts,
}

impl Arena {
    /// No chunk yet, for a tree of `words` words.
    pub(super) fn new(words: usize) -> Arena {
        Arena { chunks: Vec::new(), shortcuts: Shortcuts::default().resized(words) }
    }

    /// A word by its number, and with it what was stored before it.
    #[inline]
    pub(super) fn load(&self, at: u32) -> Result<u64, Torn> {
        let chunk = self.chunks.get(at.wrapping_shr(CHUNK_LG2) as usize).ok_or(Torn)?;
        let word = chunk.get((at & CHUNK_MASK) as usize).ok_or(Torn)?;
        Ok(word.load(Ordering::Acquire))
    }

    /// The words from number `at` up to the end of its chunk.
    #[inline]
    pub(super) fn words(&self, at: u32) -> Result<Words<'_>, Torn> {
        let chunk = self.chunks.get(at.wrapping_shr(CHUNK_LG2) as usize).ok_or(Torn)?;
        Ok(Words { chunk, first: at & CHUNK_MASK })
    }

    /// How many chunks there are.
    pub(super) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes besides the words: counts and references of chunks, and the shortcuts.
    pub(super) fn bytes_besides_words(&self) -> usize {
        self.chunks.len().saturating_mul(CHUNK_BYTES).saturating_add(self.shortcuts.bytes())
    }

    /// The same, with one more chunk of `words` words.
    pub(super) fn with_chunk(&self, words: u32) -> Arena {
        let mut chunks = Vec::with_capacity(self.chunks.len().saturating_add(1));
        chunks.extend_from_slice(&self.chunks);
        chunks.push((0..words).map(|_| AtomicU64::new(0)).collect());
        let capacity = chunks.iter().map(|chunk| chunk.len()).sum();
        let is_small = self.shortcuts.is_small_for(capacity);
        let shortcuts = if is_small { self.shortcuts.resized(capacity) } else { self.shortcuts.clone() };
        Arena { chunks, shortcuts }
    }
}

/// Words in a row, of one chunk. Whether one exists is only known where it is loaded or stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words<'a> {
    chunk: &'a [AtomicU64],
    first: u32,
}

impl Words<'_> {
    /// A word, and with it what was stored before it.
    #[inline]
    pub(super) fn load(self, index: u32) -> Result<u64, Torn> {
        self.word(index).map(|word| word.load(Ordering::Acquire)).ok_or(Torn)
    }

    /// Replaces a word. For the one writer, who knows that it exists.
    #[inline]
    pub(super) fn store(self, index: u32, value: u64, order: Ordering) {
        debug_assert!(self.word(index).is_some());
        if let Some(word) = self.word(index) {
            word.store(value, order);
        }
    }

    #[inline]
    fn word(&self, index: u32) -> Option<&AtomicU64> {
        self.chunk.get(self.first.wrapping_add(index) as usize)
    }
}

/// What the writer of a tree shares with its readers.
#[derive(Debug)]
pub(super) struct Shared {
    /// Counts the arenas that were published.
    generation: AtomicU64,
    /// Counts how often retired words became free, see [`Shared::advance`].
    epoch: AtomicU64,
    arena: Mutex<Arc<Arena>>,
    closed: Closed,
}

impl Shared {
    pub(super) fn new(arena: Arc<Arena>) -> Shared {
        Shared {
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            arena: Mutex::new(arena),
            closed: Closed::default(),
        }
    }

    /// Makes `arena` the one that lookups begin in from now on.
    pub(super) fn publish(&self, arena: Arc<Arena>) {
        *self.arena.lock().unwrap_or_else(PoisonError::into_inner) = arena;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The number of the arena to begin in. It is read before the arena, which can then only be newer.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn arena(&self) -> Arc<Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that words are overwritten which were retired before the last time this was said.
    pub(super) fn advance(&self) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.epoch.store(epoch.wrapping_add(1), Ordering::Release);
        // What is written from here on is not seen before the new epoch.
        fence(Ordering::Release);
    }

    /// Begins a lookup.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether all that a lookup read since `epoch` was in the tree, or retired from it since then.
    pub(super) fn is_sound_since(&self, epoch: u64) -> bool {
        fence(Ordering::Acquire);
        self.epoch.load(Ordering::Relaxed).wrapping_sub(epoch) <= 1
    }

    /// The IOVAs that readers find nothing at, whatever is mapped.
    pub(super) fn closed(&self) -> &Closed {
        &self.closed
    }
}

/// A range that one thread sets and others read: a counter that is odd meanwhile tells them to read again.
#[derive(Debug, Default)]
pub(super) struct Closed {
    count: AtomicU64,
    /// The range, or `start > last` for none.
    start: AtomicU64,
    last: AtomicU64,
}

impl Closed {
    /// Replaces the range.
    pub(super) fn set(&self, range: Option<IovaRange>) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(range.map_or(1, |range| range.start()), Ordering::Relaxed);
        self.last.store(range.map_or(0, |range| range.last()), Ordering::Relaxed);
        self.count.store(count.wrapping_add(2), Ordering::Release);
    }

    pub(super) fn contains(&self, iova: u64) -> bool {
        loop {
            let count = self.count.load(Ordering::Acquire);
            // No range was ever set: the common case needs no second look.
            if count == 0 {
                return false;
            }
            let start = self.start.load(Ordering::Relaxed);
            let last = self.last.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if count & 1 == 0 && self.count.load(Ordering::Relaxed) == count {
                return start <= iova && iova <= last;
            }
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn bytes_besides_the_words_are_those_of_each_chunk_and_of_the_shortcuts() {
        // Two counts and a reference of two words for a chunk.
        assert_eq!(Arena::new(0).bytes_besides_words(), 0);
        assert_eq!(Arena::new(0).with_chunk(16).with_chunk(16).bytes_besides_words(), 64);
        // A shortcut of one word for 64 words of the tree.
        assert_eq!(Arena::new(1 << 14).with_chunk(16).bytes_besides_words(), 32 + 256 * 8);
    }

    #[test]
    fn a_lookup_is_sound_until_words_are_used_anew_that_left_the_tree_since_it_began() {
        let shared = Shared::new(Arc::new(Arena::new(0)));
        let epoch = shared.epoch();
        assert!(shared.is_sound_since(epoch));
        // What is used anew here had left the tree before.
        shared.advance();
        assert!(shared.is_sound_since(epoch));
        shared.advance();
        assert!(!shared.is_sound_since(epoch) && shared.is_sound_since(shared.epoch()));
    }

    #[test]
    fn a_closed_range_is_never_read_half_changed() {
        let closed = Closed::default();
        closed.set(IovaRange::new(0, 9));
        // The writer is on its way from there to another range.
        closed.count.fetch_add(1, Ordering::Relaxed);
        closed.last.store(1009, Ordering::Relaxed);
        thread::scope(|scope| {
            let reading = scope.spawn(|| closed.contains(500));
            thread::sleep(Duration::from_millis(50));
            closed.start.store(1000, Ordering::Relaxed);
            closed.count.fetch_add(1, Ordering::Release);
            assert!(!reading.join().expect("it waits for the writer"), "it lies in neither range");
        });
        assert!(closed.contains(1009) && !closed.contains(1010) && !closed.contains(9));
    }
}
