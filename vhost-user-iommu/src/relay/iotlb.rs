// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The IOTLB of a back-end: misses that it reports, entries that it gets and loses.
//!
//! What a miss is answered with is decided and sent in one go, by the thread that also sends invalidations: so an
//! entry is either sent before the invalidation that takes it away, or not at all.

use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;
use viommu_core::{Access, Fault, FaultReason, Iova, IovaRange};

use crate::message::{self, FrontendRequest, IotlbKind, IotlbMessage, Message};

use super::conversation::{Conversation, Failure};
use super::memory_table::Placed;
use crate::orders::{Completion, Order, Work};

/// An answer that the back-end has not given yet.
#[derive(Debug)]
pub enum Owed {
    /// The VMM waits for it.
    Front(FrontendRequest),
    /// The VMM gets this answer from the relay when all before it is answered.
    Ready(Message),
    /// To the channel for its requests.
    Channel,
    /// To an invalidation.
    Invalidate {
        /// When it was ordered.
        since: Instant,
        /// Whose it was.
        completion: Rc<Completion>,
    },
}

impl Owed {
    /// The request that it answers.
    pub fn request(&self) -> FrontendRequest {
        match self {
            Owed::Front(request) => *request,
            Owed::Ready(message) => FrontendRequest(message.request),
            Owed::Channel => FrontendRequest::SET_BACKEND_REQ_FD,
            Owed::Invalidate { .. } => FrontendRequest::IOTLB_MSG,
        }
    }
}

/// An answer of any other value says that the request failed.
const DONE: u64 = 0;
const REFUSED: u64 = 1;

impl Conversation<'_> {
    /// Carries out what other threads ordered.
    pub(super) fn obey(&mut self, orders: impl Iterator<Item = Order>) -> Result<(), Failure> {
        for order in orders {
            if order.completion.is_awaited() && self.is_unresponsive() {
                // Whoever waits would wait in vain for a second time, with the guest's processor standing still.
                order.completion.fail(Errno::TIMEDOUT);
            } else {
                self.carry_out(order)?;
            }
        }
        Ok(())
    }

    /// Has the back-end forget everything, without waiting.
    pub(super) fn forget_all(&mut self) -> Result<(), Failure> {
        self.carry_out(Order::unobserved(Work::Forget(IovaRange::ALL)))
    }

    /// A back-end asks for what it is allowed when it needs it, so there is only something to forget.
    fn carry_out(&mut self, order: Order) -> Result<(), Failure> {
        match order.work {
            Work::Forget(range) => self.invalidate(range, order),
            Work::Enter(_) => self.invalidate(IovaRange::ALL, order),
            Work::Learn(_) | Work::Refresh => Ok(()),
        }
    }

    /// A back-end that has no channel for misses, or not been told to translate, knows of nothing.
    fn invalidate(&mut self, range: IovaRange, order: Order) -> Result<(), Failure> {
        if !self.is_translating || !self.has_channel() {
            return Ok(());
        }
        let Order { since, completion, .. } = order;
        let completion = Rc::new(completion);
        for (iova, size) in pieces(range) {
            self.owe(Owed::Invalidate { since, completion: completion.clone() })?;
            self.send_back(Message::from(&IotlbMessage::invalidate(iova, size)).with_need_reply())?;
        }
        Ok(())
    }

    /// Whether an invalidation has gone unacknowledged for longer than anybody waits.
    fn is_unresponsive(&self) -> bool {
        self.owed.iter().any(
            |owed| matches!(owed, Owed::Invalidate { since, .. } if since.elapsed() >= self.relay.unmap_timeout),
        )
    }

    /// A message of the back-end about its IOTLB.
    pub(super) fn take_iotlb(&mut self, message: &Message) -> Result<(), Failure> {
        let iotlb: IotlbMessage = message.body()?;
        let answer = |value: u64| message.flags.needs_reply().then(|| message.reply(&value));
        match iotlb.kind {
            IotlbKind::MISS => match self.translate(&iotlb) {
                Some(update) => {
                    // Nothing waits for the entry to be in place: a back-end may have to get its answer before it
                    // reads on. It has sent the miss, so it knows to look for the entry.
                    self.send_back(Message::from(&update))?;
                    self.answer_back(answer(DONE))
                }
                None => self.answer_back(answer(REFUSED)),
            },
            IotlbKind::ACCESS_FAIL => {
                self.relay.iommu.report(self.fault(&iotlb));
                self.answer_back(answer(DONE))
            }
            _ => self.answer_back(answer(REFUSED)),
        }
    }

    /// The entry that a miss asks for, if the access is allowed and memory is there. A back-end that has not been told
    /// to translate gets none: invalidations pass it by.
    fn translate(&self, miss: &IotlbMessage) -> Option<IotlbMessage> {
        if !self.is_translating {
            return None;
        }
        let relay = self.relay;
        let wanted = wanted(miss);
        //= virtio#devicenormative:IOMMU/RESVMEM A52
        // Nothing can be mapped in a reserved region, and no memory is there either: untranslated it leads nowhere.
        let extent = relay.iommu.translate(relay.endpoint, Iova(miss.iova), needed(wanted)).ok()?;
        let Some(Placed { range, user_address }) = self.memory.place(&extent, miss.iova) else {
            relay.iommu.report(self.fault(miss));
            return None;
        };
        // A region's size fits, and the entry is no larger.
        let size = range.span().saturating_add(1);
        //= virtio#devicenormative:IOMMU/MAP request A33a A33b
        // A back-end gets no right that the mapping does not give, except to read where it asks to write as well.
        let access = message::Access((extent.access | wanted).bits() as u8);
        Some(IotlbMessage::update(range.start(), size, user_address, access))
    }

    /// Takes the back-end's answer to something that the relay itself asked.
    pub(super) fn settle_own(&mut self, owed: Owed, answer: &Message) -> Result<(), Failure> {
        let is_done = answer.body::<u64>()? == DONE;
        match owed {
            Owed::Invalidate { completion, .. } => {
                if !is_done {
                    let label = &self.relay.label;
                    let complaints = &self.relay.complaints;
                    complaints.log(|| format!("endpoint {label}: the back-end refuses an invalidation"));
                    completion.fail(Errno::IO);
                }
                Ok(())
            }
            Owed::Channel if !is_done => Err(Failure::NoIotlb("a channel for its requests")),
            Owed::Channel | Owed::Front(_) | Owed::Ready(_) => Ok(()),
        }
    }

    fn fault(&self, iotlb: &IotlbMessage) -> Fault {
        Fault {
            endpoint: self.relay.endpoint,
            address: Iova(iotlb.iova),
            access: wanted(iotlb),
            reason: FaultReason::Unknown,
        }
    }
}

