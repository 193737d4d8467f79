// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DPDK's testpmd with two ports: vhost-user back-ends of somebody else's, which know IOTLB messages.
//!
//! It makes nothing of what testpmd says. To read first: DPDK's "Testpmd Application User Guide", and its guide to the vhost
//! driver (`net_vhost`).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::guest::{Pieces, dying_with_us, or_skip};

/// A running testpmd; killed when dropped.
#[derive(Debug)]
pub struct Testpmd {
    process: Child,
    ports: [PathBuf; 2],
    folder: TempDir,
}

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

impl Testpmd {
    /// The program, for a test; where it cannot be had, as
    /// [`Testbed::find_for_test`](crate::guest::Testbed::find_for_test).
    ///
    /// # Errors
    /// `scripts/testbed dpdk` failed: the reason it gave is in the error.
    pub fn find_for_test() -> Result<Option<PathBuf>> {
        or_skip(Pieces::find(Some("dpdk")).and_then(|pieces| pieces.path("TESTPMD")))
    }

    /// Starts `program`, which serves a back-end at each of these sockets and forwards nothing yet.
    ///
    /// # Errors
    /// It cannot be started, or does not listen; then with what it said.
    pub fn start(program: &Path, ports: [PathBuf; 2]) -> Result<Testpmd> {
        let folder = tempfile::Builder::new().prefix("testpmd-").tempdir()?;
        let said = File::create(folder.path().join("said"))?;
        let process = dying_with_us(program)
            .args(arguments(&ports))
            .env("RUNTIME_DIRECTORY", folder.path())
            .stdin(Stdio::piped())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("starting testpmd through setpriv")?;
        let testpmd = Testpmd { process, ports, folder };
        testpmd.wait_for_sockets()?;
        Ok(testpmd)
    }

    fn wait_for_sockets(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.ports.iter().all(|port| port.exists()) {
            ensure!(Instant::now() < deadline, "testpmd does not listen:\n{}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives it commands, as one would type them.
    ///
    /// # Errors
    /// It has ended.
    pub fn command(&mut self, commands: &[&str]) -> Result<()> {
        let stdin = self.process.stdin.as_mut().context("no standard input")?;
        commands.iter().try_for_each(|command| writeln!(stdin, "{command}")).context("testpmd has ended")
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Each of these fails only where it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A killed one leaves its sockets, and another does not start where they are.
        for port in &self.ports {
            let _ = fs::remove_file(port);
        }
    }
}

/// Without huge pages, devices of this machine's, and files that others look for; on any processor.
fn arguments(ports: &[PathBuf; 2]) -> Vec<OsString> {
    let own = ["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", "--lcores"];
    let mut arguments: Vec<OsString> = own.map(Into::into).into();
    arguments.push(format!("(0,1)@({})", processors()).into());
    for (number, port) in ports.iter().enumerate() {
        let mut device = OsString::from(format!("net_vhost{number},iommu-support=1,iface="));
        device.push(port);
        arguments.extend(["--vdev".into(), device]);
    }
    arguments.extend(["--", "--interactive", "--total-num-mbufs=8192"].map(Into::into));
    arguments
}

/// Those that this process may use, as a list.
fn processors() -> String {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let numbers = (0..rustix::thread::CpuSet::MAX_CPU).filter(|number| set.is_set(*number));
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",")
}
