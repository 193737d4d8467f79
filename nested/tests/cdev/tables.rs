// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA through a guest's tables that the shadow attaches: what they lead to, what is told when they lead nowhere, and
//! what invalidations make of a change.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use viommu_core::{
    Caches, Change, DomainId, EndpointId, Invalidation, Mapping, Pasid, Scope, Table, TableAccess,
    TableFault, TableFaultReason,
};
use viommu_nested::format::{HostFacts, TableFacts};
use viommu_nested::shadow::{Known, MemoryRegion, Notice, Reach, Shadow, nesting_of};
use viommu_nested::{Attach, DeviceId};

use super::guest::{Allows, BLOCKS, GPA, Memory, PAGES, stage_1};
use super::testdev::Testdev;
use super::*;

const ENDPOINT: EndpointId = EndpointId(0x10);
const OTHER: EndpointId = EndpointId(0x11);
const DOMAIN: DomainId = DomainId(1);
const ASID: u16 = 7;
/// Where blocks are.
const HIGH: u64 = 0x7f00_0000_0000;

/// A guest whose device is attached by the shadow, under a file of its own.
struct Bed {
    shadow: Shadow<Numbered>,
    testdev: Testdev,
    /// One that shares its group.
    other: Option<Testdev>,
    memory: Memory,
    descriptor: u64,
    root: u64,
}

/// A device whose number is known.
#[derive(Debug)]
struct Numbered(Cdev, DeviceId);

impl Attach for Numbered {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        self.0.attach(table, pasid)
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        self.0.detach(pasid)
    }

    fn number(&self, _: &Arc<Context>) -> Result<DeviceId> {
        Ok(self.1)
    }

    fn is_bound(&self) -> bool {
        self.0.is_bound()
    }
}

struct Nothing;

impl Known for Nothing {
    fn mappings(&self, _: DomainId) -> Vec<Mapping> {
        Vec::new()
    }

    fn tables(&self, _: EndpointId) -> Vec<(Option<Pasid>, DomainId, Table)> {
        Vec::new()
    }

    fn unattached(&self) -> Vec<EndpointId> {
        Vec::new()
    }

    fn bypass(&self) -> bool {
        false
    }
}

impl Bed {
    fn new() -> Bed {
        Bed::of(Testdev::open(), None)
    }

    fn of(testdev: Testdev, other: Option<Testdev>) -> Bed {
        let context = context();
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        let range = Memory::range();
        ftruncate(&file, range.span() + 1).expect("its size");
        let mut shadow = Shadow::new(&context, None).expect("a shadow");
        let region = MemoryRegion { range, file: Some((file.as_fd(), 0)) };
        shadow.set_memory(&[region], &|_| None).expect("all of it");
        for (endpoint, testdev) in [ENDPOINT, OTHER].into_iter().zip([Some(&testdev), other.as_ref()]) {
            let Some(testdev) = testdev else { continue };
            let number = testdev.device.bind(&context).expect("it binds");
            let duplicate = Cdev::adopt(testdev.file.try_clone().expect("a duplicate").into());
            // Nothing resets them, and so nothing tells their numbers apart.
            shadow.add(endpoint, Numbered(duplicate, number), other.is_some().then_some(7));
        }
        let region = MmapRegion::from_file(FileOffset::new(File::from(file), 0), range.span() as usize + 1);
        let memory = Memory::of(region.expect("it maps"));
        let (descriptor, root) = (memory.table(), memory.table());
        memory.describe(descriptor, root, ASID.into());
        Bed { shadow, testdev, other, memory, descriptor, root }
    }

    /// With its own table.
    fn attached() -> Bed {
        let mut bed = Bed::new();
        bed.attach(stage_1(bed.descriptor)).expect("it is attached");
        bed
    }

    fn apply(&mut self, change: Change) -> Result<()> {
        self.shadow.apply(&change, &Nothing)
    }

    fn attach(&mut self, ste: [u64; 2]) -> Result<()> {
        self.attach_to(ENDPOINT, ste)
    }

