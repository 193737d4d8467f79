// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver that breaks the rules of virtqueues: it may hurt itself, and nobody else.

use vhost::{VhostBackend, VringConfigData};
use viommu_tests::driver::{Buffer, Descriptor, flags};

use crate::scene::*;

/// Where hostile chains begin, beyond what good requests use.
const HEAD: u16 = 40;
const NOWHERE: u64 = 0x7000_0000_0000;

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor::new(address, length, flags, next)
}

/// A chain of these descriptors comes back unwritten, and the next good request is answered.
fn assert_returned_unwritten(vmm: &mut Vmm, what: &str, chain: &[Descriptor]) {
    vmm.publish_raw(HEAD, chain);
    let used = vmm.used();
    assert_eq!((used.head, used.written), (u32::from(HEAD), 0), "{what}");
    vmm.assert_served();
}

fn for_both(test: impl Fn(&Served, &mut Vmm)) {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        test(&served, &mut vmm);
        drop(vmm);
        served.assert_serves();
        assert_eq!(served.lines_with("panicked"), 0);
    }
}

#[test]
fn chains_that_break_the_rules_come_back_unwritten() {
    for_both(|_, vmm| {
        let room = vmm.place(&[0; 4096]);
        // A DETACH that would be answered if it were well-formed.
        let request = vmm.place(&[2; 20]);
        let (next, write) = (flags::NEXT, flags::WRITE);
        let outside = |address| [descriptor(request, 20, next, HEAD + 1), descriptor(address, 4, write, 0)];
        for (what, chain) in [
            ("a loop of one", vec![descriptor(room, 1, next, HEAD)]),
            (
                "a loop of two",
                vec![descriptor(room, 1, next, HEAD + 1), descriptor(room, 4, next | write, HEAD)],
            ),
            ("a loop of nothing", vec![descriptor(room, 0, next, HEAD)]),
            ("a next beyond the table", vec![descriptor(room, 1, next, 9999)]),
            (
                "writable before readable",
                vec![descriptor(room, 4, next | write, HEAD + 1), descriptor(request, 20, 0, 0)],
            ),
            (
                "readable outside of memory",
                vec![descriptor(NOWHERE, 20, next, HEAD + 1), descriptor(room, 4, write, 0)],
            ),
            (
                "readable that wraps",
                vec![descriptor(u64::MAX - 3, 20, next, HEAD + 1), descriptor(room, 4, write, 0)],
            ),
            (
                "readable into a hole",
                vec![descriptor(REGION - 8, 20, next, HEAD + 1), descriptor(room, 4, write, 0)],
            ),
            (
                "readable beyond the end",
                vec![descriptor(HIGH + REGION - 8, 20, next, HEAD + 1), descriptor(room, 4, write, 0)],
            ),
            ("writable outside of memory", outside(NOWHERE).to_vec()),
            ("writable that wraps", outside(u64::MAX - 1).to_vec()),
            ("writable at the very end", outside(u64::MAX).to_vec()),
            ("writable into a hole", outside(REGION - 2).to_vec()),
            (
                "4 GiB readable and more",
                vec![descriptor(room, u32::MAX, next, HEAD + 1), descriptor(room, 4, write, 0)],
            ),
            ("nothing", vec![descriptor(0, 0, 0, 0)]),
            ("nothing writable", vec![descriptor(0, 0, write, 0)]),
        ] {
            assert_returned_unwritten(vmm, what, &chain);
        }
    });
}

