// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every owner and command with the kernel's mock driver: `scripts/test l1` runs this in a kernel that has it.

mod failures;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use viommu_core::{Access, Iova, IovaRange};
use viommu_nested::mock::{self, MockDevice};
use viommu_nested::object::*;
use viommu_nested::{Attach, Attached, HwInfo, Result};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Where the mock's aperture begins.
const START: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

fn context() -> Arc<Context> {
    Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd")
}

/// `length` bytes from `offset` into the mock's aperture.
fn range(offset: u64, length: u64) -> IovaRange {
    IovaRange::from_length(START + offset, length).expect("it fits")
}

/// A file of shared memory, and the same memory here.
fn memory(bytes: u64) -> (OwnedFd, MmapRegion) {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, bytes).expect("its size");
    let mapped = FileOffset::new(File::from(file.try_clone().expect("a duplicate")), 0);
    (file, MmapRegion::from_file(mapped, bytes as usize).expect("it maps"))
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("it is refused").errno()
}

fn nested_parent(device: &MockDevice, ioas: &Arc<Ioas>) -> Arc<Hwpt> {
    Hwpt::paging(device.device(), ioas, HwptFlags::NEST_PARENT | HwptFlags::PASID).expect("a parent")
}

/// The description of a nested page table whose cache holds `iotlb`.
fn description(iotlb: u32) -> [u8; 8] {
    let [a, b, c, d] = iotlb.to_ne_bytes();
    [a, b, c, d, 0, 0, 0, 0]
}

fn nested(device: &MockDevice, parent: &Arc<Hwpt>, iotlb: u32, faults: Option<Arc<FaultQueue>>) -> Arc<Hwpt> {
    let parent = NestedParent::Hwpt(parent.clone());
    let data = description(iotlb);
    Hwpt::nested(device.device(), parent, HwptFlags::empty(), mock::HWPT_DATA, &data, faults)
        .expect("a nested one")
}

#[test]
fn a_kernel_of_today_lacks_no_command_but_the_newest() {
    let missing = context().missing_commands();
    assert!(missing.iter().all(|name| *name == "IOMMU_IOAS_NOIOMMU_GET_PA"), "{missing:?}");
}

#[test]
fn a_file_that_is_no_iommufd_is_refused() {
    let null = File::open("/dev/null").expect("it opens");
    assert_eq!(Context::adopt(null.into()).err(), Some(NotIommufd));
    let iommu = File::options().read(true).write(true).open("/dev/iommu").expect("it opens");
    assert!(Context::adopt(iommu.into()).is_ok());
}

#[test]
fn what_is_mapped_from_a_file_is_what_the_device_reaches() {
    let ioas = Ioas::new(&context()).expect("an address space");
    let (file, region) = memory(MIB);
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let device = MockDevice::new(ioas.context(), &PageTable::Auto(ioas.clone())).expect("a device");
    let whole = region.as_volatile_slice();
    mock::check_map(&ioas, device.hwpt(), Iova(START), &whole).expect("the same pages");
    let elsewhere = whole.subslice(4096, 4096).expect("a part");
    assert_eq!(errno(mock::check_map(&ioas, device.hwpt(), Iova(START), &elsewhere)), Errno::INVAL);
}

#[test]
fn a_copy_reaches_the_same_pages_without_the_boundaries_of_the_source() {
    let context = context();
    let (guest, domain) = (Ioas::new(&context).expect("one"), Ioas::new(&context).expect("another"));
    let (file, region) = memory(MIB);
    guest.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let device = MockDevice::new(&context, &PageTable::Auto(domain.clone())).expect("a device");
    let source = Iova(START + 64 * 1024);
    domain.copy_from(&range(0, 8192), &guest, source, Access::READ.into()).expect("it copies");
    let part = region.get_slice(64 * 1024, 8192).expect("a part");
    mock::check_map(&domain, device.hwpt(), Iova(START), &part).expect("the same pages");
    assert_eq!(errno(domain.copy_from(&range(0, 8192), &guest, source, Access::READ.into())), Errno::EXIST);
    let gap = Iova(START + MIB - 4096);
    assert_eq!(errno(domain.copy_from(&range(MIB, 8192), &guest, gap, Access::READ.into())), Errno::NOENT);
    assert_eq!(domain.unmap(&range(0, 8192)).expect("it goes"), 8192);
    assert_eq!(errno(domain.unmap(&range(0, 8192))), Errno::NOENT);
    domain.unmap_all().expect("nothing is left, which is no error");
}

