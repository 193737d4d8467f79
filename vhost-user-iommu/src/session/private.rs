// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections of this process to itself.
//!
//! `vhost-user-backend` takes its connection from a listening socket and from nowhere else. This one has no name by the
//! time anybody could look for it: its file is gone, and what is left of it is a descriptor that nobody else holds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{Mode, OFlags, open};
use vhost::vhost_user::Listener;

/// A socket that this process alone can connect to.
#[derive(Debug)]
pub struct Private {
    listener: UnixListener,
    /// The socket's inode, which takes the place of its name.
    inode: OwnedFd,
}

impl Private {
    /// A new one.
    ///
    /// # Errors
    /// No file can be made in the folder for temporary files, or the process has no file descriptor left.
    pub fn new() -> io::Result<Private> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("session");
        let listener = UnixListener::bind(&path)?;
        let inode = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Private { listener, inode })
    }

    /// A new connection, and what accepts its other end.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn connect(&self) -> io::Result<(UnixStream, Listener)> {
        let listener = Listener::from(self.listener.try_clone()?);
        Ok((UnixStream::connect(format!("/proc/self/fd/{}", self.inode.as_raw_fd()))?, listener))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn each_connection_is_accepted_and_leaves_no_file() {
        let private = Private::new().expect("a socket");
        for _ in 0..2 {
            let (mut ours, listener) = private.connect().expect("it listens");
            ours.write_all(b"x").expect("sent");
            drop(ours);
            let mut accepted = listener.accept().expect("a connection").expect("at once");
            let mut bytes = Vec::new();
            accepted.read_to_end(&mut bytes).expect("received");
            assert_eq!(bytes, b"x");
        }
    }
}
