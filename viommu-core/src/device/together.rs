// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATEs that are under way together.
//!
//! None of them changes the device, so what one is checked against does not depend on how another ends. The outside may
//! therefore do several at once; each still has an answer of its own, in the driver's order.

use crate::Change;
use crate::wire::RequestType;

use super::{Device, Step};

impl Device {
    /// So many changes are under way at a time, at most.
    pub const UNDER_WAY_MAX: usize = 64;

    /// Whether [`begin_another`](Device::begin_another) may take a request with this readable part.
    pub fn can_be_another(readable: &[u8]) -> bool {
        readable.first() == Some(&RequestType::INVALIDATE.0)
    }

    /// Checks an INVALIDATE while others are under way. The outside applies all of them, in whatever order or at once, and
    /// [`finish`](Device::finish) then gives the answer of each, in the order in which they were begun.
    ///
    /// `None`, and nothing is done, if the request has to wait until those under way are finished.
    pub fn begin_another(&mut self, readable: &[u8], writable: usize) -> Option<Step> {
        let is_possible = matches!(self.change_under_way(), Some(Change::Invalidate { .. }))
            && self.behind.len() < Device::UNDER_WAY_MAX - 1;
        if !is_possible || !Device::can_be_another(readable) {
            return None;
        }
        Some(match self.judge(readable, writable) {
            Ok(under_way) => {
                self.behind.push_back(under_way);
                Step::Apply(under_way.change)
            }
            Err(reply) => Step::Done(reply),
        })
    }

    /// The oldest change that is under way is so no more.
    pub(super) fn go_on_to_next(&mut self) {
        let next = self.behind.pop_front();
        self.set_under_way(next);
    }

    /// Nothing is under way any more.
    pub(super) fn abandon(&mut self) {
        self.behind.clear();
        self.set_under_way(None);
    }
}
