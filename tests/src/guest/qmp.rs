// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sends commands to QEMU's monitor (QMP).
//!
//! It parses no JSON, nor makes any: arguments and an answer are lines of text. To read first: QEMU's
//! `docs/interop/qmp-spec.rst`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// QEMU answers at once, or it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connecting to QEMU's monitor")?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        ensure!(qmp.line()?.contains("\"QMP\""), "no greeting from QEMU's monitor");
        qmp.execute("qmp_capabilities", "{}")?;
        Ok(qmp)
    }

    /// The line of the answer; events that come before it are dropped.
    pub(super) fn execute(&mut self, command: &str, arguments: &str) -> Result<String> {
        let request = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).with_context(|| format!("sending {command}"))?;
        loop {
            let line = self.line().with_context(|| format!("waiting for the answer to {command}"))?;
            if line.starts_with("{\"return\"") {
                return Ok(line);
            }
            if line.starts_with("{\"error\"") {
                bail!("QEMU refused {command}: {line}");
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "QEMU closed its monitor");
        Ok(line.trim_end().to_owned())
    }
}
