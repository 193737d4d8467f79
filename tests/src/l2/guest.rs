// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Describes a guest inside the arm64 host: its IOMMU, the host's devices that it is given, what it runs.
//!
//! It starts nothing. To read first: QEMU's `docs/devel/vfio-iommufd.rst`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::device_tree;
use super::testbed::Testbed;
use crate::guest::without_modules;

/// A guest has VFIO too.
const HOST_JOB_LIBRARY: &str = include_str!("../../l1/job-library.sh");
/// The bus that the machine begins with.
const ROOT: &str = "00";
const MACHINE: &str = "virt,gic-version=3,acpi=off,memory-backend=memory";

/// A guest to be started.
#[derive(Clone, Debug)]
pub struct Guest {
    iommu: Iommu,
    boot_from: BootFrom,
    kernel_args: String,
    job: String,
    programs: Vec<(String, PathBuf)>,
    memory_mib: u32,
    endpoints: Vec<Endpoint>,
    daemons_opener: Opener,
    arguments: Vec<String>,
}

/// Which IOMMU is in front of the devices that a guest is given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Iommu {
    /// None at all.
    Absent,
    /// QEMU's own virtio-iommu.
    Qemu,
    /// The daemon, with these further options.
    Daemon(Vec<String>),
}

/// Who loads the guest's kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootFrom {
    /// QEMU; the guest's disks are first touched by Linux.
    Kernel,
    /// The firmware, from a disk; the guest's own kernel arguments and job then have no effect.
    Disk,
}

/// A device of the host's, and where the guest has it.
#[derive(Clone, Debug)]
struct Endpoint {
    id: String,
    function: String,
}

/// Who opens the host's devices: `launch` shares them with the daemon, QEMU keeps them to itself.
#[derive(Clone, Copy, Debug)]
enum Opener {
    Launch,
    Qemu,
}

/// The files that a guest is made of, beside the kernel and the firmware, and what starts it in the host.
pub(super) struct Parts {
    pub(super) initrd: Vec<u8>,
    pub(super) device_tree: Vec<u8>,
    pub(super) command: Vec<String>,
}

impl Guest {
    /// The arguments for QEMU that [`Host`](super::Host) looks for.
    pub const QEMU_STREAMS: &str = "-nodefaults -display none -chardev file,id=console,path=/run/console \
         -serial chardev:console -chardev pipe,id=monitor,path=/run/qmp -object monitor-qmp,id=qmp,chardev=monitor";
    /// The arguments for a guest's kernel and initial file system, as the host has them.
    pub const KERNEL: &str = "-kernel /work/Image -initrd /work/initrd -append";
    /// What every guest's kernel is told. On the serial line: the kernel only when it dies.
    pub const KERNEL_ARGS: &str = "console=ttyAMA0 loglevel=1 panic=-1";

    /// A guest with 256 MiB, one CPU and an empty job.
    pub fn new(iommu: Iommu) -> Self {
        Self {
            iommu,
            boot_from: BootFrom::Kernel,
            kernel_args: Self::KERNEL_ARGS.into(),
            job: String::new(),
            programs: Vec::new(),
            memory_mib: 256,
            endpoints: Vec::new(),
            daemons_opener: Opener::Launch,
            arguments: Vec::new(),
        }
    }

    /// Gives it the host's PCI function `function`, which `vfio-pci` has to have, as its own function `id`
    /// (`BUS:SLOT.FUNCTION`). If that is not on its root bus, it is behind a root port, where it can be unplugged.
    pub fn pass(mut self, id: &str, function: &str) -> Self {
        self.endpoints.push(Endpoint { id: id.into(), function: function.into() });
        self
    }

    /// Keeps the devices from the daemon, which serves their endpoints all the same: nothing translates for them then.
    pub fn without_devices_for_the_daemon(mut self) -> Self {
        self.daemons_opener = Opener::Qemu;
        self
    }

    /// Who loads the kernel.
    pub fn boot_from(mut self, boot_from: BootFrom) -> Self {
        self.boot_from = boot_from;
        self
    }

    /// Adds to the kernel's command line, for example `iommu.strict=1` or `iommu.passthrough=1`.
    pub fn kernel_arg(mut self, argument: &str) -> Self {
        self.kernel_args.push(' ');
        self.kernel_args.push_str(argument);
        self
    }

    /// The shell script it runs before it powers off; it can call the functions of `tests/guest-init/job-library.sh`
    /// and `tests/l1/job-library.sh`.
    pub fn job(mut self, script: &str) -> Self {
        self.job = script.into();
        self
    }

    /// A copy of this program, which the job finds by this name.
    pub fn program(mut self, name: &str, file: &Path) -> Self {
        self.programs.push((format!("bin/{name}"), file.into()));
        self
    }

    /// Any other QEMU argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The name that QEMU's monitor has for the device that the guest has as this function.
    pub fn device_name(id: &str) -> String {
        format!("vfio-{}", id.replace(':', "."))
    }

