// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands and records bit by bit, as Arm's specification has them.

use viommu_core::{Caches, EndpointId, Scope, TableAccess, TableFaultReason};

use super::*;

/// An entry with stage 1 and one descriptor at 0x4000_0000.
const STAGE_1: [u64; 2] = [0x4000_000b, 0];
const WITH_ATS: [u64; 2] = [0x4000_000b, 1 << 28];
const BYPASS: [u64; 2] = [0x9, 0];

const PLAIN: Abilities = Abilities { ranges: false, substream_bits: 20, repeat: false };
const RANGES: Abilities = Abilities { ranges: true, ..PLAIN };

const DOMAIN: Invalidation =
    Invalidation { scope: Scope::Domain, caches: Caches::TLB, leaf: false, id: None, global: false };

fn member(number: u64, ste: [u64; 2]) -> Member {
    Member { number, table: Table::ArmSmmu3 { ste } }
}

fn of_addresses(start: u64, pages: u64, page_shift: u8) -> Invalidation {
    let scope = Scope::Addresses { pasid: None, start, pages, page_shift };
    Invalidation { scope, id: Some(0xabcd), ..DOMAIN }
}

fn commands(invalidation: &Invalidation, members: &[Member], abilities: Abilities) -> [Vec<SmmuCommand>; 3] {
    let mut commands = [const { Vec::new() }; 3];
    add_commands(invalidation, members, abilities, &mut commands);
    commands
}

fn all_of(invalidation: Invalidation, ste: [u64; 2], abilities: Abilities) -> [Vec<SmmuCommand>; 3] {
    commands(&invalidation, &[member(0x12, ste)], abilities)
}

/// What the IOMMU has of translations.
fn tlb(invalidation: Invalidation, abilities: Abilities) -> Vec<SmmuCommand> {
    let [configuration, tlb, devices] = all_of(invalidation, STAGE_1, abilities);
    assert_eq!((configuration, devices), (vec![], vec![]));
    tlb
}

#[test]
fn all_of_a_domain_is_an_address_space_if_it_is_named_and_everything_if_not() {
    assert_eq!(tlb(DOMAIN, PLAIN), [[0x10, 0]]);
    assert_eq!(tlb(Invalidation { id: Some(0xffff), ..DOMAIN }, PLAIN), [[0xffff_0000_0000_0011, 0]]);
    // What is global has no address space.
    assert_eq!(tlb(Invalidation { id: Some(7), global: true, ..DOMAIN }, PLAIN), [[0x10, 0]]);
    let of_pasid = Invalidation { scope: Scope::Pasid(Pasid(5)), ..DOMAIN };
    assert_eq!(tlb(of_pasid, PLAIN), [[0x10, 0]], "no telling which address space it has");
    assert_eq!(tlb(Invalidation { id: Some(7), ..of_pasid }, PLAIN), [[0x0007_0000_0000_0011, 0]]);
    let nothing = Invalidation { caches: Caches::empty(), ..DOMAIN };
    assert_eq!(all_of(nothing, WITH_ATS, PLAIN), [const { Vec::<SmmuCommand>::new() }; 3]);
}

#[test]
fn addresses_are_told_page_by_page() {
    let two = of_addresses(0xffff_ffff_ffff_e000, 2, 12);
    let first = 0xabcd_0000_0000_0012;
    assert_eq!(tlb(two, PLAIN), [[first, 0xffff_ffff_ffff_e000], [first, 0xffff_ffff_ffff_f000]]);
    let leaf = Invalidation { leaf: true, ..two };
    assert_eq!(tlb(leaf, PLAIN), [[first, 0xffff_ffff_ffff_e001], [first, 0xffff_ffff_ffff_f001]]);
    let of_any = Invalidation { id: None, ..of_addresses(0x20_0000, 1, 21) };
    assert_eq!(tlb(of_any, PLAIN), [[0x13, 0x20_0000]]);
    let most = tlb(of_addresses(0, PAGES_MAX, 12), PLAIN);
    assert_eq!(most.len() as u64, PAGES_MAX);
    assert!(most.iter().zip(0..).all(|(command, page)| *command == [first, page << 12]));
    assert_eq!(tlb(of_addresses(0, PAGES_MAX + 1, 12), PLAIN), [[0xabcd_0000_0000_0011, 0]]);
    let of_any = Invalidation { id: None, ..of_addresses(0, 1 << 52, 12) };
    assert_eq!(tlb(of_any, PLAIN), [[0x10, 0]]);
}

