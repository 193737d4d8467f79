// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The relay's own commands to the server: steps that are sent in their order, a limited number at once, and what waits
//! for their answers.
//!
//! An errand is done when its steps are, and all that were to be done before: what it takes away may be on its way already.
//!
//! What maps and what unmaps is never under way at the same time. A mapping that the server refuses is then known of
//! before it could be taken back.

use std::collections::{BTreeSet, VecDeque};
use std::mem::discriminant;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use viommu_core::{Access, IovaRange};

use crate::config::Dma;
use crate::orders::{Order, View, Work};

use super::conversation::{Conversation, Failure, Phase};
use super::message::{Command, DmaMap, DmaUnmap, Message};
use super::owed::{Asked, Errand, Waiting};
use super::space::{Full, Piece, Step};
use super::version::MAPS_MAX;

/// Steps that have not been sent.
#[derive(Debug, Default)]
pub struct Queue {
    /// What for; without a step, it is to be done when all before is.
    steps: VecDeque<(Option<Step>, Rc<Errand>)>,
    /// Where mappings begin that the server has refused, and that are to be unmapped all the same.
    refused: BTreeSet<u64>,
    /// Since when nothing can be sent, because the server reads nothing.
    stalled_since: Option<Instant>,
}

/// Steps that may be under way at once.
const UNDER_WAY_MAX: usize = 64;

/// Steps that may wait: those of two changes of all that a server holds. One that is so far behind is not waited for.
const WAITING_MAX: usize = 4 * MAPS_MAX as usize;

impl Conversation<'_> {
    /// Carries out what other threads ordered.
    pub(super) fn obey(&mut self, orders: impl Iterator<Item = Order>) -> Result<(), Failure> {
        for Order { work, completion, .. } in orders {
            // What is asked for by messages is looked up each time, and no access is under way now.
            if self.dma == Dma::Message || self.phase != Phase::Running {
                continue;
            }
            let (steps, fits) = match work {
                Work::Forget(range) => (self.space.forget(range), Ok(())),
                Work::Enter(view) => self.space.enter(view, &self.regions),
                Work::Refresh => {
                    let view = self.view();
                    self.space.enter(view, &self.regions)
                }
                Work::Learn(mapping) => match self.space.give(mapping, &self.regions) {
                    Ok(steps) => (steps, Ok(())),
                    Err(full) => (Vec::new(), Err(full)),
                },
            };
            self.tell(steps, fits, Waiting::Order(completion))?;
        }
        Ok(())
    }

    /// The endpoint has come to life: it is told what it reaches.
    pub(super) fn begin_telling(&mut self) -> Result<(), Failure> {
        self.relay.iommu.restarted(self.relay.endpoint);
        if self.dma == Dma::Message {
            return self.open_windows();
        }
        let view = self.view();
        let (steps, fits) = self.space.enter(view, &self.regions);
        self.tell(steps, fits, Waiting::Nobody)
    }

    /// The VMM has changed its memory, and waits for the reply to `command`.
    pub(super) fn tell_of_memory(&mut self, command: Message) -> Result<(), Failure> {
        if self.dma == Dma::Message {
            self.open_windows()?;
            return self.tell(Vec::new(), Ok(()), Waiting::Front(command));
        }
        let (steps, fits) = self.space.settle(&self.regions);
        self.tell(steps, fits, Waiting::Front(command))
    }

    fn view(&self) -> View {
        self.relay.iommu.view(self.relay.endpoint)
    }

    /// Lets the server ask for all that there could be; what it is given is decided when it asks.
    fn open_windows(&mut self) -> Result<(), Failure> {
        let memory_last = self.regions.iter().map(|region| region.range.last()).max().unwrap_or(0);
        let last = self.relay.aperture.last().max(memory_last);
        let Some(start) = self.window_start.filter(|start| *start <= last) else { return Ok(()) };
        self.window_start = last.checked_add(1);
        let step = |range| Step::Map(Piece { range, access: Access::READ | Access::WRITE, file: None });
        // The size of the whole space does not fit into a message.
        let middle = IovaRange::new(start, last).filter(|range| range.span() == u64::MAX).map(|_| 1 << 63);
        let ranges = match middle {
            None => [IovaRange::new(start, last), None],
            Some(middle) => [IovaRange::new(start, middle - 1), IovaRange::new(middle, last)],
        };
        let steps = ranges.into_iter().flatten().map(step).collect();
        self.tell(steps, Ok(()), Waiting::Nobody)
    }

    fn tell(&mut self, steps: Vec<Step>, fits: Result<(), Full>, waiting: Waiting) -> Result<(), Failure> {
        if fits.is_err() {
            self.complain(|| "more mappings than the server takes; see its max_dma_maps".to_owned());
        }
        let errand = Rc::new(Errand::new(waiting));
        if let Err(Full) = fits {
            errand.fail(Errno::NOSPC);
        }
        let is_first = self.queue.steps.is_empty() && self.owed.steps().next().is_none();
        self.queue.steps.extend(steps.into_iter().map(|step| (Some(step), errand.clone())));
        if !is_first {
            self.queue.steps.push_back((None, errand.clone()));
        }
        self.end_errand(errand)?;
        if self.queue.steps.len() > WAITING_MAX {
            return Err(Failure::Unresponsive);
        }
        self.send_steps()
    }

    /// Sends what may be sent now.
    pub(super) fn send_steps(&mut self) -> Result<(), Failure> {
        while let Some((step, _)) = self.queue.steps.front() {
            let mut under_way = self.owed.steps().map(|(other, ..)| other);
            let is_other = |other| step.as_ref().is_none_or(|step| discriminant(other) != discriminant(step));
            if under_way.next().is_some_and(is_other) || under_way.count() + 1 >= UNDER_WAY_MAX {
                return Ok(());
            }
            if !self.server.has_room() {
                self.queue.stalled_since.get_or_insert_with(Instant::now);
                return Ok(());
            }
            self.queue.stalled_since = None;
            let Some((step, errand)) = self.queue.steps.pop_front() else { return Ok(()) };
            match step {
                Some(step) if !self.queue.was_refused(&step) => self.send_step(step, errand)?,
                _ => self.end_errand(errand)?,
            }
        }
        Ok(())
    }

    fn send_step(&mut self, step: Step, errand: Rc<Errand>) -> Result<(), Failure> {
        let mut message = message_of(&step)?;
        let asked = Asked::Relay { step, since: Instant::now(), errand };
        message.id = self.owed.add(message.command, asked);
        self.server.queue(message).map_err(Failure::Server)
    }

    /// Takes the server's answer to a step.
    pub(super) fn end_step(
        &mut self,
        step: &Step,
        errand: Rc<Errand>,
        reply: &Message,
    ) -> Result<(), Failure> {
        match step {
            Step::Map(piece) if reply.flags.is_error() => {
                let errno = reply.error;
                self.complain(|| format!("the server does not map {}: error {errno}", piece.range));
                self.space.refused(piece);
                self.queue.refuse(piece);
                errand.fail(Errno::IO);
            }
            Step::Map(_) => {}
            Step::Unmap(piece) => {
                let echo = DmaUnmap { argsz: 0, flags: 0, ..unmap_of(piece) };
                let is_echo = reply.body().is_none_or(|body| DmaUnmap { argsz: 0, flags: 0, ..body } == echo);
                if reply.flags.is_error() || !is_echo {
                    errand.fail(Errno::IO);
                    self.space.keep(step);
                    return Err(Failure::NotUnmapped(piece.range));
                }
            }
        }
        self.end_errand(errand)?;
        self.send_steps()
    }

    /// Lets go of an errand; whoever waits hears of it if this was the last step.
    fn end_errand(&mut self, errand: Rc<Errand>) -> Result<(), Failure> {
        let Some(Errand { waiting, failure }) = Rc::into_inner(errand) else { return Ok(()) };
        match (waiting, failure.take()) {
            // It hears of it by this being dropped.
            (Waiting::Nobody | Waiting::Order(_), _) => Ok(()),
            (Waiting::Front(command), Some(errno)) => self.answer_front(&command, command.refusal(errno)),
            (Waiting::Front(command), None) => {
                // A reply to DMA_UNMAP says again what was to be unmapped.
                let payload = if command.command == Command::DMA_UNMAP { &command.payload[..] } else { &[] };
                self.answer_front(&command, command.reply(payload))
            }
        }
    }

    /// How long the server may still take to answer what it was told, or is to be told.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let since = self.owed.steps().map(|(_, since, _)| since).chain(self.queue.stalled_since).min();
        since.map(|since| self.relay.unmap_timeout.saturating_sub(since.elapsed()))
    }
}

