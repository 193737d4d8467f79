// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk's content: a file, or memory that looks like one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of a sector, the unit of the disk's addresses.
pub(super) const SECTOR_LEN: u64 = 512;

/// A disk image.
#[derive(Debug)]
pub struct Image {
    file: File,
    sectors: u64,
}

impl Image {
    /// The content of a file, which is written to.
    ///
    /// # Errors
    /// The file cannot be opened for reading and writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::options().read(true).write(true).open(path)?)
    }

    /// A copy of these bytes, in memory. A last sector that is not whole is left out.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn memory(bytes: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("disk-image", MemfdFlags::CLOEXEC)?);
        file.write_all_at(bytes, 0)?;
        Self::of(file)
    }

    fn of(file: File) -> io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR_LEN;
        Ok(Self { file, sectors })
    }

    /// Its length in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Where `sector` starts, if `len` bytes from there are within the disk.
    pub(crate) fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_LEN)?;
        let end = offset.checked_add(len)?;
        (end <= self.sectors * SECTOR_LEN).then_some(offset)
    }

    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