    /// The size of its memory in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    /// `folder` is where the host finds the files.
    pub(super) fn parts(&self, testbed: &Testbed, folder: &str) -> Result<Parts> {
        let memory = self.memory_arguments();
        Ok(Parts {
            initrd: self.initrd(testbed)?,
            device_tree: device_tree::with_iommu(&testbed.host.qemu, MACHINE, &memory)?,
            command: [self.launcher(), self.qemu(folder), memory, self.arguments.clone()].concat(),
        })
    }

    pub(super) fn initrd(&self, testbed: &Testbed) -> Result<Vec<u8>> {
        let job = format!("{HOST_JOB_LIBRARY}\n{}", self.job);
        let mut archive = without_modules(&testbed.host.busybox, &job)?;
        for (name, file) in &self.programs {
            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            archive.entry(name, 0o100_755, &content)?;
        }
        archive.finish()
    }

    /// What comes before QEMU's own command line.
    fn launcher(&self) -> Vec<String> {
        let Iommu::Daemon(options) = &self.iommu else { return Vec::new() };
        let mut command = words("vhost-user-iommu launch --socket-path /run/iommu.sock");
        let devices = self.endpoints.iter().map(|Endpoint { id, function }| match self.opened_by() {
            Opener::Launch => format!("{id},vfio={function}"),
            Opener::Qemu => id.clone(),
        });
        // The host bridge is in the device tree's `iommu-map` too, as are root ports.
        let bridges =
            std::iter::once("00:00.0".to_owned()).chain(self.ports().map(|(_, slot)| format!("00:{slot}.0")));
        command.extend(devices.chain(bridges).flat_map(|endpoint| ["--endpoint".into(), endpoint]));
        command.extend(options.iter().cloned());
        command.push("--".into());
        command
    }

    fn opened_by(&self) -> Opener {
        match self.iommu {
            Iommu::Daemon(_) => self.daemons_opener,
            Iommu::Absent | Iommu::Qemu => Opener::Qemu,
        }
    }

    fn qemu(&self, folder: &str) -> Vec<String> {
        let mut command = words(&format!(
            "qemu-system-aarch64 -machine {MACHINE} -accel kvm -cpu host {}",
            Self::QEMU_STREAMS
        ));
        match self.boot_from {
            BootFrom::Kernel => {
                command.extend(words(Self::KERNEL));
                command.push(self.kernel_args.clone());
            }
            BootFrom::Disk => command.extend(words(&format!("-bios {folder}/firmware"))),
        }
        command.extend(self.iommu_arguments(folder));
        // Behind the IOMMU, since QEMU resets devices in the reverse of their order.
        command.extend(self.devices());
        command
    }

    fn memory_arguments(&self) -> Vec<String> {
        let size = self.memory_mib;
        words(&format!("-smp 1 -m {size}M -object memory-backend-memfd,id=memory,size={size}M,share=on"))
    }

    fn iommu_arguments(&self, folder: &str) -> Vec<String> {
        let place = device_tree::IOMMU;
        match self.iommu {
            Iommu::Absent => Vec::new(),
            Iommu::Qemu => words(&format!("-device virtio-iommu-pci,{place}")),
            Iommu::Daemon(_) => words(&format!(
                "-dtb {folder}/dtb -chardev socket,id=iommu,path=/run/iommu.sock -device \
                 vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=iommu,{place}"
            )),
        }
    }

    /// The buses that are not the root bus, and the slots of the ports that lead to them.
    fn ports(&self) -> impl Iterator<Item = (&str, String)> {
        let buses = self.endpoints.iter().filter_map(|endpoint| endpoint.id.split_once(':'));
        buses.filter(|(bus, _)| *bus != ROOT).map(|(bus, _)| (bus, format!("1{}", &bus[1..])))
    }

    fn devices(&self) -> Vec<String> {
        let opener = self.opened_by();
        let context = match opener {
            Opener::Launch => "iommufd,id=iommufd0,fd={iommufd}",
            Opener::Qemu => "iommufd,id=iommufd0",
        };
        let mut arguments = words(&format!("-object {context}"));
        for (bus, slot) in self.ports() {
            let port = format!("-device pcie-root-port,id=port{bus},chassis={bus},addr={slot}");
            arguments.extend(words(&port));
        }
        for Endpoint { id, function } in &self.endpoints {
            let device = match opener {
                Opener::Launch => format!("fd={{vfio:{id}}}"),
                Opener::Qemu => format!("host={function}"),
            };
            let (bus, slot) = id.split_once(':').unwrap_or((ROOT, id));
            let bus = if bus == ROOT { "pcie.0".into() } else { format!("port{bus}") };
            let name = Self::device_name(id);
            arguments.extend(words(&format!(
                "-device vfio-pci,iommufd=iommufd0,{device},id={name},bus={bus},addr={slot}"
            )));
        }
        arguments
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(Into::into).collect()
}
