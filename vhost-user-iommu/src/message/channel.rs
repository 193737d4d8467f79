// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Unix socket that carries [`Message`]s without ever blocking its owner.
//!
//! It polls nothing by itself: the owner waits for the file descriptor, then calls [`Channel::receive`] until there
//! is no message, and [`Channel::flush`] while [`Channel::wants_write`]. It makes no difference between front-end
//! and back-end and checks no reply against its request.
//!
//! Read first: "Message Specification" in `vhost-user.rst`; `unix(7)` on ancillary data.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{FDS_MAX, Flags, Message, PAYLOAD_LEN_MAX};

/// Most messages that wait to be sent: a peer that reads nothing costs no more than this.
pub const QUEUED_MESSAGES_MAX: usize = 256;

/// Most bytes that wait to be sent.
pub const QUEUED_LEN_MAX: usize = 64 * 1024;

/// Why a channel cannot go on, or did not take a message. After any error of [`Channel::receive`] or
/// [`Channel::flush`] the conversation is over.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer closed the connection between two messages.
    #[error("disconnected")]
    Disconnected,
    /// The peer closed the connection inside a message.
    #[error("disconnected after {received} bytes of a message")]
    Truncated {
        /// Bytes of that message, header included, that had come.
        received: usize,
    },
    /// A header of another protocol version.
    #[error("request {request}: flags {flags:#x} have another version than 1")]
    BadVersion {
        /// The message's request.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// A payload of more than [`PAYLOAD_LEN_MAX`] bytes.
    #[error("request {request}: payload of {size} bytes is over the limit of {PAYLOAD_LEN_MAX}")]
    TooLong {
        /// The message's request.
        request: u32,
        /// Bytes of payload.
        size: usize,
    },
    /// A message with more than [`FDS_MAX`] file descriptors, or one whose file descriptors this process could not
    /// take: the kernel does not say which.
    #[error("more than {FDS_MAX} file descriptors in a message, or no room for them in this process")]
    TooManyFds,
    /// [`QUEUED_MESSAGES_MAX`] or [`QUEUED_LEN_MAX`] is reached: the peer does not read.
    #[error("the peer does not read: {messages} messages of {bytes} bytes wait to be sent")]
    QueueFull {
        /// Messages that wait.
        messages: usize,
        /// Bytes that wait.
        bytes: usize,
    },
    /// The socket failed.
    #[error("socket")]
    Io(#[from] Errno),
}

/// The header of a message, in native byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}
const _: () = assert!(size_of::<Header>() == 12);

/// One end of a vhost-user connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    incoming: Incoming,
    outgoing: VecDeque<Outgoing>,
    outgoing_len: usize,
}

