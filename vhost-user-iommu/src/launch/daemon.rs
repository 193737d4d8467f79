// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a child of this process: started, waited for until it is ready, ended.
//!
//! To read: systemd, `sd_notify(3)`, for how it says that it is ready.

use std::ffi::c_int;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use super::files::Passed;
use super::template::Word;
use crate::signals::EndSignals;

/// A daemon that has been started.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    /// Readable when the process has ended.
    ended: OwnedFd,
}

/// Where the daemon tells how it gets on.
#[derive(Debug)]
pub struct Notices {
    socket: UnixDatagram,
    /// Nobody else may look in.
    folder: TempDir,
}

/// Why a daemon is not ready.
#[derive(Debug)]
pub enum NotReady {
    /// It has ended.
    Ended(ExitStatus),
    /// This process was told to end.
    Signal(c_int),
    /// The system cannot wait.
    System(io::Error),
}

impl Daemon {
    /// Starts this same program as a daemon with the options `words`; it inherits `passed`.
    ///
    /// Signals of a terminal do not reach it: the VMM that they end may still need it.
    ///
    /// # Errors
    /// The system has no process or file descriptor left.
    pub fn start(words: &[Word], passed: &Passed, notices: &Notices) -> io::Result<Daemon> {
        let process = Command::new(this_program()?)
            .args(words.iter().map(|word| word.fill(|file| passed.number_of(file))))
            .env("NOTIFY_SOCKET", notices.path())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()?;
        let ended = pidfd_open(Pid::from_child(&process), PidfdFlags::empty())?;
        Ok(Daemon { process, ended })
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// What came first.
    pub fn wait_until_ready(&mut self, notices: &Notices, signals: &mut EndSignals) -> Result<(), NotReady> {
        loop {
            let fds = [signals.as_fd(), notices.socket.as_fd(), self.ended.as_fd()];
            wait_for_any(&mut fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)), None)
                .map_err(NotReady::System)?;
            if let Some(signal) = signals.arrived() {
                return Err(NotReady::Signal(signal));
            }
            if notices.is_ready().map_err(NotReady::System)? {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait().map_err(NotReady::System)? {
                return Err(NotReady::Ended(status));
            }
        }
    }

    /// Ends it, if it has not ended by itself, and waits for that.
    ///
    /// # Errors
    /// The system cannot wait.
    pub fn end(mut self) -> io::Result<()> {
        if self.process.try_wait()?.is_none() {
            // Fails only when it has just ended.
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
            let ended = PollFd::new(&self.ended, PollFlags::IN);
            if !wait_for_any(&mut [ended], Some(PATIENCE))? {
                self.process.kill()?;
            }
            self.process.wait()?;
        }
        Ok(())
    }
}

impl Notices {
    /// A place for a new daemon; gone when this is dropped.
    ///
    /// # Errors
    /// There is no folder for it.
    pub fn new() -> io::Result<Notices> {
        let folder = tempfile::Builder::new().prefix("vhost-user-iommu-").tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join(SOCKET))?;
        socket.set_nonblocking(true)?;
        Ok(Notices { socket, folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Whether one of the messages that have come says so.
    fn is_ready(&self) -> io::Result<bool> {
        let mut message = [0; MESSAGE_MAX];
        loop {
            match self.socket.recv(&mut message) {
                Ok(length) => {
                    let message = message.get(..length).unwrap_or_default();
                    if message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// This same program, by the name that people know it by where that is still it.
fn this_program() -> io::Result<PathBuf> {
    let program = PathBuf::from("/proc/self/exe");
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let running = identity(&program)?;
    let named = env::current_exe().ok().filter(|path| identity(path).is_ok_and(|file| file == running));
    Ok(named.unwrap_or(program))
}

/// Waits, and says whether anything came in time.
fn wait_for_any(fds: &mut [PollFd<'_>], at_most: Option<Duration>) -> io::Result<bool> {
    let at_most = at_most.and_then(|duration| Timespec::try_from(duration).ok());
    match poll(fds, at_most.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How long an orderly end may take; a daemon that serves nobody yet has nothing to do then.
const PATIENCE: Duration = Duration::from_secs(5);
/// The name of the socket in its folder.
const SOCKET: &str = "notify";
/// Of one message.
const MESSAGE_MAX: usize = 4096;
