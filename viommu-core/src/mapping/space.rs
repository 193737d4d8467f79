// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the writer gets words for nodes, and what happens to words that nodes no longer need.
//!
//! A node that leaves the tree is **retired**: a reader may still be in it. Its words become free when readers
//! that could be are told apart from all others, which takes two steps of the epoch: a lookup that began before the
//! first ends before the second, or looks again. Free words are used again by size, larger ones cut up; nothing
//! joins them. The words that nobody uses are therefore counted, and the tree is copied when they are many.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use super::arena::{Arena, CHUNK_LG2, CHUNK_WORDS_MAX, Shared, Words};
use super::node::{NODE_WORDS_MAX, Table};
use super::sync::size;

/// The root's place.
const ROOT_WORDS: u32 = 1;
/// Words of the smallest first chunk, and of the smallest other one.
const FIRST_CHUNK_WORDS: u32 = 8;
const NEXT_CHUNK_WORDS: u32 = 16;
/// The most words that one insertion adds: a larger table, a lone node, a long mapping.
const INSERTION_WORDS_MAX: usize = NODE_WORDS_MAX as usize + 5;
/// The most bytes by which one insertion makes [`Space::bytes_max`] grow.
pub(super) const INSERTION_BYTES_MAX: usize =
    BYTES_A_WORD * (used_words_max(INSERTION_WORDS_MAX, 0) - used_words_max(0, 0) + 1);
/// Bytes for each word that may be used, of which it is 8 itself.
const BYTES_A_WORD: usize = 10;
/// Words that a tree may waste beyond an eighth of what it has.
const SPARE_MAX: usize = 2048;
/// Bytes of lists and chunks that even a small tree may come to hold.
const BYTES_AT_LEAST: usize = 1792;
/// Retired blocks after which the epoch takes a step, in a large tree.
const FRESH_MAX: usize = size(128, 2);

/// The most words that are used, by nodes and for nothing, when nodes have `live` words and there are `count` entries.
const fn used_words_max(live: usize, count: usize) -> usize {
    // A large tree may waste an eighth. A small one would be copied all the time for that: it may waste as much as it
    // has.
    let spare = if live < SPARE_MAX { live } else { SPARE_MAX };
    let by_nodes = live.saturating_add(live / 8).saturating_add(spare).saturating_add(64);
    // Many small nodes that grow in turn waste as much as they have, before it is of use again. So a mapping that takes
    // little may take 16 bytes.
    let by_entries = used_words_max_of(count);
    if by_nodes > by_entries { by_nodes } else { by_entries }
}

/// The same when nodes have none.
const fn used_words_max_of(count: usize) -> usize {
    count.saturating_mul(2)
}

/// Words in a row: the first and how many.
#[derive(Clone, Copy, Debug)]
struct Block {
    at: u32,
    words: u32,
}

/// The writer's side of an arena.
#[derive(Debug)]
pub(super) struct Space {
    arena: Arc<Arena>,
    /// Words of all chunks.
    capacity: usize,
    /// Words of the nodes in the tree.
    live: usize,
    /// Words came into the tree or left it in this change.
    is_unsettled: bool,
    /// Words that are used, by nodes and for nothing, and the most for words of nodes as they are: both as of the last
    /// change in which words came or went.
    used_words: usize,
    used_words_max: usize,
    /// Words of the last chunk that were never used.
    unused: Block,
    /// The first free block of each size, 0 for none; its first word is the next one.
    free: Vec<u32>,
    /// One bit for each size that has a free block.
    free_sizes: u128,
    /// Retired since the last step of the epoch.
    fresh: Vec<Block>,
    fresh_words: usize,
    /// Retired in the epoch before.
    aging: Vec<Block>,
    /// The [`Table::part`] of a leaf, or 0 when a node was retired since.
    last_leaf: AtomicU32,
}

