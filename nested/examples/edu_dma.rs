// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What QEMU's `edu` devices reach by DMA, seen from a program that drives them through VFIO and iommufd.
//!
//! Its arguments are their cdevs (`/dev/vfio/devices/vfioN`); all of them are attached to one address space. It fails
//! when a device does not reach what is mapped, or reaches what is not: memory of this process by its physical address,
//! which it learns as root. To read first: QEMU's `docs/specs/edu.rst`.

use std::env;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, pwrite};
use viommu_core::{Access, IovaRange};
use viommu_nested::object::{Context, Ioas, PageTable};
use viommu_nested::{Attach, Cdev};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PAGE: u64 = 4096;
/// Where a page is mapped; no machine of the tests has memory there.
const IOVA: u64 = 1 << 36;

/// A device, bound to a context.
struct Edu {
    file: File,
    cdev: Cdev,
}

/// Which way a transfer goes.
#[derive(Clone, Copy)]
enum Transfer {
    FromMemory = 0,
    ToMemory = 2,
}

impl Edu {
    /// VFIO's offsets in the file: of the BAR, and of the configuration space.
    const BAR: u64 = 0;
    const COMMAND: u64 = (7 << 40) + 4;
    /// The device's own memory, as its transfers name it.
    const BUFFER: u64 = 0x40000;

    fn open(path: &str, context: &Context) -> Result<Edu> {
        let file = File::options().read(true).write(true).open(path)?;
        let cdev = Cdev::adopt(file.try_clone()?.into());
        cdev.bind(context)?;
        // Memory and DMA on.
        pwrite(&file, &6u16.to_le_bytes(), Self::COMMAND)?;
        Ok(Edu { file, cdev })
    }

    /// One page between memory and the device's buffer; that the device is done says nothing of whether it could.
    fn transfer(&self, transfer: Transfer, address: u64) -> Result<()> {
        let (from, to) = match transfer {
            Transfer::FromMemory => (address, Self::BUFFER),
            Transfer::ToMemory => (Self::BUFFER, address),
        };
        for (register, value) in [(0x80, from), (0x88, to), (0x90, PAGE), (0x98, 1 | transfer as u64)] {
            pwrite(&self.file, &value.to_le_bytes(), Self::BAR + register)?;
        }
        let begin = Instant::now();
        let mut command = [0; 8];
        while pread(&self.file, &mut command, Self::BAR + 0x98)? < 8 || command[0] & 1 != 0 {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err("a transfer does not end".into());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Two pages of this process: one to be mapped, one that devices shall not reach.
struct Memory {
    file: File,
    /// The physical address of the second page.
    physical: u64,
    /// While it is, so is the address.
    _region: MmapRegion,
}

impl Memory {
    fn new() -> Result<Memory> {
        let file = File::from(memfd_create("pages", MemfdFlags::CLOEXEC)?);
        pwrite(&file, &[0; 2 * PAGE as usize], 0)?;
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), 2 * PAGE as usize)?;
        let second = region.as_volatile_slice().offset(PAGE as usize)?;
        second.write_obj(0u8, 0)?; // there is an address from then on
        // The kernel's Documentation/admin-guide/mm/pagemap.rst.
        let mut entry = [0; 8];
        let virtual_page = second.ptr_guard().as_ptr() as u64 / PAGE;
        pread(File::open("/proc/self/pagemap")?, &mut entry, virtual_page * 8)?;
        let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
        Ok(Memory { file, physical: frame * PAGE, _region: region })
    }

    fn fill(&self, page: u64, byte: u8) -> Result<()> {
        pwrite(&self.file, &[byte; PAGE as usize], page * PAGE)?;
        Ok(())
    }

    fn bytes(&self, page: u64) -> Result<[u8; PAGE as usize]> {
        let mut bytes = [0; PAGE as usize];
        pread(&self.file, &mut bytes, page * PAGE)?;
        Ok(bytes)
    }

    fn expect(&self, page: u64, byte: u8) -> Result<()> {
        let bytes = self.bytes(page)?;
        let other = bytes.iter().find(|found| **found != byte);
        other.map_or(Ok(()), |found| Err(format!("page {page} holds {found} in place of {byte}").into()))
    }
}

fn main() -> Result<()> {
    let context = Context::open(Path::new("/dev/iommu"))?;
    let ioas = Ioas::new(&context)?;
    let devices: Vec<_> =
        env::args().skip(1).map(|path| Edu::open(&path, &context)).collect::<Result<_>>()?;
    for device in &devices {
        device.cdev.attach(&PageTable::Auto(ioas.clone()), None)?;
    }
    let memory = Memory::new()?;
    for (number, device) in devices.iter().enumerate() {
        check(device, &memory, &ioas).map_err(|error| format!("device {number}: {error}"))?;
        println!("device {number} reaches what is mapped and nothing else");
    }
    Ok(())
}

fn check(device: &Edu, memory: &Memory, ioas: &Arc<Ioas>) -> Result<()> {
    let page = |address| IovaRange::from_length(address, PAGE).ok_or("no range");
    let map = |address, start| -> Result<()> {
        let all = Access::all().into();
        Ok(ioas.map_file(&page(address)?, memory.file.as_fd(), start, all)?)
    };
    println!("stray at {:#x}", memory.physical);
    map(IOVA, 0)?;
    assert_reached(device, memory, 0, IOVA)?;
    // Not mapped: its physical address leads nowhere.
    assert_untouched(device, memory)?;
    // Mapped at just that address, so that it was the right one.
    map(memory.physical, PAGE)?;
    assert_reached(device, memory, 1, memory.physical)?;
    ioas.unmap(&page(memory.physical)?)?;
    assert_untouched(device, memory)?;
    ioas.unmap(&page(IOVA)?)?;
    Ok(())
}

/// The device reads this page of ours at this address of its own, and writes it.
fn assert_reached(device: &Edu, memory: &Memory, page: u64, address: u64) -> Result<()> {
    memory.fill(page, 1)?;
    device.transfer(Transfer::FromMemory, address)?;
    memory.fill(page, 2)?;
    device.transfer(Transfer::ToMemory, address)?;
    memory.expect(page, 1)
}

/// The device neither writes the second page at its physical address nor reads it; the first one is mapped.
fn assert_untouched(device: &Edu, memory: &Memory) -> Result<()> {
    memory.fill(0, 3)?;
    memory.fill(1, 4)?;
    device.transfer(Transfer::FromMemory, IOVA)?;
    device.transfer(Transfer::ToMemory, memory.physical)?;
    memory.expect(1, 4)?;
    // What it reads, if anything, is in its buffer and becomes visible in the first page.
    device.transfer(Transfer::FromMemory, memory.physical)?;
    device.transfer(Transfer::ToMemory, IOVA)?;
    let bytes = memory.bytes(0)?;
    if bytes.contains(&4) { Err("a device read what is not mapped".into()) } else { Ok(()) }
}
