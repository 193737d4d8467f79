// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, the address spaces of its domains, and two mock devices that use them: what the kernel has is what the
//! device says, whatever fails. `scripts/test l1` runs this in a kernel that has the mock driver.

mod cut;
mod group;
mod groups;
mod notices;
mod tables;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET};
use viommu_core::{
    Access, Change, Device, DeviceConfig, DomainId, EndpointId, Features, HostError, Iova, IovaRange, Limits,
    Reply, Step,
};
use viommu_nested::mock;
use viommu_nested::object::*;
use viommu_nested::shadow::{Goal, MemoryRegion, Reach, Shadow};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use group::{Group, Member};

const PAGE: u64 = 4096;
/// Pages of the guest's memory, and of what is looked at of each address space.
const PAGES: u64 = 12;
/// Where both begin: the mock's aperture.
const START: u64 = 16 << 20;
const ENDPOINTS: [EndpointId; 2] = [EndpointId(8), EndpointId(9)];
const OK: u8 = 0;

/// All of it.
struct Bed {
    device: Device,
    shadow: Shadow<Member>,
    memory: MmapRegion,
    file: OwnedFd,
    /// The VMM's own address space.
    vmm: Arc<Ioas>,
}

/// How the shadow can get at the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    VmmsAddressSpace,
    File,
    Address,
}

/// Which devices the host can tell apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Each,
    None,
}

impl Bed {
    fn new(source: Source) -> Bed {
        Bed::with(source, Isolation::Each)
    }

    fn with(source: Source, isolation: Isolation) -> Bed {
        let context = Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd");
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, PAGES * PAGE).expect("its size");
        let place = FileOffset::new(File::from(file.try_clone().expect("a duplicate")), 0);
        let memory = MmapRegion::from_file(place, (PAGES * PAGE) as usize).expect("it maps");
        let vmm = Ioas::new(&context).expect("an address space");
        if source == Source::VmmsAddressSpace {
            vmm.map_file(&all(), file.as_fd(), 0, Access::all().into()).expect("it maps");
        }
        let mut shadow = Shadow::new(&context, None).expect("a shadow");
        let mut device = Device::new(config()).expect("a device");
        match isolation {
            Isolation::Each => {
                for endpoint in ENDPOINTS {
                    let [member] = Group::of_mocks(&context, &vmm);
                    shadow.add(endpoint, member, None);
                }
            }
            Isolation::None => {
                let members: [Member; 2] = Group::of_mocks(&context, &vmm);
                for (endpoint, member) in ENDPOINTS.into_iter().zip(members) {
                    shadow.add(endpoint, member, Some(7));
                    device.set_group(endpoint, Some(7));
                }
            }
        }
        let mut bed = Bed { device, shadow, memory, file, vmm };
        bed.device.negotiate(Features::OFFERED.bits());
        bed.set_memory(source);
        if source != Source::VmmsAddressSpace {
            // They reach nothing at first, though they should.
            assert!(bed.set_bypass(false) && bed.set_bypass(true));
        }
        bed
    }

    fn set_memory(&mut self, source: Source) {
        let file = (source != Source::Address).then(|| (self.file.as_fd(), 0));
        let lasting = |_: &IovaRange| {
            let place = FileOffset::new(File::from(self.file.try_clone().expect("a duplicate")), 0);
            let memory = MmapRegion::from_file(place, (PAGES * PAGE) as usize).expect("it maps");
            let memory: &'static MmapRegion = Box::leak(Box::new(memory));
            Some(memory.as_volatile_slice())
        };
        self.shadow.set_memory(&[MemoryRegion { range: all(), file }], &lasting).expect("all of it");
    }

    /// A request, and its status.
    fn request(&mut self, request: &[u8]) -> u8 {
        let reply = match self.device.begin(request, 4) {
            Step::Done(reply) => reply,
            Step::Apply(change) => self.apply(&change),
        };
        reply.bytes[0]
    }

    fn apply(&mut self, change: &Change) -> Reply {
        let applied = self.shadow.apply(change, &self.device);
        self.device.finish(
            applied
                .map_err(|error| HostError { operation: error.call(), errno: error.errno().raw_os_error() }),
        )
    }

    fn set_bypass(&mut self, enabled: bool) -> bool {
        let change = self.device.begin_config_write(BYPASS_OFFSET, &[u8::from(enabled)]);
        change.is_none_or(|change| self.apply(&change).rejected.is_none())
    }

    /// What the kernel lets each device reach is what the device of the guest says.
    fn check(&self, what: &str) {
        ENDPOINTS.into_iter().for_each(|endpoint| self.check_endpoint(endpoint, what));
    }

    fn check_endpoint(&self, endpoint: EndpointId, what: &str) {
        let hwpt = self.hwpt(endpoint);
        for page in 0..PAGES {
            let iova = START + page * PAGE;
            let expected = self.device.lookup(endpoint, Iova(iova), Access::empty());
            let expected = expected.ok().map(|extent| extent.gpa.0 + (iova - extent.range.start()));
            let found = (0..PAGES).map(|page| START + page * PAGE).find(|gpa| self.leads(hwpt, iova, *gpa));
            assert_eq!(found, expected, "{endpoint} at {iova:#x} after {what}");
        }
    }

    /// Its page table.
    fn hwpt(&self, endpoint: EndpointId) -> u32 {
        self.shadow.device(endpoint).expect("its device").hwpt()
    }

    fn leads(&self, hwpt: u32, iova: u64, gpa: u64) -> bool {
        let page = self.memory.get_slice((gpa - START) as usize, PAGE as usize).expect("guest memory");
        mock::check_map(&self.vmm, hwpt, Iova(iova), &page).is_ok()
    }
}

