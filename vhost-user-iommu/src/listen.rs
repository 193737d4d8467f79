// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets that others connect to: made at the start or when asked for, gone at the end.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::umask;

use crate::usage_error::UsageError;

/// The file of a listening socket, removed when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn at(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == self.identity {
            // It may be gone already, and nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What tells a file from another under the same name: its device and inode.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Listens at `path`, in place of a socket there that nobody listens on any more; `option` is where the user named
/// it.
///
/// # Errors
/// Somebody listens there, something else is there, or the path cannot be used.
pub fn listen(option: &'static str, path: &Path) -> Result<(UnixListener, SocketFile), UsageError> {
    let refuse = |problem: String, mend: &str| {
        UsageError::new(problem, mend).about(option, path.display().to_string())
    };
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if is_in_use(path) {
                return Err(refuse(
                    "the path is in use".to_owned(),
                    "name another, or end the program that uses it",
                ));
            }
            fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        bound => bound,
    };
    match bound {
        Ok(listener) => Ok((listener, SocketFile::at(path))),
        Err(error) => {
            let mend = "name a path of at most 107 bytes in a folder that exists and that you may write to";
            Err(refuse(format!("no socket can be made there: {error}"), mend))
        }
    }
}

/// The same, for nobody but this process's user. Only while there is no other thread, which would make files for nobody
/// else either.
///
/// # Errors
/// As [`listen`].
pub fn listen_privately(option: &'static str, path: &Path) -> Result<(UnixListener, SocketFile), UsageError> {
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listening = listen(option, path);
    umask(before);
    listening
}

/// Whether the path is anything but a socket that nobody listens on.
fn is_in_use(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let is_refused = || connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    !(is_socket && is_refused())
}

/// Connects without waiting: a listener that is busy with others counts as none.
///
/// # Errors
/// Nobody listens at `path`, or accepts; or the process has no file descriptor left.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::AGAIN) => Err(io::Error::other("it takes no more connections")),
        connected => Ok(connected.map(|()| UnixStream::from(socket))?),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use rustix::net::{bind, listen as listen_for};

    use super::*;

    /// Longest wait for what has to come.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_path_is_in_use_however_busy_the_one_is_who_listens_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("busy");
        let busy = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let busy = busy.expect("a socket");
        bind(&busy, &SocketAddrUnix::new(&path).expect("a path")).expect("the path is free");
        listen_for(&busy, 0).expect("it listens");
        let _waits = connect(&path).expect("as long as there is room");
        connect(&path).expect_err("there is none");
        let (sender, ended) = channel();
        thread::spawn(move || sender.send(is_in_use(&path)));
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(true), "nobody is waited for");
    }
}
