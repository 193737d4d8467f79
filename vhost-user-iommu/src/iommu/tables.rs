// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Table mode: what hardware has to tell of the guest's tables, and the answers that the device gives in the guest's stead.
//!
//! What devices ask for and what they fail at comes from the host in any order and at any time, so one thread waits for
//! it. It takes the turn like whoever changes something: what a device asked for under a table that is being replaced
//! has its answer before the next request of the guest is looked at.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, error, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use viommu_nested::shadow::Notice;

use crate::throttle::Throttle;
use crate::vfio::Vfio;

use super::Iommu;

/// How long nothing is read after what could not be read.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);

/// The clock of page requests, and what is told of tables.
#[derive(Debug)]
pub struct Watch {
    begin: Instant,
    faults: Throttle,
}

impl Watch {
    /// Of a device that begins now.
    pub fn new() -> Watch {
        Watch { begin: Instant::now(), faults: Throttle::new(Level::Warn) }
    }
}

impl Iommu {
    /// Waits for what the host has to tell of the guest's tables, for the life of the process; to be called by one thread.
    pub fn watch_tables(&self) {
        let Some(vfio) = self.vfio.as_ref().filter(|_| self.state().device().mode().is_table()) else {
            return;
        };
        let sources = vfio.shadow().sources().try_clone_to_owned();
        let sources = match sources {
            Ok(sources) => sources,
            Err(error) => return error!("nothing can be told of the guest's tables: {error}"),
        };
        let mut deadline = None;
        loop {
            let timeout =
                deadline.map(|deadline: Duration| deadline.saturating_sub(self.watch.begin.elapsed()));
            // An interruption is a reason to look, too.
            let _ = poll(&mut [PollFd::new(&sources.as_fd(), PollFlags::IN)], timeout.map(timespec).as_ref());
            let read;
            (read, deadline) = self.take_notices(vfio);
            if let Err(trouble) = read {
                warn!("what the host tells of the guest's tables cannot be read: {trouble}");
                thread::sleep(AFTER_TROUBLE);
            }
        }
    }

    /// Tells the device which endpoints can have tables.
    pub(super) fn tell_tables(&self) {
        for (endpoint, support) in self.vfio.iter().flat_map(Vfio::tables) {
            self.state().device_mut().set_tables(endpoint, Some(support));
        }
    }

    /// Gives the host the answers that the device has given in the guest's stead.
    pub(super) fn pass_answers_on(&self) {
        // Nobody else asks for pages.
        let Some(vfio) = &self.vfio else { return };
        let answers = self.state().device_mut().take_page_answers();
        if answers.is_empty() {
            return;
        }
        let mut shadow = vfio.shadow();
        for answer in answers {
            if let Err(error) = shadow.respond(answer.cookie, answer.code) {
                self.host_errors
                    .log(|| format!("{}: its page request has no answer: {error}", answer.to.endpoint));
            }
        }
    }

    /// Returns also when to look again, if nothing is told until then.
    fn take_notices(&self, vfio: &Vfio) -> (viommu_nested::Result<()>, Option<Duration>) {
        let _turn = self.turn();
        let mut notices = Vec::new();
        let read = vfio.shadow().read_notices(&mut notices);
        let now = self.watch.begin.elapsed();
        let deadline = {
            let mut state = self.state();
            let device = state.device_mut();
            for notice in &notices {
                match notice {
                    Notice::Pages { to, cookie, pages } => {
                        device.request_pages(*to, *cookie, pages, now);
                    }
                    Notice::Failed(fault) => drop(device.report_table_fault(*fault)),
                    Notice::Lost(endpoint) => device.report_lost(*endpoint),
                }
            }
            device.expire_page_requests(now);
            // In this turn none is being answered: one whose answer fails later counts, too.
            device.next_page_deadline()
        };
        self.pass_answers_on();
        self.tell_notices(&notices);
        if !notices.is_empty() {
            self.event_waits.wake();
        }
        (read, deadline)
    }

    fn tell_notices(&self, notices: &[Notice]) {
        for notice in notices {
            if let Notice::Failed(fault) = notice {
                self.account.count_fault();
                self.watch.faults.log(|| format!("fault: {}: {fault}", self.label(fault.endpoint)));
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