    fn attach_to(&mut self, endpoint: EndpointId, ste: [u64; 2]) -> Result<()> {
        let table = Table::ArmSmmu3 { ste };
        self.apply(Change::AttachTable { endpoint, pasid: None, from: None, to: DOMAIN, table })
    }

    fn map(&self, iova: u64, page: u64) {
        self.memory.map(self.root, iova, page, Allows::All);
    }

    fn invalidate(&mut self, scope: Scope, caches: Caches, id: Option<u16>) {
        let invalidation = Invalidation { scope, caches, leaf: false, id, global: false };
        self.apply(Change::Invalidate { domain: DOMAIN, invalidation }).expect("it is done");
    }

    /// Which of the pages a write reaches, if any.
    fn written(&self, iova: u64) -> Option<[bool; 2]> {
        self.memory.written(&self.testdev, iova, PAGES)
    }

    fn has_notices(&self, seconds: i64) -> bool {
        let within = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut sources = [PollFd::from_borrowed_fd(self.shadow.sources(), PollFlags::IN)];
        poll(&mut sources, Some(&within)).expect("it waits") > 0
    }

    /// What a write that fails is told as.
    fn fault_of(&mut self, iova: u64) -> TableFault {
        assert!(!self.has_notices(0));
        assert!(!self.testdev.writes(iova), "it should fail");
        assert!(self.has_notices(10), "it is not told");
        let mut notices = Vec::new();
        self.shadow.read_notices(&mut notices).expect("it reads");
        let [Notice::Failed(fault)] = notices[..] else { panic!("{notices:?}") };
        assert_eq!(fault.endpoint, ENDPOINT);
        fault
    }
}

fn failed_write(reason: TableFaultReason, iova: u64) -> TableFault {
    let access = TableAccess::WRITE;
    TableFault { endpoint: ENDPOINT, pasid: None, address: Some(iova), access, reason }
}

fn addresses(start: u64, pages: u64, page_shift: u8) -> Scope {
    Scope::Addresses { pasid: None, start, pages, page_shift }
}

#[test]
fn dma_goes_where_the_guests_table_leads() {
    let mut bed = Bed::attached();
    bed.map(IOVA, PAGES[0]);
    assert_eq!(bed.written(IOVA), Some([true, false]));
    bed.map(HIGH, PAGES[1]);
    assert_eq!(bed.written(HIGH), Some([false, true]));
    let nowhere = IOVA + PAGE;
    assert_eq!(bed.fault_of(nowhere), failed_write(TableFaultReason::Mapping, nowhere));
    bed.memory.map(bed.root, nowhere, PAGES[0], Allows::Reading);
    assert_eq!(bed.fault_of(nowhere), failed_write(TableFaultReason::Permission, nowhere));
    let beyond = 1 << 48;
    assert_eq!(bed.fault_of(beyond), failed_write(TableFaultReason::Mapping, beyond));
    // An entry that leads beyond the 44 bits of the descriptor.
    bed.map(IOVA + 2 * PAGE, 1 << 44);
    assert_eq!(bed.fault_of(IOVA + 2 * PAGE), failed_write(TableFaultReason::OutOfRange, IOVA + 2 * PAGE));
}

