// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host says about a physical device before a VMM has it: who it is, whom it cannot be told from, and which
//! IOVAs it can use.
//!
//! Some of that only an attachment shows. So the device is bound to a context of its own for a moment, by a file
//! that is opened anew. Where that cannot be, sysfs has to do. Read beside it: the kernel's
//! `Documentation/ABI/testing/sysfs-kernel-iommu_groups`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use log::{debug, warn};
use rustix::fs::{Mode, OFlags, fstat, major, minor, open};
use rustix::io::Errno;
use viommu_core::{IovaRange, ReservedKind, ReservedRegion};
use viommu_nested::format::{HostFacts, TableFacts};
use viommu_nested::object::{Context, Ioas, IovaRanges, PageTable};
use viommu_nested::shadow::nesting_of;
use viommu_nested::{Attached, Cdev, Error};

use crate::usage_error::UsageError;

/// What the host says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name on its bus, such as `0000:65:00.0`.
    pub name: String,
    /// The IOMMU group, by number.
    pub group: Option<u32>,
    /// IOVAs that it cannot use, and what for.
    pub reserved: Vec<ReservedRegion>,
    /// The IOVAs that its IOMMU can translate, if it could be tried.
    pub translated: Option<IovaRanges>,
    /// What a guest can do with tables of its own, if that is anything and it could be tried.
    pub tables: Option<TableFacts>,
}

impl Facts {
    /// Of the device whose cdev is `cdev`; it must not be attached to anything by this process.
    ///
    /// # Errors
    /// It is no such file, or the device cannot be given to a guest on this host.
    pub fn of(cdev: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> Result<Facts, UsageError> {
        let folder = folder_of(cdev).map_err(|error| {
            let mend = "pass one of /dev/vfio/devices/vfioN (Linux 6.6 or newer, CONFIG_VFIO_DEVICE_CDEV)";
            UsageError::new(format!("this is no VFIO device: {error}"), mend)
        })?;
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let group = fs::read_link(folder.join("iommu_group")).ok();
        let group = group.and_then(|link| link.file_name()?.to_str()?.parse().ok());
        if group.is_none() || is_of_no_iommu(&folder) {
            return Err(UsageError::new(
                format!("the device {name} is behind no IOMMU: it would reach all of the host's memory"),
                "turn the host's IOMMU on (intel_iommu=on, for example), and VFIO's mode without one off",
            ));
        }
        let reserved = fs::read_to_string(folder.join("iommu_group/reserved_regions")).unwrap_or_default();
        let reserved = reserved.lines().filter_map(region).collect();
        let (translated, tables) = match try_out(cdev, iommufd, &folder) {
            Ok((translated, tables)) => (Some(translated), tables),
            Err(reason) => (reason.judge(&name, group)?, None),
        };
        let facts = Facts { name, group, reserved, translated, tables };
        debug!("{facts:x?}");
        Ok(facts)
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            Some(group) => write!(f, "{}, group {group} of the host", self.name),
            None => write!(f, "{}, no group of the host", self.name),
        }
    }
}

/// The device's folder in sysfs.
fn folder_of(cdev: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let number = fstat(cdev)?.st_rdev;
    let class = format!("/sys/dev/char/{}:{}", major(number), minor(number));
    let class = Path::new(&class);
    let subsystem = fs::canonicalize(class.join("subsystem"));
    if !subsystem.is_ok_and(|subsystem| subsystem.ends_with("vfio-dev")) {
        return Err(io::Error::other("the file is of another kind"));
    }
    fs::canonicalize(class.join("device"))
}

/// Whether VFIO itself has made the device's group, for want of an IOMMU.
fn is_of_no_iommu(folder: &Path) -> bool {
    fs::read_to_string(folder.join("iommu_group/name")).is_ok_and(|name| name.trim() == "vfio-noiommu")
}

/// A line of `reserved_regions`: the first and the last IOVA, and the kind. What is relaxable is in use by firmware
/// alone.
fn region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let range = IovaRange::new(address()?, address()?)?;
    match words.next()? {
        "msi" => Some(ReservedRegion { range, kind: ReservedKind::Msi }),
        "direct-relaxable" => None,
        _ => Some(ReservedRegion { range, kind: ReservedKind::Reserved }),
    }
}

/// What becomes of a device that could not be tried out.
const UNTRIED: &str = "what its IOMMU reserves is taken from sysfs alone, and no more than 39 bits of IOVA are offered \
    (see --aperture)";

/// Why a device could not be tried out.
#[derive(Debug)]
enum Untried {
    /// A file could not be opened anew.
    Opening(Errno),
    /// It could not be bound to a context.
    Binding(Error),
    /// It could not be attached.
    Attaching(Error),
}

