// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the writer and the readers of a tree share: words, fences, one lock.
//!
//! Built with `--cfg shuttle`, each access is a point at which Shuttle may go on with another thread, and sizes are small
//! enough for everything to happen in a few steps: see `interleavings`.

#[cfg(not(shuttle))]
pub(super) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, fence},
};
#[cfg(shuttle)]
pub(super) use shuttle::{
    hint::spin_loop,
    sync::{
        Mutex,
        atomic::{AtomicU64, fence},
    },
};
#[cfg(not(shuttle))]
pub(super) use std::sync::Mutex;

/// `usual`, or `small` where interleavings are tried out.
pub(super) const fn size(usual: usize, small: usize) -> usize {
    if cfg!(shuttle) { small } else { usual }
}
