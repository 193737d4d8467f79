// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finds the pieces that the hosts are made of.
//!
//! It fetches and builds nothing itself: `scripts/testbed` does.

use std::path::PathBuf;

use anyhow::Result;

use crate::guest::{Pieces, or_skip};

/// Where QEMU, its firmware, the kernel and busybox for arm64 are on this machine.
#[derive(Clone, Debug)]
pub struct Testbed {
    /// The program to start as `qemu-system-aarch64`, version 11.1 or newer.
    pub qemu: PathBuf,
    /// UEFI for QEMU's `virt` machine.
    pub firmware: PathBuf,
    /// The kernel's `Image`; it needs no modules.
    pub kernel: PathBuf,
    /// A static busybox for arm64.
    pub busybox: PathBuf,
}

/// Where QEMU, the kernel and busybox for the x86-64 host with VT-d are on this machine.
#[derive(Clone, Debug)]
pub struct VtdTestbed {
    /// The program to start as `qemu-system-x86_64`, version 11.1 or newer.
    pub qemu: PathBuf,
    /// The kernel's `bzImage`, which claims what `tests/l1/vtd.claims` says; it needs no modules.
    pub kernel: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

impl Testbed {
    /// Finds the test bed; on a machine's first run this fetches it and builds the kernel, which takes minutes.
    ///
    /// # Errors
    /// `scripts/testbed l1` failed: the reason it gave is in the error.
    pub fn find() -> Result<Self> {
        let pieces = Pieces::find(Some("l1"))?;
        Ok(Self {
            qemu: pieces.path("QEMU")?,
            firmware: pieces.path("FIRMWARE")?,
            kernel: pieces.path("KERNEL")?,
            busybox: pieces.path("BUSYBOX")?,
        })
    }

    /// [`Testbed::find`] for a test. Where there is no test bed the test fails, unless the environment variable
    /// `SKIP_WITHOUT_TESTBED` is set: then this prints the reason and returns `None`, and the test returns.
    ///
    /// # Errors
    /// As [`Testbed::find`].
    pub fn find_for_test() -> Result<Option<Self>> {
        or_skip(Self::find())
    }
}

impl VtdTestbed {
    /// Finds the test bed; on a machine's first run this builds the kernel, which takes minutes.
    ///
    /// # Errors
    /// `scripts/testbed` or `scripts/testbed vtd` failed: the reason it gave is in the error.
    pub fn find() -> Result<Self> {
        let (guest, kernel) = (Pieces::find(None)?, Pieces::find(Some("vtd"))?);
        Ok(Self {
            qemu: guest.path("QEMU")?,
            kernel: kernel.path("KERNEL")?,
            busybox: guest.path("BUSYBOX")?,
        })
    }

    /// As [`Testbed::find_for_test`].
    ///
    /// # Errors
    /// As [`VtdTestbed::find`].
    pub fn find_for_test() -> Result<Option<Self>> {
        or_skip(Self::find())
    }
}
