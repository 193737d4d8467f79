// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! File descriptors of which there is only a number: the one place that takes ownership of such.

// UNSAFETY: a number on the command line, or one that a library has let go of, can be owned in no other way.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::{fs, io};

use rustix::net::{AddressFamily, sockopt};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::sync::lock;
use crate::usage_error::UsageError;

/// Takes over the listening Unix socket that whoever started this process left open as `number`.
///
/// To be called at most once in the life of the process, before it opens anything itself.
///
/// # Errors
/// There is no such file descriptor, or it is no listening Unix socket.
pub fn inherited_listener(number: RawFd) -> Result<UnixListener, UsageError> {
    let refuse = |problem: &str| {
        let mend = "pass the number of an inherited, listening Unix stream socket, or use --socket-path";
        UsageError::new(problem, mend).about("fd", number.to_string())
    };
    if number <= 2 || fs::read_link(format!("/proc/self/fd/{number}")).is_err() {
        return Err(refuse("no such file descriptor was passed to this process"));
    }
    // SAFETY: `from_raw_fd` wants an open file descriptor that nobody else owns. It is open, as /proc has just
    // shown, and it is none of the standard three. Nothing in this process owns it: it was inherited, since the
    // caller calls this once and before the process opens anything.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if sockopt::socket_acceptconn(&fd) != Ok(true) || sockopt::socket_domain(&fd) != Ok(AddressFamily::UNIX) {
        return Err(refuse("this is no listening Unix socket"));
    }
    let listener = UnixListener::from(fd);
    // Otherwise the crate that accepts would ask again and again.
    listener.set_nonblocking(false).map_err(|error| refuse(&format!("it cannot be waited for: {error}")))?;
    Ok(listener)
}

/// The event that ends a worker of `vhost-user-backend`.
///
/// The crate takes the consumer as a number and never closes it; this does, when it is dropped.
#[derive(Debug)]
pub struct ExitEvent {
    consumer_number: RawFd,
    pair: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl ExitEvent {
    /// A new one.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<ExitEvent> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(ExitEvent { consumer_number: pair.0.as_raw_fd(), pair: Mutex::new(Some(pair)) })
    }

    /// Hands it to the crate, once. Whoever is handed the consumer must not close it, and must not use it any
    /// more when `self` is dropped.
    pub fn lend(&self) -> Option<(EventConsumer, EventNotifier)> {
        lock(&self.pair).take()
    }
}

impl Drop for ExitEvent {
    fn drop(&mut self) {
        if lock(&self.pair).is_none() {
            // SAFETY: `from_raw_fd` wants an open file descriptor that nobody else owns. The crate has turned the
            // consumer into a bare number, so it is open and without an owner. It uses the number for its worker's
            // poll set alone; that lies in an object which also holds the back-end, and so this event, alive.
            drop(unsafe { OwnedFd::from_raw_fd(self.consumer_number) });
        }
    }
}
