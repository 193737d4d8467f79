// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of a conversation: what a back-end knows is gone when it has left too, and no earlier.
//!
//! A back-end that is busy notices late that nobody talks to it any more, and uses its entries until then. It is
//! given as long for that as for an acknowledgement. One that stays is waited for all the same, and what is ordered
//! of it fails: nobody else gets the device before.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use log::error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use super::Relay;
use super::conversation::Conversation;
use super::iotlb::Owed;
use crate::orders::{Order, Orders};

impl Conversation<'_> {
    /// Leaves the VMM at once, and the back-end when it leaves. What has been ordered is done with then.
    pub fn take_leave(self, orders: &Orders) {
        let Conversation { relay, front, back, front_requests, back_requests, mut owed, .. } = self;
        drop((front, front_requests, back_requests));
        leave(relay, back.as_fd(), orders, |_| true, || owed.drain(..).for_each(fail));
    }
}

/// Waits until the back-end leaves. Orders that are `awaited` are done with then; they fail when that takes too long, which
/// is also the time for `overdue`.
pub(crate) fn leave(
    relay: &Relay,
    back: BorrowedFd<'_>,
    orders: &Orders,
    awaited: impl Fn(&Order) -> bool,
    mut overdue: impl FnMut(),
) {
    // Fails only when the back-end has left already.
    let _ = shutdown(back, Shutdown::Write);
    let deadline = Instant::now() + relay.unmap_timeout;
    let mut is_overdue = false;
    let mut waiting: Vec<Order> = Vec::new();
    while !has_left(back) {
        waiting.extend(orders.take().filter(&awaited));
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !is_overdue {
            is_overdue = true;
            const STAYS: &str = "the back-end does not leave: it may still use memory of the guest; end it";
            error!("endpoint {}: {STAYS}", relay.label);
            relay.iommu.relay_failed(relay.endpoint, STAYS.to_owned());
            overdue();
        }
        if is_overdue {
            waiting.drain(..).for_each(|order| order.completion.fail(Errno::TIMEDOUT));
        }
        wait(back, orders, (!is_overdue).then_some(left));
    }
    if is_overdue {
        relay.iommu.relay_failed(relay.endpoint, "the back-end has left, too late".to_owned());
    }
}

fn fail(owed: Owed) {
    if let Owed::Invalidate { completion, .. } = owed {
        completion.fail(Errno::TIMEDOUT);
    }
}

/// Whether the back-end has closed the connection; what it still says is of no matter.
fn has_left(back: BorrowedFd<'_>) -> bool {
    match recv(back, &mut [0; 4096], RecvFlags::DONTWAIT) {
        Ok((_, received)) => received == 0,
        Err(errno) => !matches!(errno, Errno::AGAIN | Errno::INTR),
    }
}

fn wait(back: BorrowedFd<'_>, orders: &Orders, left: Option<Duration>) {
    let mut polled = [
        PollFd::from_borrowed_fd(back, PollFlags::IN),
        PollFd::from_borrowed_fd(orders.as_fd(), PollFlags::IN),
    ];
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    // An interrupted wait is a short one.
    let _ = poll(&mut polled, left.as_ref());
}