#[test]
fn a_range_has_its_granule_its_scale_and_its_number() {
    let first = 0xabcd_0000_0000_0012;
    for (pages, page_shift, expected) in [
        // Reserved as a range, so it is a page.
        (1, 12, vec![[first, 0x4000_0000]]),
        (2, 12, vec![[first | 1 << 20, 0x4000_0400]]),
        (3, 12, vec![[first | 2 << 12, 0x4000_0400]]),
        (31, 12, vec![[first | 30 << 12, 0x4000_0400]]),
        (32, 12, vec![[first | 5 << 20, 0x4000_0400]]),
        (33, 12, vec![[first, 0x4000_0000], [first | 5 << 20, 0x4000_1400]]),
        (63, 14, vec![[first | 30 << 12, 0x4000_0800], [first | 5 << 20, 0x4000_0800 + 31 * 0x4000]]),
        (2, 16, vec![[first | 1 << 20, 0x4000_0c00]]),
        (1, 21, vec![[first | 9 << 20, 0x4000_0400]]),
        (1, 25, vec![[first | 11 << 20, 0x4000_0800]]),
        (1, 29, vec![[first | 13 << 20, 0x4000_0c00]]),
        (1, 30, vec![[first | 18 << 20, 0x4000_0400]]),
        // Of no granule's tables.
        (2, 13, vec![[first, 0x4000_0000], [first, 0x4000_2000]]),
    ] {
        assert_eq!(
            tlb(of_addresses(0x4000_0000, pages, page_shift), RANGES),
            expected,
            "{pages} of {page_shift}"
        );
    }
    let leaf = Invalidation { leaf: true, id: None, ..of_addresses(0, 2, 12) };
    assert_eq!(tlb(leaf, RANGES), [[0x13 | 1 << 20, 0x401]]);
}

/// Each granule is in exactly one range, whatever the length.
#[test]
fn ranges_cover_what_they_should_and_nothing_else() {
    let lengths =
        (1..5000).chain((0..36).flat_map(|shift| [(1u64 << shift) - 1, 1 << shift, (1 << shift) + 1]));
    for pages in lengths.filter(|pages| *pages > 0) {
        let start = 0x1234_5000;
        let commands = tlb(of_addresses(start, pages, 12), RANGES);
        assert!(commands.len() <= 8, "{pages}: {} commands", commands.len());
        let mut next = start;
        for [first, second] in commands {
            let (number, scale) = (first >> 12 & 31, first >> 20 & 31);
            assert_eq!(second & !0xfff, next);
            let is_range = second >> 10 & 3 == 1;
            assert_eq!(is_range, (number, scale) != (0, 0));
            next += (number + 1) << scale << 12;
        }
        assert_eq!(next, start + (pages << 12), "{pages} pages");
    }
    let whole = [[0xabcd_0000_0000_0011, 0]];
    assert_eq!(tlb(of_addresses(0, 1 << 36, 12), RANGES), whole, "more than a range can say");
    assert_eq!(tlb(of_addresses(0, 1 << 52, 12), RANGES), whole);
    assert_ne!(tlb(of_addresses(0, (1 << 36) - 1, 12), RANGES), whole);
}

