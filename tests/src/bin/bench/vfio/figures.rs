// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured in guests, side by side. Measures nothing itself.

use std::fmt;

use viommu_tests::l2::Iommu;

use crate::spread::Spread;

/// How a guest uses its IOMMU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// It has none.
    None,
    Bypass,
    Strict,
    Lazy,
}

/// Reads a second, in one round.
#[derive(Clone, Debug)]
pub struct Figure {
    pub round: usize,
    pub cpus: u32,
    pub iommu: Iommu,
    pub mode: Mode,
    pub reads: f64,
}

/// Memory of processes of the host: KiB pinned, locked and resident.
#[derive(Clone, Debug)]
pub struct Memory {
    pub iommu: Iommu,
    pub mode: Mode,
    pub of_qemu: [u64; 3],
    pub of_daemon: Option<[u64; 3]>,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::None => "no IOMMU",
            Mode::Bypass => "passthrough",
            Mode::Strict => "strict",
            Mode::Lazy => "lazy",
        })
    }
}

/// One of the lines that compare.
struct Case {
    iommu: Iommu,
    mode: Mode,
}

impl Case {
    fn all() -> Vec<Case> {
        let none = Case { iommu: Iommu::Absent, mode: Mode::None };
        let of = |iommu: Iommu| [Mode::Strict, Mode::Lazy].map(|mode| Case { iommu: iommu.clone(), mode });
        [none].into_iter().chain(ours().into_iter().flat_map(of)).chain(of(Iommu::Qemu)).collect()
    }

    fn name(&self) -> String {
        name(&self.iommu, self.mode)
    }
}

/// The daemon as it is, and with an emulated processor in mind: that takes ten to thirty times as long for everything, so
/// what a guest does between two requests takes longer than the daemon looks for the second one.
pub fn ours() -> [Iommu; 2] {
    [Vec::new(), vec!["--poll".to_owned(), "4000".to_owned()]].map(Iommu::Daemon)
}

/// What is said of a guest that uses this IOMMU like this.
pub fn name(iommu: &Iommu, mode: Mode) -> String {
    match iommu {
        Iommu::Absent => mode.to_string(),
        Iommu::Qemu => format!("{mode}, QEMU"),
        Iommu::Daemon(options) => format!("{mode}, vhost-user-iommu {}", options.join(" ")),
    }
}

/// The reads of a case, by round.
fn column(figures: &[Figure], cpus: u32, iommu: &Iommu, mode: Mode) -> Vec<f64> {
    let is_it = |figure: &&Figure| figure.cpus == cpus && figure.iommu == *iommu && figure.mode == mode;
    let mut found: Vec<&Figure> = figures.iter().filter(is_it).collect();
    found.sort_by_key(|figure| figure.round);
    found.into_iter().map(|figure| figure.reads).collect()
}

fn ratio(these: &[f64], those: &[f64]) -> Spread {
    Spread::of(these.iter().zip(those).map(|(this, that)| this / that))
}

/// Prints what guests read, for each number of CPUs of the host.
pub fn print_reads(reads: usize, figures: &[Figure]) {
    println!("\nA guest's NVMe disk: {reads} reads of 4 KiB, O_DIRECT, queue depth 1, a guest with one CPU");
    for cpus in [2, 1] {
        let of = |case: &Case| column(figures, cpus, &case.iommu, case.mode);
        let cases = Case::all();
        let nothing = cases.first().map(of).unwrap_or_default();
        let host = if cpus == 1 { "a host with one CPU" } else { "a host with two CPUs" };
        println!("\n{host:40} {:>23}   {:>23}", "min  median     max", "share of no IOMMU");
        for case in &cases {
            let share = ratio(&of(case), &nothing);
            println!("{:40} {}   {share:.2}", case.name(), Spread::of(of(case)));
        }
        println!("{:40} {:>23}", "vhost-user-iommu / QEMU", "min  median     max");
        for case in cases.iter().filter(|case| matches!(case.iommu, Iommu::Daemon(_))) {
            let ratio = ratio(&of(case), &column(figures, cpus, &Iommu::Qemu, case.mode));
            println!("{:40} {ratio:.2}", case.name());
        }
    }
}

/// Prints what memory guests take.
pub fn print_memory(guest_mib: u32, memory: &[Memory]) {
    println!("\nA guest with {guest_mib} MiB and two devices");
    println!("{:40} {:>11} {:>11} {:>11}", "MiB of QEMU (+ the daemon)", "pinned", "locked", "resident");
    for Memory { iommu, mode, of_qemu, of_daemon } in memory {
        let shown = |which: usize| match of_daemon {
            None => mib(of_qemu[which]),
            Some(daemon) => format!("{} + {}", mib(of_qemu[which]), mib(daemon[which])),
        };
        println!("{:40} {:>11} {:>11} {:>11}", name(iommu, *mode), shown(0), shown(1), shown(2));
    }
}

fn mib(kib: u64) -> String {
    format!("{}.{}", kib >> 10, ((kib & 1023) * 10) >> 10)
}
