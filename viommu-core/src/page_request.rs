// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Groups of page requests that wait for the driver's response, and the answers that the device gives in its stead.
//!
//! Each group that came in is answered once: by the driver, or by what is put into the list of answers here. Time is a
//! parameter, so nothing here waits. Which endpoint may ask is the device's matter.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::{EndpointId, RequestGroup, ResponseCode};

/// An answer of the device's own, which the outside passes on; that the cookie is not known there any more is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAnswer {
    /// Which group.
    pub to: RequestGroup,
    /// By what the outside knows it.
    pub cookie: u64,
    /// The answer.
    pub code: ResponseCode,
}

/// A group that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outstanding {
    pub(crate) cookie: u64,
    /// How many requests it has.
    pub(crate) pages: usize,
    /// When the device answers it.
    pub(crate) deadline: Duration,
}

/// All groups that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageRequests {
    outstanding: BTreeMap<RequestGroup, Outstanding>,
    answers: Vec<PageAnswer>,
}

impl PageRequests {
    /// Takes a group that is not there.
    pub(crate) fn insert(&mut self, group: RequestGroup, outstanding: Outstanding) {
        self.outstanding.insert(group, outstanding);
    }

    pub(crate) fn cookie(&self, group: &RequestGroup) -> Option<u64> {
        Some(self.outstanding.get(group)?.cookie)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = RequestGroup> {
        self.outstanding.keys().copied()
    }

    pub(crate) fn count_of(&self, endpoint: EndpointId) -> usize {
        self.outstanding.keys().filter(|group| group.endpoint == endpoint).count()
    }

    /// The requests of all groups together.
    pub(crate) fn pages(&self) -> usize {
        self.outstanding.values().map(|group| group.pages).sum()
    }

    /// The driver has answered; false if the group's number is in use anew.
    pub(crate) fn answered(&mut self, group: &RequestGroup, cookie: u64) -> bool {
        self.cookie(group) == Some(cookie) && self.outstanding.remove(group).is_some()
    }

    /// Answers a group that never waited.
    pub(crate) fn refuse_new(&mut self, to: RequestGroup, cookie: u64) {
        self.answers.push(PageAnswer { to, cookie, code: ResponseCode::Invalid });
    }

    /// Answers a group that waits, if it does.
    pub(crate) fn refuse(&mut self, group: RequestGroup) {
        if let Some(old) = self.outstanding.remove(&group) {
            self.refuse_new(group, old.cookie);
        }
    }

    /// The groups whose time is over.
    pub(crate) fn expired(&self, now: Duration) -> impl Iterator<Item = RequestGroup> {
        self.outstanding.iter().filter(move |(_, group)| group.deadline <= now).map(|(group, _)| *group)
    }

    /// When the first of the groups other than `except` is answered.
    pub(crate) fn next_deadline(&self, except: Option<RequestGroup>) -> Option<Duration> {
        let others = self.outstanding.iter().filter(|(group, _)| Some(**group) != except);
        others.map(|(_, group)| group.deadline).min()
    }

    pub(crate) fn take_answers(&mut self) -> Vec<PageAnswer> {
        core::mem::take(&mut self.answers)
    }
}