impl Space {
    /// A space for a tree of `words` words, for a start.
    pub(super) fn new(words: usize) -> Space {
        let first = u32::try_from(words).unwrap_or(u32::MAX).saturating_add(ROOT_WORDS);
        let first = first.clamp(FIRST_CHUNK_WORDS, CHUNK_WORDS_MAX);
        Space {
            arena: Arc::new(Arena::new(words).with_chunk(first)),
            capacity: first as usize,
            live: ROOT_WORDS as usize,
            is_unsettled: true,
            used_words: 0,
            used_words_max: 0,
            unused: Block { at: ROOT_WORDS, words: first.saturating_sub(ROOT_WORDS) },
            free: Vec::new(),
            free_sizes: 0,
            fresh: Vec::new(),
            fresh_words: 0,
            aging: Vec::new(),
            last_leaf: AtomicU32::new(0),
        }
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Words that exist in the arena, by number.
    pub(super) fn words(&self, at: u32) -> Words<'_> {
        self.arena.words(at).unwrap_or_default()
    }

    /// Remembers a leaf of the tree.
    #[inline]
    pub(super) fn set_last_leaf(&self, leaf: Table) {
        // Whoever shares the space changes no tree: any leaf of theirs will do.
        self.last_leaf.store(leaf.part(), Ordering::Relaxed);
    }

    /// The leaf that was remembered last, if it is certain to be in the tree.
    #[inline]
    pub(super) fn last_leaf(&self) -> Option<(Table, Words<'_>)> {
        let leaf = Table::leaf(self.last_leaf.load(Ordering::Relaxed))?;
        Some((leaf, leaf.words_in(&self.arena).ok()?))
    }

