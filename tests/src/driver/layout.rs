// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a split virtqueue consists of, as it lies in guest memory.
//!
//! Types only. To read: virtio 1.4, "Split Virtqueues".

use zerocopy::{
    FromBytes, Immutable, IntoBytes,
    little_endian::{U16, U32, U64},
};

/// Where the three parts of a queue lie, as GPAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

/// A piece of guest memory that a chain lends to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The first GPA.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`flags::WRITE`] or nothing.
    pub(super) flags: u16,
}

/// A descriptor as it lies in guest memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Descriptor {
    /// The first GPA.
    pub address: U64,
    /// Bytes.
    pub length: U32,
    /// Some of [`flags`].
    pub flags: U16,
    /// The next descriptor of the chain, with [`flags::NEXT`].
    pub next: U16,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, length: u32) -> Buffer {
        Buffer { address, length, flags: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, length: u32) -> Buffer {
        Buffer { address, length, flags: flags::WRITE }
    }
}

impl Descriptor {
    /// The descriptor of these fields.
    pub fn new(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor { address: address.into(), length: length.into(), flags: flags.into(), next: next.into() }
    }
}

/// The bits that descriptors and rings carry.
pub mod flags {
    /// Of a descriptor: the chain goes on.
    pub const NEXT: u16 = 1;
    /// Of a descriptor: the device writes the buffer.
    pub const WRITE: u16 = 2;
    /// Of a descriptor: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Of the available ring: the driver wants no call.
    pub const NO_INTERRUPT: u16 = 1;
    /// Of the used ring: the device wants no kick.
    pub const NO_NOTIFY: u16 = 1;
}

const _: () = assert!(size_of::<Descriptor>() == 16);
