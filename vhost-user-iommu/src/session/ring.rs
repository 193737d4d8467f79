// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtqueue as `vhost-user-backend` wants it, that no file descriptor of the front-end can stop.
//!
//! The crate's own ring ends its worker thread when a kick turns out to be none, waits for ever on a file descriptor
//! that blocks, and spins on one that was replaced or has hung up. This one wraps it and makes all of them harmless.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};

use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryLoadGuard, GuestMemoryMmap};

use crate::sync::lock;

use super::kick::{Kick, non_blocking};
use super::ring_memory::{Memory, RingMemory};

type Inner = VringRwLock<Memory>;

/// What is to be done when a ring is enabled.
pub type WhenEnabled = Box<dyn Fn() + Send + Sync>;

/// One virtqueue.
#[derive(Clone)]
pub struct Ring {
    inner: Inner,
    memory: RingMemory,
    /// From the first kick on, until the ring is stopped.
    kick: Arc<Mutex<Option<Kick>>>,
    /// Called when the front-end enables the ring, before the front-end goes on.
    when_enabled: Arc<OnceLock<WhenEnabled>>,
    /// What the front-end wants signalled when the ring is broken; the crate keeps it where nobody gets at it.
    error: Arc<Mutex<Option<File>>>,
}

/// Where a ring lies and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    addresses: [u64; 3],
    next_available: u16,
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupt; of meaning only without EVENT_IDX.
const AVAIL_F_NO_INTERRUPT: u16 = 1;

impl Ring {
    /// Has what `make` makes called whenever the front-end enables the ring from now on, before the front-end goes on. Only
    /// the first call counts.
    pub fn when_enabled(&self, make: impl FnOnce() -> WhenEnabled) {
        self.when_enabled.get_or_init(make);
    }

    /// Whether the front-end has started and enabled the ring.
    pub fn is_running(&self) -> bool {
        let state = self.get_ref();
        state.is_enabled() && state.get_queue().ready()
    }

