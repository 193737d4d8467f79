// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking for the next request before going to sleep.
//!
//! A kick costs the guest an exit, and a sleeping thread takes its time to wake up; Linux spins meanwhile. Requests come
//! in flocks: so after one that came soon after another, the worker looks for a third for a while, and the driver is
//! not to kick. A request that comes alone is never waited for, so an idle guest costs nothing.

use std::time::{Duration, Instant};
use std::{hint, thread};

/// How long the next request is looked for, and when it is worth it.
#[derive(Debug)]
pub struct Polling {
    longest: Duration,
    /// When the last request was done.
    last: Option<Instant>,
    is_worth_it: bool,
}

/// So often the ring is looked at before the clock is.
const LOOKS: u32 = 32;

impl Polling {
    /// For so long at most. With a single processor the guest could not even make its next request meanwhile: then never.
    pub fn new(longest: Duration) -> Polling {
        let is_alone = thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        Polling { longest: if is_alone { Duration::ZERO } else { longest }, last: None, is_worth_it: false }
    }

    /// A kick has come: takes note of how long none did.
    pub fn woken(&mut self) {
        self.is_worth_it =
            !self.longest.is_zero() && self.last.is_some_and(|last| last.elapsed() <= self.longest);
    }

    /// All requests are done: looks for more, and says whether there are any.
    pub fn finds(&mut self, are_there_more: impl Fn() -> bool) -> bool {
        if self.longest.is_zero() {
            return false;
        }
        let look = || {
            (0..LOOKS).any(|_| {
                hint::spin_loop();
                are_there_more()
            })
        };
        // Where the next one comes at once, nobody has to ask what time it is.
        if self.is_worth_it && look() {
            return true;
        }
        let begin = Instant::now();
        self.last = Some(begin);
        while self.is_worth_it && begin.elapsed() < self.longest {
            if look() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn polling(longest: Duration) -> Polling {
        Polling { longest, last: None, is_worth_it: false }
    }

    #[test]
    fn a_request_that_comes_soon_after_another_has_the_next_one_looked_for() {
        let mut polling = polling(LONG);
        polling.woken();
        assert!(!polling.finds(|| unreachable!("the first one of all came alone")));
        polling.woken();
        assert!(polling.finds(|| true));
        assert!(polling.finds(|| true), "one that was found came soon, too");
    }

    #[test]
    fn a_request_that_comes_late_is_taken_for_the_only_one() {
        let mut polling = polling(Duration::from_nanos(1));
        polling.woken();
        assert!(!polling.finds(|| true));
        thread::sleep(Duration::from_millis(1));
        polling.woken();
        assert!(!polling.finds(|| unreachable!("it came late")));
    }

    #[test]
    fn looking_has_an_end() {
        let mut polling = polling(Duration::from_millis(20));
        polling.finds(|| false);
        polling.woken();
        let begin = Instant::now();
        assert!(!polling.finds(|| false));
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn no_time_at_all_is_never() {
        let mut polling = polling(Duration::ZERO);
        for _ in 0..2 {
            polling.woken();
            assert!(!polling.finds(|| unreachable!("polling is off")));
        }
    }
}
