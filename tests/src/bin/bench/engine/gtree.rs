// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! GLib's `GTree` in the way of QEMU: the program of `tests/bench/gtree.c`, which is sent each operation with its
//! sequence and answers with what it took.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use viommu_core::IovaRange;

use super::side::{BUSY, Measured, Side};
use super::workload::{Op, Workload};

/// The running program. It ends when its standard input does.
#[derive(Debug)]
pub struct GTree {
    child: Child,
    requests: Option<ChildStdin>,
    answers: ChildStdout,
    version: u64,
}

impl GTree {
    /// Starts the program, whose first answer is GLib's version.
    pub fn spawn(program: &OsStr) -> Result<GTree> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut answers = child.stdout.take().context("standard output is a pipe")?;
        let requests = child.stdin.take();
        let [version] = words(&mut answers)?;
        Ok(GTree { child, requests, answers, version })
    }

    /// GLib's, as MAJOR.MINOR.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version >> 32, self.version & 0xffff_ffff)
    }

    fn send(&mut self, op: Op, sequence: &[u64]) -> Result<()> {
        let requests = self.requests.as_mut().context("open until the end")?;
        let head = [op as u64, sequence.len() as u64];
        let bytes: Vec<u8> = head.iter().chain(sequence).flat_map(|word| word.to_ne_bytes()).collect();
        requests.write_all(&bytes).context("the GTree program ended")
    }
}

impl Side for GTree {
    fn name(&self) -> &'static str {
        "GTree"
    }

    fn run(&mut self, op: Op, workload: &Workload) -> Result<Measured> {
        self.send(op, &sequence(op, workload))?;
        let [ns, count, sum, writer_ns, pairs] = words(&mut self.answers)?;
        Ok(Measured {
            ns: ns as f64 / count as f64,
            writer_ns: (pairs > 0).then(|| writer_ns as f64 / pairs as f64),
            sum,
        })
    }
}

impl Drop for GTree {
    fn drop(&mut self) {
        self.requests = None;
        // Whatever becomes of it then: it has nothing more to say.
        let _ = self.child.wait();
    }
}

/// Ranges are two words each, first and last.
fn sequence(op: Op, workload: &Workload) -> Vec<u64> {
    let both = |ranges: &[IovaRange]| -> Vec<u64> {
        ranges.iter().flat_map(|range| [range.start(), range.last()]).collect()
    };
    match op {
        Op::Map => both(&workload.map),
        Op::MapInOrder => both(&workload.in_order),
        Op::Unmap => both(&workload.unmap),
        Op::Pair => both(&workload.pair),
        Op::Lookup | Op::Shared => workload.lookup.clone(),
        Op::Busy => {
            let head = [BUSY.as_nanos() as u64, workload.busy_pair.len() as u64];
            [&head[..], &both(&workload.busy_pair), &workload.busy_lookup].concat()
        }
        Op::Replay | Op::Destroy => Vec::new(),
    }
}

fn words<const COUNT: usize>(from: &mut impl Read) -> Result<[u64; COUNT]> {
    let mut answer = [0; COUNT];
    for word in &mut answer {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).context("the GTree program ended")?;
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(answer)
}