#[test]
fn memory_of_this_process_can_be_mapped() {
    let ioas = Ioas::new(&context()).expect("an address space");
    let (_file, region) = memory(64 * 1024);
    // Nothing less will do: the kernel keeps the address.
    let whole = Box::leak(Box::new(region)).as_volatile_slice();
    ioas.map(&range(0, 64 * 1024), &whole, Access::all().into()).expect("it maps");
    assert_eq!(errno(ioas.map(&range(MIB, 2 * MIB), &whole, Access::all().into())), Errno::INVAL);
    let device = MockDevice::new(ioas.context(), &PageTable::Auto(ioas.clone())).expect("a device");
    mock::check_map(&ioas, device.hwpt(), Iova(START), &whole).expect("the same pages");
    assert_eq!(ioas.unmap(&range(0, 64 * 1024)).expect("it goes"), 64 * 1024);
}

#[test]
fn what_an_iommu_cannot_reach_is_known_once_a_device_is_attached() {
    let ioas = Ioas::new(&context()).expect("an address space");
    assert_eq!(ioas.iova_ranges().expect("ranges").allowed.len(), 1);
    let _device = MockDevice::new(ioas.context(), &PageTable::Auto(ioas.clone())).expect("a device");
    let ranges = ioas.iova_ranges().expect("ranges");
    assert_eq!(ranges.allowed, [IovaRange::new(START, (2 << 30) - 1).expect("the mock's aperture")]);
    assert_eq!(ranges.alignment, 2048);
    ioas.allow_iovas(&[range(0, MIB)]).expect("within the aperture");
    let beyond = IovaRange::new(0, 4095).expect("below the aperture");
    assert_eq!(errno(ioas.allow_iovas(&[beyond])), Errno::ADDRINUSE);
}

#[test]
fn what_is_of_another_context_is_refused_and_not_taken_for_what_has_its_number_here() {
    let (here, there) = (context(), context());
    let domain = Ioas::new(&here).expect("one");
    let (guest, theirs) = (Ioas::new(&here).expect("another"), Ioas::new(&there).expect("one"));
    let theirs_too = Ioas::new(&there).expect("another");
    assert_eq!((domain.id(), guest.id()), (theirs.id(), theirs_too.id()));
    let (file, _region) = memory(MIB);
    guest.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let copied = domain.copy_from(&range(0, MIB), &theirs_too, Iova(START), Access::all().into());
    assert_eq!(errno(copied), Errno::XDEV);

    let device = MockDevice::new(&here, &PageTable::Auto(domain.clone())).expect("a device");
    let parent = NestedParent::Hwpt(nested_parent(&device, &domain));
    let faults = FaultQueue::new(&there).expect("a queue");
    let data = description(1);
    let flags = HwptFlags::empty();
    let nested = Hwpt::nested(device.device(), parent, flags, mock::HWPT_DATA, &data, Some(faults));
    assert_eq!(errno(nested), Errno::XDEV);
}

#[test]
fn another_users_address_space_is_used_and_not_destroyed() {
    let context = context();
    let theirs = Ioas::new(&context).expect("one");
    drop(Ioas::of_another(&context, theirs.id()).expect("it is one"));
    theirs.iova_ranges().expect("it is there still");
    assert_eq!(Ioas::of_another(&context, 4711).err().map(|error| error.errno()), Some(Errno::NOENT));
}

#[test]
fn all_of_the_space_is_refused_before_the_kernel_hears_of_it() {
    let ioas = Ioas::new(&context()).expect("an address space");
    assert_eq!(errno(ioas.unmap(&IovaRange::ALL)), Errno::OVERFLOW);
    // The kernel would take it for all of the space.
    let all_but_one = IovaRange::new(0, u64::MAX - 1).expect("a range");
    assert_eq!(errno(ioas.unmap(&all_but_one)), Errno::OVERFLOW);
}

