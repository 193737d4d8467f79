// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host refuses: an error for the guest, and nothing changed.

use viommu_core::Status;
use viommu_tests::model::request::{self, Wire};

use super::bed::{ARM, Bed, STE, VTD, group};

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EFAULT: i32 = 14;
const ENOSPC: i32 = 28;

/// A device with something of everything, and a request of each kind that would succeed.
fn scene() -> (Bed, Vec<Vec<u8>>) {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(3, VTD, Some(1), 0x1000), Status::Ok);
    assert!(bed.ask(group(VTD, Some(1), 6), 1, 0));
    let requests = vec![
        request::attach_ste(4, ARM, STE).readable(),
        request::attach_ste(1, ARM, STE).readable(),
        request::attach_pt(2, VTD, Some(2), 0x1000).readable(),
        request::page_response(VTD, Some(1), 6, 0).readable(),
        request::attach_none(3, VTD, 1).readable(),
        request::invalidate(1).readable(),
        request::detach(2, VTD).readable(),
        request::attach_bypass(5, VTD).readable(),
    ];
    (bed, requests)
}

//= T24 T25
#[test]
fn whatever_the_host_refuses_is_an_error_and_changes_nothing() {
    let (mut bed, requests) = scene();
    for request in &requests {
        for (errno, status) in
            [(EIO, Status::DevErr), (ENOMEM, Status::NoMem), (ENOSPC, Status::NoMem), (95, Status::DevErr)]
        {
            bed.host.fail(0, errno);
            assert_eq!(bed.raw(request), status, "{request:?}");
        }
    }
    for request in &requests[..6] {
        assert_eq!(bed.raw(request), Status::Ok, "{request:?}");
    }
}

//= T22
#[test]
fn a_table_outside_of_memory_is_the_drivers_fault_and_nothing_else_is() {
    let (mut bed, requests) = scene();
    for (number, request) in requests.iter().enumerate() {
        bed.host.fail(0, EFAULT);
        let status = if number < 3 { Status::Fault } else { Status::DevErr };
        assert_eq!(bed.raw(request), status, "{request:?}");
    }
}
