// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk has done and seen: counters, and a bounded log of events that a test can wait for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vhost_user_iommu::message::Access;

use super::lock;

/// Most events that are kept; the oldest go first.
const EVENTS_MAX: usize = 4096;

/// Counters over all connections of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Block requests that were completed, whatever their status.
    pub requests: u64,
    /// Those of them that failed.
    pub failed_requests: u64,
    /// Bytes of disk data read and written.
    pub bytes: u64,
    /// Misses sent.
    pub misses: u64,
    /// Misses that were refused, or not answered in time.
    pub refused_misses: u64,
    /// Updates taken.
    pub updates: u64,
    /// Invalidations received.
    pub invalidations: u64,
}

/// Feature bits and protocol features that a front-end has set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Of `SET_FEATURES`.
    pub features: u64,
    /// Of `SET_PROTOCOL_FEATURES`.
    pub protocol_features: u64,
}

/// Something that happened. Addresses are IOVAs unless they are named otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A front-end connected.
    Connected,
    /// The connection is over.
    Disconnected {
        /// Why, if not by an orderly end.
        reason: Option<String>,
    },
    /// An update was taken.
    Update {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// The front-end's address.
        user_address: u64,
        /// What it allows.
        access: Access,
    },
    /// An update was refused: it makes no sense, or lies outside the memory table.
    UpdateRefused {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// A range was invalidated.
    Invalidate {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// A miss was sent.
    Miss {
        /// The address.
        iova: u64,
        /// What is wanted.
        access: Access,
    },
    /// A miss was answered: an update has come or is to come.
    MissAnswered {
        /// The address.
        iova: u64,
        /// What was wanted.
        access: Access,
    },
    /// A miss was refused.
    MissRefused {
        /// The address.
        iova: u64,
        /// What was wanted.
        access: Access,
    },
    /// A miss could not be sent, or was not answered in time.
    MissUnanswered {
        /// The address.
        iova: u64,
        /// What was wanted.
        access: Access,
    },
    /// The ring was found where the front-end says it is, and is being served.
    RingStarted {
        /// The available index it starts from.
        next_available: u16,
    },
    /// The ring cannot be reached, or makes no sense; the next kick is the next try.
    RingFailed {
        /// What is wrong.
        reason: String,
    },
    /// The ring was stopped.
    RingStopped {
        /// The available index to go on from.
        next_available: u16,
    },
}

/// The counters and the log.
#[derive(Debug, Default)]
pub(super) struct Record {
    content: Mutex<Content>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    stats: Stats,
    events: VecDeque<Event>,
    negotiated: Option<Negotiated>,
}

impl Record {
    /// Counts.
    pub(super) fn count(&self, count: impl FnOnce(&mut Stats)) {
        count(&mut lock(&self.content).stats);
        self.grown.notify_all();
    }

    /// Logs an event, and counts it where there is a counter for it.
    pub(super) fn add(&self, event: Event) {
        let mut content = lock(&self.content);
        let stats = &mut content.stats;
        match event {
            Event::Update { .. } => stats.updates += 1,
            Event::Invalidate { .. } => stats.invalidations += 1,
            Event::Miss { .. } => stats.misses += 1,
            Event::MissRefused { .. } | Event::MissUnanswered { .. } => stats.refused_misses += 1,
            _ => {}
        }
        if content.events.len() == EVENTS_MAX {
            content.events.pop_front();
        }
        content.events.push_back(event);
        self.grown.notify_all();
    }

    /// Notes what was negotiated.
    pub(super) fn set_negotiated(&self, negotiated: Negotiated) {
        lock(&self.content).negotiated = Some(negotiated);
        self.grown.notify_all();
    }

    pub(super) fn stats(&self) -> Stats {
        lock(&self.content).stats
    }

    pub(super) fn events(&self) -> Vec<Event> {
        lock(&self.content).events.iter().cloned().collect()
    }

    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        lock(&self.content).negotiated
    }

    /// Waits for a condition: false if it is not fulfilled within `timeout`.
    pub(super) fn wait_until(
        &self,
        timeout: Duration,
        mut condition: impl FnMut(&Stats, &[Event]) -> bool,
    ) -> bool {
        let unmet = |content: &mut Content| {
            let Content { stats, events, .. } = content;
            !condition(stats, events.make_contiguous())
        };
        let content = lock(&self.content);
        let waited = self.grown.wait_timeout_while(content, timeout, unmet);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
