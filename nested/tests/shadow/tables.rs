// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of a guest, as far as the mock has them: it remembers a word of each, and what is invalidated.

use std::cell::RefCell;

use rustix::io::Errno;
use viommu_core::{Caches, Gpa, Invalidation, Mapping, Pasid, Scope, Table};
use viommu_nested::Result;
use viommu_nested::object::ENTRIES_MAX;
use viommu_nested::shadow::{Known, OfDomain};

use super::*;

pub const ONE: EndpointId = ENDPOINTS[0];
pub const OTHER: EndpointId = ENDPOINTS[1];
pub const DOMAIN: DomainId = DomainId(1);
const PASID: Pasid = Pasid(100);

/// What a slot of a device's cache holds before it is invalidated.
const CACHED: u32 = 0xba_ddad;

/// A guest in table mode. What its device would know is only what a test says.
pub struct TableBed {
    pub shadow: Shadow<Member>,
    pub known: Tables,
    context: Arc<Context>,
    vmm: Arc<Ioas>,
}

/// What a device of the guest would know.
#[derive(Default)]
pub struct Tables {
    pub bypass: bool,
    tables: RefCell<Vec<(Option<Pasid>, DomainId, Table)>>,
}

impl Known for Tables {
    fn mappings(&self, _: DomainId) -> Vec<Mapping> {
        Vec::new()
    }

    fn tables(&self, _: EndpointId) -> Vec<(Option<Pasid>, DomainId, Table)> {
        self.tables.borrow().clone()
    }

    fn unattached(&self) -> Vec<EndpointId> {
        Vec::new()
    }

    fn bypass(&self) -> bool {
        self.bypass
    }
}

impl TableBed {
    pub fn new() -> TableBed {
        TableBed::with(Isolation::Each)
    }

    fn with(isolation: Isolation) -> TableBed {
        let context = Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd");
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, PAGES * PAGE).expect("its size");
        let vmm = Ioas::new(&context).expect("an address space");
        let mut shadow = Shadow::new(&context, None).expect("a shadow");
        let (members, group): (Vec<Member>, _) = match isolation {
            Isolation::Each => {
                (ENDPOINTS.into_iter().flat_map(|_| Group::of_mocks::<1>(&context, &vmm)).collect(), None)
            }
            Isolation::None => (Group::of_mocks::<2>(&context, &vmm).into_iter().collect(), Some(7)),
        };
        for (endpoint, member) in ENDPOINTS.into_iter().zip(members) {
            shadow.add(endpoint, member, group);
        }
        let region = MemoryRegion { range: all(), file: Some((file.as_fd(), 0)) };
        shadow.set_memory(&[region], &|_| None).expect("all of it");
        TableBed { shadow, known: Tables::default(), context, vmm }
    }

    pub fn apply(&mut self, change: Change) -> Result<()> {
        self.shadow.apply(&change, &self.known)
    }

    pub fn attach(&mut self, endpoint: EndpointId, pasid: Option<Pasid>, table: Table) -> Result<()> {
        self.attach_in(DOMAIN, endpoint, pasid, table)
    }

    fn attach_in(
        &mut self,
        to: DomainId,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        table: Table,
    ) -> Result<()> {
        self.apply(Change::AttachTable { endpoint, pasid, from: None, to, table })
    }

    pub fn detach(&mut self, endpoint: EndpointId) -> Result<()> {
        self.apply(Change::Detach { endpoint, from: DOMAIN })
    }

    pub fn mock(&self, endpoint: EndpointId) -> &mock::MockDevice {
        self.shadow.device(endpoint).expect("its device").mock()
    }

    /// The kernel has the device, or its PASID, at this table.
    fn is_at(&self, endpoint: EndpointId, pasid: Option<Pasid>, word: u32) {
        let hwpt = self.shadow.nested(endpoint, pasid).expect("a table of the guest");
        let place = pasid.map_or(0, |pasid| pasid.0);
        self.mock(endpoint).check_pasid(place, Some(hwpt)).expect("the kernel says so too");
        mock::check_iotlb(hwpt, 0, word).expect("it is that table");
    }

    /// The kernel has nothing for a PASID.
    fn is_free(&self, endpoint: EndpointId, pasid: Pasid) {
        assert!(self.shadow.nested(endpoint, Some(pasid)).is_none());
        self.mock(endpoint).check_pasid(pasid.0, None).expect("the kernel says so too");
    }

    /// Whether the device reaches all memory as it is.
    fn has_memory(&self, endpoint: EndpointId) -> bool {
        let hwpt = self.shadow.device(endpoint).expect("its device").hwpt();
        let file = memory_of(1);
        // Other pages than the guest's: EINVAL; nothing there, or no such page table: others.
        mock::check_map(&self.vmm, hwpt, Iova(START), &file.as_volatile_slice())
            .is_err_and(|error| error.errno() == Errno::INVAL)
    }

    /// The number that the kernel gives to the next object: the lowest that is free.
    fn next_number(&self) -> u32 {
        Ioas::new(&self.context).expect("an address space").id()
    }

    fn invalidate(&mut self, scope: Scope) -> Result<()> {
        let invalidation = Invalidation { scope, caches: Caches::TLB, leaf: false, id: None, global: false };
        self.apply(Change::Invalidate { domain: DOMAIN, invalidation })
    }

    fn slots(&self, endpoint: EndpointId, pasid: Option<Pasid>, word: u32) -> [bool; 4] {
        let hwpt = self.shadow.nested(endpoint, pasid).expect("a table of the guest");
        [0, 1, 2, 3].map(|slot| {
            let is_kept = mock::check_iotlb(hwpt, slot, word).is_ok();
            assert_eq!(mock::check_iotlb(hwpt, slot, 0).is_ok(), !is_kept);
            is_kept
        })
    }

    fn device_slots(&self, endpoint: EndpointId) -> [bool; 4] {
        [0, 1, 2, 3].map(|slot| self.mock(endpoint).check_cache(slot, CACHED).is_ok())
    }
}

