// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads of 4 KiB a second in a guest, one after another and without the page cache: the same disk behind the
//! daemon, behind QEMU's own virtio-iommu, and behind nothing.
//!
//! Every round boots a guest for each case, in turn, and compares within the round: what drifts between rounds
//! drops out.

use std::time::Duration;

use anyhow::Result;
use viommu_tests::guest::{Accelerator, Disk, Testbed};
use viommu_tests::scene::{Behind, Scene};

use crate::spread::Spread;

const MEMORY_MIB: u32 = 512;
const READS: usize = 8192;
const BOOT: Duration = Duration::from_secs(180);

/// A guest to measure.
struct Case {
    name: &'static str,
    behind: Behind,
    kernel_arg: &'static str,
}

const STRICT: &str = "iommu.strict=1";
const LAZY: &str = "iommu.strict=0";
const PASSTHROUGH: &str = "iommu.passthrough=1";

/// Nothing first: it is what the others are compared with. Each case of the daemon stands before QEMU's.
const CASES: [Case; 7] = [
    Case { name: "no IOMMU", behind: Behind::Nothing, kernel_arg: "" },
    Case { name: "passthrough, vhost-user-iommu", behind: Behind::Daemon, kernel_arg: PASSTHROUGH },
    Case { name: "passthrough, QEMU", behind: Behind::Qemu, kernel_arg: PASSTHROUGH },
    Case { name: "lazy, vhost-user-iommu", behind: Behind::Daemon, kernel_arg: LAZY },
    Case { name: "lazy, QEMU", behind: Behind::Qemu, kernel_arg: LAZY },
    Case { name: "strict, vhost-user-iommu", behind: Behind::Daemon, kernel_arg: STRICT },
    Case { name: "strict, QEMU", behind: Behind::Qemu, kernel_arg: STRICT },
];

/// Measures `rounds` rounds and prints them.
pub fn run(rounds: usize) -> Result<()> {
    let testbed = Testbed::find()?;
    let accelerator = match Accelerator::of_this_machine() {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG (software emulation: good for ratios only)",
    };
    println!("{READS} reads of 4 KiB, O_DIRECT, queue depth 1; guest under {accelerator}; {rounds} rounds");
    let mut figures = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        figures.push(CASES.iter().map(|case| measure(&testbed, case)).collect::<Result<Vec<f64>>>()?);
    }
    print(&figures);
    Ok(())
}

fn measure(testbed: &Testbed, case: &Case) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let image = Disk::random(&folder.path().join("disk.img"), READS * 4 / 1024, 1)?;
    let scene = Scene::new(case.behind, image.path(), MEMORY_MIB, &[])?;
    let job = format!("iops /dev/vda {READS}; iops /dev/vda {READS}");
    let guest = scene.guest(testbed, MEMORY_MIB).kernel_arg(case.kernel_arg).job(&job);
    let mut guest = guest.spawn()?;
    let answer = format!("iops /dev/vda {READS} ");
    // The first pass warms translations, caches and the emulator's translated code.
    guest.value_of(&answer, BOOT)?;
    Ok(guest.value_of(&answer, BOOT)?.parse()?)
}

fn print(figures: &[Vec<f64>]) {
    let column = |case: usize| figures.iter().filter_map(move |round| round.get(case).copied());
    println!("\n{:32} {:>23}   {:>23}", "reads a second", "min  median     max", "share of no IOMMU");
    for (at, case) in CASES.iter().enumerate() {
        let share = Spread::of(column(at).zip(column(0)).map(|(this, nothing)| this / nothing));
        println!("{:32} {}   {share:.2}", case.name, Spread::of(column(at)));
    }
    println!("\n{:32} {:>23}", "vhost-user-iommu / QEMU", "min  median     max");
    for (at, mode) in [(1, "passthrough"), (3, "lazy"), (5, "strict")] {
        let ratio = Spread::of(column(at).zip(column(at + 1)).map(|(ours, qemu)| ours / qemu));
        println!("{mode:32} {ratio:.2}");
    }
}