#[test]
fn descriptors_are_told_of_every_device_that_has_some_before_translations() {
    let all = Invalidation { caches: Caches::PASID, ..DOMAIN };
    assert_eq!(all_of(all, STAGE_1, PLAIN), [vec![[0x12_0000_0006, 0]], vec![[0x10, 0]], vec![]]);
    assert_eq!(all_of(all, BYPASS, PLAIN), [vec![], vec![[0x10, 0]], vec![]]);
    let of_pasid = Invalidation { scope: Scope::Pasid(Pasid(0xf_ffff)), ..all };
    assert_eq!(all_of(of_pasid, STAGE_1, PLAIN)[0], [[0x12_ffff_f005, 0]]);
    let leaf = Invalidation { leaf: true, ..of_pasid };
    assert_eq!(all_of(leaf, STAGE_1, PLAIN)[0], [[0x12_ffff_f005, 1]]);
    // The hardware would refuse it.
    let few = Abilities { substream_bits: 19, ..PLAIN };
    assert_eq!(all_of(of_pasid, STAGE_1, few)[0], [[0x12_0000_0006, 0]]);
    let none = Abilities { substream_bits: 0, ..PLAIN };
    let of_first = Invalidation { scope: Scope::Pasid(Pasid(0)), ..all };
    assert_eq!(all_of(of_first, STAGE_1, none)[0], [[0x12_0000_0005, 0]]);
    let both = [member(1, STAGE_1), member(0xffff_ffff, WITH_ATS)];
    let [configuration, tlb, devices] = commands(&Invalidation { id: Some(9), ..all }, &both, PLAIN);
    assert_eq!(configuration, [[0x1_0000_0006, 0], [0xffff_ffff_0000_0006, 0]]);
    assert_eq!(tlb, [[0x0009_0000_0000_0011, 0]]);
    assert_eq!(devices, [[0xffff_ffff_0000_0040, 52]]);
    // A descriptor that goes takes all of its addresses along.
    let with_addresses = Invalidation { caches: Caches::all(), ..of_addresses(0, 1, 12) };
    let [_, tlb, devices] = commands(&with_addresses, &both, PLAIN);
    assert_eq!((tlb, devices), (vec![[0xabcd_0000_0000_0011, 0]], vec![[0xffff_ffff_0000_0040, 52]]));
}

#[test]
fn devices_forget_the_smallest_part_that_has_all_of_the_addresses() {
    let of_device = |invalidation| all_of(invalidation, WITH_ATS, RANGES)[2].clone();
    assert_eq!(of_device(DOMAIN), [[0x12_0000_0040, 52]]);
    for (start, pages, page_shift, expected) in [
        (0x1000, 1, 12, 0x1000),
        (0x1000, 2, 12, 2),
        (0x2000, 2, 12, 0x2001),
        (0x7000, 2, 12, 4),
        (0x4000_0000, 3, 12, 0x4000_0002),
        (0x20_0000, 1, 21, 0x20_0009),
        (0x8000_0000_0000_0000, 1 << 51, 12, 0x8000_0000_0000_0033),
        (0x7fff_ffff_ffff_f000, 2, 12, 52),
        (0, 1 << 52, 12, 52),
        (0xffff_ffff_ffff_f000, 1, 12, 0xffff_ffff_ffff_f000),
    ] {
        let commands = of_device(of_addresses(start, pages, page_shift));
        assert_eq!(commands, [[0x12_0000_0040, expected]], "{pages} of {page_shift} at {start:#x}");
    }
    let of_pasid = |pasid, caches| Invalidation { scope: Scope::Pasid(Pasid(pasid)), caches, ..DOMAIN };
    assert_eq!(of_device(of_pasid(0xabcde, Caches::TLB)), [[0x12_abcd_e840, 52]]);
    assert_eq!(of_device(of_pasid(0xabcde, Caches::PASID)), [[0x12_abcd_e840, 52]]);
    // It may be that of accesses without one.
    assert_eq!(of_device(of_pasid(0, Caches::TLB)), [[0x12_0000_0040, 52]]);
    assert_eq!(of_device(of_pasid(1 << 20, Caches::TLB)), [[0x12_0000_0040, 52]]);
    for without in [STAGE_1, BYPASS, [0x4000_000b, 2 << 28], [0x9, 1 << 28]] {
        assert_eq!(all_of(DOMAIN, without, PLAIN)[2], [[0; 2]; 0]);
    }
}

