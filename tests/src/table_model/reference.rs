// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The naive device: lists that are searched, from the manual's page on tables.

use std::collections::BTreeMap;

use viommu_core::Limits;

use super::plan::{ARM, Plan, SOFT, VTD, VTD2};

/// An endpoint, a PASID of it, and a group of theirs.
pub(super) type Key = (u32, Option<u32>, u32);

/// Domain and table of an endpoint, or a PASID of it.
pub(super) type Attachments = BTreeMap<(u32, Option<u32>), (u32, Kind)>;

/// What an attachment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bypass,
    Ste([u64; 2]),
    Pt(u64, u64, u32),
}

impl Kind {
    pub(super) fn is_like(self, other: Kind) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// What a request does when the host has done its part.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    Attach { id: u32, domain: u32 },
    Detach { id: u32 },
    Table { id: u32, pasid: Option<u32>, domain: u32, kind: Kind },
    None { id: u32, pasid: u32 },
    Invalidate,
    Respond { key: Key, cookie: u64 },
}

/// The first half of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// Not recognised.
    Nothing,
    /// Answered with this status.
    Answered(u8),
    HostIsAsked,
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) key: Key,
    pub(super) cookie: u64,
    pages: usize,
    deadline: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Refused,
    Fault,
    Page(Key),
}

/// An event that waits, as its words after the first: flags, endpoint, PASID, address, group.
#[derive(Clone, Debug)]
struct Waiting {
    what: What,
    reason: u8,
    flags: u32,
    endpoint: u32,
    pasid: u32,
    address: u64,
    group: u32,
    after_loss_of: Option<u32>,
}

/// A naive device of tables.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) domain_last: u32,
    pub(super) limits: Limits,
    is_grouped: bool,
    has_tables: bool,
    is_up: bool,
    pub(super) attachments: Attachments,
    pub(super) groups: Vec<Group>,
    /// Cookies that the device has answered by itself, in no order.
    answers: Vec<u64>,
    events: Vec<Waiting>,
    lost: Option<u32>,
    under_way: Option<Effect>,
}

impl Reference {
    pub(super) fn new(plan: &Plan) -> Reference {
        Reference {
            domain_last: plan.domain_last,
            limits: plan.limits,
            is_grouped: plan.is_grouped,
            has_tables: false,
            is_up: false,
            attachments: BTreeMap::new(),
            groups: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            lost: None,
            under_way: None,
        }
    }

    pub(super) fn negotiate(&mut self, bits: u64) {
        self.has_tables = bits & 1 << 7 != 0;
        if !self.has_tables {
            self.end(|_| true);
            self.events.retain(|event| event.what == What::Refused);
        }
    }

    pub(super) fn begin(&mut self, readable: &[u8]) -> Begun {
        self.under_way = None;
        let kinds: &[u8] = if self.has_tables { &[1, 2, 5, 6, 7, 8] } else { &[1, 2, 5] };
        if !readable.first().is_some_and(|kind| kinds.contains(kind)) {
            return Begun::Nothing;
        }
        self.is_up = true;
        if readable[0] == 5 {
            // The writable part has no room for properties.
            return Begun::Answered(super::decide::INVAL);
        }
        match self.decide(readable) {
            Err(status) => Begun::Answered(status),
            Ok(None) => Begun::Answered(0),
            Ok(Some(effect)) => {
                self.under_way = Some(effect);
                Begun::HostIsAsked
            }
        }
    }

    /// The status, if there was something under way.
    pub(super) fn finish(&mut self, errno: Option<i32>) -> Option<u8> {
        let effect = self.under_way.take()?;
        Some(match (errno, effect) {
            (None, effect) => {
                self.commit(effect);
                0
            }
            (Some(12), _) => 8,
            (Some(14), Effect::Table { .. }) => 7,
            _ => 3,
        })
    }

    pub(super) fn reset(&mut self) {
        self.under_way = None;
        self.is_up = false;
        self.attachments.clear();
        self.end(|_| true);
        self.events.clear();
        self.lost = None;
    }

