// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A limit on the log lines that a guest can cause.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, log};

use crate::sync::lock;

/// Lets through a burst of lines in each period and counts the rest.
#[derive(Debug)]
pub struct Throttle {
    level: Level,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    period_began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

const PERIOD: Duration = Duration::from_secs(5);
const LINES_MAX: u32 = 10;

impl Throttle {
    /// A throttle for lines of this level.
    pub fn new(level: Level) -> Throttle {
        Throttle { level, state: Mutex::default() }
    }

    /// Logs what `line` makes, unless the period's burst is used up.
    pub fn log(&self, line: impl FnOnce() -> String) {
        let (pass, suppressed) = lock(&self.state).admit(Instant::now());
        if suppressed > 0 {
            log!(self.level, "{suppressed} similar lines were left out");
        }
        if pass {
            log!(self.level, "{}", line());
        }
    }
}

impl State {
    /// Whether a line passes, and how many were left out in a period that has just ended.
    fn admit(&mut self, now: Instant) -> (bool, u64) {
        let mut suppressed = 0;
        if self.period_began.is_none_or(|began| now.saturating_duration_since(began) >= PERIOD) {
            suppressed = std::mem::take(&mut self.suppressed);
            (self.period_began, self.lines) = (Some(now), 0);
        }
        let pass = self.lines < LINES_MAX;
        if pass {
            self.lines += 1;
        } else {
            self.suppressed += 1;
        }
        (pass, suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_the_rest_is_counted_and_told_in_the_next_period() {
        let mut state = State::default();
        let start = Instant::now();
        let passed = (0..25).filter(|_| state.admit(start).0).count();
        assert_eq!(passed, LINES_MAX as usize);
        assert_eq!(state.admit(start + PERIOD), (true, 15));
        assert_eq!(state.admit(start + PERIOD), (true, 0));
    }
}
