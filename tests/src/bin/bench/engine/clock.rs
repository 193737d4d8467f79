// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The time that a thread had a processor: what other programs take of a machine does not count.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The calling thread's processor time so far. Only good within the thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Duration);

impl Clock {
    /// Now.
    pub fn start() -> Clock {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        // Neither is ever negative.
        Clock(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// What the thread took since then.
    pub fn elapsed(self) -> Duration {
        Clock::start().0 - self.0
    }
}
