// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What INVALIDATE takes: through the daemon, by the rings, and by the ioctls alone that it comes to.
//!
//! Runs where `tests/vfio_tables` does, with two `iommu-testdev`s: one is the daemon's, one has no daemon. Its arguments are
//! how many rounds to measure, and what the daemon makes of a range: `ranges`, a command for it, or `pages`, a command
//! for each page. It prints a line for each measurement, `invalidate WAY ROUND PAGES REQUESTS DAEMON IOCTL SHARED`:
//! nanoseconds of one request, from the kick to the last answer; of an ioctl with the commands of one request; and of one
//! request's part of the fewest ioctls with the commands of all. `scripts/bench nested` runs it, and compares.

use std::hint::spin_loop;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use viommu_core::{Access, Caches, DomainId, Invalidation, IovaRange, Scope};
use viommu_nested::object::{
    Context, Entries, Hwpt, HwptFlags, Ioas, NestedParent, PageTable, Vdevice, Viommu,
};
use viommu_nested::{Attached, Cdev};
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::{Arena, Buffer, GuestMemory, invalidate};
use viommu_tests::vfio_vmm::{Allows, Function, Launch, Stage1, TestDevice, VfioVmm};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::IntoBytes;

/// In one INVALIDATE, and requests in the ring.
const PAGES: [u64; 3] = [1, 64, 4096];
const REQUESTS: [usize; 2] = [1, 64];
/// How long one measurement goes on at least.
const ENOUGH: Duration = Duration::from_millis(300);
/// And how often at least.
const TIMES_MIN: usize = 7;

const IOVA: u64 = 0x12_3400_0000;
const ASID: u16 = 7;
const TABLES: u64 = VfioVmm::LOW + (16 << 20);
const TABLES_BYTES: u64 = 8 << 20;
/// Where the requests lie: a table of descriptors, what is read and what is written of each.
const RING: u64 = VfioVmm::LOW + (24 << 20);
const SLOT: u64 = 256;

/// How a range comes to be commands.
#[derive(Clone, Copy)]
enum Way {
    Ranges,
    Pages,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().filter(|argument| argument != "--bench").skip(1).collect();
    let (name, rounds) = match arguments.as_slice() {
        [way, rounds] => (way.as_str(), rounds.parse::<usize>()?),
        _ => bail!("arguments: ranges|pages ROUNDS"),
    };
    let way = if name == "ranges" { Way::Ranges } else { Way::Pages };
    let functions = Function::all(TestDevice::ID.0, TestDevice::ID.1)?;
    let [first, second, ..] = functions.as_slice() else { bail!("too few iommu-testdevs") };
    let mut served = Served::new(first)?;
    let bare = Bare::new(second)?;
    for round in 1..=rounds {
        for pages in PAGES {
            for requests in REQUESTS {
                // Neither is always the first.
                let (daemon, [ioctl, shared]) = if round % 2 == 0 {
                    let daemon = served.measure(pages, requests)?;
                    (daemon, bare.measure(way, pages, requests)?)
                } else {
                    let bare = bare.measure(way, pages, requests)?;
                    (served.measure(pages, requests)?, bare)
                };
                println!("invalidate {name} {round} {pages} {requests} {daemon:.0} {ioctl:.0} {shared:.0}");
            }
        }
    }
    Ok(())
}

/// A device whose tables the daemon looks after.
struct Served {
    vmm: VfioVmm,
    _daemon: Daemon,
}

impl Served {
    fn new(function: &Function) -> Result<Served> {
        let launch = Launch::of(std::slice::from_ref(function))?;
        let daemon = launch.daemon(&["--mode", "table"])?;
        let mut vmm = VfioVmm::running(launch)?;
        part(&daemon)?;
        let entry = tables(&vmm.memory);
        ensure!(vmm.attach_table(1, 0, entry)? == 0, "ATTACH_TABLE is refused");
        Ok(Served { vmm, _daemon: daemon })
    }

    /// Nanoseconds a request, of so many at once.
    fn measure(&mut self, pages: u64, requests: usize) -> Result<f64> {
        let scope = Scope::Addresses { pasid: None, start: IOVA, pages, page_shift: 12 };
        let what = Invalidation { scope, caches: Caches::TLB, leaf: false, id: Some(ASID), global: false };
        let request = invalidate(DomainId(1), &what);
        let memory = self.vmm.memory.clone();
        let slots: Vec<u64> = (0..requests as u64).map(|number| RING + number * SLOT).collect();
        slots.iter().for_each(|slot| memory.write(slot + 64, request.as_bytes()));
        let queue = self.vmm.guest().driver.requests();
        repeated(requests, || {
            // Else a daemon that looks for requests would begin before the clock does.
            queue.hold_back();
            for slot in &slots {
                memory.write(slot + 128, &[0xff; 4]);
                let parts = [Buffer::readable(slot + 64, 60), Buffer::writable(slot + 128, 4)];
                queue.add_indirect(*slot, &parts).context("no room")?;
            }
            let begin = Instant::now();
            queue.let_go();
            queue.kick_if_wanted();
            // As Linux's driver does.
            while usize::from(queue.used_waiting()) < requests {
                spin_loop();
            }
            let took = begin.elapsed();
            while queue.take_used().is_some() {}
            ensure!(slots.iter().all(|slot| memory.read(slot + 128, 1) == [0]), "INVALIDATE is refused");
            Ok(took)
        })
    }
}