/// QEMU's SMMUv3 has a cache.
#[test]
fn a_changed_entry_counts_from_its_invalidation_on() {
    let mut bed = Bed::attached();
    let all_of_them = [
        (addresses(IOVA, 1, 12), Some(ASID)),
        (addresses(IOVA, 1, 12), None),
        // As a range; as pages of a size that no range has; as more than a range has.
        (addresses(IOVA - 6 * PAGE, 7, 12), Some(ASID)),
        (addresses(IOVA, 5, 13), Some(ASID)),
        (addresses(0, 1 << 40, 12), Some(ASID)),
        (addresses(0, 1 << 52, 12), None),
        (Scope::Domain, Some(ASID)),
        (Scope::Domain, None),
        (Scope::Pasid(Pasid(0)), None),
    ];
    bed.map(IOVA, PAGES[0]);
    let (mut from, mut to) = (0, 1);
    for (scope, id) in all_of_them {
        let reached = |page| Some([page == 0, page == 1]);
        assert_eq!(bed.written(IOVA), reached(from));
        bed.map(IOVA, PAGES[to]);
        assert_eq!(bed.written(IOVA), reached(from), "before {scope:x?}, {id:?}");
        bed.invalidate(addresses(IOVA + 64 * PAGE, 3, 12), Caches::TLB, Some(ASID));
        bed.invalidate(Scope::Domain, Caches::TLB, Some(ASID + 1));
        assert_eq!(bed.written(IOVA), reached(from), "others are not concerned");
        bed.invalidate(scope, Caches::TLB, id);
        assert_eq!(bed.written(IOVA), reached(to), "after {scope:x?}, {id:?}");
        (from, to) = (to, from);
    }
    bed.memory.unmap(bed.root, IOVA);
    assert!(bed.testdev.writes(IOVA), "not before it is invalidated");
    bed.invalidate(addresses(IOVA, 1, 12), Caches::TLB, Some(ASID));
    assert_eq!(bed.fault_of(IOVA), failed_write(TableFaultReason::Mapping, IOVA));
}

/// An address space is known to the cache by its number alone, and a guest cannot name a domain that is gone.
#[test]
fn what_was_cached_of_a_table_that_went_counts_for_no_other() {
    let mut bed = Bed::attached();
    bed.map(IOVA, PAGES[0]);
    assert_eq!(bed.written(IOVA), Some([true, false]));
    bed.apply(Change::Detach { endpoint: ENDPOINT, from: DOMAIN }).expect("it is detached");
    bed.map(IOVA, PAGES[1]);
    bed.attach(stage_1(bed.descriptor)).expect("it is attached");
    assert_eq!(bed.written(IOVA), Some([false, true]), "after it was detached");
    bed.shadow.reset();
    assert_eq!(bed.written(IOVA), Some([false, true]), "it lingers");
    bed.map(IOVA, PAGES[0]);
    bed.attach(stage_1(bed.descriptor)).expect("it is attached");
    assert_eq!(bed.written(IOVA), Some([true, false]), "after a reset");
}

#[test]
fn a_block_is_one_page() {
    let mut bed = Bed::attached();
    let last = HIGH + (2 << 20) - PAGE;
    let written = |bed: &Bed| {
        let in_block = BLOCKS.map(|block| block + (2 << 20) - PAGE);
        bed.memory.written(&bed.testdev, last, in_block)
    };
    bed.memory.map_block(bed.root, HIGH, BLOCKS[0]);
    assert_eq!(written(&bed), Some([true, false]));
    bed.memory.map_block(bed.root, HIGH, BLOCKS[1]);
    assert_eq!(written(&bed), Some([true, false]));
    bed.invalidate(addresses(HIGH, 1, 21), Caches::TLB, Some(ASID));
    assert_eq!(written(&bed), Some([false, true]));
}

#[test]
fn a_changed_descriptor_counts_from_its_invalidation_on() {
    let mut bed = Bed::attached();
    let other = bed.memory.table();
    let all_of_them = [Scope::Domain, Scope::Pasid(Pasid(0)), Scope::Pasid(Pasid(5))];
    bed.map(IOVA, PAGES[0]);
    bed.memory.map(other, IOVA, PAGES[1], Allows::All);
    for scope in all_of_them {
        bed.memory.describe(bed.descriptor, bed.root, ASID.into());
        bed.invalidate(Scope::Domain, Caches::all(), None);
        assert_eq!(bed.written(IOVA), Some([true, false]));
        bed.memory.describe(bed.descriptor, other, u64::from(ASID) + 1);
        assert_eq!(bed.written(IOVA), Some([true, false]));
        bed.invalidate(scope, Caches::PASID, None);
        assert_eq!(bed.written(IOVA), Some([false, true]), "{scope:?}");
    }
    bed.memory.write(bed.descriptor, 0);
    bed.invalidate(Scope::Domain, Caches::PASID, None);
    let expected = TableFault {
        endpoint: ENDPOINT,
        pasid: None,
        address: None,
        access: TableAccess::empty(),
        reason: TableFaultReason::Table,
    };
    assert_eq!(bed.fault_of(IOVA), expected);
}

