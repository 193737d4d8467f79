// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices behind an SMMUv3, given to VFIO: `scripts/test l1` runs this in a host that has them.
//!
//! `EDU` and `EDU_BEHIND_PORT` name QEMU's `edu` on the root complex and behind a root port, `TESTDEV` its
//! `iommu-testdev`, `PAIR` two of these that share a group, by their names in `/dev/vfio/devices`. One test at a time: each
//! takes a device for itself.

mod dma;
mod guest;
mod stage1;
mod tables;
mod testdev;

use std::env;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pwrite};
use viommu_core::{Access, IovaRange};
use viommu_nested::object::*;
use viommu_nested::{Attach, Attached, Cdev, HwInfo, Result};
use vm_memory::{FileOffset, MmapRegion};

/// Where the SMMUv3's driver has devices write their interrupts.
const MSI_WINDOW: u64 = 0x800_0000;
const IOVA: u64 = 0x10_0000;
const PAGE: u64 = 4096;

fn paths(variable: &str) -> Vec<PathBuf> {
    let names = env::var(variable).unwrap_or_else(|_| panic!("{variable} names no device of VFIO"));
    names.split_whitespace().map(|name| Path::new("/dev/vfio/devices").join(name)).collect()
}

fn path(variable: &str) -> PathBuf {
    paths(variable).remove(0)
}

fn context() -> Arc<Context> {
    Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd")
}

fn page() -> IovaRange {
    IovaRange::from_length(IOVA, PAGE).expect("it fits")
}

/// An address space with memory.
fn space_with(context: &Arc<Context>, range: &IovaRange) -> (Arc<Ioas>, MmapRegion) {
    let ioas = Ioas::new(context).expect("an address space");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    let bytes = range.span() + 1;
    ftruncate(&file, bytes).expect("its size");
    ioas.map_file(range, file.as_fd(), 0, Access::all().into()).expect("it maps");
    let region = MmapRegion::from_file(FileOffset::new(File::from(file), 0), bytes as usize);
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
    let refused = device.is_bus_master().expect_err("it is refused");
    assert_eq!((refused.call(), refused.errno()), ("VFIO_DEVICE_GET_INFO", Errno::INVAL));
    let text = refused.to_string();
    assert!(text.contains(&path("EDU").display().to_string()), "{text}");
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
