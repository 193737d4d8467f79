// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device asks of the outside, and the contract of whoever applies it.

use crate::{
    DomainId, EndpointId, HostError, Invalidation, IovaRange, Pasid, RequestGroup, ResponseCode, Table,
    Target,
};

/// A change that the outside must apply before the device commits it.
///
/// While a change is under way the device refuses every access that it could take away: an endpoint that
/// is being moved reaches nothing, a range that is being unmapped translates no more. Accesses that a
/// change would newly allow stay refused until it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `endpoint` leaves `from`, or the state of unattached endpoints, and enters `to`. Its PASIDs have no table any more.
    Attach {
        /// The endpoint.
        endpoint: EndpointId,
        /// The domain it leaves.
        from: Option<DomainId>,
        /// The domain it enters; it may not exist yet.
        to: DomainId,
        /// Whether that is a bypass domain.
        bypass: bool,
    },
    /// `endpoint` leaves `from` and is unattached. Its PASIDs have no table any more.
    Detach {
        /// The endpoint.
        endpoint: EndpointId,
        /// The domain it leaves.
        from: DomainId,
    },
    /// A mapping that overlaps no other.
    Map {
        /// The domain.
        domain: DomainId,
        /// The IOVAs.
        range: IovaRange,
        /// Where they lead.
        target: Target,
    },
    /// Every mapping of `domain` within `range`, none of them only in part, goes.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// The IOVAs.
        range: IovaRange,
    },
    /// `endpoint`, or one of its PASIDs, uses `table` from now on, in place of what it used. Other PASIDs stay as they are,
    /// unless the format has them in the table.
    AttachTable {
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID; accesses without one if there is none here.
        pasid: Option<Pasid>,
        /// The domain that it leaves, which may be the one that it enters.
        from: Option<DomainId>,
        /// The domain it enters; it may not exist yet.
        to: DomainId,
        /// The table. `EFAULT` is for one that lies outside of the guest's memory.
        table: Table,
    },
    /// A PASID of `endpoint` has no table any more.
    DetachPasid {
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID.
        pasid: Pasid,
        /// The domain that it leaves.
        from: DomainId,
    },
    /// What caches hold of a domain's tables is to be forgotten.
    Invalidate {
        /// The domain.
        domain: DomainId,
        /// What is concerned.
        invalidation: Invalidation,
    },
    /// The driver's answer to a group of page requests. That the outside knows none of this cookie any more, since it has
    /// answered by itself, is no error.
    Respond {
        /// Which.
        to: RequestGroup,
        /// By what the outside knows them, see [`Device::request_pages`](crate::Device::request_pages).
        cookie: u64,
        /// The answer.
        code: ResponseCode,
    },
    /// Whether unattached endpoints reach guest memory untranslated.
    SetBypass {
        /// The new value.
        enabled: bool,
    },
}

/// The outside world of a device: whatever enforces its decisions on real endpoints.
pub trait Host {
    /// Applies `change` to everything concerned, all of it or none.
    ///
    /// When this returns `Ok` for a change that takes access away, no endpoint concerned can use it any
    /// more: caches are invalidated and accesses in flight are done. After an error everything is as it
    /// was before, as far as the outside can make it so; the device then keeps its old state.
    ///
    /// # Errors
    /// The operation that failed and its errno.
    fn apply(&mut self, change: &Change) -> Result<(), HostError>;
}

/// A host with nothing behind it, for devices whose endpoints ask [`Device::translate`] each time.
///
/// [`Device::translate`]: crate::Device::translate
#[derive(Debug)]
pub struct NoHost;

impl Host for NoHost {
    fn apply(&mut self, _: &Change) -> Result<(), HostError> {
        Ok(())
    }
}
