// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which IOVAs endpoints must not use: the interrupt doorbell, what the memory table leaves out, and what the host's
//! IOMMU does not translate.
//!
//! A VMM that knows no IOMMU takes the ring addresses of a vhost-user device for GPAs. That can be undone exactly
//! as long as every IOVA is also the GPA of some memory: so the aperture's holes are reserved.

use log::{info, warn};
use viommu_core::{EndpointId, IovaRange, REGIONS_MAX, ReservedKind, ReservedRegion};

use crate::config::Protocol;
use crate::sync::lock;

use super::Iommu;

impl Iommu {
    /// Reserves what has to be, by what is known of the guest's memory.
    pub(super) fn reserve(&self) {
        // Held to the end: what is reserved last is by the memory that was known last.
        let memory = lock(&self.memory);
        let memory_holes = match memory.as_slice() {
            [] => Vec::new(),
            memory => holes(self.aperture, memory, self.msi_region),
        };
        let mut state = self.state();
        let endpoints: Vec<_> = state.device().endpoints().collect();
        for endpoint in endpoints {
            let of_host = self.vfio.as_ref().and_then(|vfio| vfio.iovas(endpoint));
            let (own_holes, msi) = match of_host {
                Some((usable, msi)) => (holes(self.aperture, &usable, msi), msi),
                None if self.is_taken_for_gpas(endpoint) => (memory_holes.clone(), self.msi_region),
                None => (Vec::new(), self.msi_region),
            };
            let is_mapped = self.vfio.as_ref().is_some_and(|vfio| vfio.translates_interrupts(endpoint));
            let kind = if is_mapped { ReservedKind::Identity } else { ReservedKind::Msi };
            let msi = msi.map(|range| ReservedRegion { range, kind });
            // What the host's IOMMU cannot translate is a matter of its own stage, behind the guest's tables.
            let own_holes = own_holes.into_iter().filter(|_| !state.device().mode().is_table());
            let regions: Vec<ReservedRegion> = msi.into_iter().chain(own_holes).collect();
            if let Err(error) = state.device_mut().set_reserved(endpoint, &regions) {
                warn!("endpoint {}: {error}; its reserved regions stay as they were", self.label(endpoint));
            }
        }
        drop(state);
        if self.relays.has_vhost_user() {
            *lock(&self.untold_holes) = memory_holes.iter().map(|hole| hole.range).collect();
        }
    }

    /// Whether a VMM takes IOVAs of the endpoint for GPAs.
    fn is_taken_for_gpas(&self, endpoint: EndpointId) -> bool {
        self.relays.protocol(endpoint) == Some(Protocol::VhostUser)
    }

    /// Says which parts of the aperture are reserved, once: a VMM adds memory piece by piece, and only what the driver
    /// gets to see is of interest.
    pub(super) fn tell_holes(&self) {
        for hole in std::mem::take(&mut *lock(&self.untold_holes)) {
            info!("aperture {hole} is no guest memory: reserved");
        }
    }
}

/// What `memory`, in ascending order, and `msi` leave out of `aperture`: as many regions as a PROBE reply holds
/// beside an MSI region. Of more, the last takes in all that follows.
fn holes(aperture: IovaRange, memory: &[IovaRange], msi: Option<IovaRange>) -> Vec<ReservedRegion> {
    let mut used: Vec<IovaRange> = memory.iter().copied().chain(msi).collect();
    used.sort_by_key(IovaRange::start);
    let mut holes = Vec::new();
    let mut next = Some(aperture.start());
    for range in used {
        let Some(start) = next.filter(|start| *start <= aperture.last()) else { break };
        if range.start() > start {
            holes.extend(IovaRange::new(start, (range.start() - 1).min(aperture.last())));
        }
        next = if range.last() >= start { range.last().checked_add(1) } else { next };
    }
    holes.extend(next.and_then(|start| IovaRange::new(start, aperture.last())));
    merge_overflow(&mut holes, msi);
    holes.into_iter().map(|range| ReservedRegion { range, kind: ReservedKind::Reserved }).collect()
}

/// Brings `holes` down to what fits, by merging the last of them around everything but the MSI region.
fn merge_overflow(holes: &mut Vec<IovaRange>, msi: Option<IovaRange>) {
    while holes.len() >= REGIONS_MAX {
        let Some((high, low)) = holes.pop().zip(holes.pop()) else { return };
        match msi.filter(|msi| msi.start() > low.last() && msi.last() < high.start()) {
            None => holes.extend(IovaRange::new(low.start(), high.last())),
            // The doorbell lies between the two: keep it free and merge one step further down.
            Some(msi) => {
                let Some(lower) = holes.pop() else { return };
                holes.extend(IovaRange::new(lower.start(), msi.start() - 1));
                holes.extend(IovaRange::new(msi.last() + 1, high.last()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(start, last).expect("start <= last")
    }

    fn ranges(regions: &[ReservedRegion]) -> Vec<(u64, u64)> {
        regions.iter().map(|region| (region.range.start(), region.range.last())).collect()
    }

    const MSI: Option<IovaRange> = IovaRange::new(0xfee0_0000, 0xfeef_ffff);

    #[test]
    fn memory_that_fills_the_aperture_leaves_no_hole() {
        let memory = [range(0, 0x9_ffff), range(0xc_0000, 0x1fff_ffff)];
        assert_eq!(ranges(&holes(range(0x10_0000, 0x1fff_ffff), &memory, MSI)), []);
    }

    //= A50
    #[test]
    fn the_gap_below_4_gib_is_reserved_around_the_doorbell() {
        let memory = [range(0, 0x7fff_ffff), range(0x1_0000_0000, 0x1_7fff_ffff)];
        let holes = holes(range(0x10_0000, 0x1_7fff_ffff), &memory, MSI);
        assert_eq!(ranges(&holes), [(0x8000_0000, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff)]);
    }

    #[test]
    fn an_aperture_beyond_memory_is_reserved_up_to_the_last_byte_of_the_space() {
        let holes = holes(IovaRange::ALL, &[range(0x1000, 0x1fff)], None);
        assert_eq!(ranges(&holes), [(0, 0xfff), (0x2000, u64::MAX)]);
    }

    //= A50
    #[test]
    fn more_holes_than_a_probe_reply_holds_are_merged_and_never_cover_the_doorbell() {
        for doorbell in [0xfee0_0000u64, 0x17_8000, 0x3_8000] {
            let msi = IovaRange::new(doorbell, doorbell + 0xfff);
            let memory: Vec<IovaRange> =
                (0..30).map(|n| range(n * 0x1_0000, n * 0x1_0000 + 0x7fff)).collect();
            let aperture = range(0, 30 * 0x1_0000 - 1);
            let holes = holes(aperture, &memory, msi);
            assert!(holes.len() < REGIONS_MAX, "{} holes", holes.len());
            for n in 0..30 {
                let hole = n * 0x1_0000 + 0x8000..(n + 1) * 0x1_0000;
                for iova in hole.filter(|iova| msi.is_none_or(|msi| !msi.contains(*iova))).step_by(0x1000) {
                    assert!(
                        holes.iter().any(|hole| hole.range.contains(iova)),
                        "{iova:#x} with {doorbell:#x}"
                    );
                }
            }
            assert!(holes.iter().all(|hole| msi.is_none_or(|msi| !hole.range.overlaps(&msi))));
        }
    }
}
