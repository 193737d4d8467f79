// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device files of this machine: found, opened, and told from others.
//!
//! Makes no request of a device: whether it can be attached shows later. To read: Linux,
//! `Documentation/driver-api/vfio.rst`, "VFIO device Usage with device cdevs".

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor, open};
use rustix::io::Errno;

use crate::config::VfioDevice;
use crate::fd::inherited;
use crate::pci::PciAddress;
use crate::usage_error::UsageError;

/// A machine, by the folder that its file systems are mounted under.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    pub fn new() -> Host {
        Host::at("/")
    }

    /// One that another folder stands for.
    pub fn at(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    /// Opens /dev/iommu.
    ///
    /// # Errors
    /// There is none, or not for this user.
    pub fn open_iommu(&self) -> Result<OwnedFd, UsageError> {
        let iommu = self.root.join("dev/iommu");
        open_both_ways(&iommu).map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => UsageError::new(
                format!("this machine has no {}", iommu.display()),
                "modprobe iommufd (Linux 6.2 or newer, CONFIG_IOMMUFD); a container has to be given the file",
            ),
            errno => not_opened(&iommu, errno),
        })
    }

    /// Opens the VFIO device file of `device`, or takes it over where it is given as a file descriptor.
    ///
    /// # Errors
    /// There is none, it is another kind of file, or not for this user.
    pub fn open_device(&self, device: &VfioDevice) -> Result<OwnedFd, UsageError> {
        let fd = match device {
            VfioDevice::Address(address) => open_device_file(&self.device_file(*address)?, NO_DEVICE_FILES),
            VfioDevice::Path(path) => open_device_file(path, NOT_THERE),
            VfioDevice::Fd(number) => inherited(*number),
        }?;
        self.check_device(&fd)?;
        Ok(fd)
    }

    /// Refuses what is not /dev/iommu.
    pub fn check_iommu(&self, fd: impl AsFd) -> Result<(), UsageError> {
        match self.name_of(fd) {
            Name::Of(name) if name == "iommu" => Ok(()),
            Name::Unknown => Ok(()),
            name => Err(UsageError::new(
                format!("this is not /dev/iommu but {}", name.shown()),
                "open /dev/iommu and pass its number",
            )),
        }
    }

    /// Refuses what is not the VFIO device file of some device.
    pub fn check_device(&self, fd: impl AsFd) -> Result<(), UsageError> {
        match self.name_of(fd) {
            Name::Of(name) if name.starts_with("vfio/devices/") => Ok(()),
            Name::Unknown => Ok(()),
            name => Err(UsageError::new(
                format!("this is not a VFIO device file but {}", name.shown()),
                "name one of /dev/vfio/devices, not a group of /dev/vfio, or the PCI address",
            )),
        }
    }

    /// Where the VFIO device file of a PCI function is.
    fn device_file(&self, address: PciAddress) -> Result<PathBuf, UsageError> {
        let function = self.root.join("sys/bus/pci/devices").join(address.in_full());
        if !function.exists() {
            return Err(UsageError::new(
                format!("this machine has no PCI function {}", address.in_full()),
                "lspci -D lists those it has",
            ));
        }
        let mut entries = fs::read_dir(function.join("vfio-dev")).into_iter().flatten().flatten();
        match entries.next() {
            Some(entry) => Ok(self.root.join("dev/vfio/devices").join(entry.file_name())),
            None => Err(not_bound(address, &function)),
        }
    }

    /// Under which name in /dev the kernel has made a file.
    fn name_of(&self, fd: impl AsFd) -> Name {
        let Ok(stat) = fstat(fd) else { return Name::Unknown };
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            return Name::None;
        }
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let uevent = self.root.join(format!("sys/dev/char/{major}:{minor}/uevent"));
        let text = fs::read_to_string(uevent).unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map_or(Name::Unknown, |name| Name::Of(name.to_owned()))
    }
}

/// What the kernel calls a file.
enum Name {
    Of(String),
    /// It is no character device.
    None,
    /// There is no telling.
    Unknown,
}

impl Name {
    fn shown(&self) -> String {
        match self {
            Name::Of(name) => format!("/dev/{name}"),
            Name::None | Name::Unknown => "another kind of file".to_owned(),
        }
    }
}

/// Whether both are the same device.
pub fn is_same_device(one: impl AsFd, other: impl AsFd) -> bool {
    let number = |fd| fstat(fd).ok().map(|stat| stat.st_rdev);
    number(one.as_fd()) == number(other.as_fd())
}

fn open_both_ways(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn open_device_file(path: &Path, missing: &str) -> Result<OwnedFd, UsageError> {
    open_both_ways(path).map_err(|errno| match errno {
        Errno::NOENT => UsageError::new(format!("there is no {}", path.display()), missing),
        Errno::BUSY => UsageError::new(
            format!("{} is in use", path.display()),
            "end the program that has the device open, or its VFIO group",
        ),
        errno => not_opened(path, errno),
    })
}

fn not_opened(path: &Path, errno: Errno) -> UsageError {
    let path = path.display();
    match errno {
        Errno::ACCESS | Errno::PERM => UsageError::new(
            format!("{path} may not be opened by this user"),
            format!("let the user read and write it: chown USER {path} as root, or a rule of udev"),
        ),
        errno => UsageError::new(
            format!("{path} cannot be opened: {}", io::Error::from(errno)),
            "the kernel's log (dmesg) may say why",
        ),
    }
}

/// Why a function that is there has no VFIO device.
fn not_bound(address: PciAddress, function: &Path) -> UsageError {
    let address = address.in_full();
    let driver = fs::read_link(function.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let (problem, unbind) = match driver.as_deref() {
        Some("vfio-pci") => {
            let problem = format!("the kernel has no VFIO device for {address}");
            return UsageError::new(problem, NO_DEVICE_FILES);
        }
        Some(driver) => (
            format!("{address} is bound to the driver {driver}, not to vfio-pci"),
            format!("echo {address} > /sys/bus/pci/drivers/{driver}/unbind && "),
        ),
        None => (format!("{address} is bound to no driver, but has to be to vfio-pci"), String::new()),
    };
    UsageError::new(
        problem,
        format!(
            "as root: modprobe vfio-pci && echo vfio-pci > /sys/bus/pci/devices/{address}/driver_override && \
             {unbind}echo {address} > /sys/bus/pci/drivers_probe"
        ),
    )
}

const NO_DEVICE_FILES: &str = "VFIO device files take Linux 6.6 or newer with CONFIG_VFIO_DEVICE_CDEV; a container has \
                               to be given the file";
const NOT_THERE: &str = "ls /dev/vfio/devices lists the devices that are bound to vfio-pci";

#[cfg(test)]
mod tests;
