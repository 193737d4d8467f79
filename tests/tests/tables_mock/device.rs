// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mock device as the daemon gets it, of which the test keeps a hold: what was attached to it, and whether it may be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vhost_user_iommu::vfio::HostDevice;
use viommu_nested::mock::{MockDevice, check_iotlb};
use viommu_nested::object::{Context, Hwpt, PageTable};
use viommu_nested::{Attach, DeviceId, Result};

use crate::group::Member;

/// The device; clones are the same.
#[derive(Clone, Debug)]
pub struct Mock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    member: Member,
    /// The page tables that this device, and its PASIDs, were attached to last; not those that others of its group were.
    attached: Mutex<BTreeMap<Option<u32>, Weak<Hwpt>>>,
    /// Who attaches or detaches holds it.
    gate: Mutex<()>,
    /// How often somebody has come to the gate.
    comings: AtomicU32,
    is_quiet: AtomicBool,
}

impl Mock {
    pub fn of(member: Member) -> Mock {
        Mock(Arc::new(Shared {
            member,
            attached: Mutex::default(),
            gate: Mutex::default(),
            comings: AtomicU32::new(0),
            is_quiet: AtomicBool::new(false),
        }))
    }

    /// The kernel's device.
    pub fn mock(&self) -> &MockDevice {
        self.0.member.mock()
    }

    /// It as one of its group.
    pub fn member(&self) -> &Member {
        &self.0.member
    }

    /// As long as this is held, nobody attaches or detaches it: whoever tries waits.
    pub fn close(&self) -> MutexGuard<'_, ()> {
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often somebody tried to attach or detach it.
    pub fn comings(&self) -> u32 {
        self.0.comings.load(Ordering::SeqCst)
    }

    /// Whether its DMA is off, as after a reset.
    pub fn set_quiet(&self, is_quiet: bool) {
        self.0.is_quiet.store(is_quiet, Ordering::SeqCst);
    }

    /// The kernel has the device, or its PASID, at the guest's table that the mock driver knows by this word.
    #[track_caller]
    pub fn assert_at(&self, pasid: Option<u32>, word: u32) {
        let hwpt = self.hwpt(pasid).expect("it is attached to a page table");
        // The kernel has the device itself as PASID 0.
        let checked = self.mock().check_pasid(pasid.unwrap_or(0), Some(&hwpt));
        checked.expect("the kernel has it at the page table that it was attached to");
        assert!(check_iotlb(&hwpt, KEPT_SLOT, word).is_ok(), "it is another table than {word:#x}");
    }

    /// The kernel has nothing for a PASID.
    #[track_caller]
    pub fn assert_free(&self, pasid: u32) {
        self.mock().check_pasid(pasid, None).expect("the kernel has no page table for the PASID");
    }

    /// The page table that it was attached to, as long as it exists.
    pub fn hwpt(&self, pasid: Option<u32>) -> Option<Arc<Hwpt>> {
        self.attached().get(&pasid)?.upgrade()
    }

    /// What the cache of a page table holds in its slots: its word, or nothing.
    pub fn iotlb(&self, pasid: Option<u32>, word: u32) -> [bool; 4] {
        let hwpt = self.hwpt(pasid).expect("it is attached to a page table");
        [0, 1, 2, 3].map(|slot| {
            let is_kept = check_iotlb(&hwpt, slot, word).is_ok();
            assert_eq!(check_iotlb(&hwpt, slot, 0).is_ok(), !is_kept, "slot {slot} holds something else");
            is_kept
        })
    }

    /// Which slots of the device's own cache still hold what they held.
    pub fn cache(&self) -> [bool; 4] {
        [0, 1, 2, 3].map(|slot| {
            let is_kept = self.mock().check_cache(slot, CACHED).is_ok();
            assert_eq!(
                self.mock().check_cache(slot, 0).is_ok(),
                !is_kept,
                "slot {slot} holds something else"
            );
            is_kept
        })
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<Option<u32>, Weak<Hwpt>>> {
        self.0.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn come(&self) -> MutexGuard<'_, ()> {
        self.0.comings.fetch_add(1, Ordering::SeqCst);
        self.close()
    }
}

/// A slot of a page table's cache that tests of attachments never invalidate.
const KEPT_SLOT: u32 = 0;
/// What a slot of a device's cache holds before it is invalidated.
const CACHED: u32 = 0xba_ddad;

impl Attach for Mock {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        let _alone = self.come();
        self.0.member.attach(table, pasid)?;
        match table {
            PageTable::Hwpt(hwpt) => drop(self.attached().insert(pasid, Arc::downgrade(hwpt))),
            PageTable::Auto(_) => drop(self.attached().remove(&pasid)),
        }
        Ok(())
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let _alone = self.come();
        self.0.member.detach(pasid)?;
        self.attached().remove(&pasid);
        Ok(())
    }

    fn number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        self.0.member.number(context)
    }

    fn is_bound(&self) -> bool {
        self.0.member.is_bound()
    }
}

impl HostDevice for Mock {
    fn is_quiet(&self) -> bool {
        self.0.is_quiet.load(Ordering::SeqCst)
    }
}
