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

    /// Checks an INVALIDATE while others are under way. The outside applies all of them, in whatever order or at once, and
    /// [`finish`](Device::finish) then gives the answer of each, in the order in which they were begun.
    ///
    /// `None`, and nothing is done, if the request has to wait until those under way are finished.
    pub fn begin_another(&mut self, readable: &[u8], writable: usize) -> Option<Step> {
        let is_possible = matches!(self.change_under_way(), Some(Change::Invalidate { .. }))
            && self.under_way.len() < Device::UNDER_WAY_MAX;
        if !is_possible || readable.first() != Some(&RequestType::INVALIDATE.0) {
            return None;
        }
        Some(match self.judge(readable, writable) {
            Ok(under_way) => Step::Apply(self.start(under_way)),
            Err(reply) => Step::Done(reply),
        })
    }
}
