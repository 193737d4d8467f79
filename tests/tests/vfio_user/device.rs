// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What has to do with the device passes through, with its file descriptors and under the VMM's own ids.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_iommu::vfio_user::message::{Command, Flags, Message, RegionAccess};
use zerocopy::IntoBytes;

use crate::bed::*;

#[test]
fn the_version_is_what_both_can_and_the_relay_serves_memory() {
    let bed = Bed::shared();
    let _guest = bed.boot();
    let mut vmm =
        viommu_tests::vfio_user_vmm::VfioUserVmm::connect(&bed.front_path(0), PATIENCE).expect("connects");
    let answer = vmm.negotiate().expect("negotiates");
    let expected = r#"{"capabilities":{"max_data_xfer_size":1048576,"max_dma_maps":1024,"max_msg_fds":8,"pgsizes":4096,"write_multiple":false}}"#;
    assert_eq!(answer, expected);
}

#[test]
fn registers_and_information_pass_under_the_ids_of_the_vmm() {
    let bed = Bed::shared();
    let (_guest, mut vmm) = bed.run();
    assert_eq!(vmm.read_region(RegionAccess::PCI_CONFIG, 0, 4).expect("reads"), [0xf4, 0x1a, 0x42, 0x10]);
    vmm.write_region(RegionAccess::PCI_CONFIG, 0x3c, &[0x2a]).expect("writes");
    assert_eq!(vmm.read_region(RegionAccess::PCI_CONFIG, 0x3c, 1).expect("reads"), [0x2a]);
    let info = vmm.ask_well(Command::DEVICE_GET_INFO, &[0; 16]).expect("an answer");
    assert_eq!(info.payload, [16u32, 3, 9, 5].as_bytes());
    // Several under way at once, one of which wants no answer, and the same id twice.
    let read = |offset| RegionAccess { offset, region: RegionAccess::PCI_CONFIG, count: 2 };
    for (id, offset) in [(7, 0), (7, 2), (65535, 0)] {
        vmm.send_message(Message::command(id, Command::REGION_READ, &read(offset))).expect("sends");
    }
    let unanswered = [read(0x3c).as_bytes(), &[1, 0]].concat();
    let unanswered = Message::command(8, Command::REGION_WRITE, &unanswered[..]);
    vmm.send_message(Message { flags: Flags::NO_REPLY, ..unanswered }).expect("sends");
    let answers = [0, 1, 2].map(|_| vmm.receive().expect("an answer").expect("a message"));
    assert_eq!(answers.each_ref().map(|answer| answer.id), [7, 7, 65535]);
    assert_eq!(answers.map(|answer| answer.payload[16]), [0xf4, 0x42, 0xf4]);
    assert_eq!(vmm.read_region(RegionAccess::PCI_CONFIG, 0x3c, 1).expect("reads"), [1]);
}

#[test]
fn eventfds_of_interrupts_reach_the_server() {
    let bed = Bed::message();
    let (_guest, mut vmm) = bed.run();
    let fds: Vec<OwnedFd> = (0..2).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect();
    let set = [20u32, 1 << 2 | 1 << 5, 2, 0, 2];
    let reply = vmm.ask(Command::DEVICE_SET_IRQS, set.as_bytes(), fds).expect("an answer");
    assert_eq!(reply.flags, Flags::REPLY);
    assert_eq!(bed.disk(0).vectors(), 2);
    let reply = vmm.ask(Command::DEVICE_SET_IRQS, [20u32, 1 | 1 << 5, 2, 0, 0].as_bytes(), vec![]);
    assert_eq!(reply.expect("an answer").flags, Flags::REPLY);
    assert_eq!(bed.disk(0).vectors(), 0);
}
