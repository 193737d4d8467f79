// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices behind an SMMUv3, given to VFIO: `scripts/test l1` runs this in a host that has them.
//!
//! `EDU` and `EDU_BEHIND_PORT` name QEMU's `edu` on the root complex and behind a root port, `TESTDEV` its
//! `iommu-testdev`, by their names in `/dev/vfio/devices`. One test at a time: each takes a device for itself.

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, SeekFrom, ftruncate, memfd_create, seek};
use rustix::io::{Errno, pread, pwrite};
use viommu_core::{Access, Iova, IovaRange};
use viommu_nested::object::*;
use viommu_nested::{Attach, Attached, Cdev, DeviceId, HwInfo, Result};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Where the SMMUv3's driver has devices write their interrupts.
const MSI_WINDOW: u64 = 0x800_0000;
const IOVA: u64 = 0x10_0000;
const PAGE: u64 = 4096;

fn path(variable: &str) -> PathBuf {
    let name = env::var(variable).unwrap_or_else(|_| panic!("{variable} names no device of VFIO"));
    Path::new("/dev/vfio/devices").join(name)
}

fn context() -> Arc<Context> {
    Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd")
}

fn page() -> IovaRange {
    IovaRange::from_length(IOVA, PAGE).expect("it fits")
}

/// An address space with a page of memory at [`IOVA`].
fn space_with_page(context: &Arc<Context>) -> (Arc<Ioas>, MmapRegion) {
    let ioas = Ioas::new(context).expect("an address space");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, PAGE).expect("its size");
    ioas.map_file(&page(), file.as_fd(), 0, Access::all().into()).expect("it maps");
    let region = MmapRegion::from_file(FileOffset::new(File::from(file), 0), PAGE as usize);
    (ioas, region.expect("it maps"))
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.expect_err("it is refused").errno()
}

/// The number that the kernel gives to the next object: the lowest that is free.
fn next_number(context: &Arc<Context>) -> u32 {
    Ioas::new(context).expect("an address space").id()
}

#[test]
fn before_it_is_bound_a_device_does_nothing() {
    let device = Cdev::open(&path("EDU")).expect("it opens");
    let ioas = Ioas::new(&context()).expect("an address space");
    assert_eq!(errno(device.attach(&PageTable::Auto(ioas), None)), Errno::INVAL);
    assert_eq!(errno(device.detach(None)), Errno::INVAL);
    assert_eq!(errno(device.reset_peers()), Errno::INVAL);
    assert_eq!(errno(device.config_space().map(drop)), Errno::INVAL);
    assert_eq!(errno(device.is_bus_master()), Errno::INVAL);
}

#[test]
fn a_device_is_bound_once() {
    let (one, other) = (context(), context());
    let device = Cdev::open(&path("EDU")).expect("it opens");
    device.bind(&one).expect("it binds");
    assert_eq!(errno(device.bind(&one)), Errno::INVAL);
    assert_eq!(errno(device.bind(&other)), Errno::INVAL);
    let again = Cdev::open(&path("EDU")).expect("it opens");
    assert_eq!(errno(again.bind(&one)), Errno::INVAL);
    drop(device);
    again.bind(&other).expect("it is free");
}

#[test]
fn a_device_is_no_iommufd() {
    let device = File::options().read(true).write(true).open(path("EDU")).expect("it opens");
    assert_eq!(Context::adopt(device.into()).err(), Some(NotIommufd));
}

#[test]
fn what_a_device_reserves_is_known_while_it_is_attached() {
    let context = context();
    let device = Cdev::open(&path("EDU")).expect("it opens");
    device.bind(&context).expect("it binds");
    let ioas = Ioas::new(&context).expect("an address space");
    let has_window = |ranges: IovaRanges| ranges.allowed.iter().any(|range| range.contains(MSI_WINDOW));
    assert!(has_window(ioas.iova_ranges().expect("ranges")));
    device.attach(&PageTable::Auto(ioas.clone()), None).expect("it is attached");
    let ranges = ioas.iova_ranges().expect("ranges");
    println!("allowed {:x?}", ranges.allowed);
    assert_eq!(ranges.alignment, PAGE);
    assert!(!has_window(ranges));
    device.detach(None).expect("it is detached");
    assert!(has_window(ioas.iova_ranges().expect("ranges")));

    let window = IovaRange::from_length(MSI_WINDOW, PAGE).expect("it fits");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, PAGE).expect("its size");
    ioas.map_file(&window, file.as_fd(), 0, Access::all().into()).expect("nothing reserves it");
    assert_eq!(errno(device.attach(&PageTable::Auto(ioas), None)), Errno::ADDRINUSE);
}

