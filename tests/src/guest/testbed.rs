// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finds the pieces that guests are made of, and the accelerator that runs them.
//!
//! It fetches nothing itself: `scripts/testbed` does, and this module reads the KEY=VALUE lines it prints.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Where QEMU, the guest's kernel, busybox and GRUB are on this machine.
#[derive(Clone, Debug)]
pub struct Testbed {
    /// The program to start as `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// The guest kernel's bzImage.
    pub kernel: PathBuf,
    /// The folder that holds the kernel's modules, compressed with xz.
    pub modules: PathBuf,
    /// A static busybox, which runs on the host and in the guest.
    pub busybox: PathBuf,
    /// The program that makes GRUB's `core.img`.
    pub grub_mkimage: PathBuf,
    /// GRUB's `boot.img` and modules for PC firmware.
    pub grub_modules: PathBuf,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Accelerator {
    /// The host's hardware virtualisation.
    Kvm,
    /// QEMU's software emulation: right, but slow; figures taken with it are good for ratios only.
    Tcg,
}

impl Testbed {
    /// Finds the test bed; on a machine's first run this fetches it, which takes some seconds to minutes.
    ///
    /// # Errors
    /// `scripts/testbed` failed: the reason it gave is in the error.
    pub fn find() -> Result<Self> {
        let pieces = Pieces::find(None)?;
        Ok(Self {
            qemu: pieces.path("QEMU")?,
            kernel: pieces.path("KERNEL")?,
            modules: pieces.path("MODULES")?,
            busybox: pieces.path("BUSYBOX")?,
            grub_mkimage: pieces.path("GRUB_MKIMAGE")?,
            grub_modules: pieces.path("GRUB_MODULES")?,
        })
    }

    /// [`Testbed::find`] for a test. Where there is no test bed the test fails, unless the environment variable
    /// `SKIP_WITHOUT_TESTBED` is set: then this prints the reason and returns `None`, and the test returns.
    ///
    /// # Errors
    /// As [`Testbed::find`].
    pub fn find_for_test() -> Result<Option<Self>> {
        or_skip(Self::find())
    }

    /// What a busybox applet writes to its standard output when it reads this file, on the host.
    pub(super) fn busybox(&self, arguments: &[&str], input: File) -> Result<Vec<u8>> {
        let output = Command::new(&self.busybox)
            .args(arguments)
            .stdin(input)
            .output()
            .with_context(|| format!("starting {}", self.busybox.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "busybox {} failed: {said}", arguments.join(" "));
        Ok(output.stdout)
    }
}

/// Where the pieces of one part of the test bed are, by the keys that `scripts/testbed` prints.
#[derive(Debug)]
pub(crate) struct Pieces {
    values: HashMap<String, String>,
}

impl Pieces {
    /// Has `scripts/testbed` fetch what is missing of this part, or of the one it fetches by default.
    pub(crate) fn find(part: Option<&str>) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/testbed");
        let mut running = Command::new(&script)
            .args(part)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", script.display()))?;
        // Shown as it comes, because a first run takes a while, and kept as the reason if it fails.
        let mut said = Vec::new();
        for line in BufReader::new(running.stderr.take().context("standard error is a pipe")?).lines() {
            said.push(line?);
            eprintln!("{}", said.last().map_or("", String::as_str));
        }
        let output = running.wait_with_output()?;
        ensure!(output.status.success(), "no test bed: {}", said.join("\n"));
        let lines = String::from_utf8(output.stdout)?;
        let values = lines.lines().filter_map(|line| line.split_once('='));
        Ok(Self { values: values.map(|(key, value)| (key.into(), value.into())).collect() })
    }

    /// The piece of this key.
    pub(crate) fn path(&self, key: &str) -> Result<PathBuf> {
        let value = self.values.get(key).with_context(|| format!("scripts/testbed names no {key}"))?;
        let path = PathBuf::from(value);
        ensure!(path.exists(), "{key}={value} does not exist");
        Ok(path)
    }
}

/// What a test does where its test bed was not found: it fails, or is skipped if the user asked for that.
pub(crate) fn or_skip<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(reason) if std::env::var_os("SKIP_WITHOUT_TESTBED").is_some() => {
            eprintln!("skipped: {reason:#}");
            Ok(None)
        }
        found => found.map(Some),
    }
}

impl Accelerator {
    /// KVM where the processor has it and this user may use it: `/dev/kvm` alone proves nothing.
    pub fn of_this_machine() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let capable = cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        let usable = || File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if capable && usable() { Self::Kvm } else { Self::Tcg }
    }
}
