// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `BTreeMap` as two VMMs go about it, and an array as the least that memory costs, beside our engine in the same round.

use viommu_tests::peers::{Array, CloudHypervisor, Crosvm, Store, mapping};

use super::side::{lookups, pairs};
use super::table::Table;
use super::workload::{Op, Workload};

/// How often cloud-hypervisor's way is asked to unmap in a round: each time it looks at every mapping.
const SCANS: usize = 8;

/// The stores, with every mapping of a workload.
#[derive(Debug)]
pub struct Vmms {
    crosvm: Crosvm,
    cloud_hypervisor: CloudHypervisor,
    array: Array,
}

impl Vmms {
    pub fn new(workload: &Workload) -> Vmms {
        let first = workload.in_order.first().map_or(0, |range| range.start());
        let array = Array::new(first, workload.in_order.len());
        let mut vmms =
            Vmms { crosvm: Crosvm::default(), cloud_hypervisor: CloudHypervisor::default(), array };
        for range in &workload.map {
            vmms.crosvm.map(mapping(*range));
            vmms.cloud_hypervisor.map(mapping(*range));
            vmms.array.map(mapping(*range));
        }
        vmms
    }

    /// One round of `workload`, which must be that of [`Vmms::new`].
    pub fn measure(&mut self, workload: &Workload, table: &mut Table) {
        let mut add = |side, op, measured| table.add(&workload.name, op, side, measured);
        add("crosvm", Op::Pair, pairs(&mut self.crosvm, &workload.pair));
        add("crosvm", Op::Lookup, lookups(&mut self.crosvm, &workload.lookup));
        add("an array", Op::Pair, pairs(&mut self.array, &workload.pair));
        add("an array", Op::Lookup, lookups(&mut self.array, &workload.lookup));
        let few = workload.pair.len().min(SCANS);
        add("cloud-hypervisor", Op::Pair, pairs(&mut self.cloud_hypervisor, &workload.pair[..few]));
        add("cloud-hypervisor", Op::Shared, lookups(&mut self.cloud_hypervisor, &workload.lookup));
    }
}