#[test]
fn the_hardware_is_an_smmuv3() {
    let context = context();
    let device = Cdev::open(&path("EDU")).expect("it opens");
    let number = device.bind(&context).expect("it binds");
    let info = HwInfo::of(&context, number).expect("it is told");
    assert_eq!((info.data_type, info.data.len(), info.pasid_bits), (2, 40, 0));
}

#[test]
fn a_device_does_dma_once_its_driver_allows_it() {
    let file = File::options().read(true).write(true).open(path("EDU")).expect("it opens");
    let device = Cdev::adopt(file.try_clone().expect("a duplicate").into());
    device.bind(&context()).expect("it binds");
    assert!(!device.is_bus_master().expect("it is told"));
    let config = device.config_space().expect("it is a PCI device");
    assert_eq!((config.read_u16(0), config.read_u16(2)), (Ok(0x1234), Ok(0x11e8)));
    assert_eq!(errno(config.read_u16(0xffff)), Errno::INVAL);
    let command = config.read_u16(4).expect("a register");
    // VFIO's region 7.
    pwrite(&file, &(command | 4).to_le_bytes(), (7 << 40) + 4).expect("it is written");
    assert!(device.is_bus_master().expect("it is told"));
}

#[test]
fn a_reset_has_peers_where_there_is_a_port_to_reset() {
    let context = context();
    let device = Cdev::open(&path("EDU_BEHIND_PORT")).expect("it opens");
    let number = device.bind(&context).expect("it binds");
    let peers = device.reset_peers().expect("peers");
    let [peer] = peers[..] else { panic!("{peers:?}") };
    assert_eq!((peer.device, peer.segment, peer.devfn), (Some(number), 0, 0));
    assert_ne!(peer.bus, 0);

    let device = Cdev::open(&path("EDU")).expect("it opens");
    device.bind(&context).expect("it binds");
    assert_eq!(errno(device.reset_peers()), Errno::NODEV);
}

#[test]
fn an_attached_device_holds_its_page_table_and_takes_it_along() {
    let context = context();
    let before = next_number(&context);
    let device = Cdev::open(&path("EDU")).expect("it opens");
    let number = device.bind(&context).expect("it binds");
    let mut device = Attached::new(device);
    let ioas = Ioas::new(&context).expect("an address space");
    let hwpt = Hwpt::paging(number, &ioas, HwptFlags::empty()).expect("a page table");
    let (ioas_id, hwpt_id) = (ioas.id(), hwpt.id());
    drop(ioas);
    device.attach(PageTable::Hwpt(hwpt), None).expect("it is attached");
    let new = next_number(&context);
    assert!(![number.0, ioas_id, hwpt_id].contains(&new), "{new} is in use");
    drop(device);
    assert_eq!(next_number(&context), before);
}

#[test]
fn a_page_table_of_the_kernels_choice_goes_with_the_attachment_and_its_address_space_stays() {
    let context = context();
    let device = Cdev::open(&path("EDU")).expect("it opens");
    device.bind(&context).expect("it binds");
    let ioas = Ioas::new(&context).expect("an address space");
    let (id, free) = (ioas.id(), next_number(&context));
    device.attach(&PageTable::Auto(ioas.clone()), None).expect("it is attached");
    assert_ne!(next_number(&context), free, "the kernel's page table");
    // Refused, since the device is attached, and so it is left to the context.
    drop(ioas);
    let left = Ioas::of_another(&context, id).expect("it is there still");
    device.attach(&PageTable::Auto(left.clone()), None).expect("it is as good as before");
    device.detach(None).expect("it is detached");
    assert_eq!(next_number(&context), free);
    left.iova_ranges().expect("it stays");
}

/// What `iommu-testdev` writes.
const PATTERN: u32 = 0x1234_5678;
/// What it says when a write fails.
const WRITE_FAILED: u32 = 0xdead_0002;

/// QEMU's `iommu-testdev`, whose registers are in its first region, at the beginning of its file.
struct Testdev {
    device: Cdev,
    file: File,
}

impl Testdev {
    fn open() -> Testdev {
        let file = File::options().read(true).write(true).open(path("TESTDEV")).expect("it opens");
        Testdev { device: Cdev::adopt(file.try_clone().expect("a duplicate").into()), file }
    }

