// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The relay between a VMM and the vfio-user server of a device, and the codec of the protocol.
//!
//! What has to do with the device passes through: its regions, its interrupts, its reset. What has to do with memory
//! ends here. The VMM's DMA_MAP and DMA_UNMAP tell what guest memory there is; the server is told instead what the
//! guest's driver has mapped for the endpoint, at IOVAs.
//!
//! With `dma=shared` the server maps it by the file descriptors that come along. A right to read alone is then a request
//! to the server: whoever holds the file can map it to write, and other parts of it, too. Only what the server has
//! acknowledged is said to be mapped or unmapped.
//!
//! With `dma=message` it gets no file descriptor. It is told that it may ask for all of the address space, and asks by
//! DMA_READ and DMA_WRITE; each access is translated when it comes, page by page, and nothing is done if a part of it is
//! refused. So nothing depends on what the server acknowledges.
//!
//! Read first: `docs/interop/vfio-user.rst` of QEMU. QEMU's client differs from it in the count of DMA_READ and DMA_WRITE,
//! which it takes to have 32 bits; none of its messages of this kind passes here.

mod access;
mod conversation;
mod front;
pub mod message;
mod owed;
mod regions;
mod server;
mod space;
mod telling;
mod version;

pub use conversation::{Conversation, Failure};