#[test]
fn what_a_device_is_attached_to_lasts_until_it_has_something_else() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let mock = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let number = mock.device();
    let mut device = Attached::new(mock);
    let hwpt = Hwpt::paging(number, &ioas, HwptFlags::empty()).expect("a page table");
    let id = hwpt.id();
    device.attach(PageTable::Hwpt(hwpt), None).expect("in place of the first");
    let taken = Hwpt::paging(number, &ioas, HwptFlags::empty()).expect("another");
    assert_ne!(taken.id(), id, "it is in use");
    device.attach(PageTable::Auto(ioas.clone()), None).expect("in place of that");
    assert_eq!(
        errno(mock::check_map(&ioas, id, Iova(START), &memory(4096).1.as_volatile_slice())),
        Errno::NOENT
    );
}

#[test]
fn the_hardware_of_a_device_is_told_and_no_other_number_is_a_device() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let info = HwInfo::of(&context, device.device()).expect("it is told");
    assert_eq!((info.data_type, info.pasid_bits), (0xfeed_beef, 20));
    assert_eq!(info.data.get(4..8), Some(&0xdead_beef_u32.to_ne_bytes()[..]));
    assert!(HwInfo::is_device(&context, device.device().0).expect("it is"));
    assert!(!HwInfo::is_device(&context, ioas.id()).expect("it is not"));
}

/// The number that the kernel gives to the next object: the lowest that is free.
fn next_number(context: &Arc<Context>) -> u32 {
    Ioas::new(context).expect("an address space").id()
}

#[test]
fn whatever_is_dropped_is_gone_from_the_kernel() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let (file, _region) = memory(MIB);
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let free = next_number(&context);

    let faults = FaultQueue::new(&context).expect("a queue");
    assert_eq!(faults.id(), free);
    drop(faults);
    assert_eq!(next_number(&context), free, "a fault queue");

    let parent = nested_parent(&device, &ioas);
    let faults = FaultQueue::new(&context).expect("a queue");
    drop(nested(&device, &parent, 1, Some(faults)));
    drop(parent);
    assert_eq!(next_number(&context), free, "a nested page table, its parent and its fault queue");

    let parent = nested_parent(&device, &ioas);
    let viommu = Viommu::new(device.device(), &parent, mock::VIOMMU, &mut [0; 24]).expect("a vIOMMU");
    let events = Veventq::new(&viommu, mock::VEVENTQ, 4, 1).expect("a queue of one");
    let vdevice = Vdevice::new(&viommu, device.device(), 0x99).expect("a number");
    let queue = HwQueue::new(&viommu, mock::HW_QUEUE, 0, &range(0, 4096)).expect("a queue");
    drop((parent, viommu, events, vdevice, queue));
    assert_eq!(next_number(&context), free, "a vIOMMU and all that is in it");
}

#[test]
fn writes_of_devices_are_recorded() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let hwpt = Hwpt::paging(device.device(), &ioas, HwptFlags::DIRTY_TRACKING).expect("a page table");
    let (file, _region) = memory(MIB);
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    hwpt.set_dirty_tracking(DirtyTracking::On).expect("it begins");
    let bitmap = hwpt.dirty_bitmap(&range(0, MIB), 4096, Clearing::Keep).expect("a bitmap");
    assert_eq!(bitmap, [0; 4]);
    assert_eq!(errno(hwpt.dirty_bitmap(&range(0, MIB), 0, Clearing::Keep)), Errno::INVAL);
    mock::mark_written(&hwpt, Iova(START + 65 * 4096), 4096).expect("it is marked");
    let bitmap = hwpt.dirty_bitmap(&range(0, MIB), 4096, Clearing::Clear).expect("a bitmap");
    // Its neighbours may be in one large page with it.
    assert!(bitmap[1] & 2 != 0, "{bitmap:x?}");
    let bitmap = hwpt.dirty_bitmap(&range(0, MIB), 4096, Clearing::Keep).expect("a bitmap");
    assert_eq!(bitmap, [0; 4]);
    let all = IovaRange::new(0, (1 << 62) - 1).expect("a range");
    assert_eq!(errno(hwpt.dirty_bitmap(&all, 1, Clearing::Keep)), Errno::NOMEM);
    hwpt.set_dirty_tracking(DirtyTracking::Off).expect("it ends");
}

