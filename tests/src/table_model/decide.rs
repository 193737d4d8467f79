// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the naive device says to a request, before anything changes: statuses as numbers, as the manual has them.

use super::plan::{ARM, ARM2, SOFT, VTD, VTD2};
use super::reference::{Effect, Kind, Reference};

pub(super) const UNSUPP: u8 = 2;
pub(super) const INVAL: u8 = 4;
pub(super) const RANGE: u8 = 5;
pub(super) const NOENT: u8 = 6;
pub(super) const NOMEM: u8 = 8;

/// `None` when there is nothing to do.
type Decision = Result<Option<Effect>, u8>;

impl Reference {
    pub(super) fn decide(&self, readable: &[u8]) -> Decision {
        let size = [0, 20, 20, 0, 0, 72, 124, 60, 32][usize::from(readable[0])];
        if readable.len() < size {
            return Err(INVAL);
        }
        match readable[0] {
            1 => self.attach(readable),
            2 => self.detach(readable),
            6 => self.attach_table(readable),
            7 => self.invalidate(readable),
            8 => self.respond(readable),
            _ => Ok(None),
        }
    }

    fn attach(&self, readable: &[u8]) -> Decision {
        let (domain, id, flags) = (u32_at(readable, 4), u32_at(readable, 8), u32_at(readable, 12));
        if readable[16..20] != [0; 4] || flags > 1 {
            return Err(INVAL);
        }
        known(id)?;
        if flags == 0 {
            return Err(UNSUPP);
        }
        self.in_range(domain)?;
        match self.kind_of(domain) {
            Some(kind) if kind != Kind::Bypass => return Err(INVAL),
            Some(_) if self.domain_of(id, None) == Some(domain) => return Ok(None),
            Some(_) => {}
            None => self.check_domains(|&(other, _)| other != id)?,
        }
        let is_elsewhere =
            |mate| self.domain_of(mate, None).is_some_and(|other| self.kind_of(other) != Some(Kind::Bypass));
        if self.mates(id).any(is_elsewhere) {
            return Err(UNSUPP);
        }
        Ok(Some(Effect::Attach { id, domain }))
    }

    fn detach(&self, readable: &[u8]) -> Decision {
        let (named, id) = (u32_at(readable, 4), u32_at(readable, 8));
        known(id)?;
        let domain = self.domain_of(id, None).ok_or(INVAL)?;
        let is_linux = named == 0 && self.kind_of(domain) == Some(Kind::Bypass);
        if domain != named && !is_linux { Err(INVAL) } else { Ok(Some(Effect::Detach { id })) }
    }

    fn attach_table(&self, readable: &[u8]) -> Decision {
        let (domain, id) = (u32_at(readable, 4), u32_at(readable, 8));
        let zero = |from: usize, to: usize| readable[from..to].iter().all(|byte| *byte == 0);
        let (pasid, attach_flags) = (u32_at(readable, 36), u32_at(readable, 40));
        let named = (attach_flags == 1).then_some(pasid);
        let (pasid, kind) = match readable[12] {
            0 => {
                if attach_flags != 1 || !zero(13, 36) || !zero(44, 124) {
                    return Err(INVAL);
                }
                return self.attach_none(domain, id, pasid);
            }
            1 => {
                let ste = [u64_at(readable, 16), u64_at(readable, 24)];
                if !zero(13, 16) || !zero(32, 124) || !is_entry(ste) {
                    return Err(INVAL);
                }
                (None, Kind::Ste(ste))
            }
            2 => {
                let (flags, root, width) = (u64_at(readable, 16), u64_at(readable, 24), u32_at(readable, 32));
                let is_bad = !zero(13, 16) || !zero(44, 124) || attach_flags > 1 || flags > 7;
                let is_off = root % 4096 != 0 || (width != 48 && width != 57);
                if is_bad || is_off || (attach_flags == 0 && pasid != 0) {
                    return Err(INVAL);
                }
                (named, Kind::Pt(flags, root, width))
            }
            _ => return Err(UNSUPP),
        };
        known(id)?;
        can_walk(id, kind)?;
        self.in_range(domain)?;
        if let Some(pasid) = pasid {
            self.can_have(id, pasid)?;
            self.domain_of(id, None).ok_or(INVAL)?;
            let count = self.attachments.iter().filter(|((_, pasid), _)| pasid.is_some()).count();
            if self.domain_of(id, Some(pasid)).is_none() && count >= self.limits.pasids_max {
                return Err(NOMEM);
            }
        }
        match self.kind_of(domain) {
            Some(other) if !other.is_like(kind) => return Err(INVAL),
            Some(_) => {}
            None => self.check_domains(|other| *other != (id, pasid))?,
        }
        if pasid.is_none() {
            let differs = |mate| match self.attachments.get(&(mate, None)) {
                Some((other, table)) => *other != domain || *table != kind,
                None => false,
            };
            if self.mates(id).any(differs) {
                return Err(UNSUPP);
            }
        }
        Ok(Some(Effect::Table { id, pasid, domain, kind }))
    }

    fn attach_none(&self, domain: u32, id: u32, pasid: u32) -> Decision {
        known(id)?;
        if id == SOFT {
            return Err(UNSUPP);
        }
        self.can_have(id, pasid)?;
        if self.domain_of(id, Some(pasid)) != Some(domain) {
            return Err(INVAL);
        }
        Ok(Some(Effect::None { id, pasid }))
    }

