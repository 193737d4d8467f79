// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which IOVAs a guest can use for a physical device: the aperture, and what is reserved in it.

use viommu_core::{Granule, IovaRange, ReservedKind};

use super::facts::Facts;
use crate::usage_error::UsageError;

/// The part of `aperture` that the IOMMUs of all these devices can translate, in whole granules.
///
/// # Errors
/// There is none, or an IOMMU cannot translate so small a granule.
pub fn narrowed<'a>(
    aperture: IovaRange,
    granule: Granule,
    devices: impl Iterator<Item = &'a Facts>,
) -> Result<IovaRange, UsageError> {
    let (mut start, mut last) = (aperture.start(), aperture.last());
    for facts in devices {
        let Some(translated) = &facts.translated else {
            // Unless the user knows better.
            last = if aperture == IovaRange::ALL { last.min(UNTRIED_LAST) } else { last };
            continue;
        };
        if translated.alignment > granule.bytes() {
            let problem =
                format!("the IOMMU of {} maps no less than {:#x} bytes", facts.name, translated.alignment);
            let mend = format!("write --granule {:#x}", translated.alignment);
            return Err(UsageError::new(problem, mend).about("granule", format!("{:#x}", granule.bytes())));
        }
        let ends = translated.allowed.first().zip(translated.allowed.last());
        let (first_start, last_last) =
            ends.map_or((u64::MAX, 0), |(first, last)| (first.start(), last.last()));
        start = start.max(first_start);
        last = last.min(last_last);
    }
    whole_granules(start, last, granule).ok_or_else(|| {
        UsageError::new(
            "the IOMMUs of the devices translate nothing of it",
            "give a lower aperture, or fewer devices",
        )
        .about("aperture", aperture.to_string())
    })
}

/// The last IOVA that every IOMMU can translate that a guest's devices are put behind: VT-d with tables of three levels
/// has the least.
const UNTRIED_LAST: u64 = (1 << 39) - 1;

/// The granules that lie in `start..=last` with all of their bytes.
fn whole_granules(start: u64, last: u64, granule: Granule) -> Option<IovaRange> {
    let mask = granule.bytes() - 1;
    let start = start.checked_add(mask)? & !mask;
    let last = match last.checked_add(1) {
        Some(end) => (end & !mask).checked_sub(1)?,
        None => last,
    };
    IovaRange::new(start, last)
}

/// The IOVAs that a device can use, in order.
pub fn usable(facts: &Facts) -> Vec<IovaRange> {
    let translated = facts.translated.as_ref();
    let mut usable = translated.map_or_else(|| vec![IovaRange::ALL], |translated| translated.allowed.clone());
    for region in &facts.reserved {
        usable = usable.iter().flat_map(|range| without(*range, region.range)).collect();
    }
    usable
}

/// Where the host takes interrupts of a device, which it cannot use otherwise.
pub fn msi_region(facts: &Facts) -> Option<IovaRange> {
    let mut regions = facts.reserved.iter().filter(|region| region.kind == ReservedKind::Msi);
    regions.next().map(|region| region.range)
}

/// What is left of `range` below and above `hole`.
fn without(range: IovaRange, hole: IovaRange) -> impl Iterator<Item = IovaRange> {
    let below =
        hole.start().checked_sub(1).and_then(|last| IovaRange::new(range.start(), last.min(range.last())));
    let above =
        hole.last().checked_add(1).and_then(|start| IovaRange::new(start.max(range.start()), range.last()));
    below.into_iter().chain(above)
}

#[cfg(test)]
mod tests {
    use viommu_core::ReservedRegion;
    use viommu_nested::object::IovaRanges;

    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(start, last).expect("start <= last")
    }

    fn device(allowed: &[(u64, u64)], alignment: u64) -> Facts {
        let allowed = allowed.iter().map(|(start, last)| range(*start, *last)).collect();
        let translated = Some(IovaRanges { allowed, alignment });
        Facts { name: "0000:65:00.0".to_owned(), group: None, reserved: vec![], translated, tables: None }
    }

    const SMMU: &[(u64, u64)] = &[(0, 0x7ff_ffff), (0x810_0000, 0xffff_ffff_ffff)];

    #[test]
    fn the_aperture_is_what_all_can_translate_in_whole_granules() {
        let granule = Granule::of_mask(0x1000).expect("a mask");
        let narrow = |devices: &[Facts]| narrowed(IovaRange::ALL, granule, devices.iter());
        assert_eq!(narrow(&[]), Ok(IovaRange::ALL));
        assert_eq!(narrow(&[device(SMMU, 4096)]), Ok(range(0, 0xffff_ffff_ffff)));
        let low = device(&[(0x1800, 0x7fff_f7ff)], 2048);
        assert_eq!(narrow(&[device(SMMU, 4096), low]), Ok(range(0x2000, 0x7fff_efff)));
        let untried = Facts { translated: None, ..device(&[], 4096) };
        assert_eq!(narrow(std::slice::from_ref(&untried)), Ok(range(0, 0x7f_ffff_ffff)));
        let wanted = range(0, 0xffff_ffff_ffff);
        assert_eq!(narrowed(wanted, granule, [untried].iter()), Ok(wanted), "the user knows better");
        let nothing = narrow(&[device(&[], 4096)]).expect_err("nothing is left").to_string();
        assert!(nothing.starts_with("--aperture 0x0-0xffffffffffffffff: the IOMMUs of"), "{nothing}");
        let coarse = narrow(&[device(SMMU, 0x1_0000)]).expect_err("the host has large pages").to_string();
        assert!(
            coarse.ends_with("0000:65:00.0 maps no less than 0x10000 bytes; write --granule 0x10000"),
            "{coarse}"
        );
    }

    #[test]
    fn what_is_reserved_cannot_be_used() {
        let facts = |reserved: &[(u64, u64)]| Facts {
            reserved: reserved
                .iter()
                .map(|(start, last)| ReservedRegion { range: range(*start, *last), kind: ReservedKind::Msi })
                .collect(),
            translated: None,
            ..device(&[], 4096)
        };
        assert_eq!(usable(&facts(&[])), [IovaRange::ALL]);
        let both = facts(&[(0xfee0_0000, 0xfeef_ffff), (0xffff_0000_0000_0000, u64::MAX), (0, 0xfff)]);
        assert_eq!(usable(&both), [range(0x1000, 0xfedf_ffff), range(0xfef0_0000, 0xfffe_ffff_ffff_ffff)]);
        assert_eq!(msi_region(&both), Some(range(0xfee0_0000, 0xfeef_ffff)));
        let smmu = Facts { translated: device(SMMU, 4096).translated, ..facts(&[(0x800_0000, 0x80f_ffff)]) };
        assert_eq!(usable(&smmu), [range(0, 0x7ff_ffff), range(0x810_0000, 0xffff_ffff_ffff)]);
    }
}
