// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server that maps memory itself has been told: the endpoint's address space, cut where the VMM's regions end.
//!
//! It holds what the server is to know once the steps that come of a change are done, and no file descriptor goes
//! anywhere from here. Steps are to be done in their order.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use viommu_core::mapping::Mapping;
use viommu_core::{Access, IovaRange};

use crate::orders::View;

use super::regions::{Region, Regions};

/// A stretch of IOVAs that is one mapping of the server's.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The IOVAs.
    pub range: IovaRange,
    /// What the server may do.
    pub access: Access,
    /// The file with the memory, and where in it.
    pub file: Option<(Arc<OwnedFd>, u64)>,
}

impl PartialEq for Piece {
    /// Regions of the VMM each have a file of their own, even when that is the same memory.
    fn eq(&self, other: &Piece) -> bool {
        let is_same_file = match (&self.file, &other.file) {
            (None, None) => true,
            (Some((file, at)), Some((other, other_at))) => Arc::ptr_eq(file, other) && at == other_at,
            _ => false,
        };
        is_same_file && self.range == other.range && self.access == other.access
    }
}

/// What the server is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Of memory.
    Map(Piece),
    /// That it is memory no more.
    Unmap(Piece),
}

/// More mappings than the server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Identity,
    Mappings(BTreeMap<u64, Mapping>),
}

/// The address space, and what the server knows of it.
#[derive(Debug)]
pub struct Space {
    held: Held,
    told: BTreeMap<u64, Piece>,
    /// What the server was to unmap and may still have.
    kept: Vec<IovaRange>,
    pieces_max: usize,
}

impl Space {
    /// One in which nothing is; the server takes `pieces_max` mappings.
    pub fn new(pieces_max: usize) -> Space {
        Space { held: Held::Nothing, told: BTreeMap::new(), kept: Vec::new(), pieces_max }
    }

    /// Another address space takes the place of what was.
    ///
    /// # Errors
    /// It does not fit. The steps that come along take away what the server has.
    pub fn enter(&mut self, view: View, regions: &Regions) -> (Vec<Step>, Result<(), Full>) {
        self.held = match view {
            View::Nothing => Held::Nothing,
            View::Identity => Held::Identity,
            View::Mappings(mappings) => {
                Held::Mappings(mappings.into_iter().map(|mapping| (mapping.range.start(), mapping)).collect())
            }
        };
        self.settle(regions)
    }

    /// The regions are others than before.
    ///
    /// # Errors
    /// As for [`Space::enter`].
    pub fn settle(&mut self, regions: &Regions) -> (Vec<Step>, Result<(), Full>) {
        let mut wanted: BTreeMap<u64, Piece> = match &self.held {
            Held::Nothing => BTreeMap::new(),
            Held::Identity => keyed(regions.iter().filter_map(identity)).collect(),
            Held::Mappings(mappings) => {
                keyed(mappings.values().flat_map(|mapping| pieces(mapping, regions))).collect()
            }
        };
        let fits = if wanted.len() > self.pieces_max { Err(Full) } else { Ok(()) };
        if fits.is_err() {
            (self.held, wanted) = (Held::Nothing, BTreeMap::new());
        }
        let gone = self.told.iter().filter(|(at, piece)| wanted.get(at) != Some(piece));
        let mut steps: Vec<Step> = gone.map(|(_, piece)| Step::Unmap(piece.clone())).collect();
        let new = wanted.iter().filter(|(at, piece)| self.told.get(at) != Some(piece));
        steps.extend(new.map(|(_, piece)| Step::Map(piece.clone())));
        self.told = wanted;
        (steps, fits)
    }

