// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Between a descriptor chain and bytes: the readable part is copied once, the reply is written once.
//!
//! Nothing that the guest changes meanwhile can matter. Knows no request.

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// Most bytes of a readable part that are looked at; the longest request has 124.
const READABLE_MAX: usize = 128;
/// Drivers make two, or three.
const PIECES_OF_SMALL: usize = 4;

/// A chain, taken apart; without memory of its own, if the chain is as drivers make it.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffers {
    bytes: [u8; READABLE_MAX],
    /// How many of them there are.
    length: usize,
    /// The writable part: address and size in bytes of the first piece, and of the others.
    writable: Option<(GuestAddress, usize)>,
    others: Vec<(GuestAddress, usize)>,
    /// Pieces of both parts.
    pieces: usize,
}

/// A chain that breaks the rules of virtqueues, or leads out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChain;

impl Buffers {
    /// Takes a chain in `memory` apart.
    ///
    /// # Errors
    /// A readable piece lies outside of memory or behind a writable one.
    pub fn of(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Buffers, BadChain> {
        let mut buffers =
            Buffers { bytes: [0; READABLE_MAX], length: 0, writable: None, others: Vec::new(), pieces: 0 };
        for descriptor in chain {
            let length = descriptor.len() as usize;
            buffers.pieces += 1;
            if descriptor.is_write_only() {
                let piece = (descriptor.addr(), length);
                match buffers.writable {
                    None => buffers.writable = Some(piece),
                    Some(_) => buffers.others.push(piece),
                }
            } else if buffers.writable.is_none() {
                buffers.read(memory, descriptor.addr(), length)?;
            } else {
                return Err(BadChain);
            }
        }
        Ok(buffers)
    }

    /// The first bytes of the readable part.
    pub fn readable(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Bytes of the writable part.
    pub fn writable_size(&self) -> usize {
        self.writable().fold(0, |sum, (_, length)| sum.saturating_add(*length))
    }

    /// Whether it is of few pieces, as drivers make it: more take memory, and time to look at.
    pub fn is_small(&self) -> bool {
        self.pieces <= PIECES_OF_SMALL
    }

    /// Writes `reply`, which must fit, to the start of the writable part; returns its size.
    ///
    /// # Errors
    /// A piece lies outside of memory.
    pub fn write(&self, memory: &GuestMemoryMmap, reply: &[u8]) -> Result<u32, BadChain> {
        let mut rest = reply;
        for (address, length) in self.writable() {
            let (piece, left) = rest.split_at(rest.len().min(*length));
            if !piece.is_empty() {
                memory.write_slice(piece, *address).map_err(|_| BadChain)?;
            }
            rest = left;
        }
        if rest.is_empty() { Ok(u32::try_from(reply.len()).map_err(|_| BadChain)?) } else { Err(BadChain) }
    }

    fn writable(&self) -> impl Iterator<Item = &(GuestAddress, usize)> {
        self.writable.iter().chain(&self.others)
    }

    fn read(
        &mut self,
        memory: &GuestMemoryMmap,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), BadChain> {
        let start = self.length;
        self.length += length.min(READABLE_MAX - start);
        let piece = self.bytes.get_mut(start..self.length).ok_or(BadChain)?;
        if piece.is_empty() {
            return Ok(());
        }
        address.checked_add(piece.len() as u64).ok_or(BadChain)?;
        memory.read_slice(piece, address).map_err(|_| BadChain)
    }
}