    /// Everything that is attached.
    pub(super) fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    pub(super) fn is_moving(&self, endpoint: u32) -> bool {
        match self.under_way {
            Some(
                Effect::Attach { id, .. } | Effect::Detach { id } | Effect::Table { id, pasid: None, .. },
            ) => id == endpoint,
            _ => false,
        }
    }

    pub(super) fn ask(&mut self, key: Key, cookie: u64, pages: u64, now: u64) -> bool {
        self.end(|other| *other == key);
        let (id, pasid, _) = key;
        let own = self.attachments.get(&(id, None)).is_some_and(|(_, kind)| *kind != Kind::Bypass);
        let has_table = match id {
            ARM => own,
            VTD | VTD2 if pasid.is_none() => own,
            VTD | VTD2 => self.attachments.contains_key(&(id, pasid)),
            _ => false,
        };
        let of_endpoint = self.groups.iter().filter(|group| group.key.0 == id).count();
        let in_all: usize = self.groups.iter().map(|group| group.pages).sum();
        let has_room = of_endpoint < 2 && in_all + pages as usize <= self.limits.page_requests_max;
        if !has_table || !has_room || pages == 0 || !self.has_tables {
            self.answers.push(cookie);
            return false;
        }
        self.groups.push(Group { key, cookie, pages: pages as usize, deadline: now + 100 });
        for page in 1..=pages {
            let last = if page == pages { 0x10 } else { 0 };
            let flags = 0x521 | last | if pasid.is_some() { 0x200 } else { 0 };
            self.push(What::Page(key), 2, flags, id, pasid.unwrap_or(0), page * 4096, key.2);
        }
        true
    }

    pub(super) fn expire(&mut self, now: u64) {
        let answering = match self.under_way {
            Some(Effect::Respond { key, .. }) => Some(key),
            _ => None,
        };
        let late: Vec<Key> =
            self.groups.iter().filter(|group| group.deadline <= now).map(|group| group.key).collect();
        self.end(|key| late.contains(key) && Some(*key) != answering);
    }

    pub(super) fn end_of(&mut self, endpoint: u32) {
        self.end(|key| key.0 == endpoint);
    }

