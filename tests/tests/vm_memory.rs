// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The adapter to vm-memory: a device's accesses through `IommuMemory`, as a VMM would wire them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use viommu_core::vm_memory::EndpointIommu;
use viommu_core::{Change, Device, DeviceConfig, EndpointId, Features, Host, HostError, IovaRange, Limits};
use viommu_tests::model::request::{self, Wire};
use vm_memory::iommu::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Iommu, IommuMemory, Permissions};

const EP: u32 = 8;
const READ: u32 = 1;
const READ_WRITE: u32 = 3;

/// A VMM with one endpoint.
struct Vmm {
    device: Device,
    iommu: Arc<EndpointIommu>,
}

struct Applied<'a>(&'a EndpointIommu);

impl Host for Applied<'_> {
    fn apply(&mut self, change: &Change) -> Result<(), HostError> {
        match change {
            Change::Map { .. } => {}
            Change::Unmap { range, .. } => self.0.invalidate(range),
            _ => self.0.block(),
        }
        Ok(())
    }
}

impl Vmm {
    fn new(boot_bypass: bool, iommu: Arc<EndpointIommu>) -> Vmm {
        let config = DeviceConfig {
            mode: viommu_core::Mode::Map,
            page_size_mask: 0x1000,
            aperture: IovaRange::ALL,
            domain_ids: 0..=u32::MAX,
            boot_bypass,
            limits: Limits::default(),
            endpoints: vec![EndpointId(EP)],
        };
        let mut device = Device::new(config).expect("it can be served");
        device.negotiate(Features::OFFERED.bits());
        iommu.follow(&device, EndpointId(EP));
        Vmm { device, iommu }
    }

    fn attached() -> Vmm {
        let mut vmm = Vmm::new(false, Arc::default());
        vmm.send(request::attach(1, EP));
        vmm
    }

    /// Sends a request that is accepted.
    fn send(&mut self, request: impl Wire) {
        let attachment = self.device.domain_of(EndpointId(EP));
        let reply = self.device.handle(&request.readable(), request.writable(), &mut Applied(&self.iommu));
        assert!(reply.rejected.is_none(), "{:?}", reply.rejected);
        if self.device.domain_of(EndpointId(EP)) != attachment {
            self.iommu.follow(&self.device, EndpointId(EP));
        }
    }

    /// Where an access leads, as GPA and length of each piece.
    fn pieces(&self, iova: u64, length: usize, access: Permissions) -> Result<Vec<(u64, usize)>, Error> {
        let pieces = self.iommu.translate(GuestAddress(iova), length, access)?;
        Ok(pieces.map(|piece| (piece.base.0, piece.length)).collect())
    }
}

#[test]
fn a_device_reads_and_writes_guest_memory_through_its_mappings() {
    let backend = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).expect("memory");
    let memory = IommuMemory::new(backend.clone(), EndpointIommu::new(), true, ());
    let mut vmm = Vmm::new(false, memory.iommu().clone());
    vmm.send(request::attach(1, EP));
    vmm.send(request::map(1, (0x10_0000, 0x10_0fff), 0x3000, READ_WRITE));
    vmm.send(request::map(1, (0x10_1000, 0x10_1fff), 0x1000, READ_WRITE));
    vmm.send(request::map(1, (0x10_2000, 0x10_2fff), 0x5000, READ));

    memory.write_slice(&[1, 2, 3, 4], GuestAddress(0x10_0ffe)).expect("both are mapped");
    let mut bytes = [0; 2];
    backend.read_slice(&mut bytes, GuestAddress(0x3ffe)).expect("in memory");
    assert_eq!(bytes, [1, 2]);
    backend.read_slice(&mut bytes, GuestAddress(0x1000)).expect("in memory");
    assert_eq!(bytes, [3, 4]);
    memory.read_slice(&mut bytes, GuestAddress(0x10_2000)).expect("it may read");
    memory.write_slice(&bytes, GuestAddress(0x10_2000)).expect_err("it may not write");
    memory.read_slice(&mut bytes, GuestAddress(0x10_2fff)).expect_err("the second byte is not mapped");
}

#[test]
fn what_was_unmapped_is_not_translated_and_what_is_mapped_anew_is() {
    let mut vmm = Vmm::attached();
    vmm.send(request::map(1, (0x1000, 0x1fff), 0x8000, READ));
    vmm.send(request::map(1, (0x2000, 0x2fff), 0x9000, READ));
    assert_eq!(vmm.pieces(0x1ff0, 0x20, Permissions::Read).expect("mapped").len(), 1);
    vmm.send(request::unmap(1, (0x1000, 0x1fff)));
    vmm.pieces(0x1ff0, 1, Permissions::Read).expect_err("unmapped");
    assert_eq!(vmm.pieces(0x2000, 1, Permissions::Read).expect("still mapped"), [(0x9000, 1)]);
    vmm.send(request::map(1, (0x1000, 0x1fff), 0x4000, READ_WRITE));
    assert_eq!(vmm.pieces(0x1ff0, 1, Permissions::ReadWrite).expect("mapped"), [(0x4ff0, 1)]);
    vmm.send(request::unmap(1, (0, u64::MAX)));
    vmm.pieces(0x2000, 1, Permissions::Read).expect_err("unmapped");
}

