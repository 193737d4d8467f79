// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both sides of a relay say anything: the VMM of a device, and the device's back-end with its IOTLB; the guest maps
//! and unmaps meanwhile.
//!
//! The conversation takes its steps in this thread, one after each thing that is said, so that at every moment it is
//! known what the back-end may reach: it gets no entry that the device would not allow, and when an invalidation is
//! said to be done, none is left that it had before. That a back-end which does not read is waited for is a matter of
//! `tests/relay`.

mod back_end;
mod vmm;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use rustix::net::{SendFlags, send};
use vhost_user_iommu::Protocol;
use vhost_user_iommu::iommu::{Incoming, Iommu};
use vhost_user_iommu::message::Channel;
use vhost_user_iommu::orders::{Orders, Outcome, RelayHandle, Work, orders};
use vhost_user_iommu::relay::conversation::Conversation;
use viommu_core::wire::{ReqUnmap, RequestType};
use viommu_core::{Access, Iova, IovaRange, Status};
use zerocopy::FromBytes;

use super::device::{self, ENDPOINT};
use super::input::Input;
use crate::model::request::TAIL_SIZE;

use back_end::BackEnd;
use vmm::Vmm;

/// The life of one conversation.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let relay = device::relay(Protocol::VhostUser);
    let (invalidator, orders) = orders(Protocol::VhostUser).expect("a file descriptor");
    let (vmm, front) = UnixStream::pair().expect("a file descriptor");
    let (back_end, back) = UnixStream::pair().expect("a file descriptor");
    let conversation = Conversation::new(&relay, front, back).expect("a file descriptor");
    let (vmm, back_end) = (Vmm::new(vmm), BackEnd::new(back_end));
    let iommu = relay.iommu.clone();
    let mut scene = Scene { iommu, invalidator, conversation, vmm, back_end, given: Vec::new() };
    while !input.is_empty() && scene.step(&mut input, &orders).is_some() {}
    // Both leave, and the relay with them.
    let Scene { conversation, vmm, back_end, .. } = scene;
    drop((vmm, back_end));
    conversation.take_leave(&orders);
}

struct Scene<'a> {
    iommu: Arc<Iommu>,
    invalidator: RelayHandle,
    conversation: Conversation<'a>,
    vmm: Vmm,
    back_end: BackEnd,
    /// Invalidations that are not known to be done: the range, the back-end's time, who hears of it.
    given: Vec<(IovaRange, u64, Receiver<Outcome>)>,
}

impl Scene<'_> {
    /// Nothing when the conversation is over.
    fn step(&mut self, input: &mut Input<'_>, orders: &Orders) -> Option<()> {
        let choice = input.u8();
        let has_said = match choice % 16 {
            0..=4 => self.vmm.say(input),
            5 => self.vmm.answer(input),
            6..=8 => self.back_end.answer(input),
            9 => self.back_end.say_anything(input),
            10 | 11 => self.back_end.ask(input),
            12 | 13 => self.guest_requests(input),
            14 => {
                let start = u64::from(input.u8()) << 12;
                let last = start.saturating_add(u64::from(input.u32()));
                self.invalidate(IovaRange::new(start, last).unwrap_or(IovaRange::ALL))
            }
            _ => {
                self.machine_changes(input);
                false
            }
        };
        if has_said {
            // It ends by what was said, or because somebody left.
            self.conversation.step(orders).ok()?;
        }
        self.check();
        Some(())
    }

    /// What both got.
    fn check(&mut self) {
        self.vmm.receive();
        for entry in self.back_end.receive() {
            let access = Access::from_bits_truncate(entry.access.0.into());
            // Where writing is allowed, reading comes with it if both are asked for.
            let needed = if access.contains(Access::WRITE) { Access::WRITE } else { access };
            let extent =
                self.iommu.translate(ENDPOINT, Iova(entry.iova), needed).expect("an access that is allowed");
            let range = IovaRange::from_length(entry.iova, entry.size).expect("an entry of some size");
            let is_allowed = [extent.access, extent.access | Access::READ].contains(&access);
            assert!(extent.range.covers(&range) && is_allowed, "{entry:?} of {extent:?}");
        }
        let back_end = &self.back_end;
        self.given.retain(|(range, time, outcome)| match outcome.try_recv() {
            Ok(Ok(())) => {
                assert!(!back_end.has_entry_of_before(range, *time), "{range} is said to be invalidated");
                false
            }
            Ok(Err(_)) => false,
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => panic!("an order is answered"),
        });
    }

    /// A request of the guest, and what the device orders because of it.
    fn guest_requests(&mut self, input: &mut Input<'_>) -> bool {
        let (readable, writable) = device::request(input);
        let mut replies = Vec::new();
        self.iommu
            .requests([Incoming { readable: &readable, writable }], |reply| replies.push(reply.clone()));
        let [reply] = replies.as_slice() else { panic!("one request has {} replies", replies.len()) };
        let status = reply.bytes.len().checked_sub(TAIL_SIZE).map(|at| reply.bytes[at]);
        let is_done = status == Some(Status::Ok as u8);
        let range = match RequestType(readable[0]) {
            RequestType::ATTACH | RequestType::DETACH if is_done => Some(IovaRange::ALL),
            RequestType::UNMAP if is_done => range_of_unmap(&readable),
            _ => None,
        };
        range.is_some_and(|range| self.invalidate(range))
    }

    fn invalidate(&mut self, range: IovaRange) -> bool {
        let (done, outcome) = channel();
        self.invalidator.order(Work::Forget(range), done);
        self.given.push((range, self.back_end.time(), outcome));
        true
    }

    /// What else becomes of the machine.
    fn machine_changes(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => self.iommu.reset(),
            1 => self.iommu.stop(),
            2 => self.iommu.resume(),
            3 => self.iommu.disconnected(),
            4 => self.iommu.connected(),
            5 => self.iommu.write_config(36, &[input.u8() % 2]),
            6 => self.iommu.negotiate(input.u64()),
            _ => {
                let range = |start, last| IovaRange::new(start, last).expect("start <= last");
                self.iommu.set_guest_memory(&[range(0, 0x9_ffff), range(0x10_0000, u64::from(u32::MAX))]);
            }
        }
    }
}

fn range_of_unmap(readable: &[u8]) -> Option<IovaRange> {
    let request = ReqUnmap::read_from_bytes(readable).ok()?;
    IovaRange::new(request.virt_start.get(), request.virt_last.get())
}

/// Sends what waits; false when the relay has left.
fn flushed(channel: &mut Channel) -> bool {
    channel.flush().is_ok()
}

/// Sends bytes that need not be a message; false when there are none, or the relay has left.
fn sent_piece(stream: &UnixStream, piece: &[u8]) -> bool {
    send(stream, piece, SendFlags::NOSIGNAL).is_ok_and(|sent| sent > 0)
}
