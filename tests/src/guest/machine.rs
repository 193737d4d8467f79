// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Describes a guest and starts it: a q35 machine whose memory other processes can map.
//!
//! It adds no vIOMMU and no disk by itself. To read first: QEMU's `docs/system/invocation.html`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::initramfs::Initramfs;
use super::running::{RunningGuest, dying_with_us};
use super::testbed::{Accelerator, Testbed};

/// What every guest's kernel is told: report on the serial line, and let a panic end QEMU.
pub(super) const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off";

/// A guest to be started.
#[derive(Clone, Debug)]
pub struct Guest {
    testbed: Testbed,
    memory_mib: u32,
    cpus: u32,
    boot_from: BootFrom,
    on_reset: OnReset,
    kernel_args: String,
    initramfs: Initramfs,
    launcher: Vec<OsString>,
    arguments: Vec<OsString>,
}

/// Who loads the guest's kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootFrom {
    /// QEMU; the guest's disks are first touched by Linux.
    Kernel,
    /// The firmware and the boot loader, from the first disk (see [`super::Disk::bootable`]); the guest's own kernel
    /// arguments, modules and job then have no effect.
    Disk,
}

/// What QEMU does when the guest resets itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnReset {
    /// It exits.
    Exit,
    /// The guest boots again.
    Reboot,
}

impl Guest {
    /// A guest with 512 MiB, one CPU and an empty job.
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
            memory_mib: 512,
            cpus: 1,
            boot_from: BootFrom::Kernel,
            on_reset: OnReset::Exit,
            kernel_args: KERNEL_ARGS.into(),
            initramfs: Initramfs::new(),
            launcher: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// The size of guest memory in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The number of virtual CPUs.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Who loads the kernel.
    pub fn boot_from(mut self, boot_from: BootFrom) -> Self {
        self.boot_from = boot_from;
        self
    }

    /// What a reset by the guest leads to.
    pub fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.on_reset = on_reset;
        self
    }

    /// Adds to the kernel's command line, for example `iommu.strict=1` or `iommu.passthrough=1`.
    pub fn kernel_arg(mut self, argument: &str) -> Self {
        self.kernel_args.push(' ');
        self.kernel_args.push_str(argument);
        self
    }

    /// The shell script the guest runs before it powers off; see `tests/guest-init/job-library.sh`.
    pub fn job(mut self, script: &str) -> Self {
        self.initramfs = self.initramfs.job(script);
        self
    }

    /// Also loads this kernel module, after those it depends on.
    pub fn module(mut self, name: &str) -> Self {
        self.initramfs = self.initramfs.module(name);
        self
    }

    /// The file that holds the guest's VIOT, with the table's header.
    pub fn viot(self, file: &Path) -> Self {
        let mut value = OsString::from("file=");
        value.push(file);
        self.argument("-acpitable").argument(value)
    }

    /// A QEMU device, as QEMU's `-device` takes it.
    pub fn device(self, description: &str) -> Self {
        self.argument("-device").argument(description)
    }

    /// A character device with this id, connected to a back-end's listening Unix socket.
    pub fn chardev(self, id: &str, socket: &Path) -> Self {
        let mut value = OsString::from(format!("socket,id={id},path="));
        value.push(socket);
        self.argument("-chardev").argument(value)
    }

    /// A raw image, as the block node of this name for a device's `drive=`.
    pub fn image(self, node: &str, file: &Path) -> Self {
        let mut value =
            OsString::from(format!("driver=raw,node-name={node},file.driver=file,file.filename="));
        value.push(file);
        self.argument("-blockdev").argument(value)
    }

    /// A program with its arguments that becomes QEMU: what follows them is QEMU's command line.
    pub fn launched_by(mut self, command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.launcher = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Any other QEMU argument.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Starts QEMU; returns before the guest has booted.
    ///
    /// # Errors
    /// The initramfs cannot be made or QEMU cannot be started. That QEMU refuses its arguments shows in the first wait.
    pub fn spawn(&self) -> Result<RunningGuest> {
        let folder =
            tempfile::Builder::new().prefix("guest-").tempdir().context("making the guest's folder")?;
        let mut arguments: Vec<OsString> = self.machine_arguments().into_iter().map(Into::into).collect();
        if self.boot_from == BootFrom::Kernel {
            let initrd = folder.path().join("initrd");
            fs::write(&initrd, self.initramfs.build(&self.testbed)?)?;
            arguments.extend(["-kernel".into(), self.testbed.kernel.clone().into()]);
            arguments.extend(["-initrd".into(), initrd.into()]);
            arguments.extend(["-append".into(), self.kernel_args.clone().into()]);
        }
        arguments.extend_from_slice(&self.arguments);
        let words: Vec<_> = self.launcher.iter().cloned().chain([self.testbed.qemu.clone().into()]).collect();
        let mut command = dying_with_us(Path::new(&words[0]));
        command.args(&words[1..]);
        RunningGuest::start_by(command, folder, &arguments)
    }

    fn machine_arguments(&self) -> Vec<String> {
        let (accelerator, cpu) = match Accelerator::of_this_machine() {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg", "qemu64"),
        };
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib);
        let mut arguments: Vec<String> =
            ["-nodefaults", "-display", "none", "-serial", "stdio"].map(Into::into).into();
        for (option, value) in [
            ("-machine", "q35,memory-backend=memory"),
            ("-accel", accelerator),
            ("-cpu", cpu),
            ("-m", &format!("{}M", self.memory_mib)),
            ("-object", &memory),
            ("-smp", &self.cpus.to_string()),
        ] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
        if self.on_reset == OnReset::Exit {
            arguments.push("-no-reboot".into());
        }
        arguments
    }
}