fn memory_of(pages: u64) -> MmapRegion {
    MmapRegion::new((pages * PAGE) as usize).expect("memory")
}

/// One as VT-d has it, with its root in this page of the guest's memory, and the word that the mock knows it by.
pub fn on_parent(page: u64) -> (Table, u32) {
    let root = START + page * PAGE;
    (Table::IntelPt { flags: 0, root: Gpa(root), address_bits: 48 }, root as u32)
}

/// One as SMMUv3 has it.
pub fn in_viommu(page: u64) -> (Table, u32) {
    let first = (START + page * PAGE) | 0b1011;
    (Table::ArmSmmu3 { ste: [first, 0] }, first as u32)
}

fn addresses(page: u64, pages: u64) -> Scope {
    Scope::Addresses { pasid: None, start: page * PAGE, pages, page_shift: 12 }
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("it is refused").errno()
}

#[test]
fn a_table_is_attached_and_replaced_in_one_step_and_goes() {
    for of_vendor in [on_parent, in_viommu] {
        let mut bed = TableBed::new();
        for page in [1, 2, 1] {
            let (table, word) = of_vendor(page);
            bed.attach(ONE, None, table).expect("it is attached");
            bed.is_at(ONE, None, word);
            assert!(bed.shadow.is_in(ONE, DOMAIN));
        }
        bed.known.bypass = true;
        bed.detach(ONE).expect("it is detached");
        assert!(bed.shadow.nested(ONE, None).is_none() && bed.has_memory(ONE));
        assert_eq!(bed.shadow.reach(ONE), Some(Reach::Memory));
        bed.attach(ONE, None, of_vendor(3).0).expect("it is attached");
        bed.known.bypass = false;
        bed.detach(ONE).expect("it is detached");
        assert!(bed.shadow.device(ONE).expect("its device").is_blocked());
    }
}

