// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What serving either queue needs beside its ring. How each is served is in `request_queue` and `event_queue`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::Level;
use virtio_queue::Error;

use crate::iommu::Iommu;
use crate::sync::Wake;
use crate::throttle::Throttle;

use super::polling::Polling;
use super::request_queue::Taken;
use super::ring::Ring;

/// The device, and what is told of its rings.
#[derive(Debug)]
pub struct Queues {
    pub(super) iommu: Arc<Iommu>,
    pub(super) broken: Throttle,
    pub(super) polling: Mutex<Polling>,
    /// The requests at work: here for their memory, which is the same for all.
    pub(super) taken: Mutex<Vec<Taken>>,
    is_over: AtomicBool,
    is_broken: AtomicBool,
    changed: Wake,
}

impl Queues {
    /// The queues of one connection, where the next request is looked for as long as `poll`.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new(iommu: Arc<Iommu>, poll: Duration) -> io::Result<Queues> {
        Ok(Queues {
            iommu,
            broken: Throttle::new(Level::Warn),
            polling: Mutex::new(Polling::new(poll)),
            taken: Mutex::default(),
            is_over: AtomicBool::default(),
            is_broken: AtomicBool::default(),
            changed: Wake::new()?,
        })
    }

    /// Readable when a ring has turned out to be broken.
    pub fn changed(&self) -> &Wake {
        &self.changed
    }

    /// Whether a ring has turned out to be broken since the last reset, or start of the request ring.
    pub fn needs_reset(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// The device has been reset.
    pub fn mended(&self) {
        self.is_broken.store(false, Ordering::Relaxed);
    }

    /// Nothing is served any more. A ring may never be empty: what the device returns can make more available.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Tells of a ring that cannot be served; it is left alone until its next kick.
    pub(super) fn tell_broken(&self, ring: &Ring, queue: &str, error: &Error) {
        ring.signal_error();
        if !self.is_broken.swap(true, Ordering::Relaxed) {
            self.changed.wake();
        }
        self.broken.log(|| format!("the {queue} queue is broken: {error}"));
    }
}