/// The kernel marks all of a large page, of which the range may have only the beginning.
#[test]
fn a_record_of_a_part_of_a_large_page_ends_where_its_range_does() {
    fs::write("/proc/sys/vm/nr_hugepages", "2").expect("large pages");
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let hwpt = Hwpt::paging(device.device(), &ioas, HwptFlags::DIRTY_TRACKING).expect("a page table");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).expect("a memfd");
    ftruncate(&file, 2 * MIB).expect("its size");
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    hwpt.set_dirty_tracking(DirtyTracking::On).expect("it begins");
    mock::mark_written(&hwpt, Iova(START), 4096).expect("it is marked");
    let whole = hwpt.dirty_bitmap(&range(0, MIB), 4096, Clearing::Keep).expect("a bitmap");
    assert_eq!(whole, [u64::MAX; 4], "it is one large page");
    let part = hwpt.dirty_bitmap(&range(0, 3 * 4096), 4096, Clearing::Keep).expect("a bitmap");
    assert_eq!(part, [7]);
}

#[test]
fn invalidations_reach_the_nested_page_table_up_to_the_first_that_is_refused() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let parent = nested_parent(&device, &ioas);
    let nested = nested(&device, &parent, 0x1234, None);
    mock::check_iotlb(&nested, 0, 0x1234).expect("what its description says");
    nested.invalidate(mock::INVALIDATE_DATA, &[[0u32, 1], [0, 2]]).expect("two slots");
    let slots = [0x1234, 0, 0, 0x1234];
    (0..)
        .zip(slots)
        .for_each(|(slot, value)| mock::check_iotlb(&nested, slot, value).expect("as it should be"));
    let stopped = nested.invalidate(mock::INVALIDATE_DATA, &[[0u32, 0], [0, 9], [0, 3]]).expect_err("slot 9");
    assert_eq!((stopped.done, stopped.error.errno()), (1, Errno::INVAL));
    mock::check_iotlb(&nested, 0, 0).expect("it was done");
    mock::check_iotlb(&nested, 3, 0x1234).expect("it was not");
    nested.invalidate::<[u32; 2]>(mock::INVALIDATE_DATA, &[]).expect("the type is known");
    let mut many = vec![[0u32, 1]; 10_000];
    nested.invalidate(mock::INVALIDATE_DATA, &many).expect("as many as it takes");
    many.extend([[0, 3], [0, 9]]);
    let stopped = nested.invalidate(mock::INVALIDATE_DATA, &many).expect_err("slot 9");
    assert_eq!(stopped.done, 10_001);
    mock::check_iotlb(&nested, 3, 0).expect("it was done");
    let of_none = nested.invalidate(mock::INVALIDATE_DATA + 1, &[[0u32, 1]]).expect_err("an unknown type");
    assert_eq!((of_none.done, of_none.error.errno()), (0, Errno::INVAL));
}

#[test]
fn a_page_request_arrives_and_is_answered_once() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let parent = nested_parent(&device, &ioas);
    let faults = FaultQueue::new(&context).expect("a queue");
    let nested = nested(&device, &parent, 1, Some(faults.clone()));
    device.attach(&PageTable::Hwpt(nested), None).expect("it is attached");
    assert_eq!(faults.read().expect("nothing yet"), []);
    device.request_page(0, 7, 3, 0xdead_b000).expect("it is raised");
    let requests = faults.read().expect("it arrives");
    let [request] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((request.device, request.pasid, request.group), (device.device(), None, 7));
    assert_eq!((request.address, request.permissions, request.is_last), (0xdead_b000, 3, true));
    let response = PageResponse { cookie: request.cookie, code: PageResponseCode::Success };
    faults.respond(response).expect("it is answered");
    assert_eq!(errno(faults.respond(response)), Errno::INVAL);
    device.attach(&PageTable::Auto(ioas), None).expect("away from the nested one");
}

#[test]
fn a_pasid_has_a_page_table_of_its_own() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let hwpt = || Hwpt::paging(device.device(), &ioas, HwptFlags::PASID).expect("a page table");
    let (of_device, one, other) = (hwpt(), hwpt(), hwpt());
    device.attach(&PageTable::Hwpt(of_device), None).expect("the device itself");
    device.attach(&PageTable::Hwpt(one.clone()), Some(100)).expect("a PASID");
    device.check_pasid(100, Some(&one)).expect("it is");
    device.attach(&PageTable::Hwpt(other.clone()), Some(100)).expect("in its place");
    device.check_pasid(100, Some(&other)).expect("it is");
    device.detach(Some(100)).expect("away");
    device.check_pasid(100, None).expect("it is");
    device.attach(&PageTable::Auto(ioas.clone()), None).expect("away from all of them");
}

