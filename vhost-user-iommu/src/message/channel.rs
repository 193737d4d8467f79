// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Unix socket that carries messages without ever blocking its owner.
//!
//! It polls nothing by itself: the owner waits for the file descriptor, then calls [`Channel::receive`] until there
//! is no message, and [`Channel::flush`] while [`Channel::wants_write`]. It makes no difference between front-end
//! and back-end and checks no reply against its request.
//!
//! Read first: "Message Specification" in `vhost-user.rst`, "Header" in `vfio-user.rst`; `unix(7)` on ancillary data.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
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

use super::{FDS_MAX, Message, PAYLOAD_LEN_MAX};

/// Most messages that wait to be sent: a peer that reads nothing costs no more than this.
pub const QUEUED_MESSAGES_MAX: usize = 256;

/// Most bytes of vhost-user messages that wait to be sent.
pub const QUEUED_LEN_MAX: usize = 64 * 1024;

/// What a [`Channel`] carries: messages of a header that tells their length, and what follows it.
pub trait Frame: Sized {
    /// Bytes of the header.
    const HEADER_LEN: usize;
    /// Most bytes that wait to be sent.
    const QUEUED_LEN_MAX: usize;

    /// Bytes of the whole message, at least those of its header.
    ///
    /// # Errors
    /// No message begins with this header, or it is too long.
    fn len_of(header: &[u8]) -> Result<usize, ChannelError>;

    /// The message of these bytes, which are as many as its header tells.
    fn from_parts(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Self;

    /// Its bytes and file descriptors.
    ///
    /// # Errors
    /// It is too long.
    fn into_parts(self) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError>;
}

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
    /// A header that no vfio-user message has.
    #[error("command {command}: no message of {size} bytes has the flags {flags:#x}")]
    BadHeader {
        /// The message's command.
        command: u16,
        /// Bytes that it announces.
        size: u32,
        /// Its flags.
        flags: u32,
    },
    /// A message with more than [`FDS_MAX`] file descriptors, or one whose file descriptors this process could not
    /// take: the kernel does not say which.
    #[error("more than {FDS_MAX} file descriptors in a message, or no room for them in this process")]
    TooManyFds,
    /// [`QUEUED_MESSAGES_MAX`] or [`Frame::QUEUED_LEN_MAX`] is reached: the peer does not read.
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

/// One end of a connection.
#[derive(Debug)]
pub struct Channel<M = Message> {
    socket: UnixStream,
    incoming: Incoming,
    outgoing: VecDeque<Outgoing>,
    outgoing_len: usize,
    carries: PhantomData<M>,
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

impl<M: Frame> Channel<M> {
    /// A channel over a connected socket. The socket's own blocking mode is neither used nor changed.
    pub fn new(socket: UnixStream) -> Self {
        let (incoming, outgoing) = (Incoming::default(), VecDeque::new());
        Self { socket, incoming, outgoing, outgoing_len: 0, carries: PhantomData }
    }

    /// The next message, or nothing as long as it has not come whole. Never waits.
    ///
    /// # Errors
    /// The peer is gone, the socket failed, or what came is no message; file descriptors that came with it are
    /// closed.
    pub fn receive(&mut self) -> Result<Option<M>, ChannelError> {
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
    pub fn queue(&mut self, message: M) -> Result<(), ChannelError> {
        let (bytes, fds) = message.into_parts()?;
        if fds.len() > FDS_MAX {
            return Err(ChannelError::TooManyFds);
        }
        let bytes_waiting = self.outgoing_len + bytes.len();
        if self.outgoing.len() >= QUEUED_MESSAGES_MAX || bytes_waiting > M::QUEUED_LEN_MAX {
            return Err(ChannelError::QueueFull { messages: self.outgoing.len(), bytes: self.outgoing_len });
        }
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

    /// Whether less than half of what may wait to be sent does: an owner that would answer with more goes on then.
    pub fn has_room(&self) -> bool {
        self.outgoing.len() < QUEUED_MESSAGES_MAX / 2 && self.outgoing_len < M::QUEUED_LEN_MAX / 2
    }

    fn receive_message(&mut self) -> Result<Option<M>, ChannelError> {
        loop {
            let missing = self.incoming.missing::<M>()?;
            if missing == 0 {
                let Incoming { bytes, fds } = std::mem::take(&mut self.incoming);
                return Ok(Some(M::from_parts(bytes, fds)));
            }
            if !self.incoming.read(self.socket.as_fd(), missing)? {
                return Ok(None);
            }
        }
    }
}

impl<M> AsFd for Channel<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Incoming {
    /// How many bytes of the header or, after it, of the whole message are missing. Refuses a header that cannot
    /// be served.
    fn missing<M: Frame>(&self) -> Result<usize, ChannelError> {
        match self.bytes.split_at_checked(M::HEADER_LEN) {
            None => Ok(M::HEADER_LEN - self.bytes.len()),
            Some((header, rest)) => Ok((M::len_of(header)? - M::HEADER_LEN) - rest.len()),
        }
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