/// Gives the guest, which this thread is, a processor and the daemon another. The guest does not sleep while it waits: on one
/// processor the daemon would have to wait until its time is up.
fn part(daemon: &Daemon) -> Result<()> {
    let [of_guest, of_daemon] = [0, 1].map(|processor| {
        let mut set = CpuSet::new();
        set.set(processor);
        set
    });
    sched_setaffinity(None, &of_guest)?;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let number = thread?.file_name().to_str().context("a number")?.parse()?;
        sched_setaffinity(Pid::from_raw(number), &of_daemon)?;
    }
    Ok(())
}

/// A device whose tables are invalidated by ioctls.
struct Bare {
    viommu: Arc<Viommu>,
    _device: Attached<Cdev>,
    _vdevice: Vdevice,
}

impl Bare {
    fn new(function: &Function) -> Result<Bare> {
        const VIOMMU_ARM_SMMUV3: u32 = 1;
        const HWPT_DATA_ARM_SMMUV3: u32 = 2;
        const STREAM: u64 = 0x10;
        let context = Context::open(Path::new("/dev/iommu"))?;
        let device = Cdev::open(&function.cdev)?;
        let number = device.bind(&context)?;
        let memory = GuestMemory::new(&[(VfioVmm::LOW, VfioVmm::REGION)])?;
        let ioas = Ioas::new(&context)?;
        for region in memory.mmap().iter() {
            let range = IovaRange::from_length(VfioVmm::LOW, region.len()).context("a region")?;
            let place = region.file_offset().context("a file")?;
            ioas.map_file(&range, place.file().as_fd(), place.start(), Access::all().into())?;
        }
        let entry = tables(&memory).map(u64::to_le_bytes);
        let parent = Hwpt::paging(number, &ioas, HwptFlags::NEST_PARENT)?;
        let viommu = Viommu::new(number, &parent, VIOMMU_ARM_SMMUV3, &mut [])?;
        let vdevice = Vdevice::new(&viommu, number, STREAM)?;
        let on = NestedParent::Viommu(viommu.clone());
        let data = entry.as_flattened();
        let nested = Hwpt::nested(number, on, HwptFlags::empty(), HWPT_DATA_ARM_SMMUV3, data, None)?;
        let mut device = Attached::new(device);
        device.attach(PageTable::Hwpt(nested), None)?;
        Ok(Bare { viommu, _device: device, _vdevice: vdevice })
    }

    /// Nanoseconds a request, with an ioctl for each, one after another, and with as few as the kernel takes.
    fn measure(&self, way: Way, pages: u64, requests: usize) -> Result<[f64; 2]> {
        const INVALIDATE_ARM_SMMUV3: u32 = 1;
        let of_one = commands(way, pages);
        let mut each = Entries::of(INVALIDATE_ARM_SMMUV3, &of_one);
        let mut all = Entries::of(INVALIDATE_ARM_SMMUV3, &of_one.repeat(requests));
        let took = |entries: &mut Entries, times| {
            repeated(requests, || {
                let begin = Instant::now();
                for _ in 0..times {
                    self.viommu.invalidate_entries(entries)?;
                }
                Ok(begin.elapsed())
            })
        };
        Ok([took(&mut each, requests)?, took(&mut all, 1)?])
    }
}

/// `CMD_TLBI_NH_VA` for [`IOVA`] and the pages after it: a power of two of them.
fn commands(way: Way, pages: u64) -> Vec<[[u8; 8]; 2]> {
    let first = 0x12 | u64::from(ASID) << 48;
    let commands: Vec<[u64; 2]> = match way {
        // One granule of 4 KiB (TG 1), times two to the power of SCALE.
        Way::Ranges if pages > 1 => vec![[first | u64::from(pages.ilog2()) << 20, IOVA | 1 << 10]],
        _ => (0..pages).map(|page| [first, IOVA + page * 4096]).collect(),
    };
    commands.into_iter().map(|command| command.map(u64::to_le_bytes)).collect()
}

/// Tables that lead the pages to memory; the entry that names them.
fn tables(memory: &GuestMemory) -> [u64; 2] {
    let mut stage1 = Stage1::new(memory, Arena::new(TABLES, TABLES_BYTES));
    let descriptor = stage1.descriptor(ASID);
    (0..4096).for_each(|page| {
        stage1.map(descriptor.root, IOVA + page * 4096, VfioVmm::LOW + page % 1024 * 4096, Allows::All);
    });
    descriptor.entry()
}

/// Nanoseconds of one of `count` that `act` does at a time: one in ten takes less. Others are at work on this machine, too,
/// and what they take of it is no figure of either side's.
fn repeated(count: usize, mut act: impl FnMut() -> Result<Duration>) -> Result<f64> {
    // What comes first once, does not count.
    act()?;
    let (mut times, mut sum) = (Vec::new(), Duration::ZERO);
    while times.len() < TIMES_MIN || sum < ENOUGH {
        let took = act()?;
        times.push(took);
        sum += took;
    }
    times.sort_unstable();
    Ok(times[times.len() / 10].as_nanos() as f64 / count as f64)
}