#[test]
fn a_viommu_knows_devices_by_the_guests_numbers() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let parent = nested_parent(&device, &ioas);
    let mut data = [0; 24];
    data[..4].copy_from_slice(&42u32.to_ne_bytes());
    let viommu = Viommu::new(device.device(), &parent, mock::VIOMMU, &mut data).expect("a vIOMMU");
    assert_eq!(data[4..8], 42u32.to_ne_bytes(), "what the kernel answers");
    let events = Veventq::new(&viommu, mock::VEVENTQ, 4, 1).expect("a queue of one");
    let vdevice = Vdevice::new(&viommu, device.device(), 0x99).expect("a number");
    let second = Vdevice::new(&viommu, device.device(), 0x98);
    assert_eq!(second.expect_err("it has one").errno(), Errno::EXIST);

    viommu.invalidate(mock::INVALIDATE_DATA, &[[0u32, 0x99, 1]]).expect("by the guest's number");
    device.check_cache(1, 0).expect("it is gone");
    let unknown = viommu.invalidate(mock::INVALIDATE_DATA, &[[0u32, 0x77, 1]]).expect_err("no such number");
    assert_eq!(unknown.done, 0);

    let in_viommu = NestedParent::Viommu(viommu.clone());
    let nested =
        Hwpt::nested(device.device(), in_viommu, HwptFlags::PASID, mock::HWPT_DATA, &description(5), None);
    let nested = nested.expect("a nested one");
    device.attach(&PageTable::Hwpt(nested.clone()), None).expect("it is attached");
    device.attach(&PageTable::Hwpt(nested), Some(7)).expect("it is for PASIDs too");
    device.detach(Some(7)).expect("away");
    (0..2).for_each(|_| device.raise_event().expect("it is raised"));
    let arrived = events.read().expect("they arrive");
    assert_eq!(arrived, [Vevent::Event(0, 0x99u32.to_ne_bytes().to_vec()), Vevent::Lost(1)]);
    device.attach(&PageTable::Auto(ioas), None).expect("away from the nested one");
    drop((vdevice, events, viommu, parent));
}

#[test]
fn a_queue_of_the_guest_lies_in_memory_that_is_mapped() {
    let context = context();
    let ioas = Ioas::new(&context).expect("one");
    let device = MockDevice::new(&context, &PageTable::Auto(ioas.clone())).expect("a device");
    let parent = nested_parent(&device, &ioas);
    let viommu = Viommu::new(device.device(), &parent, mock::VIOMMU, &mut [0; 24]).expect("a vIOMMU");
    let unmapped = HwQueue::new(&viommu, mock::HW_QUEUE, 0, &range(0, 4096));
    assert_eq!(unmapped.expect_err("nothing is mapped").errno(), Errno::NOENT);
    let (file, _region) = memory(MIB);
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let queue = HwQueue::new(&viommu, mock::HW_QUEUE, 0, &range(0, 4096)).expect("a queue");
    assert_ne!(queue.id(), viommu.id());
}

#[test]
fn options_are_kept() {
    let context = context();
    assert_eq!(context.rlimit_mode().expect("it is told"), RlimitMode::User);
    context.set_rlimit_mode(RlimitMode::Process).expect("root may");
    assert_eq!(context.rlimit_mode().expect("it is told"), RlimitMode::Process);
    let ioas = Ioas::new(&context).expect("one");
    ioas.set_huge_pages(HugePages::Disallowed).expect("nothing is mapped yet");
    assert_eq!(errno(context.vfio_ioas().map(drop)), Errno::NODEV);
    context.set_vfio_ioas(Some(ioas.id())).expect("it is one");
    assert_eq!(context.vfio_ioas().expect("it is set"), ioas.id());
    context.set_vfio_ioas(None).expect("none");
}

#[test]
fn another_process_can_be_charged_for_memory_of_files_only() {
    let ioas = Ioas::new(&context()).expect("one");
    let (file, region) = memory(MIB);
    ioas.map_file(&range(0, MIB), file.as_fd(), 0, Access::all().into()).expect("it maps");
    ioas.context().change_process().expect("of a file");
    let whole = Box::leak(Box::new(region)).as_volatile_slice();
    ioas.map(&range(MIB, MIB), &whole, Access::all().into()).expect("it maps");
    assert_eq!(errno(ioas.context().change_process()), Errno::INVAL);
}
