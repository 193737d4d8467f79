// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finds the pieces that the host and its guests are made of.
//!
//! It fetches and builds nothing itself: `scripts/testbed l1` and `scripts/testbed l2` do.

use std::path::PathBuf;

use anyhow::Result;

use crate::guest::{Pieces, or_skip};
use crate::l1::{self, Machine};

/// Where the pieces of the host are, and what runs guests in it.
#[derive(Clone, Debug)]
pub struct Testbed {
    /// The host; its kernel, firmware and busybox are its guests' too.
    pub host: l1::Testbed,
    /// The host's `/usr`: QEMU for arm64 with its libraries.
    pub usr: PathBuf,
}

impl Testbed {
    /// Finds the test bed; on a machine's first run this fetches it and builds the kernel, which takes minutes.
    ///
    /// # Errors
    /// `scripts/testbed` failed: the reason it gave is in the error.
    pub fn find() -> Result<Self> {
        let host = l1::Testbed::find()?;
        Ok(Self { host, usr: Pieces::find(Some("l2"))?.path("HOST_USR")? })
    }

    /// [`Testbed::find`] for a test. Where there is no test bed the test fails, unless the environment variable
    /// `SKIP_WITHOUT_TESTBED` is set: then this prints the reason and returns `None`, and the test returns.
    ///
    /// # Errors
    /// As [`Testbed::find`].
    pub fn find_for_test() -> Result<Option<Self>> {
        or_skip(Self::find())
    }

    /// A host with memory for guests, to be given devices.
    pub fn machine(&self) -> Machine {
        Machine::new(&self.host).memory_mib(2048)
    }
}
