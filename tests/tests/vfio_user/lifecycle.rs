// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starts, resets and departures of everybody: the table of `iommu/serving.rs` for a server that is told.

use vhost_user_iommu::vfio_user::message::Command;
use viommu_core::DomainId;
use viommu_tests::vfio_user_vmm::VfioUserVmm;

use crate::bed::*;

#[test]
fn after_a_reset_of_the_iommu_a_device_keeps_its_mappings_until_it_may_be_a_bus_master_again() {
    for dma in ["shared", "message"] {
        let bed = Bed::with(&[dma], &[]);
        let (mut guest, mut vmm) = bed.run();
        vmm.set_bus_master(true).expect("a write");
        guest.front.reset_device().expect("a reset");
        assert_eq!(bed.peek(0, IOVA), secret(), "{dma}");
        assert!(is_refused(&bed.peek(0, SECRET.0)), "{dma}");
        // The machine is reset, and firmware follows that knows no IOMMU.
        vmm.set_bus_master(false).expect("a write");
        assert_eq!(bed.peek(0, IOVA), secret(), "{dma}");
        vmm.set_bus_master(true).expect("a write");
        assert!(is_refused(&bed.peek(0, IOVA)), "{dma}");
        assert_eq!(bed.peek(0, SECRET.0), secret(), "{dma}");
    }
}

#[test]
fn a_device_that_is_a_bus_master_already_does_not_come_to_life_by_being_told_so_again() {
    for dma in ["shared", "message"] {
        let bed = Bed::with(&[dma], &[]);
        let (mut guest, mut vmm) = bed.run();
        vmm.set_bus_master(true).expect("a write");
        guest.front.reset_device().expect("a reset");
        vmm.set_bus_master(true).expect("a write");
        assert_eq!(bed.peek(0, IOVA), secret(), "{dma}");
        assert!(is_refused(&bed.peek(0, SECRET.0)), "{dma}");
    }
}

#[test]
fn a_device_that_is_reset_before_the_iommu_is_found_by_firmware_as_well() {
    let bed = Bed::shared();
    let (mut guest, mut vmm) = bed.run();
    vmm.set_bus_master(true).expect("a write");
    vmm.ask_well(Command::DEVICE_RESET, &[]).expect("a reset");
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
    guest.stop_rings();
    vmm.set_bus_master(true).expect("a write");
    bed.wait_told(0, &[LOW, HIGH]);
}

#[test]
fn an_attach_ends_what_lingers() {
    let bed = Bed::shared();
    let (mut guest, _vmm) = bed.run();
    guest.front.reset_device().expect("a reset");
    guest.restart();
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
    guest.attach(0, DomainId(2));
    assert_eq!(bed.told(0), []);
    guest.map(DomainId(2), 1 << 32, PAGE, SECRET.0);
    assert_eq!(bed.told(0), [(1 << 32, PAGE)]);
}

#[test]
fn without_the_iommu_of_the_vmm_a_device_reaches_nothing() {
    for dma in ["shared", "message"] {
        let bed = Bed::with(&[dma], &[]);
        let (guest, mut vmm) = bed.run();
        drop(guest);
        bed.wait_log("VMM disconnected, endpoints are blocked");
        if dma == "shared" {
            bed.wait_told(0, &[]);
        }
        assert!(is_refused(&bed.peek(0, IOVA)) && is_refused(&bed.peek(0, SECRET.0)));
        // A new machine, but the device goes on: nobody knows what its addresses mean.
        let _guest = bed.boot();
        assert!(is_refused(&bed.peek(0, SECRET.0)));
        vmm.ask_well(Command::DEVICE_RESET, &[]).expect("a reset");
        assert_eq!(bed.peek(0, SECRET.0), secret());
    }
}

#[test]
fn a_device_that_connects_before_the_iommu_is_told_when_that_is_there() {
    let bed = Bed::shared();
    let _vmm = bed.plug(0);
    assert_eq!(bed.told(0), []);
    let _guest = bed.boot();
    bed.wait_told(0, &[LOW, HIGH]);
}

#[test]
fn a_vmm_that_connects_again_finds_the_device_and_nothing_of_before() {
    let bed = Bed::shared();
    let (_guest, vmm) = bed.run();
    drop(vmm);
    bed.wait_log("endpoint 00:02.0: VMM disconnected");
    let mut vmm = VfioUserVmm::connect(&bed.front_path(0), PATIENCE).expect("connects");
    vmm.negotiate().expect("negotiates");
    assert_eq!(bed.told(0), []);
    vmm.give(&bed.memory).expect("takes memory");
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
}

#[test]
fn without_a_server_the_vmm_is_turned_away_and_the_log_says_why() {
    let mut bed = Bed::shared();
    bed.disks[0] = None;
    let mut vmm = VfioUserVmm::connect(&bed.front_path(0), PATIENCE).expect("connects");
    assert!(vmm.negotiate().is_err());
    bed.wait_log("no back-end at");
    bed.serve(0);
    let _guest = bed.boot();
    let _vmm = bed.plug(0);
    assert_eq!(bed.peek(0, SECRET.0), secret());
}
