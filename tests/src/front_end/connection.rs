// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user connection as bytes: any message, malformed ones too, with any file descriptors.
//!
//! Checks nothing and waits never longer than it is told. To read: QEMU,
//! `docs/interop/vhost-user.rst`, "Message Specification".

use std::{
    io::{self, ErrorKind, IoSlice, Read},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::{FromBytes, Immutable, IntoBytes, native_endian::U32};

/// One side of a connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

/// A message of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The number of the request.
    pub request: u32,
    /// [`VERSION`], and some of [`REPLY`] and [`NEED_REPLY`].
    pub flags: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// What a message begins with.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    request: U32,
    flags: U32,
    size: U32,
}

impl Message {
    /// A request of this version that asks for no acknowledgement.
    pub fn new(request: u32, body: impl Into<Vec<u8>>) -> Message {
        Message { request, flags: VERSION, body: body.into() }
    }

    /// The message as it goes over the connection.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header {
            request: self.request.into(),
            flags: self.flags.into(),
            size: u32::try_from(self.body.len()).expect("a short body").into(),
        };
        [header.as_bytes(), &self.body].concat()
    }
}

impl Connection {
    /// Connects to the socket at `path`, which has `limit` to come to be.
    ///
    /// # Errors
    /// Nobody listening there in time.
    pub fn open(path: &Path, limit: Duration) -> io::Result<Connection> {
        let deadline = Instant::now() + limit;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Connection { stream }),
                Err(error) if Instant::now() >= deadline => return Err(error),
                // A file system has no event for "somebody listens now".
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The connection over an open socket.
    pub fn of(stream: UnixStream) -> Connection {
        Connection { stream }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message with `fds`.
    ///
    /// # Errors
    /// A connection that the other side has closed, or that takes nothing for a minute.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_bytes(&message.to_bytes(), fds)
    }

    /// Sends bytes, which need not be a message, with `fds`.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(SEND_LIMIT))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        let mut sent = 0;
        while sent < bytes.len() {
            // The descriptors go with the first byte, once.
            sent +=
                sendmsg(&self.stream, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL)?;
            control.clear();
        }
        Ok(())
    }

    /// Sends a message and receives the next one.
    ///
    /// # Errors
    /// As for [`send`](Self::send) and [`receive`](Self::receive).
    pub fn call(&self, message: &Message, fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Message> {
        self.send(message, fds)?;
        self.receive(limit)
    }

    /// The next message; descriptors that come with it are dropped.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] when the other side has closed the connection,
    /// [`ErrorKind::WouldBlock`] when nothing comes for `limit`.
    pub fn receive(&self, limit: Duration) -> io::Result<Message> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut header = [0; size_of::<Header>()];
        (&self.stream).read_exact(&mut header)?;
        let header = Header::read_from_bytes(&header).expect("its size");
        let mut body = vec![0; usize::try_from(header.size.get()).expect("fits")];
        (&self.stream).read_exact(&mut body)?;
        Ok(Message { request: header.request.get(), flags: header.flags.get(), body })
    }

    /// Waits until the other side closes the connection; messages that it still sends are dropped.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when it is silent for `limit` and does not.
    pub fn wait_closed(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut rest = [0; 256];
        loop {
            match (&self.stream).read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Version 1, in the flags of every message.
pub const VERSION: u32 = 1;
/// In the flags of a message: it is a reply.
pub const REPLY: u32 = 1 << 2;
/// In the flags of a message: the sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;

const SEND_LIMIT: Duration = Duration::from_secs(60);
/// One more than a vhost-user message may carry, so that a test can send too many.
const FDS_MAX: usize = 33;