    /// The memory that it lies in: the latest, for the chain that comes next.
    pub fn memory(&self) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
        self.memory.latest()
    }

    /// Where it lies and how far it has come.
    pub fn position(&self) -> Position {
        let state = self.get_ref();
        let queue = state.get_queue();
        let addresses = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
        Position { addresses, next_available: queue.next_avail() }
    }

    /// Whether there is anything to look at: another chain, an index that makes no sense, or that the ring has been stopped.
    pub fn has_news(&self, memory: &GuestMemoryMmap) -> bool {
        let state = self.get_ref();
        let queue = state.get_queue();
        let is_running = state.is_enabled() && queue.ready();
        let available = queue.avail_idx(memory, Ordering::Acquire);
        !is_running || available.map_or(true, |available| available.0 != queue.next_avail())
    }

    /// The next chain that the driver has made available, if the ring runs. It stays the next one until it is given back.
    ///
    /// # Errors
    /// The driver's index makes no sense, or the ring lies outside of memory.
    pub fn next_chain<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, Error> {
        let mut next = None;
        self.next_chains(memory, |chain| {
            next = Some(chain);
            ControlFlow::Break(())
        })?;
        Ok(next)
    }

    /// Shows chains that the driver has made available to `take`, if the ring runs, until that wants no more. They stay the
    /// next ones until they are given back, in their order. The ring is locked meanwhile.
    ///
    /// # Errors
    /// As for [`next_chain`](Ring::next_chain); those that `take` got before are good.
    pub fn next_chains<'a>(
        &self,
        memory: &'a GuestMemoryMmap,
        take: impl FnMut(DescriptorChain<&'a GuestMemoryMmap>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut state = self.get_mut();
        let is_running = state.is_enabled() && state.get_queue().ready();
        let queue = state.get_queue_mut();
        if !is_running {
            return Ok(());
        }
        let (first, available) = (queue.next_avail(), queue.avail_idx(memory, Ordering::Acquire)?);
        let shown = queue.iter(memory)?.try_for_each(take);
        // The crate does not tell an entry that it cannot read from none. The driver may have added some since it was asked.
        let left = available.0.wrapping_sub(queue.next_avail());
        queue.set_next_avail(first);
        let is_complete = shown.is_break() || left == 0 || left > queue.size();
        if is_complete { Ok(()) } else { Err(Error::InvalidAvailRingIndex) }
    }

    /// Returns the next chain to the driver and signals it if it wants to be.
    ///
    /// # Errors
    /// The used ring or its neighbour is out of reach.
    pub fn complete(&self, head: u16, used_length: u32, memory: &GuestMemoryMmap) -> Result<(), Error> {
        self.give_back(head, used_length, memory)?;
        self.signal_if_wanted(memory)
    }

    /// Returns the next chain to the driver. A head that is no descriptor cannot be returned, and is passed over.
    ///
    /// # Errors
    /// The used ring is out of reach.
    pub fn give_back(&self, head: u16, used_length: u32, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let mut state = self.get_mut();
        let queue = state.get_queue_mut();
        queue.set_next_avail(queue.next_avail().wrapping_add(1));
        if head >= queue.size() { Ok(()) } else { queue.add_used(memory, head, used_length) }
    }

    /// Signals the driver that chains have been returned, if it wants to be.
    ///
    /// # Errors
    /// The neighbour of the used ring is out of reach.
    pub fn signal_if_wanted(&self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        if self.wants_signal(memory)? {
            // The only failure is a counter at its maximum: then the driver is signalled already.
            let _ = self.signal_used_queue();
        }
        Ok(())
    }

    /// Tells the front-end that the ring is broken, if it wants to know.
    pub fn signal_error(&self) {
        if let Some(file) = &*lock(&self.error) {
            // The only failure that is not the front-end's own is a counter at its maximum: then it is told already.
            let _ = rustix::io::write(file, &1u64.to_ne_bytes());
        }
    }

    fn start_kick(&self, file: File) -> io::Result<Kick> {
        let mut kick = Kick::new()?;
        kick.replace(Some(file))?;
        self.inner.set_kick(Some(kick.watched()?));
        Ok(kick)
    }

    /// The queue's own answer counts only with EVENT_IDX: without, it does not look at the driver's flag.
    fn wants_signal(&self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        let mut state = self.get_mut();
        if state.get_queue().event_idx_enabled() {
            return state.get_queue_mut().needs_notification(memory);
        }
        // The flag must not be read before the used index is written.
        fence(Ordering::SeqCst);
        let flags = GuestAddress(state.get_queue().avail_ring());
        let flags: u16 = memory.load(flags, Ordering::Relaxed).map_err(Error::GuestMemory)?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = <Inner as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = <Inner as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Ring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        let memory = RingMemory::new(mem);
        let inner = Inner::new(memory.used(), max_queue_size)?;
        Ok(Ring { inner, memory, kick: Arc::default(), when_enabled: Arc::default(), error: Arc::default() })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    /// Asks to be kicked for the next chain; says whether one is there already, which no kick will tell of.
    fn enable_notification(&self) -> Result<bool, Error> {
        Ok(self.inner.enable_notification()? && self.is_running())
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        if let Some(act) = self.when_enabled.get().filter(|_| enabled) {
            act();
        }
        self.inner.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        self.inner.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        drop(self.memory());
        self.inner.queue_used_idx()
    }

    /// The crate keeps the old size in place of one that is no power of two.
    fn set_queue_size(&self, num: u16) {
        if !num.is_power_of_two() {
            log::warn!("a ring's size of {num} is no power of two");
        }
        self.inner.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
    }

    /// The crate is given the poll set that the kick is in, once: the ring starts then. It is stopped already when it
    /// loses it.
    fn set_kick(&self, file: Option<File>) {
        let mut kick = lock(&self.kick);
        let is_started = self.get_ref().get_queue().ready();
        let taken = match (kick.as_mut().filter(|_| is_started), file) {
            (Some(kick), file) => kick.replace(file),
            (None, None) => {
                self.inner.set_kick(None);
                *kick = None;
                Ok(())
            }
            (None, Some(file)) => self.start_kick(file).map(|started| *kick = Some(started)),
        };
        if let Err(error) = taken {
            log::warn!("a ring's kick cannot be waited for: {error}");
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        if let Some(kick) = lock(&self.kick).as_mut() {
            kick.consume();
        }
        Ok(self.is_running())
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file.and_then(|file| non_blocking(file).ok()));
    }

    fn set_err(&self, file: Option<File>) {
        *lock(&self.error) = file.and_then(|file| non_blocking(file).ok());
    }
}