    fn write(&self, register: u64, value: u32) {
        assert_eq!(pwrite(&self.file, &value.to_le_bytes(), register), Ok(4));
    }

    fn read(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        assert_eq!(pread(&self.file, &mut value, register), Ok(4));
        u32::from_le_bytes(value)
    }

    /// Has it write four bytes; says whether it could.
    fn writes(&self, iova: u64) -> bool {
        let address = [(4, iova as u32), (8, (iova >> 32) as u32)];
        let length_and_doorbell = [(0xc, 4), (0x14, 1)];
        address
            .into_iter()
            .chain(length_and_doorbell)
            .for_each(|(register, value)| self.write(register, value));
        self.read(0);
        // It then compares what it wrote with physical memory, at an address that it was not told.
        self.read(0x10) != WRITE_FAILED
    }
}

/// What the kernel says from now on.
fn kernel_messages() -> File {
    let options = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(options).open("/dev/kmsg").expect("it opens");
    seek(&file, SeekFrom::End(0)).expect("its end");
    file
}

/// Waits for a message that has this in it.
fn wait_for(messages: &mut File, text: &str) -> String {
    let mut record = [0; 8192];
    loop {
        let within = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(messages, PollFlags::IN)], Some(&within)).expect("it waits");
        assert_ne!(ready, 0, "the kernel says nothing of {text}");
        let length = messages.read(&mut record).expect("a message");
        let message = String::from_utf8_lossy(&record[..length]);
        if message.contains(text) {
            return message.into_owned();
        }
    }
}

fn first_word(memory: &MmapRegion) -> u32 {
    memory.as_volatile_slice().read_obj(0).expect("it is there")
}

#[test]
fn dma_goes_where_the_address_space_leads_and_nowhere_else() {
    let context = context();
    let testdev = Testdev::open();
    testdev.device.bind(&context).expect("it binds");
    assert!(!testdev.writes(IOVA), "it is attached to nothing");
    let (one, memory_of_one) = space_with_page(&context);
    let (other, memory_of_other) = space_with_page(&context);

    testdev.device.attach(&PageTable::Auto(one.clone()), None).expect("it is attached");
    assert!(testdev.writes(IOVA));
    assert_eq!((first_word(&memory_of_one), first_word(&memory_of_other)), (PATTERN, 0));

    let mut messages = kernel_messages();
    assert!(!testdev.writes(IOVA + PAGE), "nothing is mapped there");
    let message = wait_for(&mut messages, "F_TRANSLATION");
    println!("{message}");

    testdev.device.attach(&PageTable::Auto(other.clone()), None).expect("in place of the first");
    assert!(testdev.writes(IOVA));
    assert_eq!(first_word(&memory_of_other), PATTERN);

    let copy = IovaRange::from_length(IOVA + PAGE, PAGE).expect("it fits");
    other.copy_from(&copy, &one, Iova(IOVA), Access::READ.into()).expect("it copies");
    assert!(!testdev.writes(IOVA + PAGE), "it may only be read");
    assert_eq!(other.unmap(&page()), Ok(PAGE));
    assert!(!testdev.writes(IOVA), "nothing is mapped there any more");

    testdev.device.detach(None).expect("it is detached");
    assert!(!testdev.writes(IOVA), "it is attached to nothing");
}

#[test]
fn a_device_that_another_process_bound_is_the_same_device() {
    let theirs = context();
    let file: OwnedFd = theirs.as_fd().try_clone_to_owned().expect("a duplicate");
    let ours = Context::adopt(file).expect("an iommufd");
    let testdev = Testdev::open();
    let number = testdev.device.bind(&theirs).expect("it binds");
    assert!(HwInfo::is_device(&ours, number.0).expect("it is told"));
    let absent = DeviceId(number.0 + 1);
    assert_eq!(HwInfo::of(&ours, absent).expect_err("it is none").errno(), Errno::NOENT);
    let (ioas, memory) = space_with_page(&ours);
    let duplicate = testdev.file.try_clone().expect("a duplicate");
    let mut device = Attached::new(Cdev::adopt(duplicate.into()));
    device.attach(PageTable::Auto(ioas), None).expect("it is attached");
    assert!(testdev.writes(IOVA));
    assert_eq!(first_word(&memory), PATTERN);
    device.detach(None).expect("it is detached");
}
