// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel takes to map and to unmap, as multiples of an ioctl that does nothing.
//!
//! Measured by `nested/benches/mapping` in the host; here its lines are compared, each with the nothing of its own round.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use viommu_tests::l1::{Machine, Testbed, build_bench};

use crate::spread::Spread;

const WITHIN: Duration = Duration::from_secs(600);
/// Room for the largest mapping twice, in small pages and in huge ones.
const MEMORY_MIB: u32 = 3072;
const HUGE_PAGES: u32 = 512;

/// What is measured: how often it is done in which way, and the memory.
type Key<'a> = (&'a str, u64, &'a str);

/// The figures of one round, in nanoseconds.
#[derive(Default)]
struct Round<'a> {
    nothing: f64,
    /// To map, to unmap.
    mappings: BTreeMap<Key<'a>, [f64; 2]>,
}

pub fn run(rounds: usize) -> Result<()> {
    eprintln!("mappings");
    let testbed = Testbed::find()?;
    let program = build_bench("viommu-nested", "mapping", "cdev-tests")?;
    let job = format!(
        "echo {HUGE_PAGES} >/proc/sys/vm/nr_hugepages
        mapping /dev/vfio/devices/$(give_to_vfio $(pci_functions 1b36:0005)) {rounds}"
    );
    let machine = Machine::new(&testbed).memory_mib(MEMORY_MIB).device("iommu-testdev");
    let report = machine.program("mapping", &program).job(&job).run(WITHIN)?;
    ensure!(report.status == 0, "measuring mappings failed:\n{}", report.lines.join("\n"));
    let rounds = rounds_of(&report.lines)?;
    print(&rounds);
    Ok(())
}

fn rounds_of(lines: &[String]) -> Result<Vec<Round<'_>>> {
    let mut rounds: BTreeMap<&str, Round<'_>> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["nothing", number, took] => rounds.entry(number).or_default().nothing = took.parse()?,
            ["mapping", number, pages, bytes, way, map, unmap] => {
                let key = (pages, bytes.parse()?, way);
                rounds.entry(number).or_default().mappings.insert(key, [map.parse()?, unmap.parse()?]);
            }
            _ => {}
        }
    }
    ensure!(!rounds.is_empty(), "no figures:\n{}", lines.join("\n"));
    Ok(rounds.into_values().collect())
}

fn print(rounds: &[Round<'_>]) {
    let nothing = Spread::of(rounds.iter().map(|round| round.nothing / 1000.0));
    println!("\nMappings, with a device attached; an ioctl that does nothing takes {nothing:.1} us");
    println!(
        "{:36} {:>9}  {:>23}   {:>9}  {:>23}",
        "", "map: us", "ioctls: min median max", "unmap: us", "ioctls"
    );
    let keys = rounds.first().into_iter().flat_map(|round| round.mappings.keys());
    for key @ (pages, bytes, way) in keys {
        let figures = |which: usize| {
            let of = |round: &Round<'_>| round.mappings.get(key).map_or(0.0, |figures| figures[which]);
            let times = Spread::of(rounds.iter().map(|round| of(round) / 1000.0)).median();
            (times, Spread::of(rounds.iter().map(|round| of(round) / round.nothing)))
        };
        let ((map, maps), (unmap, unmaps)) = (figures(0), figures(1));
        let name = format!("{:>7}, {pages} pages, {way}", size(*bytes));
        println!("{name:36} {map:>9.1}  {maps:.1}   {unmap:>9.1}  {unmaps:.1}");
    }
    let largest = rounds.iter().flat_map(|round| round.mappings.keys()).map(|(_, bytes, _)| *bytes).max();
    if let Some(largest) = largest.filter(|largest| *largest < 1 << 30) {
        println!("the host has no memory for a mapping of 1 GiB: {} is the largest", size(largest));
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{} GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}
