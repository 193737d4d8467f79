// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a driver waits for an answer: from the kick to the used entry, between two processes, beside what the machine
//! itself takes for less.

mod lane;
pub mod peer;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use viommu_core::wire::{Head, MAP_F_READ, ReqAttach, ReqMap, ReqUnmap, RequestType};
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::{Arena, EventIdx, GuestMemory, SplitQueue};
use viommu_tests::front_end::{FrontEnd, Wanted};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::IntoBytes;

use crate::spread::Spread;

use lane::{ENTRIES, Lane, MEMORY, SLOTS};
use peer::{Peer, WORDS};

/// Round trips of a side in a round, and those before them that do not count.
const TRIPS: usize = 20_000;
const WARM_UP: usize = 2_000;
/// Times that all slots are in flight.
const FLIGHTS: u16 = 400;
const DOMAIN: u32 = 1;
const ENDPOINT: u32 = 8;
const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(10);
/// Microseconds: longer than any driver here takes for its next request, and not at all.
const POLLING: &str = "1000";
const SLEEPING: &str = "0";
/// Long enough for a daemon that does not poll to be asleep.
const PAUSE: Duration = Duration::from_micros(50);

/// What a side takes, in nanoseconds: in the middle, and all but one in a hundred times.
#[derive(Clone, Copy, Debug)]
struct Trip {
    median: f64,
    p99: f64,
}

/// A device and its driver.
#[derive(Clone, Copy, Debug)]
struct Device {
    map: Trip,
    pair: Trip,
    /// A request of those in flight together, on average.
    in_flight: f64,
}

/// A round.
#[derive(Clone, Copy, Debug)]
struct Round {
    words: Trip,
    eventfd: Trip,
    ring: Device,
    polling: Device,
    sleeping: Device,
}

/// Measures `rounds` rounds and prints them.
pub fn run(rounds: usize) -> Result<()> {
    println!("{TRIPS} round trips of each kind between two processes; {rounds} rounds");
    let measured = (0..rounds).map(|_| {
        Ok(Round {
            words: words()?,
            eventfd: eventfds()?,
            ring: bare_ring()?,
            polling: daemon(POLLING, Duration::ZERO)?,
            sleeping: daemon(SLEEPING, PAUSE)?,
        })
    });
    print(&measured.collect::<Result<Vec<Round>>>()?);
    Ok(())
}

fn words() -> Result<Trip> {
    let memory = GuestMemory::new(&[(0, MEMORY)])?;
    let _peer = Peer::start(
        &["words".to_owned(), MEMORY.to_string()],
        file(&memory)?,
        eventfd(0, EventfdFlags::CLOEXEC)?,
    )?;
    let mut word = 0u16;
    Ok(trips(|| {
        word = word.wrapping_add(1).max(1);
        memory.store_u16(WORDS[0], word);
        while memory.load_u16(WORDS[1]) != word {
            std::hint::spin_loop();
        }
    }))
}

fn eventfds() -> Result<Trip> {
    let make = || eventfd(0, EventfdFlags::CLOEXEC);
    let (there, back) = (make()?, make()?);
    let _peer = Peer::start(&["eventfd".to_owned()], there.try_clone()?, back.try_clone()?)?;
    let mut failed = None;
    let trip = trips(|| {
        let done =
            rustix::io::write(&there, &1u64.to_ne_bytes()).and_then(|_| rustix::io::read(&back, &mut [0; 8]));
        failed = failed.or(done.err());
    });
    failed.map_or(Ok(trip), |errno| Err(errno.into()))
}

fn bare_ring() -> Result<Device> {
    let memory = GuestMemory::new(&[(0, MEMORY)])?;
    let mut lane = Lane::new(&memory, &mut Arena::new(0x2000, MEMORY - 0x2000), EventIdx::Off)?;
    let rings = lane.queue.rings();
    let numbers =
        [MEMORY, ENTRIES.into(), rings.descriptors, rings.avail, rings.used].map(|number| number.to_string());
    let what: Vec<String> = ["ring".to_owned()].into_iter().chain(numbers).collect();
    let _peer = Peer::start(&what, file(&memory)?, eventfd(0, EventfdFlags::CLOEXEC)?)?;
    device(&mut lane, Duration::ZERO)
}

