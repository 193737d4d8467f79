// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests from end to end, in every legal shape.

use viommu_core::{DomainId, EndpointId, Gpa, wire};
use viommu_tests::driver::{Buffer, EventIdx, SplitQueue};
use zerocopy::IntoBytes;

use crate::scene::*;

/// An ATTACH of the endpoint.
fn attach() -> Vec<u8> {
    let head = wire::Head { kind: wire::RequestType::ATTACH, reserved: [0; 3] };
    let (domain, endpoint) = (DOMAIN.0.into(), ENDPOINT.0.into());
    wire::ReqAttach { head, domain, endpoint, flags: 0.into(), reserved: [0; 4] }.as_bytes().to_vec()
}

//= A8
#[test]
fn a_driver_attaches_maps_unmaps_detaches_and_probes() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        vmm.attach();
        assert_eq!(vmm.map(3), OK);
        assert_eq!(vmm.map(3), INVALID, "it is mapped");
        assert_ok(&vmm.driver.unmap(DOMAIN, page_range(3)).expect("a reply"));
        assert_eq!(vmm.map(3), OK);
        assert_ok(&vmm.driver.detach(DOMAIN, ENDPOINT).expect("a reply"));
        assert_eq!(vmm.map(3), NO_ENTRY, "the domain went with its endpoint");
        let probed = vmm.driver.probe(ENDPOINT).expect("a reply");
        assert_ok(&probed);
        assert_eq!(probed.properties()[..2], wire::PROPERTY_T_RESV_MEM.to_le_bytes());
        let unknown = vmm.driver.probe(EndpointId(99)).expect("a reply");
        assert_eq!((unknown.written as usize, unknown.status()), (unknown.bytes.len(), NO_ENTRY));
    }
}

//= A9a A9b A12
#[test]
fn a_known_request_is_answered_in_full_and_an_unknown_one_is_returned_unwritten() {
    let served = Served::new();
    let mut vmm = served.vmm();
    for kind in [0, 6, 7, 0x40, 0xff] {
        let reply = vmm.driver.request(&[kind; 64], 8).expect("a reply");
        assert_eq!((reply.written, reply.bytes), (0, vec![0xa5; 8]), "type {kind}");
    }
    for kind in 1..=4 {
        let reply = vmm.driver.request(&[kind], 4).expect("a reply");
        assert_eq!((reply.written, reply.status()), (4, INVALID), "type {kind}, too short");
    }
    let empty = vmm.driver.request(&[], 4).expect("a reply");
    assert_eq!(empty.written, 0);
    let no_room = vmm.driver.request(&attach(), 3).expect("a reply");
    assert_eq!(no_room.written, 0);
    let nowhere = vmm.driver.request(&attach(), 0).expect("a reply");
    assert_eq!(nowhere.written, 0);
}

#[test]
fn a_request_may_be_split_at_every_byte_and_its_reply_as_well() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        for split in 1..20 {
            let request = vmm.place(&attach());
            let reply = vmm.place(&[0xa5; 4]);
            let used = vmm.lend(&[
                Buffer::readable(request, split),
                Buffer::readable(request + u64::from(split), 20 - split),
                Buffer::writable(reply, split % 4),
                Buffer::writable(reply + u64::from(split % 4), 4 - split % 4),
            ]);
            assert_eq!((used.written, vmm.memory.read(reply, 4)), (4, vec![0; 4]), "split at {split}");
        }
        let (request, reply) = (vmm.place(&attach()), vmm.place(&[0xa5; 4]));
        let bytes: Vec<Buffer> = (0..20)
            .map(|at| Buffer::readable(request + at, 1))
            .chain((0..4).map(|at| Buffer::writable(reply + at, 1)))
            .collect();
        assert_eq!(vmm.lend(&bytes).written, 4);
        assert_eq!(vmm.memory.read(reply, 4), [0; 4]);
    }
}

#[test]
fn a_probe_reply_may_be_split_into_single_bytes_of_an_indirect_table() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let whole = vmm.driver.probe(ENDPOINT).expect("a reply").bytes;
    let mut request = vec![0; 72];
    (request[0], request[4]) = (5, 0x10);
    let (request, reply) = (vmm.place(&request), vmm.place(&vec![0xa5; whole.len()]));
    let buffers: Vec<Buffer> = std::iter::once(Buffer::readable(request, 72))
        .chain((0..whole.len() as u64).map(|at| Buffer::writable(reply + at, 1)))
        .collect();
    let table = vmm.place(&vec![0; 16 * buffers.len()]);
    let queue = vmm.driver.requests();
    queue.add_indirect(table, &buffers).expect("there is room");
    queue.kick_if_wanted();
    assert_eq!(vmm.used().written as usize, whole.len());
    assert_eq!(vmm.memory.read(reply, whole.len()), whole);
}

