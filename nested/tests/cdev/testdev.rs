// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's `iommu-testdev`: does the DMA that it is told to, at once.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::{pread, pwrite};
use viommu_nested::Cdev;

use super::{path, paths};

/// What `iommu-testdev` writes.
pub const PATTERN: u32 = 0x1234_5678;
/// What it says when a write fails.
const WRITE_FAILED: u32 = 0xdead_0002;

/// The device. VFIO has its registers at the beginning of the file.
pub struct Testdev {
    pub device: Cdev,
    pub file: File,
}

impl Testdev {
    pub fn open() -> Testdev {
        Testdev::at(&path("TESTDEV"))
    }

    /// Two that share a group.
    pub fn open_pair() -> [Testdev; 2] {
        let paths: [PathBuf; 2] = paths("PAIR").try_into().expect("two of them");
        paths.map(|path| Testdev::at(&path))
    }

    fn at(path: &Path) -> Testdev {
        let file = File::options().read(true).write(true).open(path).expect("it opens");
        Testdev { device: Cdev::adopt(file.try_clone().expect("a duplicate").into()), file }
    }

    fn write(&self, register: u64, value: u32) {
        assert_eq!(pwrite(&self.file, &value.to_le_bytes(), register), Ok(4));
    }

    fn read(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        assert_eq!(pread(&self.file, &mut value, register), Ok(4));
        u32::from_le_bytes(value)
    }

    /// Has it write four bytes; says whether it could.
    pub fn writes(&self, iova: u64) -> bool {
        let address = [(4, iova as u32), (8, (iova >> 32) as u32)];
        let length_and_doorbell = [(0xc, 4), (0x14, 1)];
        address
            .into_iter()
            .chain(length_and_doorbell)
            .for_each(|(register, value)| self.write(register, value));
        self.read(0);
        // It then compares what it wrote with physical memory, at an address that it was not told.
        self.read(0x10) != WRITE_FAILED
    }
}