    pub(super) fn take_answers(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.answers)
    }

    pub(super) fn refused(&mut self, endpoint: u32, address: u64) -> bool {
        self.fault(What::Refused, 2, 0x101, endpoint, 0, address)
    }

    pub(super) fn table_fault(&mut self, endpoint: u32, pasid: Option<u32>, address: Option<u64>) -> bool {
        let flags = 2 | if pasid.is_some() { 0x200 } else { 0 } | if address.is_some() { 0x100 } else { 0 };
        self.has_tables
            && self.fault(What::Fault, 5, flags, endpoint, pasid.unwrap_or(0), address.unwrap_or(0))
            || self.lose(endpoint)
    }

    /// Always false.
    pub(super) fn lose(&mut self, endpoint: u32) -> bool {
        if (1..=SOFT).contains(&endpoint) && self.has_tables {
            self.lost = Some(endpoint);
        }
        false
    }

    /// What a buffer of so many bytes gets.
    pub(super) fn buffer(&mut self, room: usize) -> Option<Vec<u8>> {
        if !self.is_up {
            return None;
        }
        let size = if self.has_tables { 48 } else { 24 };
        let Some(event) = self.events.first() else {
            let id = self.lost.filter(|_| self.has_tables && room >= 24)?;
            let mut bytes = [&[0u8; 4][..], &0x1000u32.to_le_bytes(), &id.to_le_bytes()].concat();
            bytes.resize(if room >= 48 { 48 } else { 24 }, 0);
            self.lost = None;
            return Some(bytes);
        };
        if let (What::Page(key), true) = (event.what.clone(), room < size) {
            self.end(|other| *other == key);
            return None;
        }
        if room < 24 {
            return None;
        }
        let event = self.events.remove(0);
        let lost = if event.after_loss_of.is_some() && self.has_tables { 0x1000 } else { 0 };
        let mut bytes = u32::from(event.reason).to_le_bytes().to_vec();
        for word in [event.flags | lost, event.endpoint, event.pasid] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(event.address.to_le_bytes());
        bytes.extend(event.group.to_le_bytes());
        bytes.resize(if room >= size { size } else { 24 }, 0);
        bytes.resize(bytes.len().min(size), 0);
        Some(bytes)
    }

    pub(super) fn kind_of(&self, domain: u32) -> Option<Kind> {
        self.attachments.values().find(|(other, _)| *other == domain).map(|(_, kind)| *kind)
    }

    pub(super) fn domain_of(&self, id: u32, pasid: Option<u32>) -> Option<u32> {
        self.attachments.get(&(id, pasid)).map(|(domain, _)| *domain)
    }

    /// The others of the endpoint's group.
    pub(super) fn mates(&self, id: u32) -> impl Iterator<Item = u32> {
        let is_grouped = self.is_grouped;
        (1..=SOFT).filter(move |other| is_grouped && *other != id && (other - 1) / 2 == (id - 1) / 2)
    }

    fn commit(&mut self, effect: Effect) {
        match effect {
            Effect::Attach { id, domain } => {
                self.leave(id);
                self.attachments.insert((id, None), (domain, Kind::Bypass));
            }
            Effect::Detach { id } => self.leave(id),
            Effect::Table { id, pasid, domain, kind } => {
                let old_is_ste =
                    matches!(self.attachments.get(&(id, None)), Some((_, Kind::Ste(_)))) && pasid.is_none();
                self.end(|key| key.0 == id && (old_is_ste || key.1 == pasid));
                self.attachments.insert((id, pasid), (domain, kind));
            }
            Effect::None { id, pasid } => {
                self.end(|key| key.0 == id && key.1 == Some(pasid));
                self.attachments.remove(&(id, Some(pasid)));
            }
            Effect::Invalidate => {}
            Effect::Respond { key, cookie } => {
                if self.groups.iter().any(|group| group.key == key && group.cookie == cookie) {
                    self.end(|other| *other == key);
                    self.answers.pop();
                }
            }
        }
    }

    fn leave(&mut self, id: u32) {
        self.end(|key| key.0 == id);
        self.attachments.retain(|(other, _), _| *other != id);
    }

    /// Answers such groups, and takes their events back.
    fn end(&mut self, is_over: impl Fn(&Key) -> bool) {
        for group in self.groups.iter().filter(|group| is_over(&group.key)) {
            self.answers.push(group.cookie);
        }
        self.groups.retain(|group| !is_over(&group.key));
        let mut kept: Vec<Waiting> = Vec::new();
        let mut gap = None;
        for mut event in std::mem::take(&mut self.events) {
            match event.what {
                What::Page(key) if is_over(&key) => {
                    gap = event.after_loss_of.or(gap);
                }
                _ => {
                    event.after_loss_of = event.after_loss_of.or(gap.take());
                    kept.push(event);
                }
            }
        }
        self.events = kept;
        self.lost = self.lost.or(gap);
    }

    fn fault(&mut self, what: What, reason: u8, flags: u32, endpoint: u32, pasid: u32, address: u64) -> bool {
        if !(1..=SOFT).contains(&endpoint) {
            return false;
        }
        let is_same = |event: &&Waiting| {
            event.what == what
                && (event.flags, event.endpoint, event.pasid, event.address)
                    == (flags, endpoint, pasid, address)
        };
        if self.events.iter().any(|event| is_same(&event)) {
            return true;
        }
        let faults = self.events.iter().filter(|event| !matches!(event.what, What::Page(_))).count();
        if faults >= self.limits.faults_max {
            return self.lose(endpoint);
        }
        self.push(what, reason, flags, endpoint, pasid, address, 0);
        true
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an event")]
    fn push(
        &mut self,
        what: What,
        reason: u8,
        flags: u32,
        endpoint: u32,
        pasid: u32,
        address: u64,
        group: u32,
    ) {
        let after_loss_of = self.lost.take();
        self.events.push(Waiting { what, reason, flags, endpoint, pasid, address, group, after_loss_of });
    }
}
