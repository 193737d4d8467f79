// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ring: what the front-end has said about it, and the thread that serves it.
//!
//! The thread ends as soon as it is told to, even while it waits for a miss: the request at hand is then left for
//! whoever serves the ring next.
//!
//! Read first: "Split Virtqueues" in the virtio specification; "Ring states" in `vhost-user.rst`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::PollFlags;
use vhost_user_iommu::message::{FrontendRequest, Message, VringAddress, VringFd, VringState};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::memory::DmaMemory;
use super::record::Event;
use super::tlb::Tlb;
use super::wait::{Stop, wait};
use super::{Shared, blk, lock};

/// Largest ring, in descriptors.
const SIZE_MAX: u16 = 1024;

/// How often a ring is looked for before only the next kick makes another try.
const START_TRIES_MAX: u32 = 10;

/// How long a ring that cannot be reached is left alone between two tries.
const START_INTERVAL: Duration = Duration::from_millis(20);

/// What the front-end has said about the ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    /// Descriptors.
    pub(super) size: u32,
    /// Where it lies.
    pub(super) addresses: Option<VringAddress>,
    /// The available index to start from.
    pub(super) next_available: u16,
    /// Says that buffers are available.
    pub(super) kick: Option<Arc<OwnedFd>>,
    /// Whether it may be served.
    pub(super) enabled: bool,
    /// The eventfds that can be replaced while the ring is being served.
    pub(super) notifiers: Arc<Notifiers>,
}

impl RingState {
    /// Takes what a message says about the ring; refuses one that says nothing about it.
    pub(super) fn change(&mut self, request: FrontendRequest, message: &mut Message) -> anyhow::Result<()> {
        let index = match request {
            FrontendRequest::SET_VRING_ADDR => {
                let addresses: VringAddress = message.body()?;
                self.addresses = Some(addresses);
                addresses.index
            }
            FrontendRequest::SET_VRING_KICK => {
                let vring: VringFd = message.body()?;
                ensure!(!vring.has_no_fd(), "polled rings are not supported");
                self.kick = Some(Arc::new(message.fds.pop().context("no file descriptor")?));
                vring.index()
            }
            FrontendRequest::SET_VRING_NUM
            | FrontendRequest::SET_VRING_BASE
            | FrontendRequest::SET_VRING_ENABLE => {
                let VringState { index, num } = message.body()?;
                match request {
                    FrontendRequest::SET_VRING_NUM => self.size = num,
                    FrontendRequest::SET_VRING_BASE => self.next_available = u16::try_from(num)?,
                    _ => self.enabled = num != 0,
                }
                index
            }
            _ => bail!("not supported"),
        };
        ensure!(index == 0, "ring {index} of 1");
        Ok(())
    }
}

/// Where the driver and the front-end are told what happened.
#[derive(Debug, Default)]
pub(super) struct Notifiers {
    /// Says that buffers are used.
    pub(super) call: Mutex<Option<OwnedFd>>,
    /// Says that the ring is broken.
    pub(super) error: Mutex<Option<OwnedFd>>,
}

/// The thread that serves the ring.
#[derive(Debug)]
pub(super) struct Worker {
    thread: Option<JoinHandle<u16>>,
    stop: Arc<Stop>,
    tlb: Arc<Tlb>,
}

impl Worker {
    /// Serves a ring that lies at these addresses of `memory`, from `next_available` on. `stop` is also what cancels
    /// the misses of `memory`.
    pub(super) fn start(
        shared: Arc<Shared>,
        state: &RingState,
        addresses: VringAddress,
        memory: DmaMemory,
        tlb: Arc<Tlb>,
        stop: Arc<Stop>,
    ) -> anyhow::Result<Self> {
        let server = RingServer {
            queue: new_queue(state, addresses, shared.record.negotiated().unwrap_or_default().features)?,
            shared,
            memory,
            kick: state.kick.clone().context("ring without a kick")?,
            notifiers: state.notifiers.clone(),
            stop: stop.clone(),
        };
        let thread = thread::Builder::new().name("iotlb-disk-ring".into()).spawn(move || server.run())?;
        Ok(Self { thread: Some(thread), stop, tlb })
    }

    /// Stops serving; the available index to go on from.
    pub(super) fn stop(mut self) -> anyhow::Result<u16> {
        self.end().context("the ring's thread panicked")
    }

