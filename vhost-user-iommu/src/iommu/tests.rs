// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A change, and a relay that looks at its endpoint meanwhile.

use std::iter;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::config::{Command, Dma, Protocol, parse};
use crate::orders::{Order, Orders, Work, orders};

const ENDPOINT: EndpointId = EndpointId(0x10);
/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device with a VMM, and what it orders of the relay of its endpoint, which is told of mappings.
fn relayed() -> (Iommu, Orders) {
    let words = ["vhost-user-iommu", "--socket-path=s", "--endpoint=0x10,vfio-user=f,server=b,dma=shared"];
    let Command::Serve(config) = parse(words).expect("valid") else { panic!("no daemon's") };
    let (handle, orders) = orders(Protocol::VfioUser(Dma::Shared)).expect("a file descriptor");
    let event_waits = Arc::new(Wake::new().expect("a file descriptor"));
    let iommu = Iommu::new(&config, None, event_waits).expect("a device that can be made");
    iommu.add_relay(ENDPOINT, handle);
    iommu.connected();
    iommu.negotiate(iommu.offered());
    assert_eq!(next(&orders).work, Work::Refresh);
    (iommu, orders)
}

fn next(orders: &Orders) -> Order {
    let patience = Timespec::try_from(PATIENCE).expect("it fits");
    poll(&mut [PollFd::new(orders, PollFlags::IN)], Some(&patience)).expect("it waits");
    orders.take().next().expect("an order")
}

/// Does a request, and checks that it succeeds.
fn request(iommu: &Iommu, words: &[u32]) {
    let readable: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut answers = Vec::new();
    let request = Incoming { readable: &readable, writable: 4 };
    iommu.requests(iter::once(request), |reply| answers.push(reply.bytes[0]));
    assert_eq!(answers, [0]);
}

const ATTACH: &[u32] = &[1, 1, ENDPOINT.0, 0, 0];
const MAP: &[u32] = &[3, 1, 0x1000, 0, 0x1fff, 0, 0x7000, 0, 3];

/// All that the endpoint reaches when the last of these requests is done, and each is looked at as soon as it is ordered.
fn looked_at(requests: &[&[u32]]) -> View {
    let (iommu, orders) = relayed();
    for words in requests {
        thread::scope(|scope| {
            let asked = scope.spawn(|| request(&iommu, words));
            let order = next(&orders);
            let early = iommu.view(ENDPOINT);
            drop(order);
            let order = next(&orders);
            assert_eq!(order.work, Work::Refresh);
            assert_ne!(iommu.view(ENDPOINT), early, "it was too early");
            // The guest has no answer before the relay has seen the difference.
            assert!(!asked.is_finished());
            drop(order);
        });
    }
    iommu.view(ENDPOINT)
}

#[test]
fn an_endpoint_that_is_looked_at_while_a_change_is_under_way_is_looked_at_again_after_it() {
    assert_eq!(looked_at(&[ATTACH]), View::Mappings(Vec::new()));
    let View::Mappings(mappings) = looked_at(&[ATTACH, MAP]) else { panic!("it is in a domain") };
    assert_eq!(mappings.len(), 1);
}

#[test]
fn an_endpoint_that_is_not_looked_at_meanwhile_is_left_alone() {
    let (iommu, orders) = relayed();
    for words in [ATTACH, MAP] {
        thread::scope(|scope| {
            scope.spawn(|| request(&iommu, words));
            drop(next(&orders));
        });
        // Neither while it was waited for, nor after.
        assert!(iommu.view(ENDPOINT) != View::Nothing && orders.take().next().is_none());
    }
}

#[test]
fn an_endpoint_that_is_not_blocked_is_left_alone_when_it_is_unblocked() {
    let (iommu, orders) = relayed();
    assert_eq!(iommu.unblock_endpoint(ENDPOINT), Ok(()));
    assert!(orders.take().next().is_none() && iommu.view(ENDPOINT) == View::Identity);
}
