// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much has been served, for people who read the log.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use viommu_core::Reply;
use viommu_core::request::TABLE;

/// Counts since the process started.
#[derive(Debug, Default)]
pub struct Account {
    by_request: [AtomicU64; TABLE.len()],
    refused: AtomicU64,
    unrecognised: AtomicU64,
    faults: AtomicU64,
}

impl Account {
    pub(super) fn count(&self, reply: &Reply) {
        let row = reply.row.and_then(|row| TABLE.iter().position(|other| other.kind == row.kind));
        let counter = match row.and_then(|at| self.by_request.get(at)) {
            _ if reply.rejected.is_some() => &self.refused,
            Some(counter) => counter,
            None => &self.unrecognised,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn count_fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("served")?;
        for (row, counter) in TABLE.iter().zip(&self.by_request) {
            write!(f, " {} {},", counter.load(Relaxed), row.name)?;
        }
        let [refused, unrecognised, faults] =
            [&self.refused, &self.unrecognised, &self.faults].map(|counter| counter.load(Relaxed));
        write!(f, " {refused} refused, {unrecognised} not recognised, {faults} faults")
    }
}
