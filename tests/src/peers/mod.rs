// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mapping engine and what it is measured against, behind the same traits.
//!
//! [`Engine`] is ours, [`Ordered`] the best we can make of std's `BTreeMap`, [`CloudHypervisor`] and [`Crosvm`] do
//! what those VMMs do, [`Array`] is what no engine can beat. [`Layout`] says where mappings lie and [`Random`] in which order they are taken. Measures
//! nothing itself: the benchmarks do.

mod array;
mod engine;
mod layout;
mod ordered;
mod random;
#[cfg(test)]
mod tests;
mod vmms;

use viommu_core::mapping::Mapping;
use viommu_core::{Access, Gpa, IovaRange, Target};

pub use array::Array;
pub use engine::{Engine, EngineReader};
pub use layout::{Layout, PAGE};
pub use ordered::{Locked, Ordered};
pub use random::Random;
pub use vmms::{CloudHypervisor, Crosvm};

/// Finds where an access leads.
pub trait Lookup {
    /// The GPA of `length` bytes, at least one, at `iova`, if one mapping holds them all and allows `access`.
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa>;
}

/// Holds the mappings of one domain.
pub trait Store: Lookup {
    /// Adds a mapping, unless it overlaps another; says whether it did.
    fn map(&mut self, mapping: Mapping) -> bool;

    /// Removes the mappings within `range` and says how many; `None`, and no change, when it would cut through one.
    fn unmap(&mut self, range: &IovaRange) -> Option<usize>;
}

/// A [`Store`] that other threads look into while one thread maps.
pub trait Shared: Store + Default {
    /// What the thread that maps has.
    type Writer: Store + Send;
    /// What a thread that looks up has.
    type Reader: Lookup + Send;

    /// Lets `work` have both of them.
    fn share<T>(&mut self, work: impl FnOnce(&mut Self::Writer, &mut Self::Reader) -> T) -> T;

    /// Hands every mapping to `each`, in order of IOVA.
    fn replay(&self, each: impl FnMut(Mapping));
}

/// The mapping of `range` that all stores are given: its GPA is a multiple of [`PAGE`] below 1 TiB, and has no pattern
/// that a store could make use of. Readable and writable.
#[inline]
pub fn mapping(range: IovaRange) -> Mapping {
    let page = range.start().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36;
    Mapping { range, target: Target { gpa: Gpa(page * PAGE), access: Access::all(), mmio: false } }
}

/// Where an access leads by the mapping around `iova`, if that holds and allows all of it.
#[inline]
fn translated(mapping: Mapping, iova: u64, length: u64, access: Access) -> Option<Gpa> {
    let Mapping { range, target } = mapping;
    let allowed = target.access.contains(access) && length - 1 <= range.last() - iova;
    allowed.then(|| Gpa(target.gpa.0 + (iova - range.start())))
}
