// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that changes under running rings.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;
use viommu_tests::driver::{Arena, EventIdx, GuestMemory, IommuDriver, SplitQueue};
use viommu_tests::front_end::{FrontEnd, Message, NEED_REPLY, VERSION};
use vm_memory::GuestMemoryBackend;

use crate::hostile_rings::start_ring_that_feeds_itself;
use crate::scene::*;

const SET_MEM_TABLE: u32 = 5;

/// The region in which everything lies.
fn high_region(memory: &GuestMemory) -> VhostUserMemoryRegionInfo {
    let region = memory.mmap().iter().last().expect("two regions");
    VhostUserMemoryRegionInfo::from_guest_region(region).expect("it has a file")
}

#[test]
fn a_memory_table_may_be_given_again_while_the_rings_run() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    assert_eq!(vmm.map(0), OK);
    for _ in 0..20 {
        vmm.front_end.set_memory(&vmm.memory).expect("the same again");
        vmm.assert_keeps_page_0();
    }
}

#[test]
fn rings_may_move_to_other_memory() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    vmm.front_end.stop_ring(0).expect("stopped");
    vmm.front_end.stop_ring(1).expect("stopped");
    let memory = GuestMemory::new(&[(0x5000_0000, REGION)]).expect("memory");
    let mut arena = Arena::new(0x5000_0000, REGION);
    let mut queue = || SplitQueue::new(&memory, &mut arena, 32, EventIdx::On).expect("a queue");
    let (requests, events) = (queue(), queue());
    vmm.front_end.set_memory(&memory).expect("one region");
    vmm.front_end.start_ring(0, &requests).expect("started");
    let mut driver = IommuDriver::new(&mut arena, requests, events, 512, PATIENCE);
    let reply = driver.unmap(DOMAIN, page_range(0)).expect("a reply");
    assert_eq!(reply.status(), NO_ENTRY, "the rings started elsewhere: the device was reset");
}

#[test]
fn the_region_that_holds_a_ring_may_go_while_it_is_kicked_and_come_back() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        vmm.attach();
        assert_eq!(vmm.map(0), OK);
        let region = high_region(&vmm.memory);
        for _ in 0..20 {
            vmm.driver.requests().kick();
            vmm.front_end.step(|vhost| vhost.remove_mem_region(&region)).expect("removed");
            vmm.driver.requests().kick();
            vmm.driver.events().kick();
            vmm.front_end.step(|vhost| vhost.add_mem_region(&region)).expect("added");
            vmm.assert_keeps_page_0();
        }
        assert!(served.lines_with("broken") < 50, "the log is flooded");
    }
}

#[test]
fn a_region_beyond_the_end_of_its_file_ends_the_connection_and_not_the_daemon() {
    let served = Served::new();
    give_memory_beyond_its_file(&served.front_end(u64::MAX), 0);
    served.assert_serves();
}

#[test]
fn a_region_beyond_the_end_of_its_file_is_not_touched_while_it_is_refused() {
    let served = Served::new();
    for _ in 0..10 {
        let mut vmm = served.vmm();
        start_ring_that_feeds_itself(&mut vmm);
        give_memory_beyond_its_file(&vmm.front_end, HIGH);
    }
    served.assert_serves();
}

/// A region of 1 MiB at the GPA `start`, of which its file holds nothing but the beginning; the connection ends.
fn give_memory_beyond_its_file(front_end: &FrontEnd, start: u64) {
    let file = memfd_create("short", MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&file, 0x1000).expect("sized");
    // One region: GPA, bytes, where the VMM sees it, offset in the file.
    let words = [1, start, 0x10_0000, 0x7f00_0000_0000, 0u64];
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let message = Message { request: SET_MEM_TABLE, flags: VERSION | NEED_REPLY, body };
    front_end.connection().send(&message, &[file.as_fd()]).expect("sent");
    front_end.connection().wait_closed(PATIENCE).expect("closed");
}

#[test]
fn rings_outside_of_memory_are_refused_and_end_the_connection() {
    let served = Served::new();
    for (descriptors, avail, used) in
        [(u64::MAX, 0, 0), (0, u64::MAX - 1, 0), (0, 0, 0x10), (8, 0, 0), (0, 1, 0), (0, 0, 2)]
    {
        let mut front_end = served.front_end(u64::MAX);
        let memory = GuestMemory::new(&[(0x1000, REGION)]).expect("memory");
        front_end.set_memory(&memory).expect("one region");
        let base = memory.vmm_address(0x2000);
        // Small numbers are offsets that break an alignment, all others lie nowhere.
        let place = |part: u64| if part < 0x10 { base + part } else { part };
        let words = [0, place(descriptors), place(used), place(avail), 0];
        let body = words.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect::<Vec<_>>();
        front_end.connection().send(&Message::new(9, body), &[]).expect("sent");
        front_end.connection().wait_closed(PATIENCE).expect("closed");
    }
    served.assert_serves();
}

#[test]
fn rings_that_reach_over_the_end_of_memory_neither_spin_nor_block_a_stop() {
    let served = Served::new();
    for features in [u64::MAX, Setup::plain().features] {
        for over in 0..3 {
            let mut front_end = served.front_end(features);
            let memory = GuestMemory::new(&[(0, 0x10_0000)]).expect("memory");
            front_end.set_memory(&memory).expect("one region");
            // Each part in turn begins with its header in memory and has all else outside.
            let place = |part: u64, inside: u64| {
                memory.vmm_address(if over == part { 0x10_0000 - inside } else { 0x1000 * (part + 1) })
            };
            let addresses = vhost::VringConfigData {
                queue_max_size: 64,
                queue_size: 64,
                flags: 0,
                desc_table_addr: place(0, 16),
                avail_ring_addr: place(1, 4),
                used_ring_addr: place(2, 4),
                log_addr: None,
            };
            let (kick, call) =
                (vmm_sys_util::eventfd::EventFd::new(0), vmm_sys_util::eventfd::EventFd::new(0));
            let (kick, call) = (kick.expect("an eventfd"), call.expect("an eventfd"));
            let avail = if over == 1 { 0x10_0000 - 4 } else { 0x2000 };
            memory.store_u16(avail + 2, 5);
            front_end
                .step(|vhost| {
                    use vhost::VhostBackend;
                    vhost.set_vring_num(0, 64)?;
                    vhost.set_vring_base(0, 0)?;
                    vhost.set_vring_addr(0, &addresses)?;
                    vhost.set_vring_call(0, &call)?;
                    vhost.set_vring_kick(0, &kick)?;
                    vhost.set_vring_enable(0, true)
                })
                .expect("started");
            kick.write(1).expect("kicked");
            let busy = served.processor_time_in_half_a_second();
            assert!(busy.as_millis() < 100, "part {over}: {busy:?}");
            front_end.stop_ring(0).expect("stopped");
        }
    }
    served.assert_serves();
}
