// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both sides of a vfio-user relay say anything: the VMM of a device, and its server; the guest maps and unmaps meanwhile.
//!
//! The conversation takes its steps in this thread. Whenever the server owes no answer, it may reach nothing that the
//! device does not allow, at the right place of the right file; when something is said to be unmapped, it has nothing of
//! that from before; and what it reads by messages is what the guest lets it read.

mod server;
mod vmm;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use vhost_user_iommu::iommu::{Incoming, Iommu};
use vhost_user_iommu::orders::{Orders, Outcome, RelayHandle, Work, orders};
use vhost_user_iommu::vfio_user::Conversation;
use vhost_user_iommu::{Dma, Protocol};
use viommu_core::IovaRange;

use super::device;
use super::input::Input;

use server::Server;
use vmm::Vmm;

/// The life of one conversation.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let dma = input.pick(&[Dma::Shared, Dma::Message]);
    let protocol = Protocol::VfioUser(dma);
    let relay = device::relay(protocol);
    let (handle, orders) = orders(protocol).expect("a file descriptor");
    let (vmm, front) = UnixStream::pair().expect("a file descriptor");
    let (server, back) = UnixStream::pair().expect("a file descriptor");
    let conversation = Conversation::new(&relay, dma, front, back);
    let (vmm, server) = (Vmm::new(vmm), Server::new(server, dma));
    let iommu = relay.iommu.clone();
    let mut scene = Scene { iommu, handle, conversation, vmm, server, given: Vec::new() };
    while !input.is_empty() && scene.step(&mut input, &orders).is_some() {}
    // Both leave, and the relay with them.
    let Scene { conversation, vmm, server, .. } = scene;
    drop((vmm, server));
    conversation.take_leave(&orders);
}

struct Scene<'a> {
    iommu: Arc<Iommu>,
    handle: RelayHandle,
    conversation: Conversation<'a>,
    vmm: Vmm,
    server: Server,
    /// What is not known to be unmapped: the range, the server's time, who hears of it.
    given: Vec<(IovaRange, u64, Receiver<Outcome>)>,
}

impl Scene<'_> {
    /// Nothing when the conversation is over.
    fn step(&mut self, input: &mut Input<'_>, orders: &Orders) -> Option<()> {
        match input.u8() % 16 {
            0..=3 => self.vmm.say(input),
            4 => self.vmm.say_anything(input),
            5..=9 => self.server.answer(input),
            10 => self.server.say_anything(input),
            11 => self.server.ask(input),
            12 | 13 => {
                let (readable, writable) = device::request(input);
                self.iommu.requests([Incoming { readable: &readable, writable }], |_| {});
            }
            14 => self.forget(),
            _ => self.machine_changes(input),
        }
        // Also what wakes the conversation when nothing was said.
        self.handle.order(Work::Refresh, channel().0);
        self.conversation.step(orders).ok()?;
        self.vmm.receive();
        self.server.receive(&self.iommu);
        self.check();
        Some(())
    }

    fn check(&mut self) {
        if self.server.is_quiet() {
            self.server.check(&self.iommu, &self.vmm);
        }
        let server = &self.server;
        self.given.retain(|(range, time, outcome)| match outcome.try_recv() {
            Ok(Ok(())) => {
                assert!(!server.has_mapping_of_before(range, *time), "{range} is said to be unmapped");
                false
            }
            Ok(Err(_)) => false,
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => panic!("an order is answered"),
        });
    }

    /// All of it: a range must not cut through a mapping.
    fn forget(&mut self) {
        let range = IovaRange::ALL;
        let (done, outcome) = channel();
        self.handle.order(Work::Forget(range), done);
        self.given.push((range, self.server.time(), outcome));
    }

    /// What else becomes of the machine.
    fn machine_changes(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => self.iommu.reset(),
            1 => self.iommu.stop(),
            2 => self.iommu.resume(),
            3 => self.iommu.disconnected(),
            4 => self.iommu.connected(),
            _ => self.iommu.write_config(36, &[input.u8() % 2]),
        }
    }
}
