// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA through address spaces that the kernel fills.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, SeekFrom, seek};
use viommu_core::Iova;
use viommu_nested::DeviceId;
use vm_memory::{Bytes, VolatileMemory};

use super::testdev::{PATTERN, Testdev};
use super::*;

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
    let (one, memory_of_one) = space_with(&context, &page());
    let (other, memory_of_other) = space_with(&context, &page());

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
    let (ioas, memory) = space_with(&ours, &page());
    let duplicate = testdev.file.try_clone().expect("a duplicate");
    let mut device = Attached::new(Cdev::adopt(duplicate.into()));
    device.attach(PageTable::Auto(ioas), None).expect("it is attached");
    assert!(testdev.writes(IOVA));
    assert_eq!(first_word(&memory), PATTERN);
    device.detach(None).expect("it is detached");
}