#[test]
fn nothing_is_left_of_what_was_attached() {
    for of_vendor in [on_parent, in_viommu] {
        let mut bed = TableBed::new();
        for endpoint in ENDPOINTS {
            bed.shadow.block(endpoint).expect("away from what the VMM has attached");
        }
        let before = bed.next_number();
        for endpoint in ENDPOINTS {
            bed.attach(endpoint, None, of_vendor(1).0).expect("it is attached");
        }
        if of_vendor(0).0 == on_parent(0).0 {
            bed.attach(ONE, Some(PASID), of_vendor(2).0).expect("it is attached");
        }
        assert_ne!(bed.next_number(), before);
        let devices = ENDPOINTS.map(|endpoint| bed.shadow.remove(endpoint).expect("its device"));
        assert!(devices.iter().all(Member::is_blocked));
        devices[0].mock().check_pasid(PASID.0, None).expect("it has none");
        assert_eq!(bed.next_number(), before);
    }
}

#[test]
fn equal_tables_over_one_iommu_are_one_page_table() {
    let mut bed = TableBed::new();
    let (table, _) = on_parent(1);
    bed.attach(ONE, None, table).expect("it is attached");
    bed.attach_in(DomainId(2), OTHER, None, table).expect("it is attached");
    bed.attach(ONE, Some(PASID), table).expect("it is attached");
    let ids = [(ONE, None), (OTHER, None), (ONE, Some(PASID))]
        .map(|(endpoint, pasid)| bed.shadow.nested(endpoint, pasid).expect("a table").id());
    assert_eq!(ids, [ids[0]; 3]);
    bed.attach(ONE, None, on_parent(2).0).expect("it is attached");
    assert_ne!(bed.shadow.nested(ONE, None).expect("a table").id(), ids[0]);
}

#[test]
fn invalidations_reach_the_page_tables_of_the_domain_and_no_others() {
    let mut bed = TableBed::new();
    let [(own, own_word), (of_pasid, pasid_word), (foreign, foreign_word)] = [1, 2, 3].map(on_parent);
    bed.attach(ONE, None, own).expect("it is attached");
    bed.attach(ONE, Some(PASID), of_pasid).expect("it is attached");
    bed.attach_in(DomainId(2), OTHER, None, foreign).expect("it is attached");
    bed.invalidate(addresses(1, 2)).expect("it is done");
    assert_eq!(bed.slots(ONE, None, own_word), [true, false, false, true]);
    assert_eq!(bed.slots(ONE, Some(PASID), pasid_word), [true, false, false, true]);
    bed.invalidate(Scope::Pasid(PASID)).expect("it is done");
    assert_eq!(bed.slots(ONE, None, own_word), [true, false, false, true]);
    assert_eq!(bed.slots(ONE, Some(PASID), pasid_word), [false; 4]);
    bed.invalidate(Scope::Domain).expect("it is done");
    assert_eq!(bed.slots(ONE, None, own_word), [false; 4]);
    assert_eq!(bed.slots(OTHER, None, foreign_word), [true; 4]);
    // Nobody has it.
    bed.detach(ONE).expect("it is detached");
    bed.invalidate(Scope::Domain).expect("there is nothing to do");
}

#[test]
fn invalidations_reach_the_devices_of_the_domain_and_no_others() {
    let mut bed = TableBed::new();
    bed.attach(ONE, None, in_viommu(1).0).expect("it is attached");
    bed.attach_in(DomainId(2), OTHER, None, in_viommu(2).0).expect("it is attached");
    assert_eq!(bed.device_slots(ONE), [true; 4]);
    bed.invalidate(addresses(2, 1)).expect("it is done");
    assert_eq!(bed.device_slots(ONE), [true, true, false, true]);
    bed.invalidate(Scope::Domain).expect("it is done");
    assert_eq!(bed.device_slots(ONE), [false; 4]);
    assert_eq!(bed.device_slots(OTHER), [true; 4]);
    bed.attach(OTHER, None, in_viommu(1).0).expect("it moves into the domain");
    bed.invalidate(addresses(1, 1)).expect("it is done");
    assert_eq!(bed.device_slots(OTHER), [true, false, true, true]);
}

