// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes the archives that the kernel unpacks or searches when it boots.
//!
//! It decides nothing of what they hold. To read first: the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` (cpio "newc").

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

/// An archive that grows entry by entry, uncompressed.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    /// Adds a file or a folder; the folders that it is in have to come before it.
    pub(crate) fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).context("a file of more than 4 GiB")?;
        let mut writer = Builder::new(name).mode(mode).write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, content)?;
        writer.finish()?;
        Ok(())
    }

    /// The archive's bytes; another archive may follow them.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(trailer(self.bytes)?)
    }
}
