// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA through page tables of a guest: what its entries lead to, and what invalidations make of a change.
//!
//! To read first: "Stream Table Entry", "Context Descriptor" and "Commands" in Arm's SMMUv3 specification.

use viommu_nested::DeviceId;

use super::guest::{Allows, Memory, PAGES, stage_1};
use super::testdev::Testdev;
use super::*;

/// `IOMMU_HWPT_DATA_ARM_SMMUV3`.
const HWPT_DATA: u32 = 2;
/// `IOMMU_VIOMMU_TYPE_ARM_SMMUV3`.
const VIOMMU: u32 = 1;
/// `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3`.
const INVALIDATE_DATA: u32 = 1;

const ASID: u64 = 7;

/// A guest that has the device at StreamID 0x10, and has [`IOVA`] lead to the first page.
struct Guest {
    memory: Memory,
    root: u64,
    viommu: Arc<Viommu>,
    nested: Arc<Hwpt>,
    ioas: u32,
    _vdevice: Vdevice,
}

impl Guest {
    fn new(context: &Arc<Context>, device: DeviceId) -> Guest {
        let (ioas, memory) = space_with(context, &Memory::range());
        let memory = Memory::of(memory);
        let (descriptor, root) = (memory.table(), memory.table());
        memory.describe(descriptor, root, ASID);
        memory.map(root, IOVA, PAGES[0], Allows::All);
        let parent = Hwpt::paging(device, &ioas, HwptFlags::NEST_PARENT).expect("a parent");
        let viommu = Viommu::new(device, &parent, VIOMMU, &mut []).expect("a vIOMMU");
        let _vdevice = Vdevice::new(&viommu, device, 0x10).expect("a StreamID");
        let entry = stage_1(descriptor).map(u64::to_le_bytes);
        let parent = NestedParent::Viommu(viommu.clone());
        let flags = HwptFlags::empty();
        let nested = Hwpt::nested(device, parent, flags, HWPT_DATA, entry.as_flattened(), None);
        let nested = nested.expect("a nested page table");
        Guest { memory, root, viommu, nested, ioas: ioas.id(), _vdevice }
    }

    fn lead_to(&self, page: u64) {
        self.memory.map(self.root, IOVA, page, Allows::All);
    }

    /// Which of the pages a write reaches.
    fn written(&self, testdev: &Testdev) -> [bool; 2] {
        self.memory.written(testdev, IOVA, PAGES).expect("it is carried out")
    }
}

/// `CMD_TLBI_NH_ASID`.
const INVALIDATE_ALL: [u64; 2] = [0x11 | ASID << 48, 0];
const UNKNOWN: [u64; 2] = [0xff, 0];

#[test]
fn a_changed_entry_counts_from_its_invalidation_on() {
    let context = context();
    let testdev = Testdev::open();
    let number = testdev.device.bind(&context).expect("it binds");
    let guest = Guest::new(&context, number);
    testdev.device.attach(&PageTable::Hwpt(guest.nested.clone()), None).expect("it is attached");
    assert_eq!(guest.written(&testdev), [true, false]);
    guest.lead_to(PAGES[1]);
    assert_eq!(guest.written(&testdev), [true, false], "QEMU's SMMUv3 has a cache");
    guest.viommu.invalidate(INVALIDATE_DATA, &[INVALIDATE_ALL]).expect("it is done");
    assert_eq!(guest.written(&testdev), [false, true]);

    guest.lead_to(PAGES[0]);
    let stopped = guest.viommu.invalidate(INVALIDATE_DATA, &[INVALIDATE_ALL, UNKNOWN, INVALIDATE_ALL]);
    let stopped = stopped.expect_err("no such command");
    assert_eq!((stopped.done, stopped.error.errno()), (1, Errno::IO));
    assert_eq!(guest.written(&testdev), [true, false], "the one before was done");
    testdev.device.detach(None).expect("it is detached");
}

/// A vDEVICE goes with its device, before its owner does.
#[test]
fn a_device_that_leaves_takes_its_number_in_the_viommu_along() {
    let context = context();
    let testdev = Testdev::open();
    let number = testdev.device.bind(&context).expect("it binds");
    let guest = Guest::new(&context, number);
    let ioas = guest.ioas;
    drop(testdev);
    Ioas::of_another(&context, ioas).map(drop).expect("it is there");
    drop(guest);
    // It is the last to go: it can when nothing that was made of it is left.
    assert_eq!(errno(Ioas::of_another(&context, ioas)), Errno::NOENT);
}
