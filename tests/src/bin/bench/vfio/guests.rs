// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with two NVMe disks of the host's: what it reads a second, and how much memory is pinned for it.
//!
//! Every round boots a guest for each case, in turn, in a host with two CPUs and in one with a single CPU, and compares
//! within the round and the host: what drifts between rounds drops out.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use viommu_tests::guest::Disk;
use viommu_tests::l2::{Guest, Host, Iommu, Testbed};

use super::figures::{self, Figure, Memory, Mode};

const WITHIN: Duration = Duration::from_secs(180);
/// As many as take about a second; the clock of a guest ticks every 10 ms.
const READS: usize = 2048;
const DISK_MIB: usize = 16;
const ENDPOINTS: [(&str, &str); 2] = [("00:04.0", "0000:00:04.0"), ("00:05.0", "0000:00:05.0")];

/// A host with two disks.
struct Stage {
    host: Host,
    cpus: u32,
    _images: TempDir,
}

/// Measures `rounds` rounds with this program of ours, and prints them.
pub fn run(rounds: usize, daemon: &Path) -> Result<()> {
    let testbed = Testbed::find()?;
    let mut stages =
        [2, 1].map(|cpus| Stage::new(&testbed, daemon, cpus)).into_iter().collect::<Result<Vec<_>>>()?;
    let (mut reads, mut memory) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for stage in &mut stages {
            eprintln!("round {round} of {rounds}, CPUs of the host: {}", stage.cpus);
            for iommu in [Iommu::Absent].into_iter().chain(figures::ours()).chain([Iommu::Qemu]) {
                let is_plain = !matches!(&iommu, Iommu::Daemon(options) if !options.is_empty());
                let with_memory = (round == 1 && stage.cpus == 2 && is_plain).then_some(&mut memory);
                stage.measure(round, &iommu, &mut reads, with_memory)?;
            }
        }
    }
    if let Some(stage) = stages.first_mut() {
        stage.measure_passthrough(&mut memory)?;
    }
    figures::print_reads(READS, &reads);
    figures::print_memory(Guest::new(Iommu::Absent).memory_mib(), &memory);
    Ok(())
}

impl Stage {
    fn new(testbed: &Testbed, daemon: &Path, cpus: u32) -> Result<Stage> {
        let images = tempfile::tempdir()?;
        let mut machine = testbed.machine().cpus(cpus).program("vhost-user-iommu", daemon);
        for (slot, name) in [(4, "first"), (5, "second")] {
            let image = Disk::random(&images.path().join(name), DISK_MIB, slot)?;
            let device = format!("nvme,addr={slot},drive={name},serial={name}");
            machine = machine.image(name, image.path()).device(&device);
        }
        let mut host = Host::start(testbed, machine)?;
        for (_, function) in ENDPOINTS {
            host.execute(&format!("give_to_vfio {function}"))?;
        }
        Ok(Stage { host, cpus, _images: images })
    }

    /// One guest: strict at first, then, without a reboot, lazy.
    fn measure(
        &mut self,
        round: usize,
        iommu: &Iommu,
        reads: &mut Vec<Figure>,
        memory: Option<&mut Vec<Memory>>,
    ) -> Result<()> {
        let modes: &[Mode] =
            if *iommu == Iommu::Absent { &[Mode::None] } else { &[Mode::Strict, Mode::Lazy] };
        // The first pass warms translations, caches and the emulator's translated code.
        let measure = format!("iops /dev/first {READS} 4; iops /dev/first {READS} 4");
        let become_lazy = "echo DMA-FQ >/sys/bus/pci/devices/0000:00:04.0/iommu_group/type";
        let job = match iommu {
            Iommu::Absent => measure,
            _ => format!("{measure}; {become_lazy}; {measure}"),
        };
        self.boot(iommu, "iommu.strict=1", &job)?;
        for mode in modes {
            self.reads_a_second()?;
            let figure = self.reads_a_second()?;
            eprintln!("{}: {figure} reads a second", figures::name(iommu, *mode));
            reads.push(Figure { round, cpus: self.cpus, iommu: iommu.clone(), mode: *mode, reads: figure });
        }
        if let Some(memory) = memory {
            let mode = if *iommu == Iommu::Absent { Mode::None } else { Mode::Lazy };
            memory.push(self.memory(iommu, mode)?);
        }
        self.end()
    }

    fn measure_passthrough(&mut self, memory: &mut Vec<Memory>) -> Result<()> {
        for iommu in [Iommu::Daemon(Vec::new()), Iommu::Qemu] {
            self.boot(&iommu, "iommu.passthrough=1", &format!("iops /dev/first {READS} 4"))?;
            self.reads_a_second()?;
            memory.push(self.memory(&iommu, Mode::Bypass)?);
            self.end()?;
        }
        Ok(())
    }

    /// A guest that stays when it has done this.
    fn boot(&mut self, iommu: &Iommu, kernel_arg: &str, job: &str) -> Result<()> {
        let mut guest = Guest::new(iommu.clone()).kernel_arg(kernel_arg);
        for (id, function) in ENDPOINTS {
            guest = guest.pass(id, function);
        }
        let disks = "nvme 0000:00:04.0 /dev/first; nvme 0000:00:05.0 /dev/second";
        self.host.boot(&guest.job(&format!("{disks}; {job}; echo measured; sleep 1000")))
    }

    fn end(&mut self) -> Result<()> {
        self.host.kill_guest()?;
        // What the daemon holds has to be free for the next guest.
        self.host.execute("while pidof vhost-user-iommu >/dev/null; do usleep 20000; done").map(drop)
    }

    fn reads_a_second(&mut self) -> Result<f64> {
        Ok(self.host.guest_value(&format!("iops /dev/first {READS} 4 "), WITHIN)?.parse()?)
    }

    fn memory(&mut self, iommu: &Iommu, mode: Mode) -> Result<Memory> {
        self.host.guest_line("measured", WITHIN)?;
        let of_qemu = self.status_of("qemu-system-aarch64")?;
        let of_daemon = match iommu {
            Iommu::Daemon(_) => Some(self.status_of("vhost-user-iommu")?),
            _ => None,
        };
        Ok(Memory { iommu: iommu.clone(), mode, of_qemu, of_daemon })
    }

    /// KiB pinned, locked and resident.
    fn status_of(&mut self, program: &str) -> Result<[u64; 3]> {
        let lines = self.host.execute(&format!("cat /proc/$(pidof {program})/status"))?;
        let value = |name: &str| -> Result<u64> {
            let line = lines.iter().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            Ok(value.with_context(|| format!("{program} has no {name}"))?.parse()?)
        };
        Ok([value("VmPin:")?, value("VmLck:")?, value("VmRSS:")?])
    }
}