    /// A mapping comes to the mappings that there are.
    ///
    /// # Errors
    /// It does not fit, and nothing has changed.
    pub fn give(&mut self, mapping: Mapping, regions: &Regions) -> Result<Vec<Step>, Full> {
        // What reaches nothing, or all, belongs to no domain that has mappings.
        let Held::Mappings(mappings) = &mut self.held else { return Ok(Vec::new()) };
        let new: Vec<Piece> = pieces(&mapping, regions).collect();
        if self.told.len() + new.len() > self.pieces_max || mappings.len() >= self.pieces_max {
            return Err(Full);
        }
        mappings.insert(mapping.range.start(), mapping);
        self.told.extend(keyed(new.iter().cloned()));
        Ok(new.into_iter().map(Step::Map).collect())
    }

    /// The mappings within `range`, none of which lies there only in part, are gone.
    pub fn forget(&mut self, range: IovaRange) -> Vec<Step> {
        match &mut self.held {
            Held::Mappings(mappings) => {
                let gone = mappings.range(range.start()..=range.last()).map(|(at, _)| *at);
                for at in gone.collect::<Vec<u64>>() {
                    mappings.remove(&at);
                }
            }
            Held::Identity if range == IovaRange::ALL => self.held = Held::Nothing,
            Held::Identity | Held::Nothing => {}
        }
        if let Held::Identity = self.held {
            return Vec::new();
        }
        let gone: Vec<u64> = self.told.range(range.start()..=range.last()).map(|(at, _)| *at).collect();
        gone.iter().filter_map(|at| self.told.remove(at)).map(Step::Unmap).collect()
    }

    /// The server does not take this one.
    pub fn refused(&mut self, piece: &Piece) {
        if self.told.get(&piece.range.start()) == Some(piece) {
            self.told.remove(&piece.range.start());
        }
    }

    /// The server has not done this, or not said so: it may have what it was to unmap.
    pub fn keep(&mut self, step: &Step) {
        if let Step::Unmap(piece) = step {
            self.kept.push(piece.range);
        }
    }

    /// Whether the server may reach anything in `range`.
    pub fn reaches(&self, range: IovaRange) -> bool {
        let before = self.told.range(..=range.last()).next_back();
        before.is_some_and(|(_, piece)| piece.range.overlaps(&range))
            || self.kept.iter().any(|kept| kept.overlaps(&range))
    }
}

fn keyed(pieces: impl Iterator<Item = Piece>) -> impl Iterator<Item = (u64, Piece)> {
    pieces.map(|piece| (piece.range.start(), piece))
}

/// All of a region, untranslated.
fn identity(region: &Region) -> Option<Piece> {
    let piece =
        Piece { range: region.range, access: region.access, file: region.place(region.range.start()) };
    (!piece.access.is_empty()).then_some(piece)
}

/// What of a mapping leads to memory. No piece has a right that the mapping does not give, or the region.
fn pieces<'a>(mapping: &Mapping, regions: &'a Regions) -> impl Iterator<Item = Piece> + use<'a> {
    let (iova, gpa, allowed) = (mapping.range.start(), mapping.target.gpa.0, mapping.target.access);
    let last = gpa.checked_add(mapping.range.span());
    let gpas = last.and_then(|last| IovaRange::new(gpa, last));
    gpas.into_iter().flat_map(|gpas| regions.parts(gpas)).filter_map(move |(part, region)| {
        let range = IovaRange::new(iova + (part.start() - gpa), iova + (part.last() - gpa))?;
        let access = region.access & allowed;
        (!access.is_empty()).then(|| Piece { range, access, file: region.place(part.start()) })
    })
}

#[cfg(test)]
mod tests {
    use viommu_core::{Gpa, Target};

    use super::super::regions::tests::{file, map};
    use super::*;

    fn regions() -> Regions {
        let mut regions = Regions::default();
        regions.add(&map(0, 0x4000, 0), vec![file(0x4000)]).expect("a region");
        regions.add(&map(0x4000, 0x4000, 0x1000), vec![file(0x5000)]).expect("a region");
        regions
    }

    fn mapping(iova: u64, length: u64, gpa: u64, access: Access) -> Mapping {
        let range = IovaRange::from_length(iova, length).expect("a range");
        Mapping { range, target: Target { gpa: Gpa(gpa), access, mmio: false } }
    }

