// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's devices that do DMA when they are told to.
//!
//! | device          | can                                                                  | needs bus mastering |
//! |-----------------|----------------------------------------------------------------------|---------------------|
//! | `iommu-testdev` | write a fixed pattern at once, and say whether that was refused      | no                  |
//! | `edu`           | read and write 4 KiB of its own, in about 100 ms; says nothing more; interrupt | yes      |
//!
//! To read first: QEMU's `docs/specs/iommu-testdev.rst` and `docs/specs/edu.rst`.

use std::sync::atomic::{Ordering, fence};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Registers;

/// How a device's write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it is in memory.
    All,
    /// The IOMMU refused it, or a part of it.
    Refused,
}

/// QEMU's `iommu-testdev`.
#[derive(Debug)]
pub struct TestDevice<'a>(pub &'a Registers);

/// QEMU's `edu`.
#[derive(Debug)]
pub struct Edu<'a>(pub &'a Registers);

impl TestDevice<'_> {
    /// Vendor and device in its configuration space.
    pub const ID: (u16, u16) = (0x1b36, 0x0005);
    /// What it writes, again and again.
    pub const PATTERN: [u8; 4] = 0x1234_5678_u32.to_le_bytes();

    /// Writes `length` bytes from `iova` on.
    ///
    /// # Errors
    /// The device does not answer as it should.
    pub fn write(&self, iova: u64, length: u32) -> Result<Written> {
        const TRIGGER: u64 = 0;
        const IOVA: [u64; 2] = [4, 8];
        const LENGTH: u64 = 0xc;
        const RESULT: u64 = 0x10;
        const DOORBELL: u64 = 0x14;
        let Self(registers) = self;
        registers.write_u32(IOVA[0], iova as u32)?;
        registers.write_u32(IOVA[1], (iova >> 32) as u32)?;
        registers.write_u32(LENGTH, length)?;
        registers.write_u32(DOORBELL, 1)?;
        registers.read_u32(TRIGGER)?;
        let result = registers.read_u32(RESULT)?;
        fence(Ordering::SeqCst);
        match result {
            // The other is that a second look, at a physical address that nobody has told it, found something else.
            0 | 0xdead_0004 => Ok(Written::All),
            0xdead_0002 => Ok(Written::Refused),
            other => bail!("iommu-testdev says {other:#x}"),
        }
    }
}

impl Edu<'_> {
    /// Vendor and device in its configuration space.
    pub const ID: (u16, u16) = (0x1234, 0x11e8);

    /// Reads `length` bytes from `iova` on into the device. What cannot be read is left as it is there.
    ///
    /// # Errors
    /// The device does not end.
    pub fn read(&self, iova: u64, length: u32) -> Result<()> {
        self.transfer(iova, Self::BUFFER, length, Self::START)
    }

    /// Writes `length` bytes of the device from `iova` on.
    ///
    /// # Errors
    /// The device does not end.
    pub fn write(&self, iova: u64, length: u32) -> Result<()> {
        self.transfer(Self::BUFFER, iova, length, Self::START | Self::TO_MEMORY)
    }

    /// Raises its interrupt, and lowers it: a message if it was told to send such.
    ///
    /// # Errors
    /// As for [`Registers::write_u32`].
    pub fn interrupt(&self) -> Result<()> {
        const RAISE: u64 = 0x60;
        const ACKNOWLEDGE: u64 = 0x64;
        self.0.write_u32(RAISE, 1)?;
        self.0.write_u32(ACKNOWLEDGE, 1)
    }

    const START: u64 = 1;
    const TO_MEMORY: u64 = 2;
    /// Where the device's own memory begins, in its own eyes.
    const BUFFER: u64 = 0x4_0000;

    fn transfer(&self, from: u64, to: u64, length: u32, command: u64) -> Result<()> {
        const FROM: u64 = 0x80;
        const TO: u64 = 0x88;
        const LENGTH: u64 = 0x90;
        const COMMAND: u64 = 0x98;
        const PATIENCE: Duration = Duration::from_secs(20);
        let Self(registers) = self;
        registers.write_u64(FROM, from)?;
        registers.write_u64(TO, to)?;
        registers.write_u64(LENGTH, length.into())?;
        registers.write_u64(COMMAND, command)?;
        let begin = Instant::now();
        while registers.read_u64(COMMAND)? & Self::START != 0 {
            ensure!(begin.elapsed() < PATIENCE, "edu does not end a transfer");
            sleep(Duration::from_millis(1));
        }
        fence(Ordering::SeqCst);
        Ok(())
    }
}
