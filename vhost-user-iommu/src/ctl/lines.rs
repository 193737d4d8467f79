// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines of text over a Unix socket, one of which can take a file along. Nothing is waited for without end.
//!
//! Knows nothing of what the lines say. To read: `unix(7)`, `SCM_RIGHTS`.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

/// A connection to whoever listens at a path.
#[derive(Debug)]
pub struct Lines(BufReader<UnixStream>);

impl Lines {
    /// Connects; does not wait for somebody to have time for it.
    ///
    /// # Errors
    /// Nobody listens there, or so many are waiting that there is no room.
    pub fn connect(path: &Path) -> io::Result<Lines> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?).map_err(|errno| match errno {
            Errno::AGAIN => io::Error::other("too many others wait for it"),
            errno => errno.into(),
        })?;
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false)?;
        Ok(Lines(BufReader::new(socket)))
    }

    /// Sends a line, to which this adds the end, with `file`.
    ///
    /// # Errors
    /// The other end is gone, or has not taken it `within` that time.
    pub fn send(&mut self, line: &str, file: Option<BorrowedFd<'_>>, within: Duration) -> io::Result<()> {
        let mut socket = self.0.get_ref();
        socket.set_write_timeout(Some(within))?;
        let line = format!("{line}\n");
        let files: Vec<_> = file.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let sent = sendmsg(socket, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::NOSIGNAL);
        let sent = sent.map_err(io::Error::from).map_err(in_words)?;
        socket.write_all(line.as_bytes().get(sent..).unwrap_or_default()).map_err(in_words)
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// It is not there in time, too long or no text, or there is nothing more to come.
    pub fn receive(&mut self, until: Instant) -> io::Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if line.len() > LINE_MAX {
                return Err(io::Error::new(ErrorKind::InvalidData, "a line is too long"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(in_words(ErrorKind::WouldBlock.into()));
            }
            self.0.get_ref().set_read_timeout(Some(left))?;
            let bytes = self.0.fill_buf().map_err(in_words)?;
            if bytes.is_empty() {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection is closed"));
            }
            let piece = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or(bytes);
            line.extend_from_slice(piece);
            let length = piece.len();
            self.0.consume(length);
        }
        line.pop();
        String::from_utf8(line).map_err(|_| io::Error::new(ErrorKind::InvalidData, "a line is no text"))
    }
}

/// A time that is over is told as a file that would block.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, "the time for it is over")
        }
        _ => error,
    }
}

/// Bytes of a line at most, and what one read may add.
const LINE_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// What comes of the first line of somebody who sends `text`, and then is silent or closes.
    fn first_line(text: Vec<u8>, is_closed: bool) -> io::Result<String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut lines = Lines::connect(&path).expect("it listens");
        let (mut peer, _) = listener.accept().expect("a client");
        let writer = thread::spawn(move || {
            // Fails where the reader has had enough.
            let _ = peer.write_all(&text);
            (!is_closed).then_some(peer)
        });
        let line = lines.receive(Instant::now() + if is_closed { 100 * SOON } else { SOON });
        drop(lines);
        writer.join().expect("no panic");
        line
    }

    #[test]
    fn a_line_is_text_that_ends_in_time() {
        assert_eq!(first_line(b"a\nb\n".to_vec(), true).expect("a line"), "a");
        assert_eq!(first_line(b"\n".to_vec(), false).expect("a line"), "");
        for (text, is_closed, kind) in [
            (b"a".to_vec(), false, ErrorKind::TimedOut),
            (b"a".to_vec(), true, ErrorKind::UnexpectedEof),
            (b"\xff\n".to_vec(), false, ErrorKind::InvalidData),
            (vec![b'a'; LINE_MAX + (1 << 20)], true, ErrorKind::InvalidData),
        ] {
            assert_eq!(first_line(text, is_closed).expect_err("no line").kind(), kind);
        }
    }

    #[test]
    fn who_is_not_served_does_not_wait_for_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("a socket");
        let mut lines: Vec<Lines> = Vec::new();
        let error = loop {
            match Lines::connect(&path) {
                Ok(one) => lines.push(one),
                Err(error) => break error,
            }
        };
        assert_eq!(error.to_string(), "too many others wait for it");
        let text = "a".repeat(1 << 20);
        let error = lines[0].send(&text, None, SOON).expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
