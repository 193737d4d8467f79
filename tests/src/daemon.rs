// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a user starts it: a process, its options, what it logs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A running daemon; killed and reaped when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

/// The lines of the log so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    is_over: bool,
}

/// How long the daemon may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// The program, beside the one that asks.
    ///
    /// # Errors
    /// It has not been built.
    pub fn program() -> Result<PathBuf> {
        let this = std::env::current_exe()?;
        let mut folders = this.ancestors().skip(1);
        let program = folders.find_map(|folder| {
            let program = folder.join("vhost-user-iommu");
            program.is_file().then_some(program)
        });
        program.context("vhost-user-iommu is not built; build it with: cargo build --workspace")
    }

    /// Starts the daemon with these arguments and waits until it is ready.
    ///
    /// # Errors
    /// It is not built or does not get ready; then with what it said.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Daemon> {
        Daemon::of(Daemon::command(arguments)?)
    }

    /// The command that starts the daemon with these arguments, for [`Daemon::of`].
    ///
    /// # Errors
    /// It has not been built.
    pub fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
        // It goes with the thread that starts it, whatever becomes of that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(Self::program()?).args(arguments);
        Ok(command)
    }

    /// Starts the daemon by this command and waits until it is ready.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn of(mut command: Command) -> Result<Daemon> {
        let mut process = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting vhost-user-iommu through setpriv")?;
        let stderr = process.stderr.take().context("no standard error")?;
        let log = Arc::new(Log::default());
        let reader_log = log.clone();
        let reader = thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| reader_log.push(line));
            reader_log.end();
        });
        let daemon = Daemon { process, log, reader: Some(reader) };
        daemon.wait_for("ready:", PATIENCE)?;
        Ok(daemon)
    }

    /// Runs `vhost-user-iommu viot` with these arguments, the table going to `output`.
    ///
    /// # Errors
    /// It refuses; then with what it said.
    pub fn write_viot(arguments: &[&str], output: &Path) -> Result<()> {
        let done = Command::new(Self::program()?)
            .arg("viot")
            .args(arguments)
            .arg("--output")
            .arg(output)
            .output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// Runs `vhost-user-iommu ctl` at the control socket of a daemon, and returns what it prints.
    ///
    /// # Errors
    /// It is not done; then with what it said.
    pub fn ctl(control: &Path, words: &[&str]) -> Result<String> {
        let done =
            Command::new(Self::program()?).arg("ctl").arg("--socket").arg(control).args(words).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Waits for a line of the log that contains `pattern`, and returns the first one.
    ///
    /// # Errors
    /// The time is over or the daemon has ended; then with all that it said.
    pub fn wait_for(&self, pattern: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        let mut log = self.log.lock();
        loop {
            if let Some(line) = log.lines.iter().find(|line| line.contains(pattern)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if log.is_over || left.is_zero() {
                bail!("the daemon never said {pattern:?}\n--- its log\n{}", log.lines.join("\n"));
            }
            log = self.log.grown.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The log so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a user would, with SIGTERM, and returns its status and whole log.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(self) -> Result<(ExitStatus, Vec<String>)> {
        self.end_by(Signal::TERM)
    }

    /// Sends it `signal`, waits for its end, and returns its status and whole log.
    ///
    /// # Errors
    /// It does not end.
    pub fn end_by(self, signal: Signal) -> Result<(ExitStatus, Vec<String>)> {
        kill_process(Pid::from_child(&self.process), signal)?;
        self.wait_for_end()
    }

    /// Waits for its end, and returns its status and whole log.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait_for_end(mut self) -> Result<(ExitStatus, Vec<String>)> {
        let deadline = Instant::now() + PATIENCE;
        let mut log = self.log.lock();
        while !log.is_over {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the daemon does not end\n{}", log.lines.join("\n"));
            log = self.log.grown.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let lines = log.lines.clone();
        drop(log);
        Ok((self.process.wait()?, lines))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Each of these fails only where the daemon is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

impl Log {
    fn push(&self, line: String) {
        self.lock().lines.push(line);
        self.grown.notify_all();
    }

    fn end(&self) {
        self.lock().is_over = true;
        self.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
