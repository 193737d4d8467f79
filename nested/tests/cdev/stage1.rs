// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA through page tables of a guest: what its entries lead to, and what invalidations make of a change.
//!
//! To read first: "Stream Table Entry", "Context Descriptor" and "Commands" in Arm's SMMUv3 specification.

use viommu_nested::DeviceId;
use vm_memory::{Bytes, VolatileMemory};

use super::testdev::{PATTERN, Testdev};
use super::*;

/// `IOMMU_HWPT_DATA_ARM_SMMUV3`.
const HWPT_DATA: u32 = 2;
/// `IOMMU_VIOMMU_TYPE_ARM_SMMUV3`.
const VIOMMU: u32 = 1;
/// `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3`.
const INVALIDATE_DATA: u32 = 1;

/// Where the guest's memory is, and what is in it.
const GPA: u64 = 0x4000_0000;
const DESCRIPTOR: u64 = GPA;
const TABLES: [u64; 4] = [GPA + 0x1000, GPA + 0x2000, GPA + 0x3000, GPA + 0x4000];
const PAGES: [u64; 2] = [GPA + 0x5000, GPA + 0x6000];

const ASID: u64 = 7;

/// A guest that has the device at StreamID 0x10.
struct Guest {
    memory: MmapRegion,
    viommu: Arc<Viommu>,
    nested: Arc<Hwpt>,
    ioas: u32,
    _vdevice: Vdevice,
}

impl Guest {
    fn new(context: &Arc<Context>, device: DeviceId) -> Guest {
        let range = IovaRange::from_length(GPA, 0x10_0000).expect("it fits");
        let (ioas, memory) = space_with(context, &range);
        let parent = Hwpt::paging(device, &ioas, HwptFlags::NEST_PARENT).expect("a parent");
        let viommu = Viommu::new(device, &parent, VIOMMU, &mut []).expect("a vIOMMU");
        let _vdevice = Vdevice::new(&viommu, device, 0x10).expect("a StreamID");
        // Valid, with stage 1; caching and shareability of the descriptor.
        let entry = [1 | 0b101 << 1 | DESCRIPTOR, 1 << 2 | 1 << 4 | 3 << 6];
        let entry = entry.map(u64::to_le_bytes);
        let parent = NestedParent::Viommu(viommu.clone());
        let flags = HwptFlags::empty();
        let nested = Hwpt::nested(device, parent, flags, HWPT_DATA, entry.as_flattened(), None);
        let guest =
            Guest { memory, viommu, nested: nested.expect("a nested page table"), ioas: ioas.id(), _vdevice };
        guest.fill_tables();
        guest
    }

    fn write(&self, gpa: u64, value: u64) {
        let offset = (gpa - GPA) as usize;
        self.memory.as_volatile_slice().write_obj(value, offset).expect("it is there");
    }

    /// The first word of a page, which is taken away.
    fn take(&self, gpa: u64) -> u64 {
        let value = self.memory.as_volatile_slice().read_obj((gpa - GPA) as usize).expect("it is there");
        self.write(gpa, 0);
        value
    }

    /// 48 bits of addresses in pages of 4 KiB, for [`IOVA`], which leads to the first page.
    fn fill_tables(&self) {
        let size_and_attributes = 16 | 1 << 8 | 1 << 10 | 3 << 12;
        let (one_table_valid, output_44_bits, aarch64) = (3 << 30, 4 << 32, 1 << 41);
        let faults_are_recorded_and_end = 3 << 45;
        let own_asid = 1 << 47 | ASID << 48;
        let first =
            size_and_attributes | one_table_valid | output_44_bits | aarch64 | faults_are_recorded_and_end;
        self.write(DESCRIPTOR, first | own_asid);
        self.write(DESCRIPTOR + 8, TABLES[0]);
        // Normal memory.
        self.write(DESCRIPTOR + 24, 0xff);
        for (level, pair) in TABLES.windows(2).enumerate() {
            let index = IOVA >> (39 - 9 * level) & 511;
            self.write(pair[0] + 8 * index, pair[1] | 3);
        }
        self.lead_to(PAGES[0]);
    }

    fn lead_to(&self, page: u64) {
        let (access, inner_shareable, readable_and_writable, not_global) = (1 << 10, 3 << 8, 1 << 6, 1 << 11);
        let attributes = access | inner_shareable | readable_and_writable | not_global;
        self.write(TABLES[3] + 8 * (IOVA >> 12 & 511), page | attributes | 3);
    }

    /// Which of the pages a write reaches.
    fn written(&self, testdev: &Testdev) -> [bool; 2] {
        assert!(testdev.writes(IOVA));
        PAGES.map(|page| self.take(page) == u64::from(PATTERN))
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
