// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The IOTLB: what the front-end has said that the device may reach, and the misses that ask for more.
//!
//! An access holds the entries that it uses until it is done, so an invalidation returns only after it; no entry is
//! held while a miss waits.
//!
//! Read first: "IOMMU support" in `vhost-user.rst`.

use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use anyhow::{bail, ensure};
use vhost_user_iommu::message::{Access, Channel, IotlbMessage};
use vm_memory::iommu::{Error, Iommu, Iotlb, IotlbFails, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Permissions};

use super::backend_channel::{Answer, BackendChannel, Replies};
use super::record::Event;
use super::wait::Stop;
use super::{Shared, lock};

/// How often in succession an access asks for the same address: an answered miss whose entry is invalidated before
/// it could be used is asked for again, but not for ever.
const REPEATED_MISSES_MAX: u32 = 8;

/// The IOTLB of one connection.
#[derive(Debug)]
pub(super) struct Tlb {
    shared: Arc<Shared>,
    entries: RwLock<Iotlb>,
    /// How many updates have been taken, for those who wait for the next one.
    updates: Mutex<u64>,
    updated: Condvar,
    backend: Mutex<Option<BackendChannel>>,
    /// Whether somebody waits for the answer to a miss; others have to wait for him.
    asking: Mutex<bool>,
    asked: Condvar,
}

impl Tlb {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let entries = RwLock::new(Iotlb::new());
        Self {
            shared,
            entries,
            updates: Mutex::new(0),
            updated: Condvar::new(),
            backend: Mutex::new(None),
            asking: Mutex::new(false),
            asked: Condvar::new(),
        }
    }

    /// Sends our requests over this channel from now on.
    pub(super) fn set_backend_channel(&self, channel: Channel, replies: Replies) {
        *lock(&self.backend) = Some(BackendChannel::new(channel, replies));
    }

    /// Takes an entry. Whether its target exists is for the caller to check.
    pub(super) fn update(&self, update: &IotlbMessage) -> anyhow::Result<()> {
        let IotlbMessage { iova, size, user_address, access, .. } = *update;
        ensure!(size > 0, "empty update");
        // The vm-memory IOTLB has exclusive ends, and so no entry for the last byte of the address space.
        ensure!(iova.checked_add(size).is_some(), "update at {iova:#x} reaches the end of the address space");
        let permissions = match access {
            Access::READ => Permissions::Read,
            Access::WRITE => Permissions::Write,
            Access::READ_WRITE => Permissions::ReadWrite,
            Access(other) => bail!("update with access {other}"),
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.set_mapping(
            GuestAddress(iova),
            GuestAddress(user_address),
            usize::try_from(size)?,
            permissions,
        )?;
        drop(entries);
        self.shared.record.add(Event::Update { iova, size, user_address, access });
        *lock(&self.updates) += 1;
        self.updated.notify_all();
        Ok(())
    }

    /// Forgets a range, when the last access that uses it is done.
    pub(super) fn invalidate(&self, iova: u64, size: u64) {
        self.shared.record.add(Event::Invalidate { iova, size });
        let len = size.min(u64::MAX - iova);
        if len > 0 {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            entries.invalidate_mapping(GuestAddress(iova), len as usize);
        }
    }

    /// Forgets everything.
    pub(super) fn flush(&self) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).invalidate_all();
    }

    /// Makes those who wait look whether they are cancelled.
    pub(super) fn wake(&self) {
        let _updates = lock(&self.updates);
        self.updated.notify_all();
        let _asking = lock(&self.asking);
        self.asked.notify_all();
    }

    /// Asks for an address, and waits until the question is answered.
    pub(super) fn miss(&self, iova: u64, access: Access, cancel: &Stop) -> bool {
        let record = &self.shared.record;
        record.add(Event::Miss { iova, access });
        let deadline = Instant::now() + self.shared.options.miss_timeout;
        let answer = self.ask(&IotlbMessage::miss(iova, access), cancel, deadline);
        record.add(match answer {
            Ok(Answer::Granted) => Event::MissAnswered { iova, access },
            Ok(Answer::Refused) => Event::MissRefused { iova, access },
            Err(_) => Event::MissUnanswered { iova, access },
        });
        matches!(answer, Ok(Answer::Granted))
    }

    /// Asks when nobody else is asking. Whoever cancels does not have to wait for somebody else's answer.
    fn ask(&self, miss: &IotlbMessage, cancel: &Stop, deadline: Instant) -> anyhow::Result<Answer> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting = |asking: &mut bool| *asking && !cancel.is_signalled();
        let waited = self.asked.wait_timeout_while(lock(&self.asking), left, waiting);
        let mut asking = waited.unwrap_or_else(PoisonError::into_inner).0;
        ensure!(!*asking, "somebody else is asking");
        *asking = true;
        drop(asking);
        let answer = match lock(&self.backend).as_mut() {
            Some(backend) => backend.ask(miss, cancel, deadline),
            None => Err(anyhow::anyhow!("no connection for misses")),
        };
        *lock(&self.asking) = false;
        self.asked.notify_all();
        answer
    }

    /// Waits until more than `seen` updates have been taken.
    fn wait_for_update(&self, seen: u64, cancel: &Stop) -> bool {
        let waiting = |updates: &mut u64| *updates == seen && !cancel.is_signalled();
        let timeout = self.shared.options.miss_timeout;
        let waited = self.updated.wait_timeout_while(lock(&self.updates), timeout, waiting);
        *waited.unwrap_or_else(PoisonError::into_inner).0 != seen
    }
}

/// The IOTLB as one user of it sees it, who can be cancelled while he waits for a miss.
#[derive(Debug)]
pub(super) struct Translator {
    tlb: Arc<Tlb>,
    cancel: Arc<Stop>,
}

impl Translator {
    pub(super) fn new(tlb: Arc<Tlb>, cancel: Arc<Stop>) -> Self {
        Self { tlb, cancel }
    }
}

impl Iommu for Translator {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<RwLockReadGuard<'_, Iotlb>>, Error> {
        let refused = |reason: &str| {
            let iova_range = IovaRange { base: iova, length };
            Error::CannotResolve { iova_range, reason: reason.into() }
        };
        if length == 0 || iova.0.checked_add(length as u64).is_none() {
            return Err(refused("empty, or at the end of the address space"));
        }
        let wanted = if access == Permissions::Write { Access::WRITE } else { Access::READ };
        let (mut last, mut repeated) = (None, 0);
        loop {
            let seen = *lock(&self.tlb.updates);
            let entries = self.tlb.entries.read().unwrap_or_else(PoisonError::into_inner);
            let missing = match Iotlb::lookup(entries, iova, length, access) {
                Ok(found) => return Ok(found),
                Err(fails) => first_missing(&fails).ok_or_else(|| refused("not in the IOTLB"))?,
            };
            repeated = if last == Some(missing) { repeated + 1 } else { 0 };
            last = Some(missing);
            if repeated == REPEATED_MISSES_MAX {
                return Err(refused("answered misses brought no usable entry"));
            }
            if !self.tlb.miss(missing, wanted, &self.cancel) {
                return Err(refused("miss refused"));
            }
            if !self.tlb.wait_for_update(seen, &self.cancel) {
                return Err(refused("no update followed the answer"));
            }
        }
    }
}

/// The lowest address for which there is no entry, or none that allows the access.
fn first_missing(fails: &IotlbFails) -> Option<u64> {
    fails.misses.iter().chain(&fails.access_fails).map(|range| range.base.0).min()
}
