// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Describes a host and starts it: which machine, what runs in it, and what came of that.
//!
//! It adds no device by itself but the IOMMU. To read first: `tests/l1/init`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest::{Archive, RunningGuest};

use super::board::Board;
use super::testbed::{Testbed, VtdTestbed};

const INIT: &str = include_str!("../../l1/init");
const JOB_LIBRARY: &str = include_str!("../../l1/job-library.sh");

/// A host to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    board: Board,
    qemu: PathBuf,
    kernel: PathBuf,
    busybox: PathBuf,
    job: String,
    programs: Vec<(String, PathBuf)>,
    memory_mib: u32,
    cpus: u32,
    arguments: Vec<OsString>,
}

/// What a job did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The job's exit status; if it is not 0, the end of the kernel's log is the end of `lines`.
    pub status: u8,
    /// What the job wrote, to standard output or standard error.
    pub lines: Vec<String>,
    /// From the start of QEMU to the start of `init`.
    pub boot: Duration,
}

impl Machine {
    /// An arm64 host with 1 GiB, two CPUs and an empty job.
    pub fn new(testbed: &Testbed) -> Self {
        let board = Board::Virt { firmware: testbed.firmware.clone() };
        Self::of(board, [&testbed.qemu, &testbed.kernel, &testbed.busybox])
    }

    /// The same for x86-64, with VT-d.
    pub fn with_vtd(testbed: &VtdTestbed) -> Self {
        Self::of(Board::Q35, [&testbed.qemu, &testbed.kernel, &testbed.busybox])
    }

    fn of(board: Board, pieces: [&PathBuf; 3]) -> Self {
        let [qemu, kernel, busybox] = pieces.map(Clone::clone);
        Self {
            board,
            qemu,
            kernel,
            busybox,
            job: String::new(),
            programs: Vec::new(),
            memory_mib: 1024,
            cpus: 2,
            arguments: Vec::new(),
        }
    }

    /// The size of its memory in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// How many CPUs it has.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// The shell script to run before it powers off, up to the first command that fails; it can call the functions of
    /// `tests/l1/job-library.sh`.
    pub fn job(mut self, script: &str) -> Self {
        self.job = script.into();
        self
    }

    /// A copy of this program, which the job finds by this name.
    pub fn program(mut self, name: &str, file: &Path) -> Self {
        self.programs.push((format!("bin/{name}"), file.into()));
        self
    }

    /// A QEMU device, as QEMU's `-device` takes it.
    pub fn device(self, description: &str) -> Self {
        self.argument("-device").argument(description)
    }

    /// A raw image, as the block node of this name for a device's `drive=`.
    pub fn image(self, node: &str, file: &Path) -> Self {
        let mut value =
            OsString::from(format!("driver=raw,node-name={node},file.driver=file,file.filename="));
        value.push(file);
        self.argument("-blockdev").argument(value)
    }

    /// A folder that the host can mount, read-only, by this tag (9p over virtio).
    pub fn share(self, tag: &str, folder: &Path) -> Self {
        let mut value = OsString::from(format!("local,id={tag},security_model=none,readonly=on,path="));
        value.push(folder);
        self.argument("-fsdev")
            .argument(value)
            .device(&format!("virtio-9p-device,fsdev={tag},mount_tag={tag}"))
    }

    /// Any other QEMU argument.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Starts it, waits until the job has ended and the machine is off, and says what came of it.
    ///
    /// # Errors
    /// As [`Machine::spawn`]; the time is over, or QEMU exited before: with the end of the console. That the job fails
    /// is none.
    pub fn run(&self, within: Duration) -> Result<Report> {
        let begin = Instant::now();
        let left = || within.saturating_sub(begin.elapsed());
        let mut machine = self.spawn()?;
        machine.wait_for(BOOTED, left())?;
        let boot = begin.elapsed();
        machine.wait_for(ENDED, left())?;
        let exit = machine.wait_for_exit(left())?;
        ensure!(exit.success(), "QEMU ended with {exit}: {}", machine.stderr());
        let (status, lines) = outcome(&machine.lines())?;
        Ok(Report { status, lines, boot })
    }

