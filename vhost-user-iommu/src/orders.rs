// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What other threads order of a relay: to have its back-end forget translations, or learn of them.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use rustix::io::Errno;
use viommu_core::mapping::Mapping;
use viommu_core::{HostError, IovaRange};

use crate::config::{Dma, Protocol};
use crate::sync::Wake;

/// How an order ended.
pub type Outcome = Result<(), HostError>;

/// The giving end.
#[derive(Clone, Debug)]
pub struct RelayHandle {
    protocol: Protocol,
    orders: Sender<Order>,
    bell: Arc<Bell>,
}

/// The relay's end.
#[derive(Debug)]
pub struct Orders {
    orders: Receiver<Order>,
    bell: Arc<Bell>,
}

/// What both ends share.
#[derive(Debug)]
struct Bell {
    wake: Wake,
    /// Whether the relay is to come to an end.
    is_over: AtomicBool,
}

/// What an endpoint reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Nothing.
    Nothing,
    /// Guest memory, untranslated.
    Identity,
    /// What these mappings lead to.
    Mappings(Vec<Mapping>),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Everything translated in a range is to be forgotten.
    Forget(IovaRange),
    /// A mapping comes to those that there are.
    Learn(Mapping),
    /// The endpoint is moved: everything is to be forgotten, and this is what it reaches from now on.
    Enter(View),
    /// What the endpoint reaches is to be looked up again.
    Refresh,
}

/// Work for a relay. To drop an order is to say that it is done, or that nothing of it is known to anybody.
#[derive(Debug)]
pub struct Order {
    /// What is to be done.
    pub work: Work,
    /// When it was given.
    pub since: Instant,
    /// Who waits, if anybody.
    pub completion: Completion,
}

/// Tells whoever waits for an order how it ended, when the last part of it is done with.
#[derive(Debug)]
pub struct Completion {
    waiting: Option<Sender<Outcome>>,
    failure: Cell<Option<Errno>>,
}

/// Both ends, for one relay.
///
/// # Errors
/// The process has no file descriptor left.
pub fn orders(protocol: Protocol) -> std::io::Result<(RelayHandle, Orders)> {
    let bell = Arc::new(Bell { wake: Wake::new()?, is_over: AtomicBool::default() });
    let (sender, receiver) = channel();
    Ok((RelayHandle { protocol, orders: sender, bell: bell.clone() }, Orders { orders: receiver, bell }))
}

impl RelayHandle {
    /// What is spoken with the back-end.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the back-end is told of all that it may reach, and does not ask.
    pub fn is_told(&self) -> bool {
        self.protocol == Protocol::VfioUser(Dma::Shared)
    }

    /// Orders `work`; `done` hears of it once, when it is done, and no access can use what it takes away.
    pub fn order(&self, work: Work, done: Sender<Outcome>) {
        self.send(Order::new(work, Some(done)));
    }

    /// Has the back-end forget everything, whenever it gets round to it.
    pub fn forget_all(&self) {
        self.send(Order::unobserved(Work::Forget(IovaRange::ALL)));
    }

    /// Has a back-end that is told look again at what it may reach, whenever it gets round to it.
    pub fn refresh(&self) {
        if self.is_told() {
            self.send(Order::unobserved(Work::Refresh));
        }
    }

    /// Has the relay leave both sides, as soon as the back-end lets it, and serve nobody any more.
    pub fn end(&self) {
        self.bell.is_over.store(true, Ordering::Relaxed);
        self.bell.wake.wake();
    }

    fn send(&self, order: Order) {
        // Fails only when the relay is gone; the order is then dropped, and so done.
        let _ = self.orders.send(order);
        self.bell.wake.wake();
    }
}

impl Order {
    /// One that nobody waits for.
    pub fn unobserved(work: Work) -> Order {
        Order::new(work, None)
    }

    fn new(work: Work, waiting: Option<Sender<Outcome>>) -> Order {
        Order { work, since: Instant::now(), completion: Completion { waiting, failure: Cell::default() } }
    }
}

impl Orders {
    /// What has been ordered since the last call.
    pub fn take(&self) -> impl Iterator<Item = Order> {
        self.bell.wake.clear();
        self.orders.try_iter()
    }

    /// Whether the relay is to come to an end.
    pub fn is_over(&self) -> bool {
        self.bell.is_over.load(Ordering::Relaxed)
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.wake.as_fd()
    }
}

impl Completion {
    /// Whether anybody waits.
    pub fn is_awaited(&self) -> bool {
        self.waiting.is_some()
    }

    /// Says that a part of the order has failed.
    pub fn fail(&self, errno: Errno) {
        self.failure.set(Some(errno));
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let outcome = self.failure.take().map_or(Ok(()), |errno| {
            Err(HostError { operation: "telling a back-end", errno: errno.raw_os_error() })
        });
        if let Some(waiting) = self.waiting.take() {
            // Fails only when whoever waited has given up.
            let _ = waiting.send(outcome);
        }
    }
}
