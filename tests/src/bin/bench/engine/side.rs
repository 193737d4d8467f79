// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A side of the comparison, and the loops over one that is in this process.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use viommu_core::{Access, IovaRange};
use viommu_tests::peers::{Lookup, Shared, Store, mapping};

use super::clock::Clock;
use super::workload::{ACCESS, Op, Workload};

/// What one operation took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Nanoseconds for each mapping or address.
    pub ns: f64,
    /// The same of the pairs that another thread made meanwhile, if one did.
    pub writer_ns: Option<f64>,
    /// A sum of all results, equal for all sides.
    pub sum: u64,
}

/// A store under measurement.
pub trait Side {
    /// The head of its column.
    fn name(&self) -> &'static str;

    /// Takes one operation of `workload`.
    fn run(&mut self, op: Op, workload: &Workload) -> Result<Measured>;
}

/// How long lookups beside a writer are watched.
pub const BUSY: Duration = Duration::from_millis(300);

/// A [`Store`] of this process.
#[derive(Debug)]
pub struct InProcess<S> {
    name: &'static str,
    store: S,
}

impl<S: Shared> InProcess<S> {
    pub fn new(name: &'static str) -> InProcess<S> {
        InProcess { name, store: S::default() }
    }
}

impl<S: Shared> Side for InProcess<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, op: Op, workload: &Workload) -> Result<Measured> {
        let store = &mut self.store;
        Ok(match op {
            Op::Map => maps(store, &workload.map),
            Op::MapInOrder => maps(store, &workload.in_order),
            Op::Unmap => timed(&workload.unmap, |range| store.unmap(range).map_or(0, |count| count as u64)),
            Op::Pair => pairs(store, &workload.pair),
            Op::Lookup => lookups(store, &workload.lookup),
            Op::Shared => store.share(|_, reader| lookups(reader, &workload.lookup)),
            Op::Busy => store.share(|writer, reader| busy(writer, reader, workload)),
            Op::Replay => replay(store, workload),
            Op::Destroy => {
                let begin = Clock::start();
                *store = S::default();
                each(begin.elapsed(), workload.map.len(), 0)
            }
        })
    }
}

fn maps(store: &mut impl Store, ranges: &[IovaRange]) -> Measured {
    timed(ranges, |range| store.map(mapping(*range)).into())
}

/// Unmaps and maps.
pub fn pairs(store: &mut impl Store, ranges: &[IovaRange]) -> Measured {
    warmed(ranges, |range| pair(store, range))
}

/// Translates.
pub fn lookups(reader: &mut impl Lookup, iovas: &[u64]) -> Measured {
    warmed(iovas, |iova| lookup(reader, *iova))
}

fn pair(store: &mut impl Store, range: &IovaRange) -> u64 {
    let removed = store.unmap(range).map_or(0, |count| count as u64);
    removed + u64::from(store.map(mapping(*range)))
}

/// Zero for an address that leads nowhere: no mapping here leads to GPA 0.
fn lookup(reader: &mut impl Lookup, iova: u64) -> u64 {
    reader.lookup(iova, ACCESS, Access::READ).map_or(0, |gpa| gpa.0)
}

fn replay(store: &impl Shared, workload: &Workload) -> Measured {
    let mut sum = 0u64;
    let begin = Clock::start();
    store.replay(|mapping| sum = black_box(sum.wrapping_add(mapping.target.gpa.0)));
    each(begin.elapsed(), workload.map.len(), sum)
}

/// Lookups in this thread for a while, beside pairs in another. The sum counts what was not found. By the time that
/// passes: who waits for a lock takes no processor time.
fn busy(writer: &mut (impl Store + Send), reader: &mut impl Lookup, workload: &Workload) -> Measured {
    let (under_way, enough) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut done = 0;
            let begin = Instant::now();
            for range in workload.busy_pair.iter().cycle() {
                black_box(pair(writer, range));
                done += 1;
                under_way.store(true, Ordering::Relaxed);
                if enough.load(Ordering::Relaxed) {
                    break;
                }
            }
            each(begin.elapsed(), done, 0).ns
        });
        while !under_way.load(Ordering::Relaxed) {
            spin_loop();
        }
        let (mut done, mut missed) = (0, 0);
        let begin = Instant::now();
        // A clock is read now and then, for it takes as long as a lookup.
        for iovas in workload.busy_lookup.chunks(128).cycle().take_while(|_| begin.elapsed() < BUSY) {
            missed += iovas.iter().filter(|iova| lookup(reader, **iova) == 0).count() as u64;
            done += iovas.len();
        }
        let measured = each(begin.elapsed(), done, missed);
        enough.store(true, Ordering::Relaxed);
        Measured { writer_ns: writing.join().ok(), ..measured }
    })
}

/// After a stretch that only warms up.
fn warmed<T>(items: &[T], mut step: impl FnMut(&T) -> u64) -> Measured {
    timed(&items[..items.len() / 8], &mut step);
    timed(items, step)
}

fn timed<T>(items: &[T], mut step: impl FnMut(&T) -> u64) -> Measured {
    let begin = Clock::start();
    let sum = items.iter().fold(0u64, |sum, item| sum.wrapping_add(step(black_box(item))));
    each(begin.elapsed(), items.len(), black_box(sum))
}

fn each(took: Duration, count: usize, sum: u64) -> Measured {
    Measured { ns: took.as_nanos() as f64 / count as f64, writer_ns: None, sum }
}