#[test]
fn the_table_of_descriptors_is_as_large_as_its_format_says() {
    let at = |ste0: u64| root([ste0, 0]);
    let of = |start, bytes| Some(Root::of(start, bytes));
    assert_eq!(at(0x4000_000b), of(0x4000_0000, 64));
    assert_eq!(at(0x4000_004b), of(0x4000_0040, 64));
    assert_eq!(at(0x4000_000b | 3 << 59), of(0x4000_0000, 512));
    assert_eq!(at(0x4000_001b | 3 << 59), of(0x4000_0000, 8));
    assert_eq!(at(0x4000_001b | 20 << 59), of(0x4000_0000, 8 << 14));
    assert_eq!(at(0x4000_002b | 20 << 59), of(0x4000_0000, 8 << 10));
    assert_eq!(at(0x000f_ffff_ffff_ffcb), of(0x000f_ffff_ffff_ffc0, 64));
    assert_eq!((at(0x4000_0009), at(0x4000_0001)), (None, None), "bypass and abort walk nothing");
    assert_eq!(at(!(7 << 1) | 5 << 1), of(0x000f_ffff_ffff_ffc0, 8 << 21));
}

#[test]
fn an_entry_is_handed_over_as_it_is() {
    let table = Table::ArmSmmu3 { ste: [0x0102_0304_0506_0709, 0x1112_1314_1516_1718] };
    let description = ArmSmmu3.description(&table).expect("it is one");
    assert_eq!(description.data_type, 2);
    assert_eq!(description.data, [9, 7, 6, 5, 4, 3, 2, 1, 24, 23, 22, 21, 20, 19, 18, 17]);
    let other = Table::IntelPt { flags: 0, root: viommu_core::Gpa(0), address_bits: 48 };
    assert_eq!(ArmSmmu3.description(&other), None);
}

fn info(flags: u32, idr1: u32, idr3: u32) -> HwInfo {
    let words = [flags, 0, 0, idr1, 0, idr3, 0, 0, 0, 0];
    let data = words.map(u32::to_ne_bytes).as_flattened().to_vec();
    HwInfo { data_type: 2, data, pasid_bits: 0, capabilities: 0 }
}

#[test]
fn what_the_hardware_can_do_is_in_its_registers() {
    assert_eq!(Abilities::of(&info(0, 0, 0)), Abilities { ranges: false, substream_bits: 0, repeat: false });
    let of = Abilities::of(&info(1, 0b10100 << 6 | 0x3f, 1 << 10));
    let ranges = !cfg!(feature = "no-ranges");
    assert_eq!(of, Abilities { ranges, substream_bits: 20, repeat: true });
    assert_eq!(Abilities::of(&info(!1, !(0x1f << 6), !(1 << 10))), Abilities::of(&info(0, 0, 0)));
    assert_eq!((ArmSmmu3.repetitions(&info(0, 0, 0)), ArmSmmu3.repetitions(&info(1, 0, 0))), (1, 2));
}

#[test]
fn entries_are_little_endian_and_behind_those_of_their_batch() {
    let mut batches = Batches::default();
    for id in [7, 0xffff] {
        let all = Invalidation { caches: Caches::all(), id: Some(id), ..DOMAIN };
        ArmSmmu3.add_entries(&info(0, 0, 0), &all, &[member(0x12, STAGE_1)], &mut batches);
    }
    let of_descriptors = [[0x12_0000_0006u64, 0]; 2];
    let of_translations = [[0x0007_0000_0000_0011, 0], [0xffff_0000_0000_0011, 0]];
    let entries = |commands: [[u64; 2]; 2]| Entries::of(1, &commands.map(|each| each.map(u64::to_le_bytes)));
    let [descriptors, translations, devices] = batches;
    assert_eq!((descriptors, translations), (entries(of_descriptors), entries(of_translations)));
    assert!(devices.is_empty());
}

