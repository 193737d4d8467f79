// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it takes to map memory for a device and to unmap it, in each way that iommufd has, beside an ioctl that does
//! nothing.
//!
//! Its arguments are a cdev (`/dev/vfio/devices/vfioN`), which it attaches to the address space so that page tables are
//! written, and how many rounds to measure. It prints the mean of one call in nanoseconds, a line for each measurement:
//! `nothing ROUND NS` and `mapping ROUND PAGES BYTES WAY MAP UNMAP`. It compares nothing itself: `scripts/bench vfio`
//! does, and runs it.

mod memory;

use std::env;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use viommu_core::{Access, Iova, IovaRange};
use viommu_nested::object::{Context, Hwpt, HwptFlags, Ioas, PageTable};
use viommu_nested::{Attached, Cdev, DeviceId, uapi};

use memory::{Memory, Pages};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Sizes of mappings, and how often each is made and removed for one measurement.
const SIZES: [(u64, u32); 4] = [(4 << 10, 128), (64 << 10, 128), (2 << 20, 32), (1 << 30, 1)];
const NOTHINGS: u32 = 1024;

/// Where memory is mapped; no IOMMU reserves anything there. Aligned to the largest of the sizes.
const IOVA: u64 = 1 << 34;

/// How memory comes to be mapped.
#[derive(Clone, Copy)]
enum Way {
    CopyOfPinned,
    CopyOfUnpinned,
    Map,
    MapFile,
}

impl Way {
    const ALL: [(Way, &'static str); 4] = [
        (Way::CopyOfPinned, "copy-of-pinned"),
        (Way::CopyOfUnpinned, "copy-of-unpinned"),
        (Way::Map, "map"),
        (Way::MapFile, "map-file"),
    ];
}

/// Memory, and the address spaces that have all of it.
struct Source {
    memory: Memory,
    unpinned: Arc<Ioas>,
    pinned: Arc<Ioas>,
    /// Pins all that is in `pinned`.
    _hwpt: Arc<Hwpt>,
}

impl Source {
    fn new(memory: Memory, context: &Arc<Context>, device: DeviceId) -> Result<Source> {
        let whole = IovaRange::from_length(0, memory.bytes()).ok_or("no memory")?;
        let space = || -> Result<Arc<Ioas>> {
            let ioas = Ioas::new(context)?;
            // Not at 0: there may be what the IOMMU reserves.
            let range = IovaRange::from_length(IOVA, whole.span() + 1).ok_or("too much memory")?;
            ioas.map_file(&range, memory.file().as_fd(), 0, Access::all().into())?;
            Ok(ioas)
        };
        let (pinned, unpinned) = (space()?, space()?);
        let hwpt = Hwpt::paging(device, &pinned, HwptFlags::empty())?;
        Ok(Source { memory, unpinned, pinned, _hwpt: hwpt })
    }

    /// Maps as many bytes of it, from its byte `start` on.
    fn map(&self, to: &Ioas, range: &IovaRange, start: u64, way: Way) -> Result<()> {
        let flags = Access::all().into();
        match way {
            Way::CopyOfPinned => to.copy_from(range, &self.pinned, Iova(IOVA + start), flags)?,
            Way::CopyOfUnpinned => to.copy_from(range, &self.unpinned, Iova(IOVA + start), flags)?,
            Way::Map => to.map(range, &self.memory.slice(start, range.span() + 1)?, flags)?,
            Way::MapFile => to.map_file(range, self.memory.file().as_fd(), start, flags)?,
        }
        Ok(())
    }

    /// What one mapping of so many bytes takes, and its removal.
    fn measure(&self, to: &Ioas, bytes: u64, repeats: u32, way: Way) -> Result<[f64; 2]> {
        let range = IovaRange::from_length(IOVA, bytes).ok_or("no range")?;
        let mut took = [Duration::ZERO; 2];
        for number in 0..repeats {
            let start = u64::from(number) * bytes % (self.memory.bytes() - bytes + 1);
            let begin = Instant::now();
            self.map(to, &range, start, way)?;
            let mapped = Instant::now();
            to.unmap(&range)?;
            took[0] += mapped - begin;
            took[1] += mapped.elapsed();
        }
        Ok(took.map(|took| mean(took, repeats)))
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().filter(|argument| argument != "--bench").skip(1).collect();
    let [cdev, rounds] = arguments.as_slice() else { return Err("arguments: CDEV ROUNDS".into()) };
    let context = Context::open(Path::new("/dev/iommu"))?;
    let device = Cdev::open(Path::new(cdev))?;
    let number = device.bind(&context)?;
    let target = Ioas::new(&context)?;
    let mut device = Attached::new(device);
    device.attach(PageTable::Auto(target.clone()), None)?;
    let sources: Vec<Source> = [Pages::Small, Pages::Huge]
        .into_iter()
        .filter_map(Memory::largest)
        .map(|memory| Source::new(memory, &context, number))
        .collect::<Result<_>>()?;
    for round in 1..=rounds.parse()? {
        println!("nothing {round} {:.0}", nothing(&context));
        for source in &sources {
            measure_all(round, source, &target)?;
        }
    }
    Ok(())
}

/// Every way in turn, for each size that there is memory for.
fn measure_all(round: u32, source: &Source, target: &Ioas) -> Result<()> {
    let pages = source.memory.pages();
    let of_largest = source.memory.bytes();
    let mut sizes: Vec<(u64, u32)> =
        SIZES.iter().map(|(bytes, repeats)| ((*bytes).min(of_largest), *repeats)).collect();
    sizes.retain(|(bytes, _)| *bytes >= pages.smallest_mapping());
    for (bytes, repeats) in sizes {
        for (way, name) in Way::ALL {
            let [map, unmap] = source.measure(target, bytes, repeats, way)?;
            println!("mapping {round} {pages} {bytes} {name} {map:.0} {unmap:.0}");
        }
    }
    Ok(())
}

/// What an ioctl takes that the kernel refuses before it reads its argument.
fn nothing(context: &Context) -> f64 {
    let begin = Instant::now();
    for _ in 0..NOTHINGS {
        uapi::COMMANDS.first().map(|command| command.exists(context.as_fd()));
    }
    mean(begin.elapsed(), NOTHINGS)
}

fn mean(took: Duration, repeats: u32) -> f64 {
    took.as_secs_f64() * 1e9 / f64::from(repeats)
}
