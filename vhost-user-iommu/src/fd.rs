// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! File descriptors of which there is only a number: the one place that takes ownership of such.

// UNSAFETY: a number on the command line, or one that a library has let go of, can be owned in no other way.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::{fs, io};

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::sync::lock;
use crate::usage_error::UsageError;

/// Takes over the file that whoever started this process left open as `number`, and keeps it from being inherited
/// further. Each number can be taken over once, and only before this process serves anybody.
///
/// # Errors
/// There is no such file descriptor, or it was not inherited. The caller says of which option.
pub fn inherited(number: RawFd) -> Result<OwnedFd, UsageError> {
    static TAKING: Mutex<()> = Mutex::new(());
    let refuse =
        |problem: String| UsageError::new(problem, "pass the number of an inherited file descriptor above 2");
    let _taking = lock(&TAKING);
    if number <= 2 || !is_inherited(number) {
        return Err(refuse("no such file descriptor was passed to this process".to_owned()));
    }
    // SAFETY: `from_raw_fd` wants an open file descriptor that nobody else owns. It is open and will outlive an exec,
    // as /proc has just shown, and it is none of the standard three. Until this process serves anybody, which is when
    // the caller calls this, what it opens itself never outlives an exec, and neither does what was taken over here
    // before; so it was inherited, and nothing here owns it. The lock keeps another thread from finding the same
    // between the look and the line below.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|error| refuse(format!("it cannot be kept: {error}")))?;
    Ok(fd)
}

/// A Unix socket over which VMMs come.
#[derive(Debug)]
pub enum VmmSocket {
    /// Any number of them, one after another.
    Listening(UnixListener),
    /// The one that is there already.
    Connected(UnixStream),
}

/// Takes over the Unix socket that whoever started this process left open as `number`, listening or connected.
///
/// # Errors
/// There is no such file descriptor, or it is no such socket.
pub fn inherited_socket(number: RawFd) -> Result<VmmSocket, UsageError> {
    let about = |error: UsageError| error.about("fd", number.to_string());
    let refuse = |problem: &str| {
        let mend = "pass the number of an inherited Unix stream socket that listens or is connected, or use --socket-path";
        about(UsageError::new(problem, mend))
    };
    let fd = inherited(number).map_err(about)?;
    let is_stream = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
    if is_stream && sockopt::socket_acceptconn(&fd) == Ok(true) {
        let listener = UnixListener::from(fd);
        // Otherwise whoever accepts would ask again and again.
        listener
            .set_nonblocking(false)
            .map_err(|error| refuse(&format!("it cannot be waited for: {error}")))?;
        return Ok(VmmSocket::Listening(listener));
    }
    if is_stream && getpeername(&fd).is_ok_and(|peer| peer.is_some()) {
        return Ok(VmmSocket::Connected(UnixStream::from(fd)));
    }
    Err(refuse("this is no Unix stream socket that listens or is connected"))
}

impl From<VmmSocket> for OwnedFd {
    fn from(socket: VmmSocket) -> OwnedFd {
        match socket {
            VmmSocket::Listening(listener) => listener.into(),
            VmmSocket::Connected(stream) => stream.into(),
        }
    }
}

/// Takes over an end of a pipe, or of a socket that does for one, left open as `number`.
///
/// # Errors
/// There is no such file descriptor, or it is neither.
pub fn inherited_pipe(option: &'static str, number: RawFd) -> Result<OwnedFd, UsageError> {
    let about = |error: UsageError| error.about(option, number.to_string());
    let fd = inherited(number).map_err(about)?;
    match fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Fifo | FileType::Socket) => Ok(fd),
        _ => Err(about(UsageError::new("this is no pipe", "pass the number of an inherited end of a pipe"))),
    }
}

/// Keeps whatever this process executes from what it was given itself and has not taken over, until the result is
/// dropped. Only while there is no other thread.
///
/// # Errors
/// /proc cannot be read.
pub fn withhold_inherited() -> io::Result<Withheld> {
    let entries = fs::read_dir("/proc/self/fd")?.collect::<io::Result<Vec<_>>>()?;
    let numbers = entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inherited: Vec<RawFd> = numbers.filter(|number| *number > 2 && is_inherited(*number)).collect();
    let withheld = Withheld(inherited);
    withheld.set(FdFlags::CLOEXEC);
    Ok(withheld)
}

/// File descriptors that stay in this process, without an owner in it.
#[derive(Debug)]
pub struct Withheld(Vec<RawFd>);

impl Withheld {
    fn set(&self, flags: FdFlags) {
        for number in &self.0 {
            // SAFETY: `borrow_raw` wants a file descriptor that is not -1 and stays open as long as it is borrowed.
            // It was listed as open, and its only owner is whoever started this process: nothing in it closes it.
            let fd = unsafe { BorrowedFd::borrow_raw(*number) };
            // Fails only for what is not open.
            let _ = fcntl_setfd(fd, flags);
        }
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        self.set(FdFlags::empty());
    }
}

/// Whether a file is open under `number` that outlives an exec.
fn is_inherited(number: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| !OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC))
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use rustix::io::{dup, fcntl_getfd};

    use super::*;

    #[test]
    fn what_was_inherited_is_taken_over_once_and_not_passed_on() {
        let file = tempfile::tempfile().expect("a file");
        // Without CLOEXEC, as after an exec.
        let number = dup(&file).expect("a file descriptor").into_raw_fd();
        let taken = inherited(number).expect("inherited");
        assert_eq!((taken.as_raw_fd(), fcntl_getfd(&taken)), (number, Ok(FdFlags::CLOEXEC)));
        let error = inherited(number).expect_err("taken").to_string();
        assert!(error.starts_with("no such file descriptor was passed to this process; "), "{error}");
    }

    #[test]
    fn what_this_process_opened_or_nobody_did_is_not_taken_over() {
        let own = File::open("/dev/null").expect("a Linux machine");
        for number in [-1, 0, 1, 2, own.as_raw_fd(), 100_000, RawFd::MAX] {
            inherited(number).expect_err(&number.to_string());
        }
    }

    #[test]
    fn a_file_is_no_socket_and_no_pipe() {
        let number = || dup(tempfile::tempfile().expect("a file")).expect("a file descriptor").into_raw_fd();
        let pipe = number();
        let error = inherited_pipe("exit-with", pipe).expect_err("a file").to_string();
        assert!(error.starts_with(&format!("--exit-with {pipe}: this is no pipe; ")), "{error}");
        let number = number();
        let error = inherited_socket(number).expect_err("a file").to_string();
        assert!(
            error.starts_with(&format!(
                "--fd {number}: this is no Unix stream socket that listens or is connected; "
            )),
            "{error}"
        );
    }
}