/// The message that is being received: its bytes up to now, and what came with them.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A message that is being sent: its file descriptors are gone with the first byte.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Channel {
    /// A channel over a connected socket. The socket's own blocking mode is neither used nor changed.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: Incoming::default(), outgoing: VecDeque::new(), outgoing_len: 0 }
    }

    /// The next message, or nothing as long as it has not come whole. Never waits.
    ///
    /// # Errors
    /// The peer is gone, the socket failed, or what came is no message; file descriptors that came with it are
    /// closed.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        let received = self.receive_message();
        if received.is_err() {
            self.incoming.fds.clear();
        }
        received
    }

    /// Puts a message at the end of those that wait to be sent; [`Channel::flush`] sends them.
    ///
    /// # Errors
    /// The message is over one of the limits; it is dropped, and the channel is as it was.
    pub fn queue(&mut self, message: Message) -> Result<(), ChannelError> {
        let Message { request, flags, payload, fds } = message;
        let size = payload.len();
        if size > PAYLOAD_LEN_MAX {
            return Err(ChannelError::TooLong { request, size });
        }
        if fds.len() > FDS_MAX {
            return Err(ChannelError::TooManyFds);
        }
        let bytes_waiting = self.outgoing_len + size_of::<Header>() + size;
        if self.outgoing.len() >= QUEUED_MESSAGES_MAX || bytes_waiting > QUEUED_LEN_MAX {
            return Err(ChannelError::QueueFull { messages: self.outgoing.len(), bytes: self.outgoing_len });
        }
        let header = Header { request, flags: flags.0, size: size as u32 };
        let bytes = [header.as_bytes(), &payload].concat();
        self.outgoing.push_back(Outgoing { bytes, sent: 0, fds });
        self.outgoing_len = bytes_waiting;
        Ok(())
    }

    /// Sends what waits, as much as the socket takes. Never waits.
    ///
    /// # Errors
    /// The peer is gone or the socket failed.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        while let Some(message) = self.outgoing.front_mut() {
            let Some(sent) = message.send(self.socket.as_fd())? else {
                return Ok(());
            };
            self.outgoing_len -= sent;
            if message.sent == message.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// Whether something waits to be sent: then the owner also polls for writing.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    fn receive_message(&mut self) -> Result<Option<Message>, ChannelError> {
        loop {
            let missing = self.incoming.missing()?;
            if missing == 0 {
                return Ok(Some(self.incoming.take()));
            }
            if !self.incoming.read(self.socket.as_fd(), missing)? {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Incoming {
    fn header(&self) -> Option<Header> {
        Header::read_from_prefix(&self.bytes).ok().map(|(header, _)| header)
    }

    /// How many bytes of the header or, after it, of the whole message are missing. Refuses a header that cannot
    /// be served.
    fn missing(&self) -> Result<usize, ChannelError> {
        let Some(Header { request, flags, size }) = self.header() else {
            return Ok(size_of::<Header>() - self.bytes.len());
        };
        let size = size as usize;
        if !Flags(flags).has_known_version() {
            return Err(ChannelError::BadVersion { request, flags });
        }
        if size > PAYLOAD_LEN_MAX {
            return Err(ChannelError::TooLong { request, size });
        }
        Ok(size_of::<Header>() + size - self.bytes.len())
    }

    /// Reads up to `missing` bytes, and never more: so what arrives with them belongs to this message. False when
    /// there is nothing to read.
    fn read(&mut self, socket: BorrowedFd<'_>, missing: usize) -> Result<bool, ChannelError> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let start = self.bytes.len();
        self.bytes.resize(start + missing, 0);
        let buffer = &mut [IoSliceMut::new(&mut self.bytes[start..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| recvmsg(socket, buffer, &mut control, flags));
        self.bytes.truncate(start + received.as_ref().map_or(0, |received| received.bytes));
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::CONNRESET) => return Err(self.end()),
            Err(errno) => return Err(errno.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_MAX {
            return Err(ChannelError::TooManyFds);
        }
        if received.bytes == 0 { Err(self.end()) } else { Ok(true) }
    }

    /// What the end of the connection means at this point.
    fn end(&self) -> ChannelError {
        match self.bytes.len() {
            0 => ChannelError::Disconnected,
            received => ChannelError::Truncated { received },
        }
    }

    /// The message, of which nothing is missing.
    fn take(&mut self) -> Message {
        let Incoming { mut bytes, fds } = std::mem::take(self);
        let (request, flags) = Header::read_from_prefix(&bytes).map_or((0, 0), |(h, _)| (h.request, h.flags));
        bytes.drain(..size_of::<Header>());
        Message { request, flags: Flags(flags), payload: bytes, fds }
    }
}

impl Outgoing {
    /// Sends what is left, or a part of it: how many bytes went, or nothing if the socket takes none now.
    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<Option<usize>, ChannelError> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let buffer = &[IoSlice::new(&self.bytes[self.sent..])];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match rustix::io::retry_on_intr(|| sendmsg(socket, buffer, &mut control, flags)) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Disconnected),
            Err(errno) => return Err(errno.into()),
        };
        self.sent += sent;
        self.fds.clear();
        Ok(Some(sent))
    }
}
