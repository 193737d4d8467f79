// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What ends the daemon: a signal, the end of whoever it is to end with, or that of the VMM whose devices it shares.
//!
//! Only waits; what is left to do then is the daemon's.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::signals::EndSignals;
use crate::sync::Wake;

/// What is waited for.
#[derive(Debug)]
pub struct Ending {
    signals: EndSignals,
    /// An end of a pipe.
    pipe: Option<OwnedFd>,
    /// What becomes readable in this process, and what that means.
    told: Vec<(Arc<Wake>, End)>,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal arrived.
    Signal,
    /// Nobody holds the other end of the pipe any more.
    OtherEndClosed,
    /// No other VMM can be given the devices that this process had.
    DevicesReleased,
    /// The VMM of the one connection that this process was given has left.
    VmmLeft,
}

impl Ending {
    /// Catches the signals that ask a process to end.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new(pipe: Option<OwnedFd>) -> io::Result<Ending> {
        Ok(Ending { signals: EndSignals::catch()?, pipe, told: Vec::new() })
    }

    /// Ends for this as well, as soon as `wake` is readable.
    pub fn or_when(&mut self, wake: Arc<Wake>, end: End) {
        self.told.push((wake, end));
    }

    /// Waits.
    ///
    /// # Errors
    /// The system has no memory left.
    pub fn wait(&mut self) -> io::Result<End> {
        loop {
            let signals = PollFd::new(&self.signals, PollFlags::IN);
            // That the other end is closed shows without being asked for; what is sent is nothing to wake up for.
            let pipe = self.pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::empty()));
            let told = self.told.iter().map(|(wake, _)| PollFd::new(wake.as_ref(), PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = told.chain([signals]).chain(pipe).collect();
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let closed = PollFlags::HUP | PollFlags::ERR;
            if fds.iter().any(|fd| fd.revents().intersects(closed)) {
                return Ok(End::OtherEndClosed);
            }
            let is_readable = |fd: &PollFd<'_>| fd.revents().contains(PollFlags::IN);
            let told = fds.iter().zip(&self.told).find(|(fd, _)| is_readable(fd)).map(|(_, (_, end))| *end);
            drop(fds);
            if self.signals.arrived().is_some() {
                return Ok(End::Signal);
            }
            if let Some(end) = told {
                return Ok(end);
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Signal => "told to end",
            End::OtherEndClosed => "ends with the VMM",
            End::DevicesReleased => "ends with the VMM, whose devices no other can be given",
            End::VmmLeft => "ends with the VMM, which was to be the only one",
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::pipe;
    use signal_hook::{consts::SIGHUP, low_level::raise};

    use super::*;

    #[test]
    fn the_last_holder_of_the_other_end_ends_it_and_nothing_that_is_written() {
        let (read, write) = pipe().expect("a pipe");
        let mut ending = Ending::new(Some(read)).expect("file descriptors");
        let second = write.try_clone().expect("a file descriptor");
        rustix::io::write(&write, b"not the end").expect("written");
        drop(write);
        raise(SIGHUP).expect("caught");
        assert_eq!(ending.wait().expect("waited"), End::Signal, "one end is still open");
        drop(second);
        assert_eq!(ending.wait().expect("waited"), End::OtherEndClosed);
    }
}