#[test]
fn indirect_tables_that_break_the_rules_come_back_unwritten() {
    for_both(|_, vmm| {
        let nested = vmm.arena.take(64, 16);
        let inner = descriptor(nested, 32, flags::INDIRECT, 0);
        vmm.memory.write(nested, zerocopy::IntoBytes::as_bytes(&inner));
        for (what, chain) in [
            ("a length of 15", descriptor(nested, 15, flags::INDIRECT, 0)),
            ("a length of 17", descriptor(nested, 17, flags::INDIRECT, 0)),
            ("a length of 0", descriptor(nested, 0, flags::INDIRECT, 0)),
            ("a table in a table", inner),
            ("65536 entries", descriptor(nested, 16 * 65536, flags::INDIRECT, 0)),
            ("4 GiB", descriptor(nested, !15, flags::INDIRECT, 0)),
            ("outside of memory", descriptor(NOWHERE, 32, flags::INDIRECT, 0)),
            ("at the end of memory", descriptor(HIGH + REGION - 8, 32, flags::INDIRECT, 0)),
            ("at the end of the space", descriptor(u64::MAX - 7, 32, flags::INDIRECT, 0)),
            ("writable", descriptor(nested, 16, flags::INDIRECT | flags::WRITE, 0)),
            ("with a next", descriptor(nested, 16, flags::INDIRECT | flags::NEXT, HEAD)),
        ] {
            assert_returned_unwritten(vmm, what, &[chain]);
        }
    });
}

