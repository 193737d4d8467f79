// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kick of one ring: what the VMM signals, in a poll set of its own.
//!
//! `vhost-user-backend` waits for the poll set and never sees what is in it. So the VMM can replace a kick or take it
//! away while the ring runs, and one that is of no use any more can be let go: closing it would not do, since it
//! stays in every poll set as long as the VMM holds it, and would wake the worker for ever.
//!
//! Does not know what a kick is for. To read: epoll(7), "Will closing a file descriptor cause it to be removed".

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::sync::Wake;

/// A file descriptor of the VMM, and the poll set that it is in.
#[derive(Debug)]
pub struct Kick {
    set: OwnedFd,
    file: Option<File>,
    /// In the set as well: readable when a kick may have been signalled on a file that is not there any more.
    missed: Wake,
    may_have_missed: bool,
}

impl Kick {
    /// Nothing to wait for yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Kick> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let missed = Wake::new()?;
        watch(&set, &missed)?;
        Ok(Kick { set, file: None, missed, may_have_missed: false })
    }

    /// What becomes readable when there is a kick; a duplicate.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn watched(&self) -> io::Result<File> {
        self.set.try_clone().map(File::from)
    }

    /// Waits for `file` instead, if there is one. A kick that was signalled on the old one is not lost.
    ///
    /// # Errors
    /// This file cannot be waited for.
    pub fn replace(&mut self, file: Option<File>) -> io::Result<()> {
        if self.let_go() && file.is_some() {
            self.may_have_missed = true;
            self.missed.wake();
        }
        if let Some(file) = file {
            let file = non_blocking(file)?;
            watch(&self.set, &file)?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Takes note of a kick. There need not be one: the VMM may have been faster. A kick that fails otherwise, a pipe
    /// whose other end is closed, is let go.
    pub fn consume(&mut self) {
        if std::mem::take(&mut self.may_have_missed) {
            self.missed.clear();
        }
        let Some(file) = &self.file else { return };
        let ended = match rustix::io::read(file, &mut [0; 8]).map_err(io::Error::from) {
            Ok(0) => "end of file".to_owned(),
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => error.to_string(),
        };
        log::warn!("a ring's kick is of no use any more: {ended}");
        self.let_go();
    }

    /// Says whether there was a file.
    fn let_go(&mut self) -> bool {
        let file = self.file.take();
        // It was added, so it can be removed.
        file.is_some_and(|file| epoll::delete(&self.set, &file).is_ok())
    }
}

fn watch(set: &OwnedFd, file: impl AsFd) -> io::Result<()> {
    Ok(epoll::add(set, file, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
}

/// The same file, which reading or writing never waits for.
///
/// # Errors
/// Its flags cannot be set.
pub fn non_blocking(file: File) -> io::Result<File> {
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    Ok(file)
}