fn all() -> IovaRange {
    IovaRange::from_length(START, PAGES * PAGE).expect("it fits")
}

fn config() -> DeviceConfig {
    DeviceConfig {
        mode: viommu_core::Mode::Map,
        page_size_mask: PAGE,
        aperture: IovaRange::new(START, (2 << 30) - 1).expect("the mock's aperture"),
        domain_ids: 0..=u32::MAX,
        boot_bypass: true,
        limits: Limits::default(),
        endpoints: ENDPOINTS.to_vec(),
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn attach(domain: u32, endpoint: EndpointId, flags: u32) -> Vec<u8> {
    words(&[1, domain, endpoint.0, flags, 0])
}

fn detach(domain: u32, endpoint: EndpointId) -> Vec<u8> {
    words(&[2, domain, endpoint.0, 0, 0])
}

fn map(domain: u32, page: u64, pages: u64, to: u64, flags: u32) -> Vec<u8> {
    let [start, last, target] = [START + page * PAGE, START + (page + pages) * PAGE - 1, START + to * PAGE]
        .map(|a| [a as u32, (a >> 32) as u32]);
    words(&[&[3, domain][..], &start, &last, &target, &[flags]].concat())
}

fn unmap(domain: u32, page: u64, pages: u64) -> Vec<u8> {
    let [start, last] =
        [START + page * PAGE, START + (page + pages) * PAGE - 1].map(|a| [a as u32, (a >> 32) as u32]);
    words(&[&[4, domain][..], &start, &last, &[0]].concat())
}

/// A generator good enough to make requests up.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn request(&mut self) -> Vec<u8> {
        let domain = 1 + self.below(3) as u32;
        let endpoint = ENDPOINTS[self.below(2) as usize];
        let (page, pages) = (self.below(PAGES), 1 + self.below(4));
        let pages = pages.min(PAGES - page);
        match self.below(10) {
            0 | 1 => attach(domain, endpoint, 0),
            2 => attach(4, endpoint, ATTACH_F_BYPASS),
            3 => detach(domain, endpoint),
            4 | 5 => unmap(domain, page, pages),
            _ => map(domain, page, pages, self.below(PAGES + 1 - pages), 1 + self.below(3) as u32),
        }
    }
}

#[test]
fn whatever_a_guest_asks_for_is_what_the_kernel_has() {
    for source in [Source::VmmsAddressSpace, Source::File, Source::Address] {
        let (mut bed, mut random) = (Bed::new(source), Random(7));
        bed.check("nothing");
        let mut done = 0;
        for step in 0..400 {
            let request = random.request();
            done += u32::from(bed.request(&request) == OK);
            if step % 50 == 0 {
                assert!(bed.set_bypass(random.below(2) == 0));
            }
            bed.check(&format!("{request:x?}"));
        }
        assert!(done > 100, "only {done} requests were good ones");
    }
}

/// What has calls in the kernel fail.
struct Failures {
    file: File,
    /// Keeps the allocator from asking the kernel for memory, which fails then as well: beside each of these is as much
    /// that is free.
    room: Vec<Vec<u8>>,
}

