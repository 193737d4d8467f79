// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of a PCI function: its first BAR and its configuration space, read and written through VFIO's file.
//!
//! The function has to be bound. To read first: `vfio_pci_core.h` of the kernel, for where the regions are.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::io::{pread, pwrite};

/// The registers of a PCI function.
#[derive(Debug)]
pub struct Registers {
    file: OwnedFd,
}

/// Each region of a PCI function begins at its number, shifted by so many bits.
const REGION_SHIFT: u32 = 40;
const BAR_0: u64 = 0;
const CONFIG_SPACE: u64 = 7 << REGION_SHIFT;

const COMMAND: u64 = CONFIG_SPACE + 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

impl Registers {
    /// Those of the function with this VFIO file.
    pub fn of(file: OwnedFd) -> Registers {
        Registers { file }
    }

    /// Lets the function answer to its BARs, and do DMA or not.
    ///
    /// # Errors
    /// The function is not bound, or refuses.
    pub fn set_bus_master(&self, on: bool) -> Result<()> {
        let mut command = u16::from_le_bytes(self.read(COMMAND)?) | COMMAND_MEMORY;
        match on {
            true => command |= COMMAND_BUS_MASTER,
            false => command &= !COMMAND_BUS_MASTER,
        }
        self.write(COMMAND, command.to_le_bytes())
    }

    /// A register of the first BAR.
    ///
    /// # Errors
    /// As for [`set_bus_master`](Self::set_bus_master).
    pub fn read_u32(&self, offset: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.read(BAR_0 + offset)?))
    }

    /// Writes a register of the first BAR.
    ///
    /// # Errors
    /// As for [`set_bus_master`](Self::set_bus_master).
    pub fn write_u32(&self, offset: u64, value: u32) -> Result<()> {
        self.write(BAR_0 + offset, value.to_le_bytes())
    }

    /// A long register of the first BAR.
    ///
    /// # Errors
    /// As for [`set_bus_master`](Self::set_bus_master).
    pub fn read_u64(&self, offset: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.read(BAR_0 + offset)?))
    }

    /// Writes a long register of the first BAR.
    ///
    /// # Errors
    /// As for [`set_bus_master`](Self::set_bus_master).
    pub fn write_u64(&self, offset: u64, value: u64) -> Result<()> {
        self.write(BAR_0 + offset, value.to_le_bytes())
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let count = pread(&self.file, &mut bytes, at).with_context(|| format!("reading at {at:#x}"))?;
        ensure!(count == N, "{count} bytes at {at:#x}");
        Ok(bytes)
    }

    fn write<const N: usize>(&self, at: u64, bytes: [u8; N]) -> Result<()> {
        let count = pwrite(&self.file, &bytes, at).with_context(|| format!("writing at {at:#x}"))?;
        ensure!(count == N, "{count} bytes at {at:#x}");
        Ok(())
    }
}
