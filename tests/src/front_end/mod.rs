// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of a vhost-user connection, well-behaved or hostile.
//!
//! Plays no guest: what lies in the rings is [`driver`](crate::driver)'s matter. To read: QEMU,
//! `docs/interop/vhost-user.rst`.

mod connection;
#[cfg(test)]
mod tests;
mod vmm;

pub use connection::{Connection, Message, NEED_REPLY, REPLY, VERSION};
pub use vmm::{FrontEnd, Wanted};