fn daemon(poll: &str, pause: Duration) -> Result<Device> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("iommu.sock");
    let path = socket.to_str().context("a path in UTF-8")?;
    let _daemon =
        Daemon::start(["--socket-path", path, "--endpoint", &ENDPOINT.to_string(), "--poll", poll])?;
    let memory = GuestMemory::new(&[(0, MEMORY)])?;
    let mut arena = Arena::new(0x2000, MEMORY - 0x2000);
    let mut lane = Lane::new(&memory, &mut arena, EventIdx::On)?;
    let events = SplitQueue::new(&memory, &mut arena, 2, EventIdx::On)?;
    let mut front_end = FrontEnd::connect(&socket, PATIENCE)?;
    front_end.negotiate(Wanted::default())?;
    front_end.set_memory(&memory)?;
    front_end.start_ring(0, &lane.queue)?;
    front_end.start_ring(1, &events)?;
    device(&mut lane, pause)
}

/// Everything that is measured of a device, which is left alone for `pause` before each single request.
fn device(lane: &mut Lane, pause: Duration) -> Result<Device> {
    lane.prepare(0, size_of::<ReqAttach>());
    send(lane, 0, attach().as_bytes())?;
    lane.prepare(0, size_of::<ReqMap>());
    let mut page = 0;
    let map_trip = trips_after(pause, || {
        page += 1;
        lane.send(0, map(page, 1).as_bytes());
        lane.finish(1);
    });
    ensure!(lane.status(0) == 0, "the last MAP was refused");
    lane.prepare(1, size_of::<ReqUnmap>());
    send(lane, 1, unmap(0, page + 1).as_bytes())?;
    let pair = trips_after(pause, || {
        lane.send(0, map(0, 1).as_bytes());
        lane.finish(1);
        lane.send(1, unmap(0, 1).as_bytes());
        lane.finish(1);
    });
    ensure!(lane.status(0) == 0 && lane.status(1) == 0, "the last MAP or UNMAP was refused");
    Ok(Device { map: map_trip, pair, in_flight: in_flight(lane)? })
}

/// Sends one request, which has to be done.
fn send(lane: &mut Lane, slot: u16, request: &[u8]) -> Result<()> {
    lane.send(slot, request);
    lane.finish(1);
    ensure!(lane.status(slot) == 0, "refused with {}", lane.status(slot));
    Ok(())
}

/// Nanoseconds of a request where all slots are in flight: as many MAPs, then as many UNMAPs.
fn in_flight(lane: &mut Lane) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..FLIGHTS {
        (0..SLOTS).for_each(|slot| lane.prepare(slot, size_of::<ReqMap>()));
        (0..SLOTS).for_each(|slot| lane.send(slot, map(slot.into(), 1).as_bytes()));
        lane.finish(SLOTS);
        (0..SLOTS).for_each(|slot| lane.prepare(slot, size_of::<ReqUnmap>()));
        (0..SLOTS).for_each(|slot| lane.send(slot, unmap(slot.into(), 1).as_bytes()));
        lane.finish(SLOTS);
    }
    let each = begin.elapsed().as_nanos() as f64 / (2.0 * f64::from(FLIGHTS) * f64::from(SLOTS));
    ensure!((0..SLOTS).all(|slot| lane.status(slot) == 0), "the last UNMAPs were refused");
    Ok(each)
}

/// What each of many calls takes.
fn trips(go: impl FnMut()) -> Trip {
    trips_after(Duration::ZERO, go)
}

/// The same, for calls that come so long after each other.
fn trips_after(pause: Duration, mut go: impl FnMut()) -> Trip {
    let mut taken: Vec<u128> = (0..WARM_UP + TRIPS)
        .map(|_| {
            let rested = Instant::now() + pause;
            while Instant::now() < rested {
                std::hint::spin_loop();
            }
            let begin = Instant::now();
            go();
            begin.elapsed().as_nanos()
        })
        .skip(WARM_UP)
        .collect();
    taken.sort_unstable();
    let at = |place: usize| taken.get(place).map_or(0.0, |taken| *taken as f64);
    Trip { median: at(TRIPS / 2), p99: at(TRIPS - TRIPS / 100) }
}