/// What a miss wants; one that does not say is taken to read.
fn wanted(miss: &IotlbMessage) -> Access {
    let access = Access::from_bits_truncate(u32::from(miss.access.0));
    if access.is_empty() { Access::READ } else { access }
}

/// What a mapping has to allow for the miss to be answered. Back-ends may know reading, and reading and writing, and nothing
/// else: DPDK asks for both where it only writes, and has no use for an entry with less.
fn needed(wanted: Access) -> Access {
    if wanted.contains(Access::WRITE) { Access::WRITE } else { wanted }
}

/// The range as address and size of messages: the size of the whole space does not fit into one.
fn pieces(range: IovaRange) -> impl Iterator<Item = (u64, u64)> {
    const HALF: u64 = 1 << 63;
    let whole = range.span().checked_add(1).map(|size| (range.start(), size));
    let halves = if whole.is_none() { [Some((0, HALF)), Some((HALF, HALF))] } else { [whole, None] };
    halves.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_message_and_the_whole_space_is_two() {
        let range = IovaRange::new(0x1000, u64::MAX).expect("start <= last");
        assert_eq!(pieces(range).collect::<Vec<_>>(), [(0x1000, u64::MAX - 0xfff)]);
        assert_eq!(pieces(IovaRange::ALL).collect::<Vec<_>>(), [(0, 1 << 63), (1 << 63, 1 << 63)]);
    }

    #[test]
    fn a_miss_that_wants_both_needs_to_write() {
        assert_eq!(needed(Access::all()), Access::WRITE);
        assert_eq!([Access::READ, Access::WRITE].map(needed), [Access::READ, Access::WRITE]);
    }

    #[test]
    fn a_miss_that_does_not_say_what_it_wants_reads() {
        assert_eq!(wanted(&IotlbMessage::miss(0, message::Access::NONE)), Access::READ);
        assert_eq!(wanted(&IotlbMessage::miss(0, message::Access::READ_WRITE)), Access::all());
    }
}
