// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mapping engine beside std's `BTreeMap` and GLib's `GTree`, operation by operation.
//!
//! Each round takes every operation on every side, one side directly after the other, and compares within the round:
//! what drifts between rounds drops out. All sides take the same sequence, which is made before, and have to come to
//! the same result.

mod accesses;
mod clock;
mod gtree;
mod requests;
mod side;
mod table;
mod vmms;
mod workload;

use std::env;
use std::num::NonZeroUsize;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use viommu_core::Device;
use viommu_tests::peers::{Engine, Ordered};

use gtree::GTree;
use requests::{Requests, full_device};
use side::{InProcess, Measured, Side};
use table::Table;
use vmms::Vmms;
use workload::{Op, Workload};

/// How many mappings a domain has, and how many rounds there are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub mappings: usize,
    pub rounds: usize,
}

impl Size {
    const FULL: Size = Size { mappings: 1_000_000, rounds: 5 };
    const QUICK: Size = Size { mappings: 100_000, rounds: 3 };
    /// From here on fewer would be measured than the clock and the processor's caches allow.
    const MAPPINGS_MIN: usize = 1000;

    /// Of the words `[quick | MAPPINGS [ROUNDS]]`.
    pub fn of(arguments: &[&str]) -> Option<Size> {
        match *arguments {
            [] => Some(Size::FULL),
            ["quick"] => Some(Size::QUICK),
            [mappings] => Size::of(&[mappings, "5"]),
            [mappings, rounds] => {
                let mappings = mappings.replace('_', "").parse().ok()?;
                let rounds = rounds.parse::<NonZeroUsize>().ok()?.get();
                (mappings >= Size::MAPPINGS_MIN).then_some(Size { mappings, rounds })
            }
            _ => None,
        }
    }
}

/// Measures and prints.
pub fn run(size: Size) -> Result<()> {
    let mut sides: Vec<Box<dyn Side>> =
        vec![Box::new(InProcess::<Engine>::new("ours")), Box::new(InProcess::<Ordered>::new("BTreeMap"))];
    let mut table = Table::new(size);
    // The script names the program, or says why there is none.
    match env::var_os("GTREE") {
        Some(program) => {
            let gtree = GTree::spawn(program.as_ref())?;
            table.note(format!("GTree is that of GLib {}", gtree.version()));
            sides.push(Box::new(gtree));
        }
        None => {
            table.note(env::var("GTREE_MISSING").unwrap_or("no GTree: not started by scripts/bench".into()))
        }
    }
    let workloads = workload::all(size.mappings);
    let mut others = Others::new(&workloads)?;
    for round in 0..size.rounds {
        eprintln!("round {} of {}", round + 1, size.rounds);
        for workload in &workloads {
            for op in workload.ops {
                for (name, measured) in measure(&mut sides, *op, workload)? {
                    table.add(&workload.name, *op, name, measured);
                }
            }
            sides.rotate_left(1);
        }
        others.measure(&workloads, &mut table)?;
    }
    println!("{table}");
    measure_memory(size.mappings)
}

/// What is not an operation of every side, on the first two workloads.
#[derive(Debug)]
struct Others {
    vmms: Vmms,
    devices: [(Device, Requests); 2],
}

impl Others {
    fn new(workloads: &[Workload]) -> Result<Others> {
        let device = |workload| anyhow::Ok((full_device(workload)?, Requests::new(workload)));
        let devices = [device(&workloads[0])?, device(&workloads[1])?];
        Ok(Others { vmms: Vmms::new(&workloads[0]), devices })
    }

    fn measure(&mut self, workloads: &[Workload], table: &mut Table) -> Result<()> {
        self.vmms.measure(&workloads[0], table);
        for (device, requests) in &mut self.devices {
            requests.measure(device, table)?;
        }
        accesses::measure(&self.devices[0].0, &workloads[0], table)
    }
}

/// Memory is counted by a program of its own, whose counting would make this one slower.
fn measure_memory(mappings: usize) -> Result<()> {
    let program = env::current_exe()?.with_file_name("bench-memory");
    let status = Command::new(&program).arg(mappings.to_string()).status();
    let status = status.with_context(|| format!("starting {}, built by scripts/bench", program.display()))?;
    ensure!(status.success(), "{} failed", program.display());
    Ok(())
}

/// One operation on every side.
fn measure(
    sides: &mut [Box<dyn Side>],
    op: Op,
    workload: &Workload,
) -> Result<Vec<(&'static str, Measured)>> {
    let mut all = Vec::new();
    for side in sides {
        let name = side.name();
        let measured =
            side.run(op, workload).with_context(|| format!("{name}: {op:?}, {}", workload.name))?;
        all.push((name, measured));
    }
    let agree = all.windows(2).all(|pair| pair[0].1.sum == pair[1].1.sum);
    ensure!(agree, "the sides came to different results: {op:?}, {}: {all:?}", workload.name);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_taken_from_the_words_or_the_words_are_refused() {
        let size = |words: &[&str]| Size::of(words).map(|size| (size.mappings, size.rounds));
        assert_eq!(size(&[]), Some((1_000_000, 5)));
        assert_eq!(size(&["quick"]), Some((100_000, 3)));
        assert_eq!(size(&["20_000"]), Some((20_000, 5)));
        assert_eq!(size(&["20000", "2"]), Some((20_000, 2)));
        for wrong in [&["fast"][..], &["999"], &["5000", "0"], &["5000", "1", "1"]] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_operation_comes_to_the_same_on_both_sides_in_this_process() {
        let mut sides: Vec<Box<dyn Side>> =
            vec![Box::new(InProcess::<Ordered>::new("one")), Box::new(InProcess::<Engine>::new("other"))];
        for workload in workload::all(Size::MAPPINGS_MIN) {
            for op in workload.ops {
                let measured = measure(&mut sides, *op, &workload).expect("both can");
                assert_eq!(measured.len(), 2);
            }
        }
    }
}