    fn shown(steps: &[Step]) -> Vec<(char, u64, u64, Option<u64>)> {
        let of = |kind, piece: &Piece| {
            let at = piece.file.as_ref().map(|(_, at)| *at);
            (kind, piece.range.start(), piece.range.span() + 1, at)
        };
        let one = |step: &Step| match step {
            Step::Map(piece) => of('+', piece),
            Step::Unmap(piece) => of('-', piece),
        };
        steps.iter().map(one).collect()
    }

    #[test]
    fn a_mapping_is_cut_where_a_region_ends_and_leads_into_its_file() {
        let (mut space, regions) = (Space::new(8), regions());
        assert_eq!(space.enter(View::Mappings(vec![]), &regions), (vec![], Ok(())));
        let steps = space.give(mapping(0x10_0000, 0x2000, 0x3000, Access::READ), &regions).expect("room");
        assert_eq!(
            shown(&steps),
            [('+', 0x10_0000, 0x1000, Some(0x3000)), ('+', 0x10_1000, 0x1000, Some(0x1000))]
        );
        assert!(steps.iter().all(|step| matches!(step, Step::Map(piece) if piece.access == Access::READ)));
        assert!(space.reaches(IovaRange::ALL));
        let range = IovaRange::new(0x10_0000, 0x10_1fff).expect("a range");
        assert_eq!(shown(&space.forget(range)).iter().map(|step| step.0).collect::<String>(), "--");
        assert!(!space.reaches(IovaRange::ALL));
        let nowhere = space.give(mapping(0x10_0000, 0x1000, 0x9000, Access::READ), &regions);
        assert_eq!(nowhere, Ok(vec![]));
    }

    #[test]
    fn another_address_space_changes_what_differs_alone() {
        let (mut space, regions) = (Space::new(8), regions());
        let (steps, _) = space.enter(View::Identity, &regions);
        assert_eq!(shown(&steps), [('+', 0, 0x4000, Some(0)), ('+', 0x4000, 0x4000, Some(0x1000))]);
        let same = vec![mapping(0, 0x4000, 0, Access::all()), mapping(0x4000, 0x4000, 0, Access::all())];
        let (steps, _) = space.enter(View::Mappings(same), &regions);
        assert_eq!(shown(&steps), [('-', 0x4000, 0x4000, Some(0x1000)), ('+', 0x4000, 0x4000, Some(0))]);
        let (steps, _) = space.enter(View::Nothing, &regions);
        assert_eq!(steps.len(), 2);
        assert_eq!(space.give(mapping(0, 0x1000, 0, Access::all()), &regions), Ok(vec![]));
    }

    #[test]
    fn memory_that_comes_and_goes_is_told_where_it_is_reached() {
        let (mut space, mut regions) = (Space::new(8), regions());
        assert_eq!(
            space.enter(View::Mappings(vec![mapping(0x10_0000, 0x2000, 0x7000, Access::all())]), &regions).1,
            Ok(())
        );
        regions.add(&map(0x8000, 0x1000, 0), vec![file(0x1000)]).expect("a region");
        let (steps, _) = space.settle(&regions);
        assert_eq!(shown(&steps), [('+', 0x10_1000, 0x1000, Some(0))]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_a_space_that_does_not_is_empty() {
        let (mut space, regions) = (Space::new(2), regions());
        assert_eq!(
            space.enter(View::Mappings(vec![mapping(0, 0x1000, 0, Access::all())]), &regions).1,
            Ok(())
        );
        assert_eq!(space.give(mapping(0x8000, 0x2000, 0x3000, Access::all()), &regions), Err(Full));
        let three = (0..3).map(|at| mapping(at << 12, 0x1000, 0, Access::all())).collect();
        let (steps, fits) = space.enter(View::Mappings(three), &regions);
        assert_eq!((shown(&steps), fits), (vec![('-', 0, 0x1000, Some(0))], Err(Full)));
        assert!(!space.reaches(IovaRange::ALL));
    }
}
