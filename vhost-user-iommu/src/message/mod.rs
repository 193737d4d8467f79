// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user message codec: messages, the payloads we look into, and a socket that carries them.
//!
//! It knows the form of messages, not their rules: which message may follow which, what a reply must hold, what a
//! feature implies is the business of whoever holds the [`Channel`]. Requests it has no name for pass through
//! unharmed, so that a relay can carry what it does not understand.
//!
//! Read first: the message specification in QEMU's `docs/interop/vhost-user.rst`; for IOTLB messages, `struct
//! vhost_iotlb_msg` in Linux' `linux/vhost_types.h`.

use std::os::fd::OwnedFd;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

mod channel;
pub mod features;
mod payload;
mod request;

#[cfg(test)]
mod tests;

pub use channel::{Channel, ChannelError, Frame, QUEUED_LEN_MAX, QUEUED_MESSAGES_MAX};
pub use payload::{
    Access, Config, ConfigHeader, IotlbKind, IotlbMessage, MemoryRegion, MemoryTableHeader, SingleRegion,
    VringAddress, VringFd, VringState, memory_table, memory_table_payload,
};
pub use request::{BackendRequest, FrontendRequest};

/// Longest payload of a message, in bytes. The longest that the protocol knows is a memory table of 32 regions, or
/// a whole device configuration space.
pub const PAYLOAD_LEN_MAX: usize = 4096;

/// Most file descriptors that one message carries.
pub const FDS_MAX: usize = 32;

/// The header's flags: the protocol version (1), and what part the message plays in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    const VERSION_MASK: u32 = 0x3;
    const VERSION: u32 = 0x1;

    /// A request that asks for no acknowledgement.
    pub const REQUEST: Flags = Flags(Self::VERSION);
    /// A request that asks for a reply where the request itself defines none (needs `REPLY_ACK`).
    pub const NEED_REPLY: Flags = Flags(Self::VERSION | 1 << 3);
    /// A reply.
    pub const REPLY: Flags = Flags(Self::VERSION | 1 << 2);

    /// Whether the version is the one this codec speaks.
    pub fn has_known_version(self) -> bool {
        self.0 & Self::VERSION_MASK == Self::VERSION
    }

    /// Whether the message is a reply.
    pub fn is_reply(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Whether the sender asks for an acknowledgement.
    pub fn needs_reply(self) -> bool {
        self.0 & 1 << 3 != 0
    }
}

/// One vhost-user message, whatever its direction.
#[derive(Debug)]
pub struct Message {
    /// What is asked: a [`FrontendRequest`] on the main connection, a [`BackendRequest`] on the back-end's.
    pub request: u32,
    /// Version and the part it plays.
    pub flags: Flags,
    /// Everything after the header, at most [`PAYLOAD_LEN_MAX`] bytes.
    pub payload: Vec<u8>,
    /// The file descriptors that came, or go, with it; at most [`FDS_MAX`].
    pub fds: Vec<OwnedFd>,
}

/// A payload that does not have the form its request calls for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("request {request}: payload of {found} bytes, expected {expected}")]
pub struct PayloadError {
    /// The message's request.
    pub request: u32,
    /// Bytes that the request calls for.
    pub expected: usize,
    /// Bytes that it has.
    pub found: usize,
}

impl Message {
    /// A request without file descriptors that asks for no acknowledgement; `payload` may be `&()`.
    pub fn new<P>(request: impl Into<u32>, payload: &P) -> Self
    where
        P: IntoBytes + Immutable + ?Sized,
    {
        let payload = payload.as_bytes().to_vec();
        Self { request: request.into(), flags: Flags::REQUEST, payload, fds: Vec::new() }
    }

    /// The same message, asking for an acknowledgement.
    pub fn with_need_reply(self) -> Self {
        Self { flags: Flags::NEED_REPLY, ..self }
    }

    /// The same message with other contents.
    pub fn with_payload<P>(self, payload: &P) -> Self
    where
        P: IntoBytes + Immutable + ?Sized,
    {
        Self { payload: payload.as_bytes().to_vec(), ..self }
    }

    /// The same message, carrying these file descriptors.
    pub fn with_fds(self, fds: Vec<OwnedFd>) -> Self {
        Self { fds, ..self }
    }

    /// The reply to this message.
    pub fn reply<P>(&self, payload: &P) -> Self
    where
        P: IntoBytes + Immutable + ?Sized,
    {
        Self { flags: Flags::REPLY, ..Self::new(self.request, payload) }
    }

    /// The payload as a `T`.
    ///
    /// # Errors
    /// The payload is not exactly as long as a `T`.
    pub fn body<T: FromBytes>(&self) -> Result<T, PayloadError> {
        T::read_from_bytes(&self.payload).map_err(|_| self.payload_error(size_of::<T>()))
    }

    fn payload_error(&self, expected: usize) -> PayloadError {
        PayloadError { request: self.request, expected, found: self.payload.len() }
    }
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

impl Frame for Message {
    const HEADER_LEN: usize = size_of::<Header>();
    const QUEUED_LEN_MAX: usize = QUEUED_LEN_MAX;

    fn len_of(header: &[u8]) -> Result<usize, ChannelError> {
        let (Header { request, flags, size }, _) = header_of(header);
        let size = size as usize;
        if !Flags(flags).has_known_version() {
            return Err(ChannelError::BadVersion { request, flags });
        }
        if size > PAYLOAD_LEN_MAX {
            return Err(ChannelError::TooLong { request, size });
        }
        Ok(Self::HEADER_LEN + size)
    }

    fn from_parts(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        let (Header { request, flags, .. }, payload) = header_of(&bytes);
        Self { request, flags: Flags(flags), payload: payload.to_vec(), fds }
    }

    fn into_parts(self) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        let Self { request, flags, payload, fds } = self;
        let size = payload.len();
        if size > PAYLOAD_LEN_MAX {
            return Err(ChannelError::TooLong { request, size });
        }
        let header = Header { request, flags: flags.0, size: size as u32 };
        Ok(([header.as_bytes(), &payload].concat(), fds))
    }
}

/// The header that a message begins with, and what follows it.
fn header_of(bytes: &[u8]) -> (Header, &[u8]) {
    Header::read_from_prefix(bytes).unwrap_or((Header { request: 0, flags: 0, size: 0 }, &[]))
}