/// What is known of a page of a domain.
fn of_page(domain: DomainId, number: u64) -> OfDomain {
    let scope = addresses(number, 1);
    (domain, Invalidation { scope, caches: Caches::TLB, leaf: false, id: None, global: false })
}

/// What came of each.
fn outcomes(bed: &mut TableBed, all: impl IntoIterator<Item = OfDomain>) -> Vec<Option<Errno>> {
    let outcomes = bed.shadow.invalidate_together(all);
    (0..outcomes.count()).map(|place| outcomes.of(place).err().map(|error| error.errno())).collect()
}

#[test]
fn invalidations_that_are_told_together_reach_what_each_alone_reaches() {
    for of_vendor in [on_parent, in_viommu] {
        let mut bed = TableBed::new();
        let other = DomainId(2);
        let [(own, own_word), (foreign, foreign_word)] = [1, 2].map(of_vendor);
        bed.attach(ONE, None, own).expect("it is attached");
        bed.attach_in(other, OTHER, None, foreign).expect("it is attached");
        let all = [of_page(DOMAIN, 1), of_page(other, 2), of_page(DOMAIN, 3), of_page(DomainId(9), 0)];
        assert_eq!(outcomes(&mut bed, all), [None; 4]);
        let slots = match own {
            Table::IntelPt { .. } => [bed.slots(ONE, None, own_word), bed.slots(OTHER, None, foreign_word)],
            Table::ArmSmmu3 { .. } => [bed.device_slots(ONE), bed.device_slots(OTHER)],
        };
        assert_eq!(slots, [[true, false, true, false], [true, true, false, true]]);
        assert!(outcomes(&mut bed, []).is_empty());
    }
}

/// The kernel does not know the number of a device that has left, and stops there.
#[test]
fn whichever_of_those_told_together_fails_the_others_are_done() {
    let other = DomainId(2);
    for failing in 0..4 {
        let mut bed = TableBed::new();
        bed.attach(ONE, None, in_viommu(1).0).expect("it is attached");
        bed.attach_in(other, OTHER, None, in_viommu(2).0).expect("it is attached");
        bed.mock(ONE).leave().expect("it leaves");
        let of = |number| of_page(if number == failing { DOMAIN } else { other }, number);
        let expected = [0, 1, 2, 3].map(|number| (number == failing).then_some(Errno::INVAL));
        assert_eq!(outcomes(&mut bed, (0..4).map(of)), expected);
        assert_eq!(bed.device_slots(OTHER), [0, 1, 2, 3].map(|number| number == failing));
        // Once it is known to be gone, it keeps nothing.
        bed.shadow.device(ONE).expect("its device").set_bound(false);
        assert_eq!(outcomes(&mut bed, (0..4).map(of)), [None; 4]);
        assert_eq!(outcomes(&mut bed, [of(failing)]), [None]);
    }
}

#[test]
fn no_more_are_taken_than_share_calls() {
    let mut bed = TableBed::new();
    bed.attach(ONE, None, in_viommu(1).0).expect("it is attached");
    for _ in 0..2 {
        let mut taken = 0;
        let endless = std::iter::repeat_with(|| of_page(DOMAIN, 1)).inspect(|_| taken += 1);
        assert_eq!(outcomes(&mut bed, endless), [None; ENTRIES_MAX]);
        assert_eq!(taken, ENTRIES_MAX);
    }
}

