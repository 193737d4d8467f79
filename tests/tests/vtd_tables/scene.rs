// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices behind VT-d, a daemon and a VMM that share them, and a guest whose requests are compared with what the hardware is
//! told.

use anyhow::{Result, ensure};
use viommu_core::Status;
use viommu_core::wire::{DescriptorIntelPt, FORMAT_INTEL_PT, ReqAttachTable, ReqInvalidate};
use viommu_tests::daemon::Daemon;
use viommu_tests::model::request::{self, Wire, attach_pt, attach_table};
use viommu_tests::vfio_vmm::{Function, Launch, TestDevice, VfioVmm};
use zerocopy::FromBytes;

use crate::descriptor::{Block, Descriptor};
use crate::entry::Entry;
use crate::trace::Trace;

pub const OK: u8 = Status::Ok as u8;
pub const UNSUPP: u8 = Status::Unsupp as u8;
pub const INVAL: u8 = Status::Inval as u8;
pub const RANGE: u8 = Status::Range as u8;
pub const NOENT: u8 = Status::NoEnt as u8;
pub const FAULT: u8 = Status::Fault as u8;
pub const PAGE: u64 = 0x1000;

/// Where tables begin. Nothing is in them: no hardware here walks them.
pub const ROOTS: [u64; 4] =
    [VfioVmm::LOW + (16 << 20), VfioVmm::LOW + (17 << 20), VfioVmm::MIDDLE, VfioVmm::HIGH + (2 << 20)];

/// A guest whose devices are the endpoints 00:03.0 and so on.
pub struct Bed {
    pub vmm: VfioVmm,
    pub trace: Trace,
    pub addresses: Vec<String>,
    _daemon: Daemon,
}

/// The `iommu-testdev`s, which have no device TLB.
pub fn plain() -> Result<Vec<Function>> {
    of_id(TestDevice::ID)
}

/// Sources of random numbers, which have one (the capability ATS).
pub fn with_ats() -> Result<Vec<Function>> {
    of_id((0x1af4, 0x1044))
}

fn of_id((vendor, device): (u16, u16)) -> Result<Vec<Function>> {
    let found = Function::all(vendor, device)?;
    ensure!(found.len() == 2, "{} functions {vendor:x}:{device:x}", found.len());
    Ok(found)
}

impl Bed {
    /// With these functions, attached to nothing yet.
    pub fn new(functions: &[Function]) -> Result<Bed> {
        Bed::of(functions, Launch::of(functions)?.with_pasids())
    }

    /// The same with what a launcher has opened.
    pub fn of(functions: &[Function], launch: Launch) -> Result<Bed> {
        let daemon = launch.daemon(&["--mode", "table"])?;
        let vmm = VfioVmm::running(launch)?;
        let addresses = functions.iter().map(|function| function.address[5..].to_owned()).collect();
        Ok(Bed { vmm, trace: Trace::begin(), addresses, _daemon: daemon })
    }

    /// Device `n` is in domain 1 with the table at the `n`th of [`ROOTS`].
    pub fn attached(functions: &[Function]) -> Result<Bed> {
        let mut bed = Bed::new(functions)?;
        for (device, root) in (0..functions.len()).zip(ROOTS) {
            bed.attach(1, device, None, root);
        }
        Ok(bed)
    }

    /// A request that is done: what the hardware is told meanwhile.
    #[track_caller]
    pub fn done(&mut self, request: &impl Wire) -> Vec<Descriptor> {
        self.answered(request, OK)
    }

    /// A request that is refused before the hardware is told anything.
    #[track_caller]
    pub fn refused(&mut self, request: &impl Wire, status: u8) {
        let before = self.entries();
        assert_eq!(self.answered(request, status), [], "{:02x?}", request.readable());
        assert_eq!(self.entries(), before, "{:02x?}", request.readable());
    }

    #[track_caller]
    fn answered(&mut self, request: &impl Wire, status: u8) -> Vec<Descriptor> {
        self.trace.take();
        assert_eq!(self.vmm.send(request).expect("a reply"), status, "{:02x?}", request.readable());
        self.trace.take()
    }

    /// ATTACH_TABLE.
    #[track_caller]
    pub fn attach(&mut self, domain: u32, device: usize, pasid: Option<u32>, root: u64) -> Vec<Descriptor> {
        let request = attach_pt(domain, self.endpoint(device), pasid, root);
        self.done(&request)
    }

    pub fn endpoint(&self, device: usize) -> u32 {
        self.vmm.endpoint(device).0
    }

    /// The entry of a device's PASID; 0 is that of accesses without one.
    pub fn entry(&self, device: usize, pasid: u32) -> Option<Entry> {
        Entry::of(&self.addresses[device], pasid)
    }

    /// The number under which caches hold what that leads to.
    #[track_caller]
    pub fn domain(&self, device: usize, pasid: u32) -> u16 {
        self.entry(device, pasid).expect("it is attached").domain
    }

    fn entries(&self) -> Vec<Option<Entry>> {
        (0..self.addresses.len())
            .flat_map(|device| [0, 5, 6].map(|pasid| self.entry(device, pasid)))
            .collect()
    }

    /// The device as requests on its bus name it.
    pub fn source(&self, device: usize) -> u16 {
        let part = |range| u16::from_str_radix(&self.addresses[device][range], 16).expect("BB:DD.F");
        part(0..2) << 8 | part(3..5) << 3 | part(6..7)
    }

    /// What has to be forgotten of pages, but for what devices hold.
    pub fn pages(&self, device: usize, pasid: u32, block: Block, leaf: bool) -> Descriptor {
        if block == Block::ALL {
            return Descriptor::Pasid { domain: self.domain(device, pasid), pasid };
        }
        Descriptor::Pages { domain: self.domain(device, pasid), pasid, block, leaf }
    }

    pub fn all(&self, device: usize, pasid: u32) -> Descriptor {
        self.pages(device, pasid, Block::ALL, false)
    }
}

/// ATTACH_TABLE of an endpoint with more to it.
pub fn attach_with(
    domain: u32,
    endpoint: u32,
    change: impl FnOnce(&mut DescriptorIntelPt),
) -> ReqAttachTable {
    let request = attach_pt(domain, endpoint, None, ROOTS[1]);
    let mut descriptor = DescriptorIntelPt::read_from_bytes(&request.descriptor).expect("its size");
    change(&mut descriptor);
    attach_table(domain, endpoint, FORMAT_INTEL_PT, &descriptor)
}

/// INVALIDATE of pages of 4 KiB in domain 1.
pub fn pages(start: u64, count: u64) -> ReqInvalidate {
    request::invalidate_pages(1, start, count, 12)
}

/// The same for this PASID alone.
pub fn of_pasid(pasid: u32, what: ReqInvalidate) -> ReqInvalidate {
    let flags = what.flags.get() | viommu_core::wire::INVALIDATE_F_PASID;
    ReqInvalidate { flags: flags.into(), pasid: pasid.into(), ..what }
}

/// The same of entries that map pages alone.
pub fn of_leaves(what: ReqInvalidate) -> ReqInvalidate {
    let flags = what.flags.get() | viommu_core::wire::INVALIDATE_F_LEAF;
    ReqInvalidate { flags: flags.into(), ..what }
}