#[test]
fn indirect_descriptors_serve_as_direct_ones_do_also_behind_them() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        let (request, reply) = (vmm.place(&attach()), vmm.place(&[0xa5; 4]));
        let table = vmm.place(&[0; 64]);
        let buffers = [Buffer::readable(request, 20), Buffer::writable(reply, 4)];
        vmm.driver.requests().add_indirect(table, &buffers).expect("there is room");
        vmm.driver.requests().kick_if_wanted();
        assert_eq!((vmm.used().written, vmm.memory.read(reply, 4)), (4, vec![0; 4]));
    }
}

#[test]
fn rings_wrap_around_at_65536_and_at_their_size() {
    let served = Served::new();
    for (size, features) in
        [(2, u64::MAX), (64, u64::MAX), (1024, u64::MAX), (2, !(1 << 29)), (1024, !(1 << 29))]
    {
        let mut vmm = served.vmm_with(Setup { size, features, first: 65530 });
        vmm.attach();
        for page in 0..20 {
            assert_eq!(vmm.map(page), OK, "size {size}");
        }
        assert_eq!(vmm.driver.requests().next_used(), 15);
        assert_eq!(vmm.front_end.stop_ring(0).expect("stopped"), 15);
    }
}

#[test]
fn a_full_queue_is_served_with_one_kick() {
    let served = Served::new();
    for setup in [Setup { size: 1024, ..Setup::default() }, Setup { size: 1024, ..Setup::plain() }] {
        let mut vmm = served.vmm_with(setup);
        let (request, reply) = (vmm.place(&attach()), vmm.place(&[0xa5; 2048]));
        for round in 0..10 {
            for at in 0..512 {
                let buffers = [Buffer::readable(request, 20), Buffer::writable(reply + 4 * at, 4)];
                assert!(vmm.driver.requests().add(&buffers).is_some(), "round {round}");
            }
            vmm.driver.requests().kick_if_wanted();
            for _ in 0..512 {
                assert_eq!(vmm.used().written, 4);
            }
        }
        assert_eq!(vmm.memory.read(reply, 2048), vec![0; 2048]);
    }
}

#[test]
fn requests_that_are_outstanding_are_answered_in_their_order() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    let map = |page: u64| {
        let range = page_range(page);
        let head = wire::Head { kind: wire::RequestType::MAP, reserved: [0; 3] };
        let (virt_start, virt_last) = (range.start().into(), range.last().into());
        let flags = wire::MAP_F_READ.into();
        wire::ReqMap { head, domain: DOMAIN.0.into(), virt_start, virt_last, phys_start: 0.into(), flags }
    };
    let heads: Vec<u32> =
        (0..32).map(|at| vmm.driver.submit(map(at / 2).as_bytes(), 4).expect("there is room")).collect();
    vmm.driver.requests().kick_if_wanted();
    for (at, head) in heads.iter().enumerate() {
        let (answered, reply) = vmm.driver.complete().expect("a reply");
        // Of each two the first maps, the second finds it mapped.
        assert_eq!((answered, reply.status()), (*head, if at % 2 == 0 { OK } else { INVALID }));
    }
}

#[test]
fn limits_of_the_command_line_are_answered_with_no_memory() {
    let served = Served::with(&["--max-domains", "1", "--max-mappings", "2"]);
    let mut vmm = served.vmm();
    vmm.attach();
    let second = vmm.driver.attach(DomainId(8), OTHER_ENDPOINT, 0).expect("a reply");
    assert_eq!(second.status(), NO_MEMORY);
    assert_eq!([0, 1, 2].map(|page| vmm.map(page)), [OK, OK, NO_MEMORY]);
    assert_ok(&vmm.driver.unmap(DOMAIN, page_range(0)).expect("a reply"));
    assert_eq!(vmm.map(2), OK);
}

#[test]
fn a_target_that_wraps_around_is_refused() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    let range = viommu_core::IovaRange::from_length(0, 0x2000).expect("two pages");
    let reply = vmm.driver.map(DOMAIN, range, Gpa(u64::MAX - 0xfff), wire::MAP_F_READ).expect("a reply");
    assert_ne!(reply.status(), OK);
    vmm.assert_served();
}

#[test]
fn the_smallest_and_the_largest_queue_size_serve_and_a_larger_one_ends_the_connection() {
    let served = Served::new();
    let mut front_end = served.front_end(u64::MAX);
    let mut vmm = None;
    for (size, is_served) in [(1024, true), (2048, false)] {
        let memory = viommu_tests::driver::GuestMemory::new(&[(HIGH, REGION)]).expect("memory");
        let mut arena = viommu_tests::driver::Arena::new(HIGH, REGION);
        let queue = SplitQueue::new(&memory, &mut arena, size, EventIdx::On).expect("a queue");
        front_end.set_memory(&memory).expect("a region");
        assert_eq!(front_end.start_ring(0, &queue).is_ok(), is_served, "size {size}");
        vmm = Some((memory, queue));
    }
    drop((front_end, vmm));
    served.assert_serves();
}

#[test]
fn an_unknown_domain_is_not_found() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let reply = vmm.driver.unmap(DomainId(99), page_range(0)).expect("a reply");
    assert_eq!((reply.written, reply.status()), (4, NO_ENTRY));
}