#[test]
fn a_pasid_has_a_table_of_its_own() {
    let mut bed = TableBed::new();
    let [(own, own_word), (first, first_word), (second, second_word)] = [1, 2, 3].map(on_parent);
    bed.attach(ONE, None, own).expect("it is attached");
    bed.attach(ONE, Some(PASID), first).expect("it is attached");
    bed.is_at(ONE, Some(PASID), first_word);
    bed.attach(ONE, Some(PASID), second).expect("it is replaced");
    bed.is_at(ONE, Some(PASID), second_word);
    bed.attach(ONE, None, first).expect("the device's own is replaced");
    bed.is_at(ONE, Some(PASID), second_word);
    bed.attach(ONE, None, own).expect("and again");
    bed.apply(Change::DetachPasid { endpoint: ONE, pasid: PASID, from: DOMAIN }).expect("it goes");
    bed.is_free(ONE, PASID);
    bed.is_at(ONE, None, own_word);
    bed.apply(Change::DetachPasid { endpoint: ONE, pasid: PASID, from: DOMAIN }).expect("it is gone already");
    for pasid in [PASID, Pasid(5)] {
        bed.attach(ONE, Some(pasid), first).expect("it is attached");
    }
    bed.detach(ONE).expect("with all of its PASIDs");
    bed.is_free(ONE, PASID);
    bed.is_free(ONE, Pasid(5));
}

/// The kernel gives no PASID a table beside a page table of its own choice.
#[test]
fn a_pasid_has_a_table_beside_untranslated_memory() {
    let mut bed = TableBed::new();
    bed.known.bypass = true;
    let (table, word) = on_parent(2);
    bed.attach(ONE, Some(PASID), table).expect("beside what the VMM has attached");
    bed.is_at(ONE, Some(PASID), word);
    assert!(bed.has_memory(ONE));
    bed.attach(ONE, None, on_parent(1).0).expect("beside a table");
    bed.apply(Change::Attach { endpoint: ONE, from: Some(DOMAIN), to: DomainId(4), bypass: true })
        .expect("it moves, without its PASIDs");
    bed.is_free(ONE, PASID);
    assert!(bed.has_memory(ONE));
    bed.attach(ONE, Some(PASID), table).expect("beside a bypass domain");
    bed.is_at(ONE, Some(PASID), word);
    assert!(bed.has_memory(ONE));
    bed.shadow.block(ONE).expect("it reaches nothing");
    bed.is_at(ONE, Some(PASID), word);
    bed.shadow.bypass(ONE).expect("it reaches memory");
    bed.is_at(ONE, Some(PASID), word);
    assert!(bed.has_memory(ONE));
}

#[test]
fn a_device_is_cut_off_with_its_pasids_which_get_the_tables_that_they_have_by_then() {
    let mut bed = TableBed::new();
    let [(own, own_word), (first, _), (second, second_word)] = [1, 2, 3].map(on_parent);
    bed.attach(ONE, None, own).expect("it is attached");
    for pasid in [PASID, Pasid(5)] {
        bed.attach(ONE, Some(pasid), first).expect("it is attached");
    }
    bed.shadow.cut_off(ONE).expect("it is");
    bed.attach(ONE, Some(PASID), second).expect("it is noted");
    bed.apply(Change::DetachPasid { endpoint: ONE, pasid: Pasid(5), from: DOMAIN }).expect("it goes");
    for pasid in [PASID, Pasid(5)] {
        bed.mock(ONE).check_pasid(pasid.0, None).expect("the kernel has nothing for it");
    }
    assert!(bed.shadow.device(ONE).is_some_and(Member::is_blocked));
    bed.shadow.restore(ONE).expect("it is");
    bed.is_at(ONE, None, own_word);
    bed.is_at(ONE, Some(PASID), second_word);
    bed.is_free(ONE, Pasid(5));
}

#[test]
fn whoever_moves_to_a_bypass_domain_has_no_pasids_any_more() {
    let mut bed = TableBed::new();
    bed.attach(ONE, None, on_parent(1).0).expect("it is attached");
    bed.attach(ONE, Some(PASID), on_parent(2).0).expect("it is attached");
    bed.apply(Change::Attach { endpoint: ONE, from: Some(DOMAIN), to: DomainId(4), bypass: true })
        .expect("it moves");
    bed.is_free(ONE, PASID);
    assert!(bed.has_memory(ONE));
}

