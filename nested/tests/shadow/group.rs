// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mock devices as the kernel has those of an IOMMU group: all move with any of them, and the last that is detached
//! lets go for all.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use viommu_nested::mock::MockDevice;
use viommu_nested::object::*;
use viommu_nested::{Attach, DeviceId, Result};

/// The group.
#[derive(Debug)]
pub struct Group {
    mocks: Vec<MockDevice>,
    /// To attach a mock to that is to reach nothing: it cannot be detached.
    nothing: PageTable,
    attached: Mutex<BTreeSet<usize>>,
}

/// One of its devices.
#[derive(Debug)]
pub struct Member {
    group: Arc<Group>,
    number: usize,
    is_bound: AtomicBool,
    is_stuck: AtomicBool,
}

impl Group {
    /// New devices, all attached to the VMM's address space.
    pub fn of_mocks<const N: usize>(context: &Arc<Context>, vmm: &Arc<Ioas>) -> [Member; N] {
        let table = PageTable::Auto(vmm.clone());
        let mocks: Vec<_> = (0..N).map(|_| MockDevice::new(context, &table).expect("a device")).collect();
        let empty = Ioas::new(context).expect("an address space");
        // The kernel lets a device reach nothing while a PASID reaches something.
        let nothing = Hwpt::paging(mocks[0].device(), &empty, HwptFlags::PASID).expect("a page table");
        let nothing = PageTable::Hwpt(nothing);
        let group = Arc::new(Group { mocks, nothing, attached: Mutex::new((0..N).collect()) });
        std::array::from_fn(|number| Member {
            group: group.clone(),
            number,
            is_bound: AtomicBool::new(true),
            is_stuck: AtomicBool::new(false),
        })
    }

    fn move_to(&self, table: &PageTable) -> Result<()> {
        self.mocks.iter().try_for_each(|mock| mock.attach(table, None))
    }
}

impl Member {
    /// The mock.
    pub fn mock(&self) -> &MockDevice {
        &self.group.mocks[self.number]
    }

    /// The page table that it reaches.
    pub fn hwpt(&self) -> u32 {
        self.group.mocks[self.number].hwpt()
    }

    /// Whether it reaches nothing.
    pub fn is_blocked(&self) -> bool {
        self.group.attached.lock().expect("no panic").is_empty()
    }

    pub fn set_bound(&self, is_bound: bool) {
        self.is_bound.store(is_bound, Ordering::Relaxed);
    }

    /// Whether the kernel refuses to move it, for whatever reason.
    pub fn set_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        let is_refused = !self.is_bound() || self.is_stuck.load(Ordering::Relaxed);
        // What a mock always refuses.
        if is_refused { self.group.mocks[self.number].detach(None) } else { Ok(()) }
    }
}

impl Attach for Member {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        self.check()?;
        if pasid.is_some() {
            return self.mock().attach(table, pasid);
        }
        self.group.move_to(table)?;
        self.group.attached.lock().expect("no panic").insert(self.number);
        Ok(())
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        self.check()?;
        if pasid.is_some() {
            return self.mock().detach(pasid);
        }
        let mut attached = self.group.attached.lock().expect("no panic");
        let is_last = attached.iter().all(|number| *number == self.number);
        if is_last {
            self.group.move_to(&self.group.nothing)?;
        }
        attached.remove(&self.number);
        Ok(())
    }

    fn number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        self.group.mocks[self.number].number(context)
    }

    fn is_bound(&self) -> bool {
        self.is_bound.load(Ordering::Relaxed)
    }
}
