// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vfio-user message codec: messages, and the payloads that a relay looks into.
//!
//! It knows the form of messages, not their rules. Commands that it has no name for keep their number.
//!
//! Read first: "Header", "VFIO_USER_DMA_MAP" and "Read and Write Operations" in QEMU's `docs/interop/vfio-user.rst`.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::message::{ChannelError, Frame};

/// Most bytes of data in a message, which is what the protocol has unless both sides say otherwise.
pub const DATA_LEN_MAX: usize = 1 << 20;

/// Longest message, in bytes: one with data, and the headers before.
pub const MESSAGE_LEN_MAX: usize = DATA_LEN_MAX + 4096;

/// Declares an open enumeration of commands that prints the protocol's name where there is one.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message is about.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct Command(pub u16);

        impl Command {
            $($(#[$doc])* pub const $name: Self = Self($number);)*
        }

        impl fmt::Debug for Command {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self(number) => write!(f, "command {number}"),
                }
            }
        }
    };
}

commands! {
    /// Proposes a version and capabilities; the first of a connection.
    VERSION = 1,
    /// Gives the server memory at DMA addresses.
    DMA_MAP = 2,
    /// Takes it back.
    DMA_UNMAP = 3,
    /// Asks what kind of device it is.
    DEVICE_GET_INFO = 4,
    /// Asks for one of its regions.
    DEVICE_GET_REGION_INFO = 5,
    /// Asks for file descriptors that stand for accesses to a region.
    DEVICE_GET_REGION_IO_FDS = 6,
    /// Asks for one kind of its interrupts.
    DEVICE_GET_IRQ_INFO = 7,
    /// Sets interrupts up.
    DEVICE_SET_IRQS = 8,
    /// Reads from a region.
    REGION_READ = 9,
    /// Writes to a region.
    REGION_WRITE = 10,
    /// The server reads memory.
    DMA_READ = 11,
    /// The server writes memory.
    DMA_WRITE = 12,
    /// Resets the device.
    DEVICE_RESET = 13,
    /// Writes to regions, several times.
    REGION_WRITE_MULTI = 15,
    /// Reads or sets a feature, those of migration among them.
    DEVICE_FEATURE = 16,
    /// Reads the device's state.
    MIG_DATA_READ = 17,
    /// Writes the device's state.
    MIG_DATA_WRITE = 18,
}

/// The header's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    const TYPE_MASK: u32 = 0xf;

    /// A command that is to be answered.
    pub const COMMAND: Flags = Flags(0);
    /// A reply to one that was carried out.
    pub const REPLY: Flags = Flags(1);
    /// A reply to one that was not.
    pub const ERROR: Flags = Flags(1 | 1 << 5);
    /// A command that is not to be answered.
    pub const NO_REPLY: Flags = Flags(1 << 4);

    /// Whether the message is one of the two types there are.
    fn has_known_type(self) -> bool {
        self.0 & Self::TYPE_MASK <= 1
    }

    /// Whether the message is a reply.
    pub fn is_reply(self) -> bool {
        self.0 & Self::TYPE_MASK == 1
    }

    /// Whether a reply says that something failed.
    pub fn is_error(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// Whether a command is to be answered.
    pub fn wants_reply(self) -> bool {
        self.0 & Self::NO_REPLY.0 == 0
    }
}

/// One message, whatever its direction.
#[derive(Debug)]
pub struct Message {
    /// The sender's; a reply has that of its command.
    pub id: u16,
    /// What it is about.
    pub command: Command,
    /// Which part it plays.
    pub flags: Flags,
    /// The error number of a reply that is an error; it may be 0.
    pub error: u32,
    /// Everything after the header.
    pub payload: Vec<u8>,
    /// The file descriptors that came, or go, with it.
    pub fds: Vec<OwnedFd>,
}

/// The header of a message, in native byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    id: u16,
    command: u16,
    size: u32,
    flags: u32,
    error: u32,
}
const _: () = assert!(size_of::<Header>() == 16);

impl Message {
    /// A command that is to be answered; `payload` may be `&()`.
    pub fn command<P: IntoBytes + Immutable + ?Sized>(id: u16, command: Command, payload: &P) -> Message {
        let payload = payload.as_bytes().to_vec();
        Message { id, command, flags: Flags::COMMAND, error: 0, payload, fds: Vec::new() }
    }

    /// The same message with these file descriptors.
    pub fn with_fds(self, fds: Vec<OwnedFd>) -> Message {
        Message { fds, ..self }
    }

    /// The reply to this command.
    pub fn reply<P: IntoBytes + Immutable + ?Sized>(&self, payload: &P) -> Message {
        Message { flags: Flags::REPLY, ..Message::command(self.id, self.command, payload) }
    }

    /// The reply to this command that it failed.
    pub fn refusal(&self, errno: Errno) -> Message {
        let error = errno.raw_os_error().unsigned_abs();
        Message { flags: Flags::ERROR, error, ..Message::command(self.id, self.command, &()) }
    }

    /// The payload as a `T`, if it is exactly as long as one.
    pub fn body<T: FromBytes>(&self) -> Option<T> {
        T::read_from_bytes(&self.payload).ok()
    }

    /// The payload as a `T` and the data that follows it.
    pub fn body_with_data<T: FromBytes>(&self) -> Option<(T, &[u8])> {
        T::read_from_prefix(&self.payload).ok()
    }
}

impl Frame for Message {
    const HEADER_LEN: usize = size_of::<Header>();
    const QUEUED_LEN_MAX: usize = 4 * MESSAGE_LEN_MAX;

