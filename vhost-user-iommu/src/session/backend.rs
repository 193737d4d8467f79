// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this back-end answers the VMM: features, configuration space, memory, rings.
//!
//! One is made for each connection. The crate calls it from two threads: its protocol thread for messages, its
//! worker thread for kicks.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use log::debug;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use viommu_core::IovaRange;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::fd::ExitEvent;
use crate::iommu::Iommu;
use crate::sync::{Wake, lock};

use super::queues::Queues;
use super::ring::{Position, Ring};
use super::ring_memory::is_backed;
use super::transfer::Transfer;

/// The queue of requests.
pub const REQUEST_QUEUE: u16 = 0;
const EVENT_QUEUE: u16 = 1;
const QUEUES: usize = 2;
/// What the worker is told when an event may wait for the driver; the crate keeps the number before it.
pub const EVENT_WAITS: u16 = 3;
/// Requests that Linux has in flight are limited by this alone.
const QUEUE_SIZE_MAX: usize = 1024;

/// The device on one connection.
#[derive(Debug)]
pub struct Backend {
    iommu: Arc<Iommu>,
    queues: Arc<Queues>,
    /// Held by the worker while it is at a ring.
    at_work: Mutex<()>,
    /// Where the request ring was when it was last served.
    position: Mutex<Option<Position>>,
    /// Whether it has been stopped since.
    was_stopped: AtomicBool,
    event_waits: Arc<Wake>,
    /// Done by the VMM's first message, which comes before any ring can work.
    power_on: Once,
    exit_event: ExitEvent,
    /// The state of the device on its way, or how that went.
    transfer: Mutex<Option<Transfer>>,
}

impl Backend {
    /// The device for a new connection. After a request the next one is looked for as long as `poll`.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new(iommu: Arc<Iommu>, event_waits: Arc<Wake>, poll: Duration) -> io::Result<Backend> {
        Ok(Backend {
            queues: Arc::new(Queues::new(iommu.clone(), poll)?),
            iommu,
            at_work: Mutex::default(),
            position: Mutex::default(),
            was_stopped: AtomicBool::default(),
            event_waits,
            power_on: Once::new(),
            exit_event: ExitEvent::new()?,
            transfer: Mutex::default(),
        })
    }

    /// Whether the VMM has said anything.
    pub fn is_powered_on(&self) -> bool {
        self.power_on.is_completed()
    }

    /// Readable when the VMM is to look at the configuration space or the status again.
    pub fn changed(&self) -> &Wake {
        self.queues.changed()
    }

    /// Whether a ring is broken: the driver has to reset the device.
    pub fn needs_reset(&self) -> bool {
        self.queues.needs_reset()
    }

    /// The connection is over: the worker lets go of the rings, whatever their state.
    pub fn end(&self) {
        self.queues.end();
    }

    fn serve_requests(&self, ring: &Ring, between: impl Fn()) {
        // A VMM lets its guest go on as soon as the rings do, which is before anything is in them.
        ring.when_enabled(|| {
            let iommu = Arc::downgrade(&self.iommu);
            Box::new(move || iommu.upgrade().iter().for_each(|iommu| iommu.about_to_go_on()))
        });
        let mut position = lock(&self.position);
        if self.was_stopped.swap(false, Ordering::Relaxed) {
            // What is broken all the same shows again when it is served.
            self.queues.mended();
            // A driver that resets the device starts the ring anew; a guest that was merely paused goes on.
            match *position == Some(ring.position()) {
                true => self.iommu.resume(),
                false => self.iommu.reset(),
            }
        }
        self.queues.serve_requests(ring, between);
        *position = Some(ring.position());
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        self.power_on.call_once(|| self.iommu.connected());
        self.iommu.offered()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.iommu.negotiate(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let movable = match self.iommu.is_movable() {
            true => VhostUserProtocolFeatures::DEVICE_STATE,
            false => VhostUserProtocolFeatures::empty(),
        };
        movable
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        let _at_work = lock(&self.at_work);
        self.was_stopped.store(false, Ordering::Relaxed);
        self.queues.mended();
        self.iommu.reset();
    }

    /// The rings carry the setting themselves.
    fn set_event_idx(&self, _: bool) {}

    /// Always exactly as much as was asked for: the front-end waits for no less. What lies past the end reads as
    /// zero.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.iommu.config_space().into_iter().chain(std::iter::repeat(0));
        config.skip(offset as usize).take(size as usize).collect()
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.iommu.write_config(offset as usize, data);
        Ok(())
    }

    /// Through the VMM's own pipe, which nothing takes the place of.
    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        pipe: File,
    ) -> io::Result<Option<File>> {
        let mut transfer = lock(&self.transfer);
        if transfer.is_some() {
            return Err(io::Error::other("the last transfer has not been asked after"));
        }
        let queues = self.queues.clone();
        *transfer =
            Some(Transfer::start(direction, pipe, self.iommu.clone(), move || queues.changed().wake())?);
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        let transfer = lock(&self.transfer).take();
        transfer.map_or(Err(ErrorKind::NotFound.into()), Transfer::finish)
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let memory = memory.memory();
        let regions: Vec<IovaRange> = memory
            .iter()
            .filter_map(|region| IovaRange::from_length(region.start_addr().0, region.len()))
            .collect();
        if let Some(region) = memory.iter().find(|region| !is_backed(region)) {
            let start = region.start_addr().0;
            return Err(io::Error::other(format!("the file of the guest memory at {start:#x} is too short")));
        }
        debug!("guest memory: {}", regions.iter().map(IovaRange::to_string).collect::<Vec<_>>().join(", "));
        self.iommu.set_guest_memory(&regions);
        self.iommu.share_memory(&memory);
        // A ring that was out of reach may be back: its kick has come to nothing.
        self.event_waits.wake();
        Ok(())
    }

    /// Asked for once, for the one worker.
    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_event.lend()
    }

    /// The ring's position is read after this: the request at work has to be done by then.
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let _at_work = lock(&self.at_work);
        if queue == u32::from(REQUEST_QUEUE) {
            self.was_stopped.store(true, Ordering::Relaxed);
            self.iommu.stop();
        }
        Ok(())
    }

    /// Never an error: the crate would end the worker.
    fn handle_event(&self, source: u16, _: EventSet, rings: &[Ring], _: usize) -> io::Result<()> {
        let _at_work = lock(&self.at_work);
        // A ring that stands still must not hold on to memory that the VMM has taken back.
        rings.iter().for_each(|ring| drop(ring.memory()));
        let ring = |queue: u16| rings.get(usize::from(queue)).filter(|ring| ring.is_running());
        if source == EVENT_WAITS {
            self.event_waits.clear();
        }
        // The driver's first request lets events out, and buffers or new events may let out more.
        let serve_events = || ring(EVENT_QUEUE).into_iter().for_each(|ring| self.queues.serve_events(ring));
        match ring(REQUEST_QUEUE).filter(|_| source != EVENT_QUEUE) {
            Some(ring) => self.serve_requests(ring, serve_events),
            None => serve_events(),
        }
        Ok(())
    }
}
