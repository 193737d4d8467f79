// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads a second in a guest, one after another and without the page cache: the same disk behind the daemon, behind
//! QEMU's own virtio-iommu, and behind nothing.
//!
//! Every round boots a guest for each case, in turn, and compares within the round: what drifts between rounds
//! drops out.

use std::time::Duration;

use anyhow::{Result, bail};
use viommu_tests::guest::{Accelerator, Disk, Testbed};
use viommu_tests::scene::{Behind, Scene};

use crate::spread::Spread;

const MEMORY_MIB: u32 = 512;
const DISK_MIB: usize = 64;
/// What is read: KiB at a time, and how often.
const SIZES: [(usize, usize); 2] = [(4, 8192), (64, 1024)];
const BOOT: Duration = Duration::from_secs(180);

/// A guest to measure: how it uses its IOMMU, and whose that is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Case {
    mode: &'static str,
    behind: Behind,
}

/// The modes of a guest with an IOMMU, and what the guest's kernel is told for each.
const MODES: [(&str, &str); 3] =
    [("passthrough", "iommu.passthrough=1"), ("lazy", "iommu.strict=0"), ("strict", "iommu.strict=1")];

/// What all others are compared with.
const NOTHING: Case = Case { mode: "no IOMMU", behind: Behind::Nothing };

/// Reads a second, for each of [`SIZES`].
type Figures = [f64; SIZES.len()];

/// Measures `rounds` rounds of these modes, or of all, and prints them.
pub fn run(rounds: usize, wanted: &[&str]) -> Result<()> {
    let modes: Vec<&str> = MODES.iter().map(|(mode, _)| *mode).collect();
    if let Some(unknown) = wanted.iter().find(|mode| !modes.contains(mode)) {
        bail!("no mode {unknown:?}; there are {}", modes.join(", "));
    }
    let testbed = Testbed::find()?;
    let accelerator = match Accelerator::of_this_machine() {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG (software emulation: good for ratios only)",
    };
    println!("reads by O_DIRECT, one at a time; guest under {accelerator}; {rounds} rounds");
    let is_wanted = |mode: &&str| wanted.is_empty() || wanted.contains(mode);
    let behind = |mode| [Behind::Daemon, Behind::Qemu].map(|behind| Case { mode, behind });
    let cases: Vec<Case> =
        [NOTHING].into_iter().chain(modes.into_iter().filter(is_wanted).flat_map(behind)).collect();
    let mut figures = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let measured = cases.iter().map(|case| Ok((*case, measure(&testbed, *case)?)));
        figures.extend(measured.collect::<Result<Vec<(Case, Figures)>>>()?);
    }
    for (place, (kib, reads)) in SIZES.iter().enumerate() {
        println!("\n{reads} reads of {kib} KiB");
        print(&cases, &figures.iter().map(|(case, figures)| (*case, figures[place])).collect::<Vec<_>>());
    }
    Ok(())
}

fn measure(testbed: &Testbed, case: Case) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let image = Disk::random(&folder.path().join("disk.img"), DISK_MIB, 1)?;
    let scene = Scene::new(case.behind, image.path(), MEMORY_MIB, &[])?;
    let reads = SIZES.map(|(kib, reads)| format!("iops /dev/vda {reads} {kib}"));
    // The first pass warms translations, caches and the emulator's translated code.
    let job = reads.each_ref().map(|read| format!("{read}; {read}")).join("; ");
    let argument = MODES.iter().find(|(mode, _)| *mode == case.mode).map_or("", |(_, argument)| argument);
    // One processor: a guest's processors spin while the IOMMU works, and the host's others are for that.
    let guest = scene.guest(testbed, MEMORY_MIB).cpus(1);
    let mut guest = guest.kernel_arg(argument).job(&job).spawn()?;
    let mut figures = [0.0; SIZES.len()];
    for (figure, read) in figures.iter_mut().zip(reads) {
        let answer = format!("{read} ");
        guest.value_of(&answer, BOOT)?;
        *figure = guest.value_of(&answer, BOOT)?.parse()?;
    }
    Ok(figures)
}

fn print(cases: &[Case], figures: &[(Case, f64)]) {
    let column = |case: Case| figures.iter().filter(move |(of, _)| *of == case).map(|(_, figure)| *figure);
    println!("{:32} {:>23}   {:>23}", "reads a second", "min  median     max", "share of no IOMMU");
    for case in cases {
        let name = match case.behind {
            Behind::Daemon => format!("{}, vhost-user-iommu", case.mode),
            Behind::Qemu => format!("{}, QEMU", case.mode),
            Behind::Nothing => case.mode.to_owned(),
        };
        let share = Spread::of(column(*case).zip(column(NOTHING)).map(|(this, nothing)| this / nothing));
        println!("{name:32} {}   {share:.2}", Spread::of(column(*case)));
    }
    println!("\n{:32} {:>23}", "vhost-user-iommu / QEMU", "min  median     max");
    for case in cases.iter().filter(|case| case.behind == Behind::Daemon) {
        let qemu = Case { behind: Behind::Qemu, ..*case };
        let ratio = Spread::of(column(*case).zip(column(qemu)).map(|(ours, qemu)| ours / qemu));
        println!("{:32} {ratio:.2}", case.mode);
    }
}
