// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The address space of one domain, and which of the domain's mappings the kernel does not have.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::io::Errno;
use viommu_core::IovaRange;

use crate::error::Result;
use crate::object::{Context, Ioas, PageTable};

/// An address space that follows the mappings of a domain.
#[derive(Debug)]
pub(super) struct Space {
    ioas: Arc<Ioas>,
    /// The first IOVAs of mappings that lead nowhere: they allow nothing, or lead to the doorbell.
    idle: BTreeSet<u64>,
}

impl Space {
    pub(super) fn new(context: &Arc<Context>) -> Result<Space> {
        Ok(Space { ioas: Ioas::new(context)?, idle: BTreeSet::new() })
    }

    pub(super) fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    pub(super) fn table(&self) -> PageTable {
        PageTable::Auto(self.ioas.clone())
    }

    /// Takes note of a mapping that the kernel does not get.
    pub(super) fn keep_idle(&mut self, range: &IovaRange) {
        self.idle.insert(range.start());
    }

    /// Removes the mappings within `range`, none of which is within it only in part.
    pub(super) fn unmap(&mut self, range: &IovaRange) -> Result<()> {
        let idle: Vec<u64> = self.idle.range(range.start()..=range.last()).copied().collect();
        // The kernel counts bytes and cannot say 2^64. What so long a range leaves out is less than any mapping has.
        let is_all = range.span() >= u64::MAX - 1;
        match if is_all { self.ioas.unmap_all() } else { self.ioas.unmap(range).map(drop) } {
            // Nothing is there, as it should be where all mappings are idle. Anywhere else the kernel has not done what
            // it was asked; for one, it says the same when it does not find the address space.
            Err(error) if error.errno() != Errno::NOENT || idle.is_empty() => return Err(error),
            _ => {}
        }
        for start in idle {
            self.idle.remove(&start);
        }
        Ok(())
    }
}