#[test]
fn a_record_says_why_where_and_who() {
    let record = |first: u64, second: u64| {
        let words = [first | 0x12 << 32, second, 0xffff_0000_1000, 0x77];
        ArmSmmu3.event(words.map(u64::to_le_bytes).as_flattened()).expect("it is one")
    };
    let (read, write) = (1 << 35, 0);
    for (number, reason) in [
        (0x0b, TableFaultReason::WalkAbort),
        (0x10, TableFaultReason::Mapping),
        (0x11, TableFaultReason::OutOfRange),
        (0x12, TableFaultReason::Access),
        (0x13, TableFaultReason::Permission),
    ] {
        let (endpoint, address) = (EndpointId(0x12), Some(0xffff_0000_1000));
        let expected = TableFault { endpoint, reason, pasid: None, address, access: TableAccess::READ };
        assert_eq!(record(number, read), expected);
    }
    for (number, reason) in [0x04, 0x06, 0x08, 0x0a]
        .map(|number| (number, TableFaultReason::Table))
        .into_iter()
        .chain([(0x09, TableFaultReason::PteFetch)])
    {
        let (endpoint, access) = (EndpointId(0x12), TableAccess::empty());
        let expected = TableFault { endpoint, reason, pasid: None, address: None, access };
        assert_eq!(record(number, read), expected);
    }
    assert_eq!(record(0x10, write).access, TableAccess::WRITE);
    assert_eq!(record(0x10, 1 << 33 | 1 << 34 | read).access, !TableAccess::WRITE);
    assert_eq!(record(0x10, 1 << 33).access, TableAccess::WRITE | TableAccess::PRIVILEGED);
    assert_eq!(record(0x10 | 1 << 11 | 0xfedcb << 12, read).pasid, Some(Pasid(0xfedcb)));
    assert_eq!(record(0x08 | 1 << 11 | 5 << 12, read).pasid, Some(Pasid(5)));
    assert_eq!(record(0x10 | 0xfedcb << 12, read).pasid, None, "not without SSV");
    let of_stage_2 = |class: u64| record(0x10, 1 << 39 | class << 40).reason;
    assert_eq!(
        [0, 1, 2].map(of_stage_2),
        [TableFaultReason::Table, TableFaultReason::PteFetch, TableFaultReason::Unknown]
    );
    assert_eq!(record(0x02, 0).reason, TableFaultReason::Unknown);
    assert_eq!(ArmSmmu3.event(&[0; 31]), None);
    assert_eq!(ArmSmmu3.event(&[0; 40]), None);
}

#[test]
fn a_guest_knows_of_the_registers_what_it_may() {
    let all = told([u32::MAX; 6], true);
    assert_eq!(all, [0x1f68_141e, 0x7ff, 0, 0x1c00, 0, 0xcf7]);
    assert_eq!(told([u32::MAX; 6], false)[0], all[0] & !IDR0_ATS);
    let none = [STAGE_1_AND_COHERENT, 0, 0, 0, 0, 0];
    assert_eq!(told([0; 6], true), none, "the hardware has no ATS");
    let words = [1, 2, 1 << 2, 3, 4, 1 << 10, 6, 1 << 4].map(u32::to_ne_bytes);
    let info = HwInfo { data: words.as_flattened().to_vec(), ..info(0, 0, 0) };
    let idr = [STAGE_1_AND_COHERENT | 1 << 2, 3, 0, 1 << 10, 0, 1 << 4];
    assert_eq!(ArmSmmu3.told(&info, true), TableHardware::ArmSmmu3 { idr });
}