    /// Words of the nodes in the tree.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.arena.bytes_besides_words();
        let blocks = self.fresh.capacity().saturating_add(self.aging.capacity());
        self.capacity
            .saturating_mul(size_of::<u64>())
            .saturating_add(chunks)
            .saturating_add(blocks.saturating_mul(size_of::<Block>()))
            .saturating_add(self.free.capacity().saturating_mul(size_of::<u32>()))
    }

    /// The most bytes held for nodes of `live` words with `count` entries, whatever came before: the words that may
    /// be used, an eighth of them for the unused part of the last chunk, shortcuts, lists.
    pub(super) const fn bytes_max(live: usize, count: usize) -> usize {
        used_words_max(live, count).saturating_mul(BYTES_A_WORD).saturating_add(BYTES_AT_LEAST)
    }

    /// The first of `words` words, at least 2, with any content.
    pub(super) fn take(&mut self, words: u32, shared: &Shared) -> u32 {
        self.live = self.live.saturating_add(words as usize);
        self.is_unsettled = true;
        if let Some(at) = self.take_free(words).or_else(|| self.take_unused(words)) {
            return at;
        }
        self.grow(words, shared);
        self.take_unused(words).unwrap_or(0)
    }

    /// Takes back the words of a node that left the tree, or is about to.
    pub(super) fn retire(&mut self, at: u32, words: u32) {
        self.live = self.live.saturating_sub(words as usize);
        self.is_unsettled = true;
        *self.last_leaf.get_mut() = 0;
        if self.fresh.len() < self.remembered_max() {
            self.fresh.push(Block { at, words });
            self.fresh_words = self.fresh_words.saturating_add(words as usize);
        }
    }

    /// Ends a change of the tree, which has `count` entries: nothing that was retired can be reached from its root.
    /// Says whether so much is lost or waits that the tree should be copied to a space of its own size.
    #[inline]
    pub(super) fn settle(&mut self, count: usize, shared: &Shared) -> bool {
        if self.is_unsettled {
            self.settle_anew(shared);
        }
        self.used_words > self.used_words_max && self.used_words > used_words_max_of(count)
    }

    /// What depends on the words of nodes.
    #[inline(never)]
    fn settle_anew(&mut self, shared: &Shared) {
        self.is_unsettled = false;
        self.used_words = self.capacity.saturating_sub(self.unused.words as usize);
        self.used_words_max = used_words_max(self.live, 0);
        // Few steps, lest they overtake a lookup; yet not so few that what waits is much.
        let waits_much = self.fresh_words > (self.live / 64).saturating_add(24);
        if waits_much || self.fresh.len() >= self.fresh_max() {
            self.advance(shared);
        }
    }

    #[cold]
    fn advance(&mut self, shared: &Shared) {
        shared.advance();
        let aged = core::mem::take(&mut self.aging);
        for block in &aged {
            self.set_free(*block);
        }
        self.aging = core::mem::replace(&mut self.fresh, aged);
        self.fresh.clear();
        self.fresh_words = 0;
        // The tree may be much smaller than when they grew.
        let remembered_max = self.remembered_max();
        self.aging.truncate(remembered_max);
        self.aging.shrink_to(remembered_max);
        self.fresh.shrink_to(remembered_max);
    }

    /// Retired blocks after which the epoch takes a step.
    fn fresh_max(&self) -> usize {
        FRESH_MAX.min((self.live / 128).saturating_add(16))
    }

    /// Retired blocks that are remembered one by one; those of a removal that retires more are lost until the tree
    /// is copied.
    fn remembered_max(&self) -> usize {
        self.fresh_max().saturating_mul(2)
    }

    fn take_free(&mut self, words: u32) -> Option<u32> {
        let exact = 1u128.wrapping_shl(words);
        // What remains of a larger one has at least 2 words.
        let fitting = self.free_sizes & (exact | !exact.wrapping_shl(2).wrapping_sub(1));
        if fitting == 0 {
            return None;
        }
        let size = fitting.trailing_zeros();
        let at = *self.free.get(size as usize)?;
        let next = self.words(at).load(0).unwrap_or(0) as u32;
        *self.free.get_mut(size as usize)? = next;
        if next == 0 {
            self.free_sizes &= !1u128.wrapping_shl(size);
        }
        let rest = size.saturating_sub(words);
        self.set_free(Block { at: at.saturating_add(words), words: rest });
        Some(at)
    }

    fn take_unused(&mut self, words: u32) -> Option<u32> {
        let left = self.unused.words.checked_sub(words)?;
        let at = self.unused.at;
        self.unused = Block { at: at.saturating_add(words), words: left };
        Some(at)
    }

    /// Blocks of fewer than 2 words are lost.
    fn set_free(&mut self, block: Block) {
        if block.words < 2 {
            return;
        }
        if self.free.is_empty() {
            self.free.resize(NODE_WORDS_MAX.saturating_add(1) as usize, 0);
        }
        let Some(first) = self.free.get_mut(block.words as usize) else {
            return;
        };
        let next = core::mem::replace(first, block.at);
        self.free_sizes |= 1u128.wrapping_shl(block.words);
        self.words(block.at).store(0, u64::from(next), Ordering::Relaxed);
    }

    fn grow(&mut self, words: u32, shared: &Shared) {
        let rest = core::mem::replace(&mut self.unused, Block { at: 0, words: 0 });
        self.set_free(rest);
        let chunk = self.next_chunk_words(words);
        let number = self.arena.chunk_count() as u32;
        self.arena = Arc::new(self.arena.with_chunk(chunk));
        self.capacity = self.capacity.saturating_add(chunk as usize);
        self.unused = Block { at: number.wrapping_shl(CHUNK_LG2), words: chunk };
        shared.publish(self.arena.clone());
    }

    /// An eighth of what there is: that much may stay unused.
    fn next_chunk_words(&self, words: u32) -> u32 {
        let eighth = u32::try_from(self.capacity / 8).unwrap_or(CHUNK_WORDS_MAX);
        eighth.clamp(NEXT_CHUNK_WORDS, CHUNK_WORDS_MAX).max(words)
    }
}