fn head(kind: RequestType) -> Head {
    Head { kind, reserved: [0; 3] }
}

fn attach() -> ReqAttach {
    let head = head(RequestType::ATTACH);
    ReqAttach { head, domain: DOMAIN.into(), endpoint: ENDPOINT.into(), flags: 0.into(), reserved: [0; 4] }
}

fn map(page: u64, pages: u64) -> ReqMap {
    ReqMap {
        head: head(RequestType::MAP),
        domain: DOMAIN.into(),
        virt_start: (page * PAGE).into(),
        virt_last: ((page + pages) * PAGE - 1).into(),
        phys_start: 0.into(),
        flags: MAP_F_READ.into(),
    }
}

fn unmap(page: u64, pages: u64) -> ReqUnmap {
    ReqUnmap {
        head: head(RequestType::UNMAP),
        domain: DOMAIN.into(),
        virt_start: (page * PAGE).into(),
        virt_last: ((page + pages) * PAGE - 1).into(),
        reserved: [0; 4],
    }
}

fn print(rounds: &[Round]) {
    println!("\n{:46} {:>9} {:>9}   {:>23}", "", "median us", "99 % us", "ratio: min  median  max");
    let row = |name: &str, trip: &dyn Fn(&Round) -> Trip, beside: Option<&dyn Fn(&Round) -> f64>| {
        let of = |which: &dyn Fn(Trip) -> f64| {
            Spread::of(rounds.iter().map(|round| which(trip(round)) / 1000.0)).median()
        };
        let ratio = beside.map_or(String::new(), |beside| {
            format!("{:.2}", Spread::of(rounds.iter().map(|round| trip(round).median / beside(round))))
        });
        println!("{name:46} {:>9.2} {:>9.2}   {ratio}", of(&|trip| trip.median), of(&|trip| trip.p99));
    };
    let ring = |round: &Round| round.ring.map.median;
    let ring_pair = |round: &Round| round.ring.pair.median;
    let eventfd = |round: &Round| round.eventfd.median;
    row("two words of shared memory, there and back", &|round| round.words, None);
    row("a bare ring, looked at all the time", &|round| round.ring.map, Some(&|round| round.words.median));
    row("MAP, daemon polls (beside the bare ring)", &|round| round.polling.map, Some(&ring));
    row("two trips over the bare ring", &|round| round.ring.pair, Some(&|round| round.words.median * 2.0));
    row("MAP and UNMAP, daemon polls", &|round| round.polling.pair, Some(&ring_pair));
    row("two eventfds, there and back", &|round| round.eventfd, None);
    row("MAP, daemon sleeps (beside the eventfds)", &|round| round.sleeping.map, Some(&eventfd));
    println!(
        "\n{SLOTS} in flight, ns a request and millions a second{:30}{:>23}",
        "", "ratio: min  median  max"
    );
    let together = |name: &str, each: &dyn Fn(&Round) -> f64| {
        let ns = Spread::of(rounds.iter().map(each)).median();
        let ratio = Spread::of(rounds.iter().map(|round| each(round) / round.ring.in_flight));
        println!("{name:46} {ns:>9.0} {:>9.2}   {ratio:.2}", 1000.0 / ns);
    };
    together("a bare ring, looked at all the time", &|round| round.ring.in_flight);
    together("MAPs, then UNMAPs, daemon polls", &|round| round.polling.in_flight);
    together("MAPs, then UNMAPs, daemon sleeps", &|round| round.sleeping.in_flight);
}

/// The file of guest memory of one region.
fn file(memory: &GuestMemory) -> Result<OwnedFd> {
    let region = memory.mmap().iter().next().and_then(|region| region.file_offset().cloned());
    let file: &File = &region.context("memory with a file")?.arc().clone();
    Ok(file.try_clone()?.into())
}
