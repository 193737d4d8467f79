// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands that an invalidation comes to.

use viommu_core::{Caches, Invalidation, Scope, Table};

use super::{Abilities, has_ats, has_descriptors};
use crate::format::Member;

/// A command: two words.
pub type SmmuCommand = [u64; 2];

/// Pages that are invalidated one by one, at most. More of them are invalidated with all of their address space, which
/// costs the guest misses and the host less.
pub const PAGES_MAX: u64 = 8192;

const CFGI_CD: u64 = 0x05;
const CFGI_CD_ALL: u64 = 0x06;
const TLBI_NH_ALL: u64 = 0x10;
const TLBI_NH_ASID: u64 = 0x11;
const TLBI_NH_VA: u64 = 0x12;
const TLBI_NH_VAA: u64 = 0x13;
const ATC_INV: u64 = 0x40;

/// `Leaf`, in the second word.
const LEAF: u64 = 1;
/// `ATC_INV.SSV`: the SubstreamID counts. Without it all entries are meant, those of SubstreamIDs too.
const SUBSTREAM_VALID: u64 = 1 << 11;
/// `ATC_INV.Size` of all addresses.
const ATC_ALL: SmmuCommand = [0, 52];

/// Adds the commands for these devices of one IOMMU: what it has of descriptors goes first, then what it has of
/// translations, and then what the devices have. Else one could be filled from another that is still to be emptied.
pub fn add_commands(
    invalidation: &Invalidation,
    members: &[Member],
    abilities: Abilities,
    [configuration, translations, devices]: &mut [impl Extend<SmmuCommand>; 3],
) {
    let substream = Substream::of(invalidation, abilities);
    let of_descriptors = invalidation.caches.contains(Caches::PASID);
    add_translations(invalidation, abilities, translations);
    for member in members {
        let Table::ArmSmmu3 { ste } = member.table else { continue };
        if of_descriptors && has_descriptors(ste) {
            configuration.extend([substream.configuration(member.number, invalidation.leaf)]);
        }
        if !invalidation.caches.is_empty() && has_descriptors(ste) && has_ats(ste) {
            let [first, second] = if of_descriptors { ATC_ALL } else { addresses(invalidation.scope) };
            devices.extend([[first | ATC_INV | substream.of_device() | member.number << 32, second]]);
        }
    }
}

/// The SubstreamIDs concerned.
#[derive(Clone, Copy)]
enum Substream {
    All,
    One(u64),
}

impl Substream {
    fn of(invalidation: &Invalidation, abilities: Abilities) -> Substream {
        match invalidation.scope {
            Scope::Pasid(pasid) | Scope::Addresses { pasid: Some(pasid), .. }
                // The hardware would refuse others.
                if u64::from(pasid.0) < 1 << abilities.substream_bits =>
            {
                Substream::One(pasid.0.into())
            }
            _ => Substream::All,
        }
    }

    fn configuration(self, stream: u64, leaf: bool) -> SmmuCommand {
        match self {
            Substream::All => [CFGI_CD_ALL | stream << 32, 0],
            Substream::One(id) => [CFGI_CD | id << 12 | stream << 32, if leaf { LEAF } else { 0 }],
        }
    }

    /// SubstreamID 0 may be that of accesses without one, which only a command without one is for.
    fn of_device(self) -> u64 {
        match self {
            Substream::All | Substream::One(0) => 0,
            Substream::One(id) => SUBSTREAM_VALID | id << 12,
        }
    }
}

/// The smallest part of all addresses that a device can be told to forget and that has all of these.
fn addresses(scope: Scope) -> SmmuCommand {
    let Scope::Addresses { start, pages, page_shift, .. } = scope else { return ATC_ALL };
    let last = last_of(start, pages, page_shift);
    // As many bits from the lowest on differ.
    let shift = (u64::BITS - (start ^ last).leading_zeros()).max(12);
    if shift == u64::BITS {
        return ATC_ALL;
    }
    [0, start >> shift << shift | u64::from(shift - 12)]
}

fn last_of(start: u64, pages: u64, page_shift: u8) -> u64 {
    let span = u128::from(pages) << page_shift;
    u64::try_from(u128::from(start) + span - 1).unwrap_or(u64::MAX)
}

/// What the IOMMU has of translations. A descriptor that goes takes along what was translated by it.
fn add_translations(invalidation: &Invalidation, abilities: Abilities, to: &mut impl Extend<SmmuCommand>) {
    let whole = match invalidation.id {
        Some(id) if !invalidation.global => [TLBI_NH_ASID | u64::from(id) << 48, 0],
        _ => [TLBI_NH_ALL, 0],
    };
    match invalidation.scope {
        _ if invalidation.caches.is_empty() => {}
        Scope::Addresses { start, pages, page_shift, .. } if invalidation.caches == Caches::TLB => {
            let first = match invalidation.id {
                Some(id) => TLBI_NH_VA | u64::from(id) << 48,
                None => TLBI_NH_VAA,
            };
            let command = [first, if invalidation.leaf { LEAF } else { 0 }];
            match abilities.ranges.then(|| Granule::of(page_shift)).flatten() {
                Some(granule) => match granule.count(pages, page_shift) {
                    Some(granules) => to.extend(granule.ranges(command, start, granules)),
                    None => to.extend([whole]),
                },
                None if pages <= PAGES_MAX => to.extend(each(command, start, pages, page_shift)),
                None => to.extend([whole]),
            }
        }
        _ => to.extend([whole]),
    }
}

/// A command for each page.
fn each(
    [first, second]: SmmuCommand,
    start: u64,
    pages: u64,
    page_shift: u8,
) -> impl Iterator<Item = SmmuCommand> {
    (0..pages).map(move |number| [first, second | (start + (number << page_shift))])
}

/// The granule of tables, which a range is counted in.
#[derive(Clone, Copy)]
struct Granule {
    shift: u8,
    /// `TG`.
    code: u64,
}

impl Granule {
    /// Of tables that have pages or blocks of this size. A size of another kind says nothing of the granule.
    fn of(page_shift: u8) -> Option<Granule> {
        match page_shift {
            12 | 21 | 30 | 39 => Some(Granule { shift: 12, code: 1 }),
            14 | 25 | 36 => Some(Granule { shift: 14, code: 2 }),
            16 | 29 | 42 => Some(Granule { shift: 16, code: 3 }),
            _ => None,
        }
    }

    /// How many of them so many pages are, unless that takes too many commands.
    fn count(self, pages: u64, page_shift: u8) -> Option<u64> {
        let granules = pages << (page_shift - self.shift);
        (granules < 32 << SCALE_MAX).then_some(granules)
    }

    /// Commands for 1 to 31 times a power of two granules each.
    fn ranges(
        self,
        [first, second]: SmmuCommand,
        start: u64,
        granules: u64,
    ) -> impl Iterator<Item = SmmuCommand> {
        let (mut address, mut left) = (start, granules);
        std::iter::from_fn(move || {
            let scale = left.trailing_zeros().min(SCALE_MAX);
            let number = left >> scale & 31;
            let command = match (number, scale) {
                (0, _) => return None,
                // A range of one granule is reserved.
                (1, 0) => [first, second | address],
                _ => {
                    [first | (number - 1) << 12 | u64::from(scale) << 20, second | self.code << 10 | address]
                }
            };
            left -= number << scale;
            address = address.wrapping_add(number << (scale + u32::from(self.shift)));
            Some(command)
        })
    }
}

/// The greatest `SCALE`.
const SCALE_MAX: u32 = 31;