#[test]
fn what_cannot_be_is_refused_before_the_kernel_hears_of_it() {
    let mut bed = TableBed::new();
    bed.attach(ONE, None, in_viommu(1).0).expect("it is attached");
    let (before, word) = (bed.next_number(), in_viommu(1).1);
    let ste = |first: u64| Table::ArmSmmu3 { ste: [first, 0] };
    let pt = |root| Table::IntelPt { flags: 0, root: Gpa(root), address_bits: 48 };
    let ends = START + PAGES * PAGE;
    for (pasid, table, expected) in [
        (None, ste(ends | 0b1011), Errno::FAULT),
        (None, ste((START - 64) | 0b1011), Errno::FAULT),
        // Descriptors of which the last lies beyond the end.
        (None, ste((ends - 64) | 1 << 59 | 0b1011), Errno::FAULT),
        (None, ste(!0xe | 0xa), Errno::FAULT),
        (None, pt(ends), Errno::FAULT),
        (None, pt(u64::MAX - 0xfff), Errno::FAULT),
        (None, pt(u64::MAX), Errno::FAULT),
        (Some(PASID), in_viommu(2).0, Errno::INVAL),
        (Some(Pasid(1 << 20)), on_parent(2).0, Errno::RANGE),
        (Some(Pasid(0)), on_parent(2).0, Errno::RANGE),
    ] {
        assert_eq!(errno(bed.attach(ONE, pasid, table)), expected, "{table:x?}");
        bed.is_at(ONE, None, word);
        assert_eq!(bed.next_number(), before);
    }
    bed.attach(ONE, None, ste((ends - 64) | 0b1011)).expect("the last place that there is");
    bed.attach(ONE, None, ste(!0xe)).expect("one that nothing is looked up in");
}

#[test]
fn what_lingers_keeps_its_tables_until_it_is_moved() {
    let mut bed = TableBed::new();
    let [(own, own_word), (of_pasid, _)] = [1, 2].map(on_parent);
    for endpoint in ENDPOINTS {
        bed.attach(endpoint, Some(PASID), of_pasid).expect("it is attached");
    }
    bed.attach(ONE, None, own).expect("it is attached");
    let hwpts = [None, Some(PASID)].map(|pasid| bed.shadow.nested(ONE, pasid).expect("a table").id());
    bed.shadow.reset();
    assert_eq!(ENDPOINTS.map(|endpoint| bed.shadow.reach(endpoint)), [Some(Reach::Lingering); 2]);
    assert_eq!(bed.shadow.device(ONE).expect("its device").hwpt(), hwpts[0]);
    let mock = bed.mock(ONE);
    assert!(mock.check_pasid(PASID.0, None).is_err(), "it has its table still");
    bed.invalidate(Scope::Domain).expect("a new domain of this number has nobody");
    bed.attach(ONE, None, own).expect("it is attached");
    bed.is_at(ONE, None, own_word);
    bed.is_free(ONE, PASID);
    bed.known.bypass = true;
    bed.shadow.move_to(OTHER, Goal::Memory, &bed.known).expect("it is quiet");
    bed.is_free(OTHER, PASID);
    assert!(bed.has_memory(OTHER));
}

/// It would fill the caches of a vIOMMU with what old tables lead to, under numbers that new ones may have.
#[test]
fn what_lingers_in_a_viommu_ends_when_another_gets_a_table() {
    for (of_vendor, ends) in [(on_parent as fn(u64) -> _, false), (in_viommu, true)] {
        let mut bed = TableBed::new();
        for endpoint in ENDPOINTS {
            bed.attach(endpoint, None, of_vendor(1).0).expect("it is attached");
        }
        bed.shadow.reset();
        bed.attach(ONE, None, of_vendor(2).0).expect("it is attached");
        assert_eq!(bed.shadow.device(OTHER).expect("its device").is_blocked(), ends);
        assert_eq!(bed.shadow.reach(OTHER) == Some(Reach::Lingering), !ends);
    }
}

