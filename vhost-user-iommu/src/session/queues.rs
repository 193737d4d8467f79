// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What serving either queue needs beside its ring. How each is served is in `request_queue` and `event_queue`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::Level;
use virtio_queue::Error;

use crate::iommu::Iommu;
use crate::throttle::Throttle;

use super::polling::Polling;
use super::request_queue::Taken;

/// The device, and what is told of its rings.
#[derive(Debug)]
pub struct Queues {
    pub(super) iommu: Arc<Iommu>,
    pub(super) broken: Throttle,
    pub(super) polling: Mutex<Polling>,
    /// The requests at work: here for their memory, which is the same for all.
    pub(super) taken: Mutex<Vec<Taken>>,
    is_over: AtomicBool,
}

impl Queues {
    /// The queues of one connection, where the next request is looked for as long as `poll`.
    pub fn new(iommu: Arc<Iommu>, poll: Duration) -> Queues {
        let polling = Mutex::new(Polling::new(poll));
        Queues {
            iommu,
            broken: Throttle::new(Level::Warn),
            polling,
            taken: Mutex::default(),
            is_over: AtomicBool::default(),
        }
    }

    /// Nothing is served any more. A ring may never be empty: what the device returns can make more available.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Tells of a ring that cannot be served; it is left alone until its next kick.
    pub(super) fn tell_broken(&self, queue: &str, error: &Error) {
        self.broken.log(|| format!("the {queue} queue is broken: {error}"));
    }
}
