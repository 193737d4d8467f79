// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a back-end says: answers, which go to the VMM or end what the relay asked, and requests of its own.

use crate::message::features::{ACCESS_PLATFORM, LOG_ALL, PROTOCOL_FEATURES, protocol};
use crate::message::{BackendRequest, FrontendRequest, Message, VringState};

use super::conversation::{Conversation, Failure};
use super::iotlb::Owed;
use super::messages;

impl Conversation<'_> {
    /// Takes an answer of the back-end.
    pub(super) fn take_from_back(&mut self, message: Message) -> Result<(), Failure> {
        let found = FrontendRequest(message.request);
        let owed = self.owed.pop_front();
        let expected = owed.as_ref().map(Owed::request);
        let Some(owed) = owed.filter(|owed| message.flags.is_reply() && owed.request() == found) else {
            return Err(Failure::WrongReply { expected, found });
        };
        match owed {
            Owed::Front(_) => self.answer_front(message)?,
            owed => self.settle_own(owed, &message)?,
        }
        self.settle()
    }

    /// Carries an answer to the VMM, less what the relay does not let it have.
    fn answer_front(&mut self, message: Message) -> Result<(), Failure> {
        let message = match FrontendRequest(message.request) {
            FrontendRequest::GET_FEATURES => {
                let features = message.body::<u64>()?;
                require(features, ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM")?;
                require(features, PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES")?;
                message.with_payload(&(features & !LOG_ALL))
            }
            FrontendRequest::GET_PROTOCOL_FEATURES => {
                let features = message.body::<u64>()?;
                require(features, protocol::REPLY_ACK, "VHOST_USER_PROTOCOL_F_REPLY_ACK")?;
                require(features, protocol::BACKEND_REQ, "VHOST_USER_PROTOCOL_F_BACKEND_REQ")?;
                message.with_payload(&(features & messages::PROTOCOL_FEATURES))
            }
            FrontendRequest::GET_VRING_BASE => {
                let VringState { index, num } = message.body()?;
                self.rings.stop(index, num);
                message
            }
            _ => message,
        };
        self.front.queue(message).map_err(Failure::Front)
    }

    /// Takes a request of the back-end.
    pub(super) fn take_back_request(&mut self, message: Message) -> Result<(), Failure> {
        match (BackendRequest(message.request), &mut self.front_requests) {
            (BackendRequest::IOTLB_MSG, _) => self.take_iotlb(&message),
            (BackendRequest::CONFIG_CHANGE_MSG, Some(channel)) => {
                channel.queue(message).map_err(Failure::Front)
            }
            (request, _) => {
                let label = &self.relay.label;
                self.relay
                    .complaints
                    .log(|| format!("endpoint {label}: the back-end's {request:?} is not carried"));
                self.answer_back(message.flags.needs_reply().then(|| message.reply(&1u64)))
            }
        }
    }
}

fn require(features: u64, needed: u64, name: &'static str) -> Result<(), Failure> {
    if features & needed == needed { Ok(()) } else { Err(Failure::NoIotlb(name)) }
}