#[test]
fn a_device_that_is_bound_late_gets_its_tables_then() {
    let mut bed = TableBed::new();
    let [(own, own_word), (of_pasid, pasid_word)] = [1, 2].map(on_parent);
    bed.shadow.device(ONE).expect("its device").set_bound(false);
    bed.attach(ONE, None, own).expect("there is nothing to do");
    bed.attach(ONE, Some(PASID), of_pasid).expect("there is nothing to do");
    assert_eq!(bed.shadow.reach(ONE), Some(Reach::Vmm));
    bed.shadow.device(ONE).expect("its device").set_bound(true);
    bed.known.tables = RefCell::new(vec![(None, DOMAIN, own), (Some(PASID), DomainId(2), of_pasid)]);
    bed.shadow.move_to(ONE, Goal::Domain(DOMAIN), &bed.known).expect("it moves");
    bed.is_at(ONE, None, own_word);
    bed.shadow.attach_pasids(ONE, &bed.known).expect("they are attached");
    bed.is_at(ONE, Some(PASID), pasid_word);
}

#[test]
fn a_group_has_one_table() {
    for of_vendor in [on_parent, in_viommu] {
        let mut bed = TableBed::with(Isolation::None);
        let (table, word) = of_vendor(1);
        bed.attach(ONE, None, table).expect("it is attached");
        ENDPOINTS.into_iter().for_each(|endpoint| bed.is_at(endpoint, None, word));
        assert!(bed.shadow.is_in(ONE, DOMAIN) && !bed.shadow.is_in(OTHER, DOMAIN));
        bed.attach(OTHER, None, table).expect("the same");
        assert_eq!(errno(bed.attach(ONE, None, of_vendor(2).0)), Errno::INVAL);
        assert_eq!(errno(bed.attach(ONE, Some(PASID), on_parent(2).0)), Errno::INVAL);
        bed.detach(ONE).expect("it leaves");
        ENDPOINTS.into_iter().for_each(|endpoint| bed.is_at(endpoint, None, word));
        bed.attach(OTHER, None, of_vendor(2).0).expect("it is alone");
        if of_vendor(1).0 == in_viommu(1).0 {
            bed.invalidate(addresses(3, 1)).expect("it is done");
            assert_eq!(ENDPOINTS.map(|endpoint| bed.device_slots(endpoint)), [[true, true, true, false]; 2]);
        }
        bed.detach(OTHER).expect("it leaves");
        assert!(bed.shadow.device(ONE).expect("its device").is_blocked());
    }
}

/// A device that leaves takes its number in the vIOMMU along, and the kernel refuses to hear of it.
#[test]
fn a_device_that_the_vmm_let_go_of_keeps_no_other_from_being_invalidated() {
    let mut bed = TableBed::new();
    for endpoint in ENDPOINTS {
        bed.attach(endpoint, None, in_viommu(1).0).expect("it is attached");
    }
    bed.mock(ONE).leave().expect("it leaves");
    let gone = bed.invalidate(addresses(2, 1));
    assert_eq!(
        (gone.map_err(|error| error.errno()), bed.device_slots(OTHER)),
        (Err(Errno::INVAL), [true; 4])
    );
    bed.shadow.device(ONE).expect("its device").set_bound(false);
    bed.invalidate(addresses(1, 1)).expect("it is done");
    assert_eq!(bed.device_slots(OTHER), [true, false, true, true]);
    drop(bed.shadow.remove(ONE));
    bed.invalidate(addresses(2, 1)).expect("it is done");
    assert_eq!(bed.device_slots(OTHER), [true, false, false, true]);
}