impl Untried {
    /// Whether it is no obstacle: then nothing is known of the IOVAs.
    fn judge(self, name: &str, group: Option<u32>) -> Result<Option<IovaRanges>, UsageError> {
        let group = group.map_or_else(String::new, |group| format!(" {group}"));
        let (problem, mend) = match self {
            Untried::Opening(errno) => {
                warn!("{name}: not tried out ({errno}): {UNTRIED}");
                return Ok(None);
            }
            Untried::Binding(error) if error.errno() == Errno::INVAL => {
                warn!("{name}: not tried out, since it is in use: {UNTRIED}");
                return Ok(None);
            }
            Untried::Binding(error) if error.errno() == Errno::PERM => (
                format!(
                    "a program has a device of its IOMMU group{group}, or the host's IOMMU does not keep the interrupts \
                     of devices apart, as the host's kernel log says: {error}"
                ),
                "end the other program; or, if you trust the guest, load iommufd with allow_unsafe_interrupts=1"
                    .to_owned(),
            ),
            Untried::Binding(error) if error.errno() == Errno::BUSY => (
                format!("the host uses a device of its IOMMU group{group}: {error}"),
                format!("give every device in /sys/kernel/iommu_groups/{} to vfio-pci", group.trim()),
            ),
            Untried::Binding(error) | Untried::Attaching(error) => (
                format!("the host's IOMMU does not take it: {error}"),
                "look at the host's kernel log; the IOMMU has to be on (intel_iommu=on, for example)"
                    .to_owned(),
            ),
        };
        Err(UsageError::new(format!("the device {name}: {problem}"), mend))
    }
}

/// What the IOMMU translates for the device, and what of the guest's tables. Everything is let go of again.
fn try_out(
    cdev: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    folder: &Path,
) -> Result<(IovaRanges, Option<TableFacts>), Untried> {
    let anew = |file: BorrowedFd<'_>| reopen(file).map_err(Untried::Opening);
    let context = Context::adopt(anew(iommufd)?).map_err(|_| Untried::Opening(Errno::NOTTY))?;
    let device = Cdev::adopt(anew(cdev)?);
    let number = device.bind(&context).map_err(Untried::Binding)?;
    let host = HostFacts::of(&device, folder.join("physfn").exists(), is_alone(folder));
    let space = Ioas::new(&context).map_err(Untried::Attaching)?;
    // Only table mode needs them, which says so if there are none.
    let tables = match (nesting_of(&context, number), host) {
        (Ok(info), Ok(host)) => info.and_then(|info| TableFacts::of(&info, &host)),
        (Err(error), _) | (_, Err(error)) => {
            debug!("no tables of a guest's: {error}");
            None
        }
    };
    let mut device = Attached::new(device);
    device.attach(PageTable::Auto(space.clone()), None).map_err(Untried::Attaching)?;
    Ok((space.iova_ranges().map_err(Untried::Attaching)?, tables))
}

/// Whether the device's group has no other.
fn is_alone(folder: &Path) -> bool {
    fs::read_dir(folder.join("iommu_group/devices")).is_ok_and(|devices| devices.count() == 1)
}

/// Another open file of the same device: a duplicate would be the same one.
fn reopen(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_line_of_sysfs_is_a_region_unless_only_firmware_needs_it() {
        let of = |start, last, kind| Some(ReservedRegion { range: IovaRange::new(start, last)?, kind });
        for (line, expected) in [
            ("0x00000000fee00000 0x00000000feefffff msi", of(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi)),
            ("0x0000000000000000 0x0000000000ffffff direct", of(0, 0xff_ffff, ReservedKind::Reserved)),
            (
                "0x000000fd00000000 0x000000ffffffffff reserved",
                of(0xfd_0000_0000, 0xff_ffff_ffff, ReservedKind::Reserved),
            ),
            ("0x00000000bd800000 0x00000000bfffffff direct-relaxable", None),
            ("", None),
            ("0x2 0x1 msi", None),
            ("1 2 msi", None),
        ] {
            assert_eq!(region(line), expected, "{line}");
        }
    }

    #[test]
    fn a_group_that_vfio_made_itself_is_behind_no_iommu() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!is_of_no_iommu(folder.path()), "groups of IOMMUs have no names");
        fs::create_dir(folder.path().join("iommu_group")).expect("a folder");
        fs::write(folder.path().join("iommu_group/name"), "vfio-noiommu\n").expect("written");
        assert!(is_of_no_iommu(folder.path()));
    }

    #[test]
    fn a_file_that_is_no_vfio_device_is_refused() {
        let null = File::open("/dev/null").expect("it opens");
        let error = Facts::of(null.as_fd(), null.as_fd()).expect_err("no cdev").to_string();
        assert!(error.starts_with("this is no VFIO device: the file is of another kind; pass"), "{error}");
    }
}
