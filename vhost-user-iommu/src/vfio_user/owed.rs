// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server has yet to answer, by the ids that the relay gave: the VMM's commands, and the relay's own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;

use crate::orders::Completion;

use super::message::{Command, Message};
use super::space::Step;
use super::version::Proposal;

/// Who asked.
#[derive(Debug)]
pub enum Asked {
    /// The VMM, by this id.
    Front(u16),
    /// The VMM, for a version.
    Version {
        /// Its message, without what was proposed.
        command: Message,
        /// What it proposed.
        proposed: Proposal,
    },
    /// The relay.
    Relay {
        /// What the server is told.
        step: Step,
        /// When.
        since: Instant,
        /// What for.
        errand: Rc<Errand>,
    },
}

/// Something that takes a number of steps.
#[derive(Debug)]
pub struct Errand {
    /// Who waits.
    pub waiting: Waiting,
    /// Why it failed, if it did.
    pub failure: Cell<Option<Errno>>,
}

impl Errand {
    /// One that nothing has been done of.
    pub fn new(waiting: Waiting) -> Errand {
        Errand { waiting, failure: Cell::default() }
    }

    /// A part of it has failed.
    pub fn fail(&self, errno: Errno) {
        self.failure.set(Some(errno));
        if let Waiting::Order(completion) = &self.waiting {
            completion.fail(errno);
        }
    }
}

/// Who waits for an errand.
#[derive(Debug)]
pub enum Waiting {
    /// Nobody.
    Nobody,
    /// Another thread.
    Order(Completion),
    /// The VMM, for a reply to this command.
    Front(Message),
}

/// What is not answered yet.
#[derive(Debug, Default)]
pub struct Owed {
    next: u16,
    asked: BTreeMap<u16, (Command, Asked)>,
}

/// Commands of the VMM that the server may owe an answer at once; it is read no further then.
const ASKED_MAX: usize = 1024;

impl Owed {
    /// The id for a command that the server is going to be sent.
    pub fn add(&mut self, command: Command, asked: Asked) -> u16 {
        // There are always some: far fewer are asked for at once.
        while self.asked.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = id.wrapping_add(1);
        self.asked.insert(id, (command, asked));
        id
    }

    /// An id for a command that is not answered.
    pub fn unanswered(&mut self) -> u16 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// What `reply` is the answer to, if it is one.
    pub fn take(&mut self, reply: &Message) -> Option<Asked> {
        let (command, _) = self.asked.get(&reply.id)?;
        if *command != reply.command {
            return None;
        }
        self.asked.remove(&reply.id).map(|(_, asked)| asked)
    }

    /// Whether the server is far behind.
    pub fn is_full(&self) -> bool {
        self.asked.len() >= ASKED_MAX
    }

    /// The relay's own steps that are not answered, and since when.
    pub fn steps(&self) -> impl Iterator<Item = (&Step, Instant, &Errand)> {
        self.asked.values().filter_map(|(_, asked)| match asked {
            Asked::Relay { step, since, errand } => Some((step, *since, &**errand)),
            Asked::Front(_) | Asked::Version { .. } => None,
        })
    }
}
