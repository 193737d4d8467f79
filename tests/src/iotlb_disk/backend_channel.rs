// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection for the back-end's own requests: one miss at a time, and its reply.
//!
//! Somebody who stops waiting leaves a reply behind; whoever asks next skips it.
//!
//! Read first: "Back-end communication" in `vhost-user.rst`.

use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::event::PollFlags;
use vhost_user_iommu::message::{BackendRequest, Channel, IotlbMessage, Message};

use super::wait::{Stop, wait};

/// The connection for our own requests.
#[derive(Debug)]
pub(super) struct BackendChannel {
    channel: Channel,
    /// Whether our requests are answered.
    replies: Replies,
    /// Replies that are still to come for requests that nobody waits for any more.
    abandoned: u32,
}

/// Whether the front-end replies to our requests (`REPLY_ACK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    Expected,
    Never,
}

/// What became of a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An update has come or is to come.
    Granted,
    Refused,
}

impl BackendChannel {
    pub(super) fn new(channel: Channel, replies: Replies) -> Self {
        Self { channel, replies, abandoned: 0 }
    }

    /// Sends a miss and waits for the reply where one is to be expected.
    pub(super) fn ask(
        &mut self,
        miss: &IotlbMessage,
        cancel: &Stop,
        deadline: Instant,
    ) -> anyhow::Result<Answer> {
        if self.replies == Replies::Never {
            self.send(Message::from(miss), cancel, deadline)?;
            return Ok(Answer::Granted);
        }
        self.send(Message::from(miss).with_need_reply(), cancel, deadline)?;
        self.abandoned += 1;
        loop {
            let reply = self.receive(cancel, deadline)?;
            ensure!(reply.flags.is_reply(), "a request came on the connection for ours");
            ensure!(
                reply.request == BackendRequest::IOTLB_MSG.0,
                "reply to another request: {}",
                reply.request
            );
            self.abandoned -= 1;
            if self.abandoned == 0 {
                return Ok(if reply.body::<u64>()? == 0 { Answer::Granted } else { Answer::Refused });
            }
        }
    }

    fn send(&mut self, message: Message, cancel: &Stop, deadline: Instant) -> anyhow::Result<()> {
        self.channel.queue(message)?;
        self.channel.flush()?;
        while self.channel.wants_write() {
            self.wait(PollFlags::OUT, cancel, deadline)?;
            self.channel.flush()?;
        }
        Ok(())
    }

    fn receive(&mut self, cancel: &Stop, deadline: Instant) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = self.channel.receive()? {
                return Ok(message);
            }
            self.wait(PollFlags::IN, cancel, deadline)?;
        }
    }

    fn wait(&self, flags: PollFlags, cancel: &Stop, deadline: Instant) -> anyhow::Result<()> {
        let left = deadline.checked_duration_since(Instant::now()).context("no answer in time")?;
        let ready = wait(&[(self.channel.as_fd(), flags), (cancel.as_fd(), PollFlags::IN)], Some(left))?;
        ensure!(!ready[1], "cancelled");
        Ok(())
    }
}
