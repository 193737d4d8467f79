// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM has to talk with: a connection, guest memory, and file descriptors of all kinds.
//!
//! Knows which messages are answered no further than it takes to wait for the session. What is said is the target's
//! matter.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::pipe;
use vhost_user_iommu::message::FrontendRequest as Request;
use zerocopy::{Immutable, IntoBytes};

use crate::front_end::{Connection, Message};

/// Bytes of guest memory.
pub const SIZE: u64 = 0x1_0000;
/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A VMM on a connection.
pub struct Vmm {
    connection: Connection,
    memory: OwnedFd,
    /// Kick and call of either queue.
    events: [OwnedFd; 4],
    /// What is no good for anything: a file that is too short, pipes, a device.
    odd: Vec<OwnedFd>,
    /// The index of the next entry of either available ring.
    pub next_avail: [u16; 2],
    /// How many answers to [`Request::GET_FEATURES`] have not come yet.
    unanswered: u32,
}

impl Vmm {
    /// A VMM that has said nothing yet.
    pub fn new(stream: UnixStream) -> io::Result<Vmm> {
        let file = |size| -> io::Result<OwnedFd> {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
            ftruncate(&file, size)?;
            Ok(file)
        };
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ((reader, writer), (hung_up, _)) = (pipe()?, pipe()?);
        Ok(Vmm {
            connection: Connection::of(stream),
            memory: file(SIZE)?,
            events: [event()?, event()?, event()?, event()?],
            odd: vec![file(100)?, reader, writer, hung_up, File::open("/dev/null")?.into()],
            next_avail: [0; 2],
            unanswered: 0,
        })
    }

    /// Sends a request, with the descriptors of these numbers; see [`fd`](Vmm::fd).
    pub fn say<P: IntoBytes + Immutable + ?Sized>(
        &mut self,
        request: Request,
        payload: &P,
        fds: &[u8],
    ) -> io::Result<()> {
        self.send(&Message::new(request.0, payload.as_bytes()), fds)
    }

    /// Sends any message.
    pub fn send(&mut self, message: &Message, fds: &[u8]) -> io::Result<()> {
        self.unanswered += u32::from(message.request == Request::GET_FEATURES.0);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| self.fd(*fd)).collect();
        self.connection.send(message, &fds)
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.connection.send_bytes(bytes, &[])
    }

    /// The memory, the four events, and what is odd.
    fn fd(&self, number: u8) -> BorrowedFd<'_> {
        let all = [&self.memory].into_iter().chain(&self.events).chain(&self.odd);
        let number = usize::from(number) % (5 + self.odd.len());
        all.map(AsFd::as_fd).nth(number).expect("so many")
    }

    /// Writes to guest memory, as far as there is any.
    pub fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(SIZE - place).unwrap_or(0);
        rustix::io::pwrite(&self.memory, &bytes[..bytes.len().min(room)], place)?;
        Ok(())
    }

    /// Signals that a queue has something new.
    pub fn kick(&self, queue: u8) -> io::Result<()> {
        rustix::io::write(&self.events[usize::from(queue) * 2], &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Until the session has taken all that was said.
    pub fn wait(&mut self) -> io::Result<()> {
        self.say(Request::GET_FEATURES, &(), &[])?;
        while self.unanswered > 0 {
            let answer = self.connection.receive(PATIENCE).inspect_err(|error| {
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the session says nothing");
            })?;
            self.unanswered -= u32::from(answer.request == Request::GET_FEATURES.0);
        }
        Ok(())
    }
}
