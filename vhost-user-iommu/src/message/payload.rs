// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The payloads that somebody here looks into, as they lie in a message: native byte order, C layout.
//!
//! Nothing is checked but lengths: what the values mean, and whether they make sense, is the reader's to decide.
//!
//! Read first: "Message Specification" in `vhost-user.rst`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BackendRequest, FDS_MAX, FrontendRequest, Message, PayloadError};

/// A number for one ring (`struct vhost_vring_state`): its size, its base, or whether it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// The ring's index.
    pub index: u32,
    /// The number.
    pub num: u32,
}
const _: () = assert!(size_of::<VringState>() == 8);

/// Where a ring lies (`struct vhost_vring_addr`). The addresses are the front-end's user addresses, or IOVAs when
/// `ACCESS_PLATFORM` was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddress {
    /// The ring's index.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// Where in the log writes to the used ring are recorded.
    pub log: u64,
}
const _: () = assert!(size_of::<VringAddress>() == 40);

/// The payload of the requests that give a ring an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringFd(pub u64);

impl VringFd {
    /// The ring's index.
    pub fn index(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    /// Whether the message says that there is no eventfd: the ring is to be polled.
    pub fn has_no_fd(self) -> bool {
        self.0 & 1 << 8 != 0
    }
}

/// What a memory table starts with; its regions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryTableHeader {
    /// How many regions follow.
    pub count: u32,
    /// Nothing.
    pub padding: u32,
}
const _: () = assert!(size_of::<MemoryTableHeader>() == 8);

/// One piece of guest memory that the front-end shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Where the front-end sees it: a key for addresses in other messages, never a pointer.
    pub user_address: u64,
    /// Where in the file it starts.
    pub mmap_offset: u64,
}
const _: () = assert!(size_of::<MemoryRegion>() == 32);

/// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SingleRegion {
    /// Nothing.
    pub padding: u64,
    /// The region.
    pub region: MemoryRegion,
}
const _: () = assert!(size_of::<SingleRegion>() == 40);

/// What `GET_CONFIG` and `SET_CONFIG` start with; `size` bytes of configuration space follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigHeader {
    /// Where in the configuration space.
    pub offset: u32,
    /// How many bytes.
    pub size: u32,
    /// 0: by the driver; 1: by a migration.
    pub flags: u32,
}
const _: () = assert!(size_of::<ConfigHeader>() == 12);

/// A piece of configuration space: the whole payload of `GET_CONFIG` and `SET_CONFIG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which piece.
    pub header: ConfigHeader,
    /// Its `header.size` bytes.
    pub bytes: Vec<u8>,
}

impl Config {
    /// Reads the payload of a `GET_CONFIG` or `SET_CONFIG`.
    ///
    /// # Errors
    /// The payload is not as long as its header says.
    pub fn parse(message: &Message) -> Result<Self, PayloadError> {
        let (header, bytes) = ConfigHeader::read_from_prefix(&message.payload)
            .map_err(|_| message.payload_error(size_of::<ConfigHeader>()))?;
        if bytes.len() != header.size as usize {
            return Err(message.payload_error(size_of::<ConfigHeader>().saturating_add(header.size as usize)));
        }
        Ok(Self { header, bytes: bytes.to_vec() })
    }

    /// The payload, to be sent.
    pub fn payload(&self) -> Vec<u8> {
        [self.header.as_bytes(), &self.bytes].concat()
    }
}

/// What an IOTLB message is about (`VHOST_IOTLB_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct IotlbKind(pub u8);

impl IotlbKind {
    /// The back-end has no translation for this address and access.
    pub const MISS: Self = Self(1);
    /// A translation.
    pub const UPDATE: Self = Self(2);
    /// These translations no longer hold.
    pub const INVALIDATE: Self = Self(3);
    /// The back-end was refused an access.
    pub const ACCESS_FAIL: Self = Self(4);
}

/// What may be done, or is wanted, at an address (`VHOST_ACCESS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Access(pub u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reading.
    pub const READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// Whether everything in `wanted` is in this.
    pub fn allows(self, wanted: Access) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// An IOTLB message of either direction (`struct vhost_iotlb_msg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IotlbMessage {
    /// The first address.
    pub iova: u64,
    /// How many bytes; 0 in a miss.
    pub size: u64,
    /// Where `iova` lies in the front-end's address space; meaningful in an update alone.
    pub user_address: u64,
    /// What may be done, or is wanted.
    pub access: Access,
    /// What the message is about.
    pub kind: IotlbKind,
    /// Nothing.
    pub padding: [u8; 6],
}
const _: () = assert!(size_of::<IotlbMessage>() == 32);

impl IotlbMessage {
    /// Asks for the translation of `iova`.
    pub fn miss(iova: u64, access: Access) -> Self {
        Self { iova, size: 0, user_address: 0, access, kind: IotlbKind::MISS, padding: [0; 6] }
    }

    /// Says that `iova` and what follows it lie at `user_address`.
    pub fn update(iova: u64, size: u64, user_address: u64, access: Access) -> Self {
        Self { iova, size, user_address, access, kind: IotlbKind::UPDATE, padding: [0; 6] }
    }

    /// Says that translations in this range no longer hold.
    pub fn invalidate(iova: u64, size: u64) -> Self {
        Self {
            iova,
            size,
            user_address: 0,
            access: Access::NONE,
            kind: IotlbKind::INVALIDATE,
            padding: [0; 6],
        }
    }
}

/// The regions of a `SET_MEM_TABLE` message.
///
/// # Errors
/// The payload's length is not that of as many regions as it announces, or they are more than [`FDS_MAX`].
pub fn memory_table(message: &Message) -> Result<Vec<MemoryRegion>, PayloadError> {
    let (header, rest) = MemoryTableHeader::read_from_prefix(&message.payload)
        .map_err(|_| message.payload_error(size_of::<MemoryTableHeader>()))?;
    let count = header.count as usize;
    let expected = count.min(FDS_MAX) * size_of::<MemoryRegion>();
    if count > FDS_MAX || rest.len() != expected {
        return Err(message.payload_error(size_of::<MemoryTableHeader>() + expected));
    }
    let regions = rest.chunks_exact(size_of::<MemoryRegion>());
    Ok(regions.filter_map(|bytes| MemoryRegion::read_from_bytes(bytes).ok()).collect())
}

/// The payload of a `SET_MEM_TABLE` message of these regions (at most [`FDS_MAX`]).
pub fn memory_table_payload(regions: &[MemoryRegion]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let header = MemoryTableHeader { count, padding: 0 };
    [header.as_bytes(), regions.as_bytes()].concat()
}

impl From<&IotlbMessage> for Message {
    /// A request in the direction that this kind of message goes.
    fn from(message: &IotlbMessage) -> Self {
        match message.kind {
            IotlbKind::MISS | IotlbKind::ACCESS_FAIL => Self::new(BackendRequest::IOTLB_MSG, message),
            _ => Self::new(FrontendRequest::IOTLB_MSG, message),
        }
    }
}
