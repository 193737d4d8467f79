// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of a guest: what an INVALIDATE takes through the daemon, beside the ioctl that it comes to.
//!
//! Measured by `tests/benches/invalidate` in an arm64 host that QEMU emulates, with an SMMUv3 that walks the tables; here
//! its lines are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use viommu_tests::l1::{Machine, Testbed, build_bench, build_release, build_release_with};

use crate::spread::Spread;

const WITHIN: Duration = Duration::from_secs(1800);

/// Which commands, pages in a request, requests in the ring.
type Key<'a> = (&'a str, usize, usize);

/// Nanoseconds of a request, of an ioctl for each, and of one request's part of as few as there can be, by round.
type Figures<'a> = BTreeMap<Key<'a>, Vec<[f64; 3]>>;

/// Measures `rounds` rounds and prints them.
pub fn run(rounds: usize) -> Result<()> {
    println!("an arm64 host under TCG (software emulation: good for ratios only); {rounds} rounds");
    let testbed = Testbed::find()?;
    let folder = tempfile::tempdir()?;
    let without_ranges = folder.path().join("daemon");
    let (package, program) = ("vhost-user-iommu", "vhost-user-iommu");
    fs::copy(build_release_with(package, program, "viommu-nested/no-ranges")?, &without_ranges)?;
    let job = format!(
        "for function in $(pci_functions 1b36:0005); do give_to_vfio $function >/dev/null; done
        mkdir /no-ranges
        cp /bin/daemon-without-ranges /no-ranges/vhost-user-iommu
        cp /bin/invalidate /no-ranges
        /no-ranges/invalidate pages {rounds}
        invalidate ranges {rounds}"
    );
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/l1/setpriv");
    let report = Machine::new(&testbed)
        .device("iommu-testdev")
        .device("iommu-testdev")
        .program("setpriv", Path::new(stand_in))
        .program("daemon-without-ranges", &without_ranges)
        .program("vhost-user-iommu", &build_release(package, program)?)
        .program("invalidate", &build_bench("viommu-tests", "invalidate", "l1")?)
        .job(&job)
        .run(WITHIN)?;
    ensure!(report.status == 0, "measuring invalidations failed:\n{}", report.lines.join("\n"));
    print(&figures(&report.lines)?);
    Ok(())
}

fn figures(lines: &[String]) -> Result<Figures<'_>> {
    let mut figures = Figures::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["invalidate", way, _, pages, requests, daemon, ioctl, shared] = words[..] {
            let key = (way, pages.parse()?, requests.parse()?);
            figures.entry(key).or_default().push([daemon.parse()?, ioctl.parse()?, shared.parse()?]);
        }
    }
    ensure!(!figures.is_empty(), "no figures:\n{}", lines.join("\n"));
    Ok(figures)
}

fn print(figures: &Figures<'_>) {
    println!(
        "\nINVALIDATE of pages of 4 KiB: microseconds of a request, from the kick to the last answer, divided by those in the \
         ring\nioctl: the same commands without a daemon, in an ioctl for each request; shared: in one for all in the \
         ring, as far as it takes them"
    );
    let ratio = "min  median  max";
    let head = format!("{:>9} {:>9} {:>23} {:>9} {:>23}", "request", "ioctl", ratio, "shared", ratio);
    println!("{:44} {head}", "");
    for ((way, pages, requests), rounds) in figures {
        let median = |which: usize| Spread::of(rounds.iter().map(|round| round[which] / 1000.0)).median();
        let ratio = |which: usize| Spread::of(rounds.iter().map(|round| round[0] / round[which]));
        let commands = if *way == "ranges" { "ranges" } else { "page by page" };
        let name = format!("{pages:>4} pages, {requests:>2} in the ring, {commands}");
        let (of_each, of_shared) = (ratio(1), ratio(2));
        println!(
            "{name:44} {:>9.1} {:>9.1} {of_each:>23.2} {:>9.1} {of_shared:>23.2}",
            median(0),
            median(1),
            median(2)
        );
    }
}
