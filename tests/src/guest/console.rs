// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starts QEMU and collects the guest's serial console, line by line.
//!
//! It gives the lines no meaning. To read first: `prctl(2)`, `PR_SET_PDEATHSIG`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// What came over the serial line so far, and whether QEMU has exited, so that no more can come.
#[derive(Debug, Default)]
pub(super) struct Console {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    texts: Vec<String>,
    closed: bool,
}

/// Why a wait ended without the line it waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoLine {
    Deadline,
    Closed,
}

impl Console {
    /// Starts `qemu`, whose standard output is the serial line, and reads that until QEMU exits.
    ///
    /// The reading thread starts QEMU itself: QEMU dies with the thread that started it, which so lives as long as
    /// QEMU does, whatever becomes of the caller's thread.
    pub(super) fn start(mut qemu: Command) -> Result<(Arc<Self>, Child, JoinHandle<()>)> {
        let console = Arc::new(Self::default());
        let (started, child) = mpsc::channel();
        let reader = thread::spawn({
            let console = Arc::clone(&console);
            move || {
                let mut spawned = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
                let output = spawned.as_mut().ok().map(|qemu| (Pid::from_child(qemu), qemu.stdout.take()));
                // The caller waits for this and owns QEMU from here on.
                let _ = started.send(spawned);
                if let Some((pid, Some(stdout))) = output {
                    console.follow(pid, stdout);
                }
            }
        });
        let child =
            child.recv().context("the console's thread ended")?.context("starting QEMU through setpriv")?;
        Ok((console, child, reader))
    }

    /// The position and text of the first line at or after `from` that is the one that is waited for.
    pub(super) fn wait_for(
        &self,
        is_it: impl Fn(&str) -> bool,
        from: usize,
        within: Duration,
    ) -> Result<(usize, String), NoLine> {
        let deadline = Instant::now() + within;
        let mut next = from;
        let mut lines = self.lock();
        loop {
            for (position, text) in lines.texts.iter().enumerate().skip(next) {
                if is_it(text) {
                    return Ok((position, text.clone()));
                }
            }
            next = lines.texts.len().max(from);
            if lines.closed {
                return Err(NoLine::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoLine::Deadline);
            }
            lines = self.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether QEMU has exited at the end of this time at the latest.
    pub(super) fn wait_until_closed(&self, within: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), within, |lines| !lines.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// Every line so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().texts.clone()
    }

    fn follow(&self, qemu: Pid, stdout: ChildStdout) {
        let mut stdout = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while matches!(stdout.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            self.lock().texts.push(text);
            self.changed.notify_all();
            bytes.clear();
        }
        // QEMU closes the line shortly before it exits; its owner reaps it, perhaps before we look.
        let _ = waitid(WaitId::Pid(qemu), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