#[test]
fn an_entry_is_replaced_in_place() {
    let mut bed = Bed::attached();
    let (descriptor, root) = (bed.memory.table(), bed.memory.table());
    bed.memory.describe(descriptor, root, u64::from(ASID) + 1);
    bed.map(IOVA, PAGES[0]);
    bed.memory.map(root, IOVA, PAGES[1], Allows::All);
    assert_eq!(bed.written(IOVA), Some([true, false]));
    bed.attach(stage_1(descriptor)).expect("it is attached");
    assert_eq!(bed.written(IOVA), Some([false, true]));
    let (bypass, abort) = ([0b1001, 0], [0b0001, 0]);
    bed.attach(bypass).expect("it is attached");
    assert_eq!(bed.written(PAGES[0]), Some([true, false]), "as it is in memory");
    assert!(!bed.testdev.writes(IOVA), "no memory is there");
    bed.attach(abort).expect("it is attached");
    assert_eq!(bed.written(PAGES[0]), None);
    bed.attach(stage_1(bed.descriptor)).expect("it is attached");
    assert_eq!(bed.written(IOVA), Some([true, false]));
}

#[test]
fn what_is_refused_leaves_the_table_that_was() {
    let mut bed = Bed::attached();
    bed.map(IOVA, PAGES[0]);
    let beyond = stage_1(GPA + super::guest::BYTES);
    assert_eq!(errno(bed.attach(beyond)), Errno::FAULT);
    assert_eq!(
        errno(bed.attach([!0 << 59 | stage_1(bed.descriptor)[0], 0])),
        Errno::FAULT,
        "2^31 descriptors"
    );
    assert_eq!(errno(bed.attach([stage_1(bed.descriptor)[0] | 1 << 55, 0])), Errno::IO, "a reserved bit");
    let of_vtd = Table::IntelPt { flags: 0, root: viommu_core::Gpa(GPA), address_bits: 48 };
    let refused = bed.shadow.attach_table(ENDPOINT, None, DOMAIN, of_vtd);
    assert_eq!(errno(refused), Errno::OPNOTSUPP);
    let table = Table::ArmSmmu3 { ste: stage_1(bed.descriptor) };
    assert_eq!(errno(bed.shadow.attach_table(ENDPOINT, Some(Pasid(1)), DOMAIN, table)), Errno::INVAL);
    assert_eq!(bed.written(IOVA), Some([true, false]));
    assert!(bed.shadow.is_in(ENDPOINT, DOMAIN));
}

#[test]
fn a_table_lingers_after_a_reset_and_goes_when_the_device_does() {
    let mut bed = Bed::attached();
    bed.map(IOVA, PAGES[0]);
    bed.shadow.reset();
    assert_eq!(bed.shadow.reach(ENDPOINT), Some(Reach::Lingering));
    assert_eq!(bed.written(IOVA), Some([true, false]));
    bed.shadow.bypass(ENDPOINT).expect("it moves");
    assert_eq!(bed.written(PAGES[1]), Some([false, true]));
    bed.apply(Change::Detach { endpoint: ENDPOINT, from: DOMAIN }).expect("it moves");
    assert_eq!(bed.written(PAGES[1]), None);
    bed.attach(stage_1(bed.descriptor)).expect("it is attached");
    assert_eq!(bed.written(IOVA), Some([true, false]));
    let context = bed.shadow.context().clone();
    let number = bed.shadow.remove(ENDPOINT).expect("its device").1;
    assert_eq!(bed.written(IOVA), None);
    // The memory's address space and the device, which the test has still.
    let free = [1, 2, 3].into_iter().filter(|number| {
        let is_space = Ioas::of_another(&context, *number).is_ok();
        !is_space && HwInfo::of(&context, DeviceId(*number)).is_err()
    });
    assert_eq!(free.collect::<Vec<_>>(), [3], "all else is gone");
    let duplicate = bed.testdev.file.try_clone().expect("a duplicate");
    bed.shadow.add(ENDPOINT, Numbered(Cdev::adopt(duplicate.into()), number), None);
    bed.attach(stage_1(bed.descriptor)).expect("it has a number again");
    assert_eq!(bed.written(IOVA), Some([true, false]));
}

