// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What other threads order of a relay: to make its back-end forget translations.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use rustix::io::Errno;
use viommu_core::{HostError, IovaRange};

use crate::sync::Wake;

/// How an order ended.
pub type Outcome = Result<(), HostError>;

/// The giving end.
#[derive(Clone, Debug)]
pub struct Invalidator {
    orders: Sender<Order>,
    wake: Arc<Wake>,
}

/// The relay's end.
#[derive(Debug)]
pub struct Orders {
    orders: Receiver<Order>,
    wake: Arc<Wake>,
}

/// Everything translated in a range is to be forgotten. To drop an order is to say that nothing of it is known
/// to anybody.
#[derive(Debug)]
pub struct Order {
    /// The IOVAs.
    pub range: IovaRange,
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
pub fn orders() -> std::io::Result<(Invalidator, Orders)> {
    let wake = Arc::new(Wake::new()?);
    let (sender, receiver) = channel();
    Ok((Invalidator { orders: sender, wake: wake.clone() }, Orders { orders: receiver, wake }))
}

impl Invalidator {
    /// Has the back-end forget `range`; `done` hears of it once, when no access can use it any more.
    pub fn invalidate(&self, range: IovaRange, done: Sender<Outcome>) {
        self.order(range, Some(done));
    }

    /// Has the back-end forget everything, whenever it gets round to it.
    pub fn forget_all(&self) {
        self.order(IovaRange::ALL, None);
    }

    fn order(&self, range: IovaRange, waiting: Option<Sender<Outcome>>) {
        // Fails only when the relay is gone; the order is then dropped, and so done.
        let _ = self.orders.send(Order::new(range, waiting));
        self.wake.wake();
    }
}

impl Order {
    /// One of the relay's own, that nobody waits for.
    pub fn unobserved(range: IovaRange) -> Order {
        Order::new(range, None)
    }

    fn new(range: IovaRange, waiting: Option<Sender<Outcome>>) -> Order {
        Order { range, since: Instant::now(), completion: Completion { waiting, failure: Cell::default() } }
    }
}

impl Orders {
    /// What has been ordered since the last call.
    pub fn take(&self) -> impl Iterator<Item = Order> {
        self.wake.clear();
        self.orders.try_iter()
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
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
            Err(HostError { operation: "IOTLB invalidation", errno: errno.raw_os_error() })
        });
        if let Some(waiting) = self.waiting.take() {
            // Fails only when whoever waited has given up.
            let _ = waiting.send(outcome);
        }
    }
}