    fn len_of(header: &[u8]) -> Result<usize, ChannelError> {
        let (Header { command, size, flags, .. }, _) = header_of(header);
        let is_sound = (Self::HEADER_LEN..=MESSAGE_LEN_MAX).contains(&(size as usize));
        match is_sound && Flags(flags).has_known_type() {
            true => Ok(size as usize),
            false => Err(ChannelError::BadHeader { command, size, flags }),
        }
    }

    fn from_parts(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        let (Header { id, command, flags, error, .. }, payload) = header_of(&bytes);
        let payload = payload.to_vec();
        Message { id, command: Command(command), flags: Flags(flags), error, payload, fds }
    }

    fn into_parts(self) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        let Message { id, command: Command(command), flags: Flags(flags), error, payload, fds } = self;
        let size = u32::try_from(Self::HEADER_LEN.saturating_add(payload.len())).unwrap_or(u32::MAX);
        if size as usize > MESSAGE_LEN_MAX {
            return Err(ChannelError::BadHeader { command, size, flags });
        }
        let header = Header { id, command, size, flags, error };
        Ok(([header.as_bytes(), &payload].concat(), fds))
    }
}

/// The header that a message begins with, and what follows it.
fn header_of(bytes: &[u8]) -> (Header, &[u8]) {
    const NONE: Header = Header { id: 0, command: 0, size: 0, flags: 0, error: 0 };
    Header::read_from_prefix(bytes).unwrap_or((NONE, &[]))
}

/// What VERSION begins with; JSON and a NUL may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// Of an incompatible change.
    pub major: u16,
    /// Of a compatible one.
    pub minor: u16,
}

/// The payload of DMA_MAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this payload.
    pub argsz: u32,
    /// [`DmaMap::READ`] and [`DmaMap::WRITE`].
    pub flags: u32,
    /// Where the memory begins in the file that comes along.
    pub offset: u64,
    /// The first DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}
const _: () = assert!(size_of::<DmaMap>() == 32);

impl DmaMap {
    /// The server may read.
    pub const READ: u32 = 1;
    /// The server may write.
    pub const WRITE: u32 = 2;
}

/// The payload of DMA_UNMAP, and of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of the reply's payload at most.
    pub argsz: u32,
    /// None, or [`DmaUnmap::ALL`].
    pub flags: u32,
    /// The first DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}
const _: () = assert!(size_of::<DmaUnmap>() == 24);

impl DmaUnmap {
    /// All that was mapped goes; QEMU has it from the ioctl, the protocol's text does not mention it.
    pub const ALL: u32 = 1 << 1;
}

/// What the payload of DMA_READ and DMA_WRITE, and of their replies, begins with; data may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaAccess {
    /// The first DMA address.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}
const _: () = assert!(size_of::<DmaAccess>() == 16);

/// What the payload of REGION_READ and REGION_WRITE, and of their replies, begins with; data may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}
const _: () = assert!(size_of::<RegionAccess>() == 16);

impl RegionAccess {
    /// The region that is the configuration space of a PCI function.
    pub const PCI_CONFIG: u32 = 7;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: Message) -> Message {
        let (bytes, fds) = message.into_parts().expect("it is short enough");
        assert_eq!(Message::len_of(&bytes[..16]).expect("a header"), bytes.len());
        Message::from_parts(bytes, fds)
    }

    #[test]
    fn a_message_is_sixteen_bytes_and_its_payload() {
        let map = DmaMap { argsz: 32, flags: 3, offset: 0x1000, address: 0x2000, size: 0x3000 };
        let (bytes, _) = Message::command(0x102, Command::DMA_MAP, &map).into_parts().expect("short enough");
        let header = [0x02, 0x01, 2, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((&bytes[..16], bytes.len()), (&header[..], 48));
        let message = round_trip(Message::command(7, Command::DMA_MAP, &map));
        assert_eq!((message.id, message.command, message.body()), (7, Command::DMA_MAP, Some(map)));
        assert!(message.body::<DmaUnmap>().is_none());
    }

    #[test]
    fn a_reply_has_the_id_of_its_command_and_an_error_its_number() {
        let command = Message::command(9, Command::DMA_READ, &DmaAccess { address: 1, count: 2 });
        let reply = round_trip(command.reply(&[1u8, 2]));
        assert!(reply.flags.is_reply() && !reply.flags.is_error() && reply.id == 9);
        let refusal = round_trip(command.refusal(Errno::FAULT));
        assert!(refusal.flags.is_reply() && refusal.flags.is_error() && refusal.payload.is_empty());
        assert_eq!((refusal.id, refusal.error), (9, 14));
    }

    #[test]
    fn a_header_of_no_message_is_refused() {
        let header = |size: u32, flags: u32| Header { id: 1, command: 2, size, flags, error: 0 };
        for (size, flags, is_sound) in [
            (16, 0, true),
            (16, 0x31, true),
            (15, 0, false),
            (0, 0, false),
            (MESSAGE_LEN_MAX as u32, 1, true),
            (MESSAGE_LEN_MAX as u32 + 1, 1, false),
            (u32::MAX, 0, false),
            (16, 2, false),
        ] {
            assert_eq!(Message::len_of(header(size, flags).as_bytes()).is_ok(), is_sound, "{size} {flags}");
        }
        let long = Message::command(1, Command::DMA_READ, &vec![0u8; MESSAGE_LEN_MAX][..]);
        assert!(long.into_parts().is_err());
    }
}