    fn invalidate(&self, readable: &[u8]) -> Decision {
        let (scope, caches, flags) =
            (readable[4], readable[5], u16::from_le_bytes([readable[6], readable[7]]));
        let (domain, pasid, id) = (u32_at(readable, 8), u32_at(readable, 12), u64_at(readable, 16));
        let (address, pages, size) = (u64_at(readable, 24), u64_at(readable, 32), readable[40]);
        let (has_pasid, has_id) = (flags & 2 != 0, flags & 4 != 0);
        if readable[41..60].iter().any(|byte| *byte != 0) || flags > 15 || caches == 0 || caches > 3 {
            return Err(INVAL);
        }
        if has_id && id > 0xffff {
            return Err(RANGE);
        }
        if !(1..=3).contains(&scope) || (scope == 2 && !has_pasid) || (scope == 3 && caches == 1) {
            return Err(INVAL);
        }
        let kind = self.kind_of(domain).ok_or(NOENT)?;
        let is_arm = match kind {
            Kind::Bypass => return Err(INVAL),
            Kind::Ste(_) => true,
            Kind::Pt(..) => false,
        };
        if has_id && !is_arm {
            return Err(RANGE);
        }
        if scope == 3 {
            let members: Vec<u32> = self
                .attachments
                .iter()
                .filter(|(_, (other, _))| *other == domain)
                .map(|((id, _), _)| *id)
                .collect();
            let has_size = |id: &u32| match *id {
                ARM => [12, 21, 30, 14, 25].contains(&size),
                ARM2 => [12, 21, 30].contains(&size),
                _ => [12, 21].contains(&size),
            };
            let last = || u128::from(address) + (u128::from(pages) << size);
            let is_range = members.iter().all(has_size)
                && pages > 0
                && u128::from(address).is_multiple_of(1 << size)
                && last() <= 1 << 64;
            if !is_range {
                return Err(RANGE);
            }
        }
        if has_pasid && is_arm && pasid >= 16 {
            return Err(RANGE);
        }
        let is_there = |((_, other), (of, _)): (&(u32, Option<u32>), &(u32, Kind))| {
            *of == domain && *other == Some(pasid)
        };
        if has_pasid && !is_arm && !self.attachments.iter().any(is_there) {
            return Err(NOENT);
        }
        Ok(Some(Effect::Invalidate))
    }

    fn respond(&self, readable: &[u8]) -> Decision {
        let (id, flags, pasid, group) =
            (u32_at(readable, 4), u32_at(readable, 8), u32_at(readable, 12), u32_at(readable, 16));
        let code = u16::from_le_bytes([readable[20], readable[21]]);
        let is_zero = readable[22..32].iter().all(|byte| *byte == 0);
        if flags > 1 || !is_zero || (flags == 0 && pasid != 0) || code > 2 {
            return Err(INVAL);
        }
        let key = (id, (flags == 1).then_some(pasid), group);
        let waiting = self.groups.iter().find(|waiting| waiting.key == key).ok_or(NOENT)?;
        Ok(Some(Effect::Respond { key, cookie: waiting.cookie }))
    }

    /// Whether there is room for one more domain when only such attachments stay.
    fn check_domains(&self, stays: impl Fn(&(u32, Option<u32>)) -> bool) -> Result<(), u8> {
        let mut domains: Vec<u32> =
            self.attachments.iter().filter(|(who, _)| stays(who)).map(|(_, (domain, _))| *domain).collect();
        domains.sort();
        domains.dedup();
        if domains.len() >= self.limits.domains_max { Err(NOMEM) } else { Ok(()) }
    }

    fn can_have(&self, id: u32, pasid: u32) -> Result<(), u8> {
        if (id != VTD && id != VTD2) || self.mates(id).next().is_some() {
            return Err(UNSUPP);
        }
        if pasid == 0 || pasid > 15 { Err(RANGE) } else { Ok(()) }
    }

    fn in_range(&self, domain: u32) -> Result<(), u8> {
        if domain == 0 || domain > self.domain_last { Err(RANGE) } else { Ok(()) }
    }
}

fn known(id: u32) -> Result<(), u8> {
    if (1..=5).contains(&id) { Ok(()) } else { Err(NOENT) }
}

/// Whether the words are a stream table entry, by their fields.
fn is_entry([word0, word1]: [u64; 2]) -> bool {
    let bits = |word: u64, high: u32, low: u32| (word >> low) & ((1 << (high - low + 1)) - 1);
    let reserved = bits(word0, 58, 52) + bits(word1, 26, 8) + bits(word1, 63, 30);
    let config = bits(word0, 3, 1);
    let stage_1 = config == 5 && bits(word0, 5, 4) < 3 && bits(word1, 1, 0) < 3;
    word0 & 1 == 1 && reserved == 0 && bits(word1, 29, 28) < 2 && (config == 0 || config == 4 || stage_1)
}

/// What the hardware of each endpoint can do, as the plan has it.
fn can_walk(id: u32, kind: Kind) -> Result<(), u8> {
    match (id, kind) {
        (ARM | ARM2, Kind::Ste([word0, word1])) => {
            if id == ARM2 && word1 & 1 << 28 != 0 {
                return Err(UNSUPP);
            }
            let (is_stage_1, contexts) = (word0 & 0xe == 0xa, word0 >> 59);
            if is_stage_1 && contexts > 4 {
                return Err(RANGE);
            }
            let two_levels = is_stage_1 && contexts > 0 && word0 & 0x30 != 0;
            if two_levels && id == ARM2 { Err(UNSUPP) } else { Ok(()) }
        }
        (VTD | VTD2, Kind::Pt(flags, ..)) if flags & 2 == 0 => Ok(()),
        _ => Err(UNSUPP),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