impl Queue {
    /// The server has refused a mapping: what would unmap it next is of no use.
    fn refuse(&mut self, piece: &Piece) {
        let unmap = Some(Step::Unmap(piece.clone()));
        if self.steps.iter().any(|(step, _)| *step == unmap) {
            self.refused.insert(piece.range.start());
        }
    }

    /// Whether a step would unmap what the server has refused to map.
    fn was_refused(&mut self, step: &Step) -> bool {
        matches!(step, Step::Unmap(piece) if self.refused.remove(&piece.range.start()))
    }

    /// What waits to be sent, and what for.
    pub fn steps(&self) -> impl Iterator<Item = (Option<&Step>, &Errand)> {
        self.steps.iter().map(|(step, errand)| (step.as_ref(), &**errand))
    }
}

fn message_of(step: &Step) -> Result<Message, Failure> {
    let Step::Map(piece) = step else {
        let (Step::Map(piece) | Step::Unmap(piece)) = step;
        return Ok(Message::command(0, Command::DMA_UNMAP, &unmap_of(piece)));
    };
    let of = |access, flag| if piece.access.contains(access) { flag } else { 0 };
    let map = DmaMap {
        argsz: size_of::<DmaMap>() as u32,
        flags: of(Access::READ, DmaMap::READ) | of(Access::WRITE, DmaMap::WRITE),
        offset: piece.file.as_ref().map_or(0, |(_, offset)| *offset),
        address: piece.range.start(),
        size: piece.range.span() + 1,
    };
    let file = piece.file.as_ref().map(|(file, _)| file.try_clone()).transpose()?;
    Ok(Message::command(0, Command::DMA_MAP, &map).with_fds(file.into_iter().collect()))
}

fn unmap_of(piece: &Piece) -> DmaUnmap {
    let argsz = size_of::<DmaUnmap>() as u32;
    DmaUnmap { argsz, flags: 0, address: piece.range.start(), size: piece.range.span() + 1 }
}
