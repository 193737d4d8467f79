// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many disks at once, each of which may reach what it reads into only while it reads: nothing is lost, and nothing grows.

use std::env;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use viommu_core::DomainId;
use viommu_tests::iotlb_disk::Options;

use crate::bed::{Bed, Guest, PAGE, SECTOR, SHIFT, is_refused};
use crate::vmm::{DATA, DiskVmm, RINGS};

/// Disks, each with a ring of its own.
const DISKS: usize = 24;
/// Seconds that it takes, unless `RELAY_SECONDS` says otherwise.
const SECONDS: u64 = 60;
/// Bytes by which a process may grow whatever it does: a stack that was never used so far, a page of a heap.
const NOISE: u64 = 1 << 20;

/// The daemon's descriptors and threads, and bytes of its memory.
#[derive(Debug)]
struct Size {
    descriptors: usize,
    threads: usize,
    resident: u64,
}

fn size_of(bed: &Bed) -> Size {
    let status = fs::read_to_string(format!("/proc/{}/status", bed.daemon.pid())).expect("the daemon lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim_end_matches("kB").trim().parse().expect("a number");
    let [descriptors, threads] = bed.resources().map(|numbers| numbers.len());
    Size { descriptors, threads, resident: kib << 10 }
}

/// Two disks share a domain.
fn domain(number: usize) -> DomainId {
    DomainId(1 + number as u32 / 2)
}

/// The disk runs, and reaches its rings alone.
fn start(bed: &Bed, guest: &mut Guest, number: usize) -> DiskVmm {
    let (start, length) = RINGS.of(number);
    guest.attach(number, domain(number));
    guest.map(domain(number), start + SHIFT, length, start);
    let mut vmm = DiskVmm::plug(bed, number);
    vmm.start(SHIFT);
    vmm
}

/// Reads a sector into a page that is mapped for that alone.
fn read(bed: &Bed, guest: &Mutex<Guest>, vmm: &mut DiskVmm, number: usize, round: u64) {
    let (sector, (gpa, _)) = (round % 64, DATA.of(number));
    let guest = || guest.lock().expect("nobody has failed");
    guest().map(domain(number), gpa + SHIFT, PAGE, gpa);
    assert_eq!(vmm.read_sector(sector), Ok([sector as u8; SECTOR]), "disk {number}, round {round}");
    guest().unmap(domain(number), gpa + SHIFT, PAGE);
    if round.is_multiple_of(16) {
        assert!(is_refused(&bed.peek(number, gpa + SHIFT)), "disk {number}, round {round}");
    }
}

#[test]
fn two_dozen_rings_under_load_lose_nothing_and_nothing_grows() {
    let seconds = env::var("RELAY_SECONDS").map_or(SECONDS, |seconds| seconds.parse().expect("seconds"));
    let bed = Bed::with(&[Options::default(); DISKS], &[]);
    let mut guest = bed.boot();
    let vmms: Vec<DiskVmm> = (0..DISKS).map(|number| start(&bed, &mut guest, number)).collect();
    let (guest, done) = (Mutex::new(guest), [const { AtomicU64::new(0) }; DISKS]);
    let begin = Instant::now();
    let quarter = Duration::from_secs(seconds) / 4;
    let [warm, late] = thread::scope(|scope| {
        for (number, mut vmm) in vmms.into_iter().enumerate() {
            let (bed, guest, done) = (&bed, &guest, &done[number]);
            scope.spawn(move || {
                while begin.elapsed() < 4 * quarter {
                    read(bed, guest, &mut vmm, number, done.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
        [quarter, 2 * quarter].map(|more| {
            thread::sleep(more);
            size_of(&bed)
        })
    });
    let done = done.map(AtomicU64::into_inner);
    println!("{} reads in {seconds} s; {warm:?}, {late:?}", done.iter().sum::<u64>());
    assert!(done.iter().all(|done| *done > 0), "{done:?}");
    assert!(late.resident <= warm.resident + NOISE, "{warm:?}, {late:?}");
    assert_eq!([late.descriptors, late.threads], [warm.descriptors, warm.threads]);
}
