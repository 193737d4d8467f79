// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that runs: what it says, how it is reset, how it ends.
//!
//! It never outlives its owner: dropping it kills QEMU, and QEMU dies when this process does. To read first: `setpriv(1)`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tempfile::TempDir;

use super::console::{Console, NoLine};
use super::qmp::Qmp;

/// How much of the console an error shows.
const LINES_SHOWN: usize = 40;

/// A guest under QEMU, killed when dropped.
#[derive(Debug)]
pub struct RunningGuest {
    folder: TempDir,
    console: Arc<Console>,
    qemu: Child,
    reader: Option<JoinHandle<()>>,
    qmp: Option<Qmp>,
    next_line: usize,
}

impl RunningGuest {
    /// Starts this QEMU, whose serial line is its standard output, with a monitor. The folder is deleted with the guest.
    pub(crate) fn start(folder: TempDir, qemu: &Path, arguments: &[OsString]) -> Result<Self> {
        Self::start_by(dying_with_us(qemu), folder, arguments)
    }

    /// The same with a command that ends with QEMU's name, and becomes QEMU.
    pub(super) fn start_by(mut command: Command, folder: TempDir, arguments: &[OsString]) -> Result<Self> {
        let monitor = format!("unix:{},server=on,wait=off", Self::monitor_in(folder.path()).display());
        command.args(["-qmp", &monitor]).args(arguments);
        command.stderr(Stdio::from(File::create(Self::stderr_in(folder.path()))?));
        let (console, qemu, reader) = Console::start(command)?;
        Ok(Self { folder, console, qemu, reader: Some(reader), qmp: None, next_line: 0 })
    }

    fn monitor_in(folder: &Path) -> PathBuf {
        folder.join("qmp.sock")
    }

    fn stderr_in(folder: &Path) -> PathBuf {
        folder.join("stderr")
    }

    /// Waits for a line that contains `pattern`, after the line that the last wait returned.
    ///
    /// # Errors
    /// The time is over or QEMU has exited: with the end of the console and QEMU's own messages.
    pub fn wait_for(&mut self, pattern: &str, within: Duration) -> Result<String> {
        let is_it = |line: &str| line.contains(pattern);
        let (position, line) = self.wait_for_line(self.next_line, is_it, &format!("{pattern:?}"), within)?;
        self.next_line = position + 1;
        Ok(line)
    }

    /// The first line from this position on that is the one that is waited for, and its position; other waits start
    /// where they would have without this.
    pub(crate) fn wait_for_line(
        &self,
        from: usize,
        is_it: impl Fn(&str) -> bool,
        what: &str,
        within: Duration,
    ) -> Result<(usize, String)> {
        self.console.wait_for(is_it, from, within).map_err(|reason| match reason {
            NoLine::Deadline => self.failure(&format!("no {what} within {within:?}")),
            NoLine::Closed => self.failure(&format!("QEMU exited before {what}")),
        })
    }

    /// Waits like [`RunningGuest::wait_for`] and returns what follows `name` on that line.
    ///
    /// # Errors
    /// As [`RunningGuest::wait_for`].
    pub fn value_of(&mut self, name: &str, within: Duration) -> Result<String> {
        let line = self.wait_for(name, within)?;
        Ok(line.split_once(name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
    }

    /// The type of the IOMMU group of the function `address`, as the guest's kernel calls it, from a job that lists
    /// groups.
    ///
    /// # Errors
    /// As [`RunningGuest::wait_for`].
    pub fn group_type(&mut self, address: &str, within: Duration) -> Result<String> {
        let group = self.value_of(&format!("iommu_groups {address} "), within)?;
        Ok(group.split_whitespace().last().unwrap_or_default().to_owned())
    }

    /// Waits until a job has read the first `mib` MiB of its disk, and checks that it read what has the checksum `sum`.
    ///
    /// # Errors
    /// As [`RunningGuest::wait_for`], and that it read something else.
    pub fn reads(&mut self, mib: usize, sum: &str, within: Duration) -> Result<()> {
        let read = self.value_of(&format!("checksum /dev/vda {mib} "), within)?;
        ensure!(read == sum, "the guest read {read}, the image has {sum}");
        Ok(())
    }

    /// Waits until QEMU has exited.
    ///
    /// # Errors
    /// The time is over: with the end of the console and QEMU's own messages.
    pub fn wait_for_exit(&mut self, within: Duration) -> Result<ExitStatus> {
        if !self.console.wait_until_closed(within) {
            return Err(self.failure(&format!("QEMU still runs after {within:?}")));
        }
        Ok(self.qemu.wait()?)
    }

    /// Every line of the console so far.
    pub fn lines(&self) -> Vec<String> {
        self.console.lines()
    }

    /// What QEMU itself said on its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(Self::stderr_in(self.folder.path())).unwrap_or_default()
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Has QEMU's monitor execute a command without arguments (`system_reset`, `stop`, `cont`, `quit`) and returns
    /// its answer, a line of JSON. Works from the time on when the guest has said something.
    ///
    /// # Errors
    /// QEMU refuses the command, or does not answer.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        self.monitor_with(command, "{}")
    }

    /// The same for a command with arguments, an object of JSON in one line.
    ///
    /// # Errors
    /// As [`RunningGuest::monitor`].
    pub fn monitor_with(&mut self, command: &str, arguments: &str) -> Result<String> {
        let qmp = match &mut self.qmp {
            Some(qmp) => qmp,
            none => none.insert(Qmp::connect(&Self::monitor_in(self.folder.path()))?),
        };
        qmp.execute(command, arguments)
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let lines = self.lines();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        anyhow!("{what}\n--- end of the console\n{}\n--- QEMU\n{}", shown.join("\n"), self.stderr())
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        // Each of these fails only where QEMU is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

/// A program that is killed when the thread that starts it ends, however it ends.
///
/// Not QEMU's own exit-with-parent: that is a SIGTERM, which a QEMU stuck in a back-end's socket never serves.
pub(crate) fn dying_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