#[test]
fn an_endpoint_reaches_what_it_is_attached_to_and_nothing_else() {
    let mut vmm = Vmm::new(true, Arc::default());
    assert_eq!(vmm.pieces(0x1234, 8, Permissions::ReadWrite).expect("bypassed"), [(0x1234, 8)]);
    vmm.send(request::attach(1, EP));
    vmm.pieces(0x1234, 8, Permissions::Read).expect_err("nothing is mapped");
    vmm.send(request::map(1, (0x1000, 0x1fff), 0x8000, READ));
    vmm.pieces(0x1234, 8, Permissions::Read).expect("mapped");
    vmm.send(request::attach_bypass(2, EP));
    assert_eq!(vmm.pieces(0x1234, 8, Permissions::Write).expect("bypassed"), [(0x1234, 8)]);
    vmm.send(request::detach(2, EP));
    vmm.pieces(0x1234, 8, Permissions::Write).expect("bypassed, being unattached");
    vmm.iommu.block();
    vmm.pieces(0x1234, 8, Permissions::Write).expect_err("blocked");
}

#[test]
fn the_ends_of_the_space_and_empty_accesses_do_no_harm() {
    let mut vmm = Vmm::attached();
    vmm.send(request::map(1, (u64::MAX - 0xfff, u64::MAX), 0x8000, READ));
    assert_eq!(vmm.pieces(u64::MAX - 0xfff, 0xfff, Permissions::Read).expect("mapped"), [(0x8000, 0xfff)]);
    vmm.pieces(u64::MAX, 1, Permissions::Read).expect_err("the last byte cannot be expressed");
    vmm.pieces(u64::MAX - 1, 2, Permissions::Read).expect_err("nor can a range with it");
    vmm.pieces(2, usize::MAX, Permissions::Read).expect_err("it passes the end");
    assert_eq!(vmm.pieces(0x1000, 0, Permissions::Read).expect("no byte is accessed"), []);
    vmm.send(request::unmap(1, (u64::MAX - 0xfff, u64::MAX)));
    vmm.pieces(u64::MAX - 0xfff, 1, Permissions::Read).expect_err("unmapped");
}

#[test]
fn an_unattached_endpoint_reaches_nothing_unless_it_bypasses() {
    let mut vmm = Vmm::new(false, Arc::default());
    vmm.pieces(0x1234, 8, Permissions::Read).expect_err("it is unattached");
    vmm.send(request::attach_bypass(1, EP));
    vmm.send(request::detach(1, EP));
    vmm.pieces(0x1234, 8, Permissions::Read).expect_err("it is unattached again");
}

#[test]
fn the_last_byte_can_be_invalidated_by_itself_and_takes_nothing_else_away() {
    let vmm = Vmm::new(true, Arc::default());
    assert_eq!(vmm.pieces(0x1234, 8, Permissions::Read).expect("bypassed"), [(0x1234, 8)]);
    vmm.iommu.invalidate(&request::range(u64::MAX, u64::MAX));
    assert_eq!(vmm.pieces(0x1234, 8, Permissions::Read).expect("bypassed"), [(0x1234, 8)]);
}

#[test]
fn an_access_through_very_many_mappings_succeeds_whatever_was_looked_up_before() {
    let mut vmm = Vmm::attached();
    for page in 0..8_000u64 {
        vmm.send(request::map(1, (page << 12, page << 12 | 0xfff), page << 13, READ));
    }
    for pages in [4_000, 8_000] {
        let pieces = vmm.pieces(0, pages << 12, Permissions::Read).expect("mapped");
        assert_eq!(pieces.len(), pages);
    }
}

/// The driver maps a page to one place after another. What a thread finds is never older than the last UNMAP that
/// was answered before it looked.
#[test]
fn a_translation_is_never_older_than_the_last_unmap_that_was_answered() {
    const ROUNDS: u64 = 20_000;
    let mut vmm = Vmm::attached();
    let (answered, found, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let iommu = vmm.iommu.clone();
    thread::scope(|scope| {
        let translating = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let unmapped = answered.load(Ordering::Acquire);
                if let Ok(mut pieces) = iommu.translate(GuestAddress(0x1000), 8, Permissions::Read) {
                    let round = pieces.next().expect("a piece").base.0 >> 12;
                    assert!(round > unmapped, "mapping {round} after the UNMAP of {unmapped}");
                    found.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 1..=ROUNDS {
            vmm.send(request::map(1, (0x1000, 0x1fff), round << 12, READ));
            vmm.send(request::unmap(1, (0x1000, 0x1fff)));
            answered.store(round, Ordering::Release);
        }
        vmm.send(request::map(1, (0x1000, 0x1fff), (ROUNDS + 1) << 12, READ));
        while found.load(Ordering::Relaxed) == 0 && !translating.is_finished() {
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        translating.join().expect("no translation was stale");
    });
    assert_eq!(vmm.pieces(0x1000, 8, Permissions::Read).expect("mapped"), [((ROUNDS + 1) << 12, 8)]);
}