#[test]
fn a_device_that_the_vmm_let_go_of_has_no_pasids_to_take_away() {
    let mut bed = TableBed::new();
    bed.attach(ONE, None, on_parent(1).0).expect("it is attached");
    for pasid in [PASID, Pasid(5)] {
        bed.attach(ONE, Some(pasid), on_parent(2).0).expect("it is attached");
    }
    bed.shadow.device(ONE).expect("its device").set_bound(false);
    bed.apply(Change::DetachPasid { endpoint: ONE, pasid: PASID, from: DOMAIN })
        .expect("there is nothing to do");
    bed.detach(ONE).expect("there is nothing to do");
    assert!(bed.shadow.nested(ONE, Some(Pasid(5))).is_none());
}

/// What a bed is to look like.
type Picture = (Option<u32>, Option<u32>);

impl TableBed {
    /// The words of the tables of the first endpoint and its PASID are these, and the kernel has the same.
    fn check(&self, (own, of_pasid): Picture, what: &str) {
        for (pasid, word) in [(None, own), (Some(PASID), of_pasid)] {
            match word {
                Some(word) => self.is_at(ONE, pasid, word),
                None => assert!(self.shadow.nested(ONE, pasid).is_none(), "{what}"),
            }
        }
        if of_pasid.is_none() {
            self.is_free(ONE, PASID);
        }
        if own.is_none() {
            assert!(self.has_memory(ONE), "{what}");
        }
    }
}

/// Every call in the kernel that can fail does, one at a time, for every step of a life.
#[test]
fn after_any_failure_in_the_kernel_the_tables_are_those_before_or_those_after() {
    let mut failures = Failures::new();
    let attach = |pasid, table| Change::AttachTable { endpoint: ONE, pasid, from: None, to: DOMAIN, table };
    let detach = Change::Detach { endpoint: ONE, from: DOMAIN };
    let bypass = Change::Attach { endpoint: ONE, from: None, to: DomainId(4), bypass: true };
    let [one, two, three] = [1, 2, 3].map(on_parent);
    let on_parent = [
        (attach(None, one.0), (Some(one.1), None)),
        (attach(None, two.0), (Some(two.1), None)),
        (attach(Some(PASID), one.0), (Some(two.1), Some(one.1))),
        (attach(Some(PASID), three.0), (Some(two.1), Some(three.1))),
        (attach(None, three.0), (Some(three.1), Some(three.1))),
        (Change::DetachPasid { endpoint: ONE, pasid: PASID, from: DOMAIN }, (Some(three.1), None)),
        (attach(Some(PASID), one.0), (Some(three.1), Some(one.1))),
        (detach, (None, None)),
        (attach(Some(PASID), two.0), (None, Some(two.1))),
        (bypass, (None, None)),
        (attach(Some(PASID), two.0), (None, Some(two.1))),
        (detach, (None, None)),
    ];
    let [one, two, _] = [1, 2, 3].map(in_viommu);
    let in_viommu = [
        (attach(None, one.0), (Some(one.1), None)),
        (attach(None, two.0), (Some(two.1), None)),
        (detach, (None, None)),
    ];
    let mut failed = 0;
    for life in [&on_parent[..], &in_viommu] {
        let mut bed = TableBed::new();
        bed.known.bypass = true;
        bed.shadow.set_page_requests(ONE, true);
        bed.shadow.move_to(ONE, Goal::Memory, &bed.known).expect("it moves");
        let mut before = (None, None);
        for (change, after) in life {
            for nth in 1.. {
                let free = bed.next_number();
                let (done, has_failed) = failures.at(nth, || bed.apply(*change));
                let what = format!("failure {nth} of {change:x?}: {done:?}");
                failed += u32::from(has_failed && done.is_err());
                if done.is_ok() {
                    bed.check(*after, &what);
                    break;
                }
                assert!(has_failed, "{what}");
                bed.check(before, &what);
                assert_eq!(bed.next_number(), free, "{what}");
            }
            before = *after;
        }
    }
    println!("{failed} failures");
    assert!(failed > 50, "only {failed} failures");
}