    /// Starts QEMU; returns before the kernel has booted. The console's lines are those that `tests/l1/init` names.
    ///
    /// # Errors
    /// The initramfs cannot be made, QEMU cannot be started, or has no IORT. That QEMU refuses its other arguments shows
    /// in the first wait.
    pub fn spawn(&self) -> Result<RunningGuest> {
        let folder = tempfile::Builder::new().prefix("l1-").tempdir().context("making the host's folder")?;
        let initrd = folder.path().join("initrd");
        let mut arguments = self.machine_arguments();
        let tables = self.board.table_override(&self.qemu, &arguments)?;
        fs::write(&initrd, [tables, self.initramfs()?].concat())?;
        for (option, value) in [
            ("-kernel", self.kernel.as_os_str()),
            ("-initrd", initrd.as_os_str()),
            ("-append", self.board.kernel_arguments().as_ref()),
            ("-serial", "stdio".as_ref()),
            ("-display", "none".as_ref()),
        ] {
            arguments.extend([option.into(), value.into()]);
        }
        arguments.extend(["-nodefaults".into(), "-no-reboot".into()]);
        arguments.extend_from_slice(&self.arguments);
        RunningGuest::start(folder, &self.qemu, &arguments)
    }

    fn initramfs(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "proc", "sys"] {
            archive.entry(folder, 0o040_755, &[])?;
        }
        // For every user's temporary files.
        archive.entry("tmp", 0o041_777, &[])?;
        archive.entry("init", 0o100_755, INIT.as_bytes())?;
        archive.entry("job-library.sh", 0o100_644, JOB_LIBRARY.as_bytes())?;
        archive.entry("job.sh", 0o100_644, self.job.as_bytes())?;
        archive.entry("bin/busybox", 0o100_755, &fs::read(&self.busybox)?)?;
        for (name, file) in &self.programs {
            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            archive.entry(name, 0o100_755, &content)?;
        }
        archive.finish()
    }

    fn machine_arguments(&self) -> Vec<OsString> {
        let mut arguments = self.board.arguments();
        for (option, value) in [("-m", format!("{}M", self.memory_mib)), ("-smp", self.cpus.to_string())] {
            arguments.extend([option.into(), value.into()]);
        }
        arguments
    }
}

/// What `tests/l1/init` says.
const BOOTED: &str = "l1: init";
const BEGUN: &str = "l1: job begins";
const ENDED: &str = "l1: job ended ";

/// The status and the lines between the two marks; the last line may lack its end.
fn outcome(console: &[String]) -> Result<(u8, Vec<String>)> {
    let begin = console.iter().position(|line| line == BEGUN).context("the job never began")?;
    let (end, last) =
        console.iter().enumerate().rev().find(|(_, line)| line.contains(ENDED)).context("no end")?;
    let (unfinished, status) = last.split_once(ENDED).context("no status")?;
    let mut lines = console[begin + 1..end].to_vec();
    lines.extend((!unfinished.is_empty()).then(|| unfinished.to_owned()));
    Ok((status.parse().with_context(|| format!("the job's status is {status:?}"))?, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(console: &[&str]) -> Result<(u8, Vec<String>)> {
        outcome(&console.iter().map(|&line| line.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_job_wrote_is_between_the_marks() -> Result<()> {
        let console = ["UEFI", "l1: init 0.7", "l1: job begins", "one", "", "two", "l1: job ended 3"];
        assert_eq!(of(&console)?, (3, vec!["one".into(), String::new(), "two".into()]));
        assert_eq!(of(&["l1: job begins", "l1: job ended 0"])?, (0, vec![]));
        Ok(())
    }

    #[test]
    fn a_last_line_without_its_end_is_a_line() -> Result<()> {
        assert_eq!(of(&["l1: job begins", "cutl1: job ended 0"])?, (0, vec!["cut".into()]));
        Ok(())
    }
}