impl Failures {
    fn new() -> Failures {
        let debug = Path::new("/sys/kernel/debug");
        for (file, value) in [("failslab/ignore-gfp-wait", "N"), ("fail_iommufd/task-filter", "N")] {
            fs::write(debug.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
        let file = File::options().read(true).write(true).open("/proc/thread-self/fail-nth");
        Failures { file: file.expect("a kernel with fault injection"), room: Vec::new() }
    }

    fn make_room(&mut self) {
        let sizes = (0..32).flat_map(|_| (4..12).flat_map(|shift| [1 << shift, 3 << (shift - 1)]));
        let mut number = 0;
        self.room = sizes.map(Vec::with_capacity).collect();
        self.room.retain(|_| {
            number += 1;
            number / 16 % 2 == 0
        });
    }

    /// Lets the kernel fail where it can for the `nth` time, and says whether it got there.
    fn at<T>(&mut self, nth: u32, operation: impl FnOnce() -> T) -> (T, bool) {
        self.make_room();
        pwrite(&self.file, nth.to_string().as_bytes(), 0).expect("it is set");
        let result = operation();
        let mut left = [0; 1];
        pread(&self.file, &mut left, 0).expect("it is told");
        pwrite(&self.file, b"0", 0).expect("it ends");
        // Zero once it has failed.
        (result, left == *b"0")
    }
}

/// Every call in the kernel that can fail does, one at a time, for every request of a life.
#[test]
fn after_any_failure_in_the_kernel_device_and_kernel_agree() {
    let mut failures = Failures::new();
    let (mut bed, mut random) = (Bed::new(Source::VmmsAddressSpace), Random(11));
    let mut failed = 0;
    for _ in 0..200 {
        let request = random.request();
        for nth in 1.. {
            let (status, has_failed) = failures.at(nth, || bed.request(&request));
            bed.check(&format!("failure {nth} of {request:x?}, status {status}"));
            failed += u32::from(has_failed && status != OK);
            if !has_failed || status == OK {
                break;
            }
        }
    }
    println!("{failed} failures");
    assert!(failed > 200, "only {failed} failures");
}

#[test]
fn a_mapping_that_leads_to_no_memory_is_refused_and_leaves_nothing() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 1, PAGES, 3)), 3);
    assert_eq!(bed.request(&map(1, 0, 2, PAGES - 1, 3)), 3);
    bed.check("two mappings that lead nowhere");
    assert_eq!(bed.request(&map(1, 0, 1, 0, 3)), OK);
    bed.check("one that leads somewhere");
}

#[test]
fn a_mapping_that_allows_nothing_is_kept_from_the_kernel() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 1, 0, 0)), OK);
    assert_eq!(bed.request(&map(1, 1, 1, 1, 3)), OK);
    assert_eq!(bed.request(&unmap(1, 0, 1)), OK);
    assert_eq!(bed.request(&unmap(1, 0, 2)), OK);
    bed.check("all is unmapped");
}

#[test]
fn memory_that_the_vmm_has_only_later_is_reached_in_bypass_mode() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    let shadow = &mut bed.shadow;
    shadow.set_memory(&[], &|_| None).expect("none");
    bed.vmm.unmap_all().expect("it goes");
    shadow.set_memory(&[MemoryRegion { range: all(), file: None }], &|_| None).expect_err("nobody has it");
    bed.vmm.map_file(&all(), bed.file.as_fd(), 0, Access::all().into()).expect("it maps");
    for (domain, endpoint) in [(1, ENDPOINTS[0]), (2, ENDPOINTS[1])] {
        assert_eq!(bed.request(&attach(domain, endpoint, ATTACH_F_BYPASS)), OK);
    }
    // That of the VMM may go now.
    bed.vmm.unmap_all().expect("it goes");
    bed.check("memory has come");
    bed.shadow.set_memory(&[], &|_| None).expect("none");
    assert!(!bed.leads(bed.hwpt(ENDPOINTS[0]), START, START));
}

#[test]
fn all_of_the_space_is_unmapped_by_one_request() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    for (start, last) in
        [([0; 2], [u32::MAX; 2]), ([1, 0], [u32::MAX; 2]), ([0; 2], [u32::MAX - 1, u32::MAX])]
    {
        assert_eq!(bed.request(&map(1, 0, 1, 2, 3)), OK);
        assert_eq!(bed.request(&map(1, 4, 2, 0, 0)), OK);
        assert_eq!(bed.request(&words(&[&[4, 1][..], &start, &last, &[0]].concat())), OK);
        bed.check("nothing is left");
    }
}