#[test]
fn buffers_that_are_larger_than_any_request_are_used_as_far_as_needed() {
    for_both(|_, vmm| {
        let mut bytes = vec![0xee; 8192];
        bytes[..20].copy_from_slice(&[2, 0, 0, 0, 9, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (request, reply) = (vmm.place(&bytes), vmm.place(&[0xa5; 4096]));
        let used = vmm.lend(&[Buffer::readable(request, 8192), Buffer::writable(reply, 4096)]);
        assert_eq!((used.written, &vmm.memory.read(reply, 5)[1..]), (4, &[0, 0, 0, 0xa5][..]));
        // A writable part that the reply does not fill may lie anywhere: it is not touched.
        let used = vmm.lend(&[
            Buffer::readable(request, 20),
            Buffer::writable(reply, 4),
            Buffer::writable(NOWHERE, 4),
            Buffer::writable(NOWHERE, u32::MAX - 100),
        ]);
        assert_eq!(used.written, 4);
        let used = vmm.lend(&[
            Buffer::readable(request, 20),
            Buffer::writable(NOWHERE, 0),
            Buffer::writable(reply, 4),
        ]);
        assert_eq!(used.written, 4, "an empty piece is nowhere");
        let used = vmm.lend(&[
            Buffer::readable(NOWHERE, 0),
            Buffer::readable(request, 20),
            Buffer::writable(reply, 4),
        ]);
        assert_eq!(used.written, 4, "an empty piece is nowhere");
    });
}

#[test]
fn chains_of_sixty_thousand_pieces_are_answered() {
    for_both(|_, vmm| {
        let request = vmm.place(&[2; 20]);
        let mut buffers = vec![Buffer::readable(request, 0); 32_000];
        buffers.extend(vec![Buffer::writable(request, 0); 32_000]);
        let table = vmm.arena.take(16 * buffers.len() as u64, 16);
        vmm.driver.requests().add_indirect(table, &buffers).expect("there is room");
        vmm.driver.requests().kick();
        assert_eq!(vmm.used().written, 0);
        vmm.assert_served();
    });
}

#[test]
fn a_head_that_is_no_descriptor_is_passed_over() {
    for_both(|_, vmm| {
        for head in [64, 65, 1024, 65535] {
            // In one batch with a good request, whose kick is the only one.
            vmm.driver.requests().publish(head);
            vmm.assert_served();
        }
    });
}

#[test]
fn an_index_that_jumps_is_not_followed_and_may_come_back() {
    for_both(|served, vmm| {
        for _ in 0..100 {
            let good = vmm.driver.requests().next_avail();
            vmm.driver.requests().set_avail_index(good.wrapping_add(1000));
            vmm.driver.requests().kick();
            // A step of the VMM has the worker at rest when it returns.
            let kick = vmm.driver.requests().kick_fd().try_clone().expect("a duplicate");
            eventually("the kick is taken", || !becomes_readable(&kick, std::time::Duration::ZERO));
            vmm.front_end.read_config(0, 1).expect("read");
            vmm.driver.requests().set_avail_index(good);
            vmm.assert_served();
        }
        assert!(served.processor_time_in_half_a_second().as_millis() < 100);
    });
}

#[test]
fn an_index_that_comes_back_while_the_device_looks_costs_no_request() {
    for_both(|_, vmm| {
        for round in 0..1500u32 {
            let good = vmm.driver.requests().next_avail();
            vmm.driver.requests().set_avail_index(good.wrapping_add(1000));
            vmm.driver.requests().kick();
            // At another moment of what the device does then each time.
            (0..round % 500 * 40).for_each(|_| std::hint::spin_loop());
            vmm.driver.requests().set_avail_index(good);
            vmm.assert_served();
        }
    });
}

/// A ring whose used part lies over its available one, and is ahead: what the device returns makes more available.
pub fn start_ring_that_feeds_itself(vmm: &mut Vmm) {
    let queue = vmm.driver.requests();
    let (rings, size) = (queue.rings(), queue.size());
    vmm.front_end.stop_ring(0).expect("stopped");
    queue.restart_at(0);
    queue.set_avail_index(5);
    let addresses = VringConfigData {
        queue_max_size: size,
        queue_size: size,
        flags: 0,
        desc_table_addr: vmm.memory.vmm_address(rings.descriptors),
        used_ring_addr: vmm.memory.vmm_address(rings.avail),
        avail_ring_addr: vmm.memory.vmm_address(rings.avail),
        log_addr: None,
    };
    vmm.front_end.step(|vhost| vhost.set_vring_base(0, 0)).expect("set");
    vmm.front_end.step(|vhost| vhost.set_vring_addr(0, &addresses)).expect("set");
    vmm.front_end.step(|vhost| vhost.set_vring_kick(0, queue.kick_fd())).expect("set");
    vmm.front_end.enable_ring(0).expect("enabled");
    queue.kick();
    // More than it was given to begin with.
    eventually("it feeds itself", || vmm.memory.load_u16(rings.avail + 2).wrapping_sub(5) > 100);
}

#[test]
fn a_ring_that_feeds_itself_ends_when_the_vmm_stops_it() {
    for_both(|_, vmm| {
        start_ring_that_feeds_itself(vmm);
        vmm.front_end.stop_ring(0).expect("stopped");
    });
}

#[test]
fn a_ring_that_feeds_itself_ends_with_its_vmm() {
    for_both(|_, vmm| start_ring_that_feeds_itself(vmm));
}

#[test]
fn a_hundred_thousand_hostile_chains_cost_no_memory_and_few_lines() {
    let served = Served::new();
    let mut vmm = served.vmm_with(Setup { size: 1024, ..Setup::default() });
    let room = vmm.place(&[2; 4096]);
    let chains = [
        descriptor(room, 1, flags::NEXT, 1000),
        descriptor(NOWHERE, 20, 0, 0),
        descriptor(room, 17, flags::INDIRECT, 0),
        descriptor(room, 16 * 250, flags::INDIRECT, 0),
        descriptor(room, 20, 0, 0),
    ];
    let mut resident = 0;
    for round in 0..100 {
        for (index, chain) in (1000..).zip(chains) {
            vmm.driver.requests().write_descriptor(index, chain);
        }
        for at in 0..1000 {
            vmm.driver.requests().publish(1000 + at % 6);
        }
        vmm.driver.requests().kick();
        for _ in 0..1000 {
            vmm.used();
        }
        if round == 10 {
            resident = served.resident_kib();
        }
    }
    let grown = served.resident_kib().saturating_sub(resident);
    assert!(grown < 1024, "grown by {grown} KiB");
    assert!(served.daemon.lines().len() < 100, "the log is flooded: {} lines", served.daemon.lines().len());
    vmm.assert_served();
}

#[test]
fn thousands_of_bad_heads_are_told_in_few_lines() {
    let served = Served::new();
    let mut vmm = served.vmm();
    for at in 0..3000u32 {
        vmm.driver.requests().publish(99);
        vmm.driver.requests().kick();
        if at % 10 == 0 {
            vmm.assert_served();
        }
    }
    assert!(served.daemon.lines().len() < 100, "the log is flooded: {} lines", served.daemon.lines().len());
}
