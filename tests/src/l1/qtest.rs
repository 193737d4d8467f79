// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads and writes a machine's physical memory over QEMU's test protocol, while no instruction runs in it.
//!
//! To read first: QEMU's `docs/devel/testing/qtest.rst`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::dying_with_us;

/// QEMU answers at once when it has started, or it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A stopped machine, whose QEMU is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Qtest {
    qemu: Child,
    stream: BufReader<UnixStream>,
}

impl Qtest {
    /// Starts QEMU with this machine.
    pub(super) fn start<A: AsRef<OsStr>>(qemu: &Path, machine: &[A]) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_WITHIN))?;
        let qemu = dying_with_us(qemu)
            .args(machine)
            .args(["-S", "-nodefaults", "-display", "none", "-qtest", "stdio", "-qtest-log", "none"])
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("starting QEMU through setpriv")?;
        Ok(Self { qemu, stream: BufReader::new(ours) })
    }

    pub(super) fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        let answer = self.execute(&format!("read {address:#x} {length:#x}"))?;
        let digits = answer.strip_prefix("0x").context("QEMU answers without bytes")?;
        ensure!(digits.len() == 2 * length, "{} digits for {length} bytes", digits.len());
        (0..length).map(|at| Ok(u8::from_str_radix(&digits[2 * at..][..2], 16)?)).collect()
    }

    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.execute(&format!("write {address:#x} {:#x} 0x{digits}", bytes.len()))?;
        Ok(())
    }

    /// What follows `OK` in the answer.
    fn execute(&mut self, command: &str) -> Result<String> {
        let mut answer = String::new();
        writeln!(self.stream.get_mut(), "{command}").context("talking to QEMU")?;
        self.stream
            .read_line(&mut answer)
            .with_context(|| format!("waiting for QEMU's answer to {command}"))?;
        let value = answer.trim_end().strip_prefix("OK");
        Ok(value.with_context(|| format!("QEMU says {answer:?} to {command}"))?.trim().to_owned())
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        // Each of these fails only where QEMU is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
