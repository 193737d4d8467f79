// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Between a descriptor chain and bytes: the readable part is copied once, the reply is written once.
//!
//! Nothing that the guest changes meanwhile can matter. Knows no request.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

/// Most bytes of a readable part that are looked at; the longest request has 72.
const READABLE_MAX: usize = 256;

/// A chain, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffers {
    /// The first bytes of the readable part.
    pub readable: Vec<u8>,
    /// The writable part: address and size in bytes of each piece.
    writable: Vec<(GuestAddress, usize)>,
}

/// A chain that breaks the rules of virtqueues, or leads out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChain;

impl Buffers {
    /// Takes a chain in `memory` apart.
    ///
    /// # Errors
    /// A readable piece lies outside of memory or behind a writable one.
    pub fn of<M>(chain: DescriptorChain<M>, memory: &impl GuestMemory) -> Result<Buffers, BadChain>
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        let mut buffers = Buffers { readable: Vec::new(), writable: Vec::new() };
        for descriptor in chain {
            let length = descriptor.len() as usize;
            if descriptor.is_write_only() {
                buffers.writable.push((descriptor.addr(), length));
            } else if buffers.writable.is_empty() {
                buffers.read(memory, descriptor.addr(), length)?;
            } else {
                return Err(BadChain);
            }
        }
        Ok(buffers)
    }

    /// Bytes of the writable part.
    pub fn writable_size(&self) -> usize {
        self.writable.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length))
    }

    /// Writes `reply`, which must fit, to the start of the writable part; returns its size.
    ///
    /// # Errors
    /// A piece lies outside of memory.
    pub fn write(&self, memory: &impl GuestMemory, reply: &[u8]) -> Result<u32, BadChain> {
        let mut rest = reply;
        for (address, length) in &self.writable {
            let (piece, left) = rest.split_at(rest.len().min(*length));
            if !piece.is_empty() {
                memory.write_slice(piece, *address).map_err(|_| BadChain)?;
            }
            rest = left;
        }
        if rest.is_empty() { Ok(u32::try_from(reply.len()).map_err(|_| BadChain)?) } else { Err(BadChain) }
    }

    fn read(
        &mut self,
        memory: &impl GuestMemory,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), BadChain> {
        let start = self.readable.len();
        self.readable.resize(start + length.min(READABLE_MAX - start), 0);
        let piece = self.readable.get_mut(start..).ok_or(BadChain)?;
        if piece.is_empty() {
            return Ok(());
        }
        address.checked_add(piece.len() as u64).ok_or(BadChain)?;
        memory.read_slice(piece, address).map_err(|_| BadChain)
    }
}