    fn end(&mut self) -> Option<u16> {
        self.stop.signal();
        self.tlb.wake();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

fn new_queue(state: &RingState, addresses: VringAddress, features: u64) -> anyhow::Result<Queue> {
    let mut queue = Queue::new(SIZE_MAX)?;
    queue.try_set_size(u16::try_from(state.size)?)?;
    queue.try_set_desc_table_address(GuestAddress(addresses.descriptors))?;
    queue.try_set_avail_ring_address(GuestAddress(addresses.available))?;
    queue.try_set_used_ring_address(GuestAddress(addresses.used))?;
    queue.set_event_idx(features & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0);
    queue.set_next_avail(state.next_available);
    queue.set_ready(true);
    Ok(queue)
}

/// The thread's own: the ring and everything it needs.
struct RingServer {
    shared: Arc<Shared>,
    queue: Queue,
    memory: DmaMemory,
    kick: Arc<OwnedFd>,
    notifiers: Arc<Notifiers>,
    stop: Arc<Stop>,
}

impl RingServer {
    fn run(mut self) -> u16 {
        let mut reached = false;
        loop {
            let served = if reached { Ok(()) } else { self.reach() }.and_then(|()| self.serve());
            if self.stop.is_signalled() {
                break;
            }
            reached = served.is_ok();
            if let Err(error) = served {
                self.shared.record.add(Event::RingFailed { reason: format!("{error:#}") });
                notify(&self.notifiers.error);
            }
            if !self.wait_for_kick() {
                break;
            }
        }
        let next_available = self.queue.next_avail();
        self.shared.record.add(Event::RingStopped { next_available });
        next_available
    }

    /// Looks for the ring in guest memory, a bounded number of times.
    fn reach(&mut self) -> anyhow::Result<()> {
        for attempt in 1.. {
            let used = self
                .queue
                .is_valid(&self.memory)
                .then(|| self.queue.used_idx(&self.memory, Ordering::Acquire));
            if let Some(Ok(used)) = used {
                self.queue.set_next_used(used.0);
                self.shared.record.add(Event::RingStarted { next_available: self.queue.next_avail() });
                break;
            }
            ensure!(attempt < START_TRIES_MAX, "not reached in {attempt} tries");
            let stopped = wait(&[(self.stop.as_fd(), PollFlags::IN)], Some(START_INTERVAL))?;
            ensure!(!stopped[0], "stopped");
        }
        Ok(())
    }

    /// Serves what is available, until nothing is.
    fn serve(&mut self) -> anyhow::Result<()> {
        let mut served_last = true;
        loop {
            self.queue.disable_notification(&self.memory)?;
            let mut served = false;
            while let Some(chain) = self.queue.iter(&self.memory)?.next() {
                let head = chain.head_index();
                let done = blk::serve(&self.shared.image, &self.memory, chain);
                if self.stop.is_signalled() {
                    self.queue.go_to_previous_position();
                    bail!("stopped");
                }
                self.shared.record.count(|stats| {
                    stats.requests += 1;
                    stats.bytes += done.data_len.unwrap_or(0);
                    stats.failed_requests += u64::from(done.data_len.is_none());
                });
                self.queue.add_used(&self.memory, head, done.written)?;
                if self.queue.needs_notification(&self.memory)? {
                    notify(&self.notifiers.call);
                }
                served = true;
            }
            if !self.queue.enable_notification(&self.memory)? {
                return Ok(());
            }
            // A buffer may have come since; one that is there twice and cannot be taken never will be.
            ensure!(served || served_last, "the available ring cannot be read");
            served_last = served;
        }
    }

    /// Waits for a kick; false when it is time to stop.
    fn wait_for_kick(&self) -> bool {
        loop {
            let waited =
                wait(&[(self.stop.as_fd(), PollFlags::IN), (self.kick.as_fd(), PollFlags::IN)], None);
            match waited.as_deref() {
                Ok([false, false]) => {}
                // An eventfd that somebody else has drained is no kick, and one that is gone never will be.
                Ok([false, true]) => match rustix::io::read(&self.kick, &mut [0; 8]) {
                    Ok(8) => return true,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    _ => return false,
                },
                _ => return false,
            }
        }
    }
}

/// Signals an eventfd, if there is one. One that cannot be signalled is the front-end's loss.
fn notify(notifier: &Mutex<Option<OwnedFd>>) {
    if let Some(eventfd) = lock(notifier).as_ref() {
        let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
    }
}