/// Each has a StreamID of its own, by which its cached descriptor is known.
#[test]
fn devices_of_a_group_use_one_table_and_are_told_of_its_changes() {
    let [testdev, other] = Testdev::open_pair();
    let mut bed = Bed::of(testdev, Some(other));
    bed.map(IOVA, PAGES[0]);
    bed.attach(stage_1(bed.descriptor)).expect("it is attached, and the other with it");
    let written = |bed: &Bed| {
        let other = bed.other.as_ref().expect("two devices");
        [&bed.testdev, other].map(|testdev| bed.memory.written(testdev, IOVA, PAGES))
    };
    assert_eq!(written(&bed), [Some([true, false]); 2]);
    let root = bed.memory.table();
    bed.memory.map(root, IOVA, PAGES[1], Allows::All);
    bed.memory.describe(bed.descriptor, root, u64::from(ASID) + 1);
    assert_eq!(written(&bed), [Some([true, false]); 2]);
    bed.invalidate(Scope::Domain, Caches::PASID, None);
    assert_eq!(written(&bed), [Some([false, true]); 2]);
    bed.attach_to(OTHER, stage_1(bed.descriptor)).expect("it is there");
    bed.apply(Change::Detach { endpoint: ENDPOINT, from: DOMAIN }).expect("it leaves");
    assert_eq!(written(&bed), [Some([false, true]); 2], "the other stays");
    let left = bed.shadow.remove(ENDPOINT).expect("its device");
    drop((left, std::mem::replace(&mut bed.testdev, bed.other.take().expect("two devices"))));
    assert_eq!(bed.written(IOVA), Some([false, true]), "the other stays");
    bed.apply(Change::Detach { endpoint: OTHER, from: DOMAIN }).expect("it leaves");
    assert_eq!(bed.written(IOVA), None);
}

#[test]
fn a_device_that_another_process_bound_has_its_number_found() {
    let context = context();
    let testdev = Testdev::open();
    let number = testdev.device.bind(&context).expect("it binds");
    let again = || Cdev::adopt(testdev.file.try_clone().expect("a duplicate").into());
    assert_eq!(again().number(&context), Ok(number), "it is the only one");
    let behind_port = File::options().read(true).write(true).open(path("EDU_BEHIND_PORT")).expect("it opens");
    let other = Cdev::adopt(behind_port.try_clone().expect("a duplicate").into());
    let other_number = other.bind(&context).expect("it binds");
    let other_again = Cdev::adopt(behind_port.into());
    assert_eq!(other_again.number(&context), Ok(other_number), "by its reset");
    assert_ne!(number, other_number);
    assert_eq!(again().number(&context).map_err(|error| error.errno()), Err(Errno::NODEV), "no telling");
}

#[test]
fn what_the_guest_is_told_is_what_the_hardware_is() {
    let context = context();
    let testdev = Testdev::open();
    let number = testdev.device.bind(&context).expect("it binds");
    let info = nesting_of(&context, number).expect("it is told").expect("it nests");
    assert_eq!(HwInfo::of(&context, number), Ok(info.clone()));
    let host = HostFacts::of(&testdev.device, false, true).expect("a PCI device");
    assert_eq!((host.ats, host.pri), (false, false));
    let facts = TableFacts::of(&info, &host).expect("it has tables");
    println!("{facts:x?}");
    assert_eq!((facts.ats, facts.pasids, facts.page_requests), (false, None, false));
    let viommu_core::TableHardware::ArmSmmu3 { idr } = facts.hardware else { panic!("{facts:?}") };
    // Stage 1, tables of AArch64, 16 bits of an ASID; ranges; pages of 4 KiB.
    assert_eq!((idr[0] & 0x100a, idr[3] & 1 << 10, idr[5] & 1 << 4), (0x100a, 1 << 10, 1 << 4));
}