#[test]
fn what_lingers_is_not_moved_when_unattached_endpoints_are() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&attach(4, ENDPOINTS[1], ATTACH_F_BYPASS)), OK);
    let before = ENDPOINTS.map(|endpoint| bed.hwpt(endpoint));
    bed.device.reset();
    bed.shadow.reset();
    assert!(bed.set_bypass(false) && bed.set_bypass(true));
    assert_eq!(ENDPOINTS.map(|endpoint| bed.shadow.reach(endpoint)), [Some(Reach::Lingering); 2]);
    assert_eq!(ENDPOINTS.map(|endpoint| bed.hwpt(endpoint)), before);
}

#[test]
fn a_device_that_the_vmm_has_not_bound_keeps_no_other_from_being_blocked() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    bed.shadow.device(ENDPOINTS[0]).expect("its device").set_bound(false);
    assert!(bed.set_bypass(false));
    assert_eq!(bed.shadow.reach(ENDPOINTS[0]), Some(Reach::Vmm), "it may be bound later");
    assert_eq!(bed.shadow.reach(ENDPOINTS[1]), Some(Reach::Nothing));
    assert!(bed.set_bypass(true));
    assert_eq!(bed.shadow.reach(ENDPOINTS[1]), Some(Reach::Memory));
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.shadow.reach(ENDPOINTS[0]), Some(Reach::Vmm), "to be attached again when it is bound");
}

#[test]
fn a_change_of_bypass_that_fails_leaves_each_where_it_was() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    bed.shadow.move_to(ENDPOINTS[0], Goal::Nothing, &bed.device).expect("it is blocked");
    let last = bed.shadow.device(ENDPOINTS[1]).expect("its device");
    last.set_stuck(true);
    assert!(!bed.set_bypass(false));
    assert_eq!(bed.shadow.reach(ENDPOINTS[0]), Some(Reach::Nothing));
    assert_eq!(bed.shadow.reach(ENDPOINTS[1]), Some(Reach::Vmm));
}

#[test]
fn what_lingers_stays_until_it_is_moved_and_a_domain_of_the_same_number_is_another() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 3, 1, 5, 3)), OK);
    bed.device.reset();
    bed.shadow.reset();
    assert_eq!(bed.shadow.reach(ENDPOINTS[0]), Some(Reach::Lingering));
    let hwpt = bed.hwpt(ENDPOINTS[0]);
    assert!(bed.leads(hwpt, START + 3 * PAGE, START + 5 * PAGE));
    assert!(!bed.leads(hwpt, START, START));
    assert_eq!(bed.request(&attach(1, ENDPOINTS[1], 0)), OK);
    assert_eq!(bed.request(&map(1, 3, 1, 6, 3)), OK);
    assert!(bed.leads(hwpt, START + 3 * PAGE, START + 5 * PAGE));
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    bed.check("it has moved");
}

#[test]
fn memory_outlives_the_vmms_address_space_and_goes_when_it_is_taken_away() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    bed.vmm.unmap_all().expect("it goes");
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&attach(2, ENDPOINTS[1], ATTACH_F_BYPASS)), OK);
    assert_eq!(bed.request(&map(1, 0, PAGES, 0, 3)), OK);
    bed.check("the VMM has nothing mapped any more");
    bed.set_memory(Source::File);
    bed.check("the same memory again");
    bed.shadow.set_memory(&[], &|_| None).expect("none");
    let hwpt = bed.hwpt(ENDPOINTS[1]);
    assert!(!bed.leads(hwpt, START, START), "bypass reaches no memory that is gone");
    assert_eq!(bed.request(&unmap(1, 0, PAGES)), OK);
    assert_eq!(bed.request(&map(1, 0, 1, 0, 3)), 3);
}

#[test]
fn a_device_that_comes_late_gets_what_its_domain_maps() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    let device = bed.shadow.remove(ENDPOINTS[0]).expect("its device");
    assert_eq!(bed.request(&attach(1, ENDPOINTS[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 2, 3, 4, 3)), OK);
    bed.shadow.add(ENDPOINTS[0], device, None);
    bed.shadow.move_to(ENDPOINTS[0], Goal::Domain(DomainId(1)), &bed.device).expect("it moves");
    assert_eq!(bed.request(&attach(1, ENDPOINTS[1], 0)), OK);
    bed.check("it has come");
}
