// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A running arm64 host that does what it is told, and the guest that runs in it.
//!
//! One guest at a time. When this is dropped, nothing of either is left. To read first: `tests/l2/host-library.sh`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::guest::Guest;
use super::streams::{Stream, Streams};
use super::testbed::Testbed;
use crate::guest::RunningGuest;
use crate::l1::Machine;

const LIBRARY: &str = include_str!("../../l2/host-library.sh");
/// The folder that the host shares with us, in the host.
pub(super) const SHARED: &str = "/work";
/// Far more than any of it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// An arm64 host; it and its guest are killed when this is dropped.
#[derive(Debug)]
pub struct Host {
    testbed: Testbed,
    // Before its folder, so that it goes first.
    machine: RunningGuest,
    folder: TempDir,
    commands: UnixStream,
    command_count: u32,
    streams: Streams,
}

impl Host {
    /// Boots this host, which got its devices already. Its memory should be that of [`Testbed::machine`].
    ///
    /// # Errors
    /// It does not boot: with the end of its console.
    pub fn start(testbed: &Testbed, machine: Machine) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("l2-").tempdir().context("making the guests' folder")?;
        let shared = folder.path().join("shared");
        fs::create_dir(&shared)?;
        fs::copy(&testbed.host.kernel, shared.join("Image"))?;
        fs::copy(&testbed.host.firmware, shared.join("firmware"))?;
        let socket = folder.path().join("commands.sock");
        let mut machine = machine
            .share("usr", &testbed.usr)
            .share("work", &shared)
            .device("virtio-serial-device")
            .argument("-chardev")
            .argument(format!("socket,id=commands,server=on,wait=off,path={}", socket.display()))
            .device("virtserialport,chardev=commands,name=commands")
            .job(&format!("{LIBRARY}\nserve_commands\n"))
            .spawn()?;
        machine.wait_for("l1: init", PATIENCE)?;
        let commands = UnixStream::connect(&socket).context("connecting to the host's serial port")?;
        machine.wait_for("l2: ready", PATIENCE)?;
        let streams = Streams::default();
        Ok(Self { testbed: testbed.clone(), machine, folder, commands, command_count: 0, streams })
    }

    /// Runs a shell script in the host, up to the first command that fails, and returns what it wrote. It can call the
    /// functions of `tests/l1/job-library.sh` and `tests/l2/host-library.sh`.
    ///
    /// # Errors
    /// A command fails: with what the script wrote.
    pub fn execute(&mut self, script: &str) -> Result<Vec<String>> {
        self.command_count += 1;
        let number = self.command_count;
        fs::write(self.folder.path().join("shared").join(number.to_string()), script)?;
        let begin = self.machine.lines().len();
        writeln!(self.commands, "{number}").context("talking to the host")?;
        let ended = format!("l2: {number} ended ");
        let is_it = |line: &str| line.starts_with(&ended);
        let (end, last) = self.machine.wait_for_line(begin, is_it, &format!("{ended:?}"), PATIENCE)?;
        let lines = self.machine.lines()[begin..end].to_vec();
        let lines: Vec<_> = lines.into_iter().filter(|line| Stream::of(line).0 == Stream::Host).collect();
        ensure!(last == format!("{ended}0"), "in the host, {script:?} failed:\n{}", lines.join("\n"));
        Ok(lines)
    }

    /// Starts a guest and makes its monitor ready; returns before it has booted.
    ///
    /// # Errors
    /// QEMU does not start: with what it said.
    pub fn boot(&mut self, guest: &Guest) -> Result<()> {
        let parts = guest.parts(&self.testbed, SHARED)?;
        fs::write(self.folder.path().join("shared").join("dtb"), parts.device_tree)?;
        self.start_guest(&parts.initrd, &parts.command)
    }

    /// The same for a shell command that starts QEMU, with console and monitor as [`Guest::QEMU_STREAMS`] has them; of
    /// `guest` only the files are taken, which [`Guest::KERNEL`] names.
    ///
    /// # Errors
    /// As [`Host::boot`].
    pub fn boot_by(&mut self, command: &str, guest: &Guest) -> Result<()> {
        let initrd = guest.initrd(&self.testbed)?;
        self.start_guest(&initrd, &["sh".into(), "-c".into(), command.into()])
    }

    fn start_guest(&mut self, initrd: &[u8], command: &[String]) -> Result<()> {
        fs::write(self.folder.path().join("shared").join("initrd"), initrd)?;
        self.streams.skip(&self.machine);
        let command = command.iter().fold("guest_start".to_owned(), |mut line, word| {
            let _ = write!(line, " '{}'", word.replace('\'', r"'\''")); // to a string: cannot fail
            line
        });
        self.execute(&command)?;
        self.monitor(r#"{"execute": "qmp_capabilities"}"#)?;
        Ok(())
    }

    /// Waits for a line of the guest's console that contains `pattern`, after the one that the last wait returned.
    ///
    /// # Errors
    /// The time is over: with the end of the host's console.
    pub fn guest_line(&mut self, pattern: &str, within: Duration) -> Result<String> {
        self.streams.wait_for(&self.machine, Stream::Guest, pattern, within)
    }

    /// Waits like [`Host::guest_line`] and returns what follows `name` on that line.
    ///
    /// # Errors
    /// As [`Host::guest_line`].
    pub fn guest_value(&mut self, name: &str, within: Duration) -> Result<String> {
        let line = self.guest_line(name, within)?;
        Ok(line.split_once(name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
    }

    /// Waits for a line of QEMU's own, or of what started it.
    ///
    /// # Errors
    /// As [`Host::guest_line`].
    pub fn vmm_line(&mut self, pattern: &str, within: Duration) -> Result<String> {
        self.streams.wait_for(&self.machine, Stream::Vmm, pattern, within)
    }

    /// Has the monitor (QMP) of the guest's QEMU execute a command, a line of JSON, and returns its answer.
    ///
    /// # Errors
    /// QEMU refuses the command, or does not answer.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        self.execute(&format!("guest_monitor '{command}'"))?;
        loop {
            let line = self.streams.wait_for(&self.machine, Stream::Monitor, "", PATIENCE)?;
            if line.starts_with("{\"return\"") {
                return Ok(line);
            }
            if line.starts_with("{\"error\"") {
                bail!("QEMU refused {command}: {line}");
            }
        }
    }

    /// Waits for a line of the monitor's, for example an event.
    ///
    /// # Errors
    /// As [`Host::guest_line`].
    pub fn monitor_line(&mut self, pattern: &str, within: Duration) -> Result<String> {
        self.streams.wait_for(&self.machine, Stream::Monitor, pattern, within)
    }

    /// Waits until the guest has powered off, or QEMU ended otherwise, and returns QEMU's exit status.
    ///
    /// # Errors
    /// As [`Host::guest_line`].
    pub fn guest_end(&mut self, within: Duration) -> Result<u8> {
        let line = self.vmm_line("ended ", within)?;
        let status = line.rsplit(' ').next().unwrap_or_default();
        status.parse().with_context(|| format!("QEMU's end is {line:?}"))
    }

    /// Kills the guest's QEMU, if there is one.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn kill_guest(&mut self) -> Result<()> {
        self.execute("guest_kill").map(drop)
    }

    /// Every line of the host's console so far.
    pub fn lines(&self) -> Vec<String> {
        self.machine.lines()
    }
}
