// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can stand behind an endpoint, from the properties that follow its id.
//!
//! Opens nothing: a socket, a device or a file descriptor that is named here may not be there.

use std::{
    fmt,
    os::fd::RawFd,
    path::{self, Path, PathBuf},
    str::FromStr,
};

use crate::usage_error::UsageError;
use crate::{args::parse_fd, pci::PciAddress};

/// What stands behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// Nothing that this process controls: the guest's requests for it are answered, not enforced.
    Listed,
    /// A device served over vhost-user by another process, with this one in between.
    VhostUser {
        /// Where the VMM connects: this process listens here.
        front: PathBuf,
        /// Where the device's own back-end listens.
        backend: PathBuf,
    },
    /// A physical device, which the VMM drives as well.
    Vfio {
        /// How to come by it.
        device: VfioDevice,
        /// Whether the guest sees a PASID capability of it, which VFIO hides and the VMM has to show instead.
        pasid: bool,
    },
}

/// How to come by a physical device. The daemon takes a file descriptor alone, since the VMM has to have the same;
/// `launch` opens the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioDevice {
    /// The PCI function of this machine.
    Address(PciAddress),
    /// Its VFIO device file.
    Path(PathBuf),
    /// The file descriptor under which this process was given that file.
    Fd(RawFd),
}

impl VfioDevice {
    /// Whether both are the same device as far as their names tell.
    pub(crate) fn is(&self, other: &VfioDevice) -> bool {
        match (self, other) {
            (VfioDevice::Path(path), VfioDevice::Path(other)) => absolute(path) == absolute(other),
            _ => self == other,
        }
    }
}

impl FromStr for EndpointKind {
    type Err = UsageError;

    /// Parses `KEY=VALUE[,KEY=VALUE]`.
    fn from_str(properties: &str) -> Result<EndpointKind, UsageError> {
        let (mut front, mut backend, mut device, mut pasid) = (None, None, None, None);
        for property in properties.split(',') {
            let (key, value) = property.split_once('=').unwrap_or((property, ""));
            let (slot, values) = match key {
                "vhost-user" => (&mut front, "SOCKET"),
                "backend" => (&mut backend, "SOCKET"),
                "vfio" => (&mut device, "DEVICE"),
                "pasid" => (&mut pasid, "on|off"),
                _ => {
                    let problem = format!("`{key}` is not a property of an endpoint");
                    let mend = "the properties are vhost-user and backend, or vfio and pasid";
                    return Err(UsageError::new(problem, mend));
                }
            };
            if value.is_empty() {
                return Err(UsageError::new(
                    format!("`{key}` has no value"),
                    format!("write {key}={values}"),
                ));
            }
            if slot.replace(value).is_some() {
                return Err(UsageError::new(format!("`{key}` is given twice"), "give it once"));
            }
        }
        of_properties(front, backend, device, pasid)
    }
}

impl FromStr for VfioDevice {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<VfioDevice, UsageError> {
        if let Some(number) = text.strip_prefix("fd:") {
            return parse_fd(number).map(VfioDevice::Fd);
        }
        if text.contains('/') {
            return Ok(VfioDevice::Path(text.into()));
        }
        text.parse().map(VfioDevice::Address).map_err(|_| {
            UsageError::new(
                format!("`{text}` is not a device of this machine"),
                "write its PCI address such as 0000:65:00.0, the path of its VFIO device file such as \
                 /dev/vfio/devices/vfio0, or fd:N",
            )
        })
    }
}

impl fmt::Display for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VfioDevice::Address(address) => f.write_str(&address.in_full()),
            VfioDevice::Path(path) => path.display().fmt(f),
            VfioDevice::Fd(number) => write!(f, "fd:{number}"),
        }
    }
}

fn of_properties(
    front: Option<&str>,
    backend: Option<&str>,
    device: Option<&str>,
    pasid: Option<&str>,
) -> Result<EndpointKind, UsageError> {
    let has_pasid = match pasid {
        None | Some("off") => false,
        Some("on") => true,
        Some(other) => {
            return Err(UsageError::new(
                format!("`{other}` is not a value of pasid"),
                "write pasid=on or pasid=off",
            ));
        }
    };
    match (front, backend, device) {
        (_, _, None) if pasid.is_some() => {
            Err(UsageError::new("only a physical device has PASIDs", "leave pasid out, or add vfio"))
        }
        (None, None, Some(device)) => {
            device.parse().map(|device| EndpointKind::Vfio { device, pasid: has_pasid })
        }
        (_, _, Some(_)) => Err(UsageError::new(
            "one device stands behind an endpoint, a physical one or one that is served over vhost-user",
            "keep vfio, or vhost-user and backend",
        )),
        (Some(front), Some(backend), None) => {
            Ok(EndpointKind::VhostUser { front: front.into(), backend: backend.into() })
        }
        (front, _, None) => Err(UsageError::new(
            "a vhost-user endpoint needs both of its sockets",
            if front.is_some() {
                "add backend=SOCKET, where the device's own back-end listens"
            } else {
                "add vhost-user=SOCKET, where the VMM is to connect"
            },
        )),
    }
}

/// So that `a.sock` and `./a.sock` are the same; a path that cannot be resolved stands for itself.
pub(super) fn absolute(path: &Path) -> PathBuf {
    path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_physical_device_is_an_address_a_path_or_a_file_descriptor() {
        let address = VfioDevice::Address("65:00.0".parse().expect("an address"));
        for (properties, device, shown) in [
            ("vfio=0000:65:00.0", address.clone(), "0000:65:00.0"),
            ("vfio=65:0.0", address, "0000:65:00.0"),
            ("vfio=/dev/vfio/devices/vfio0", VfioDevice::Path("/dev/vfio/devices/vfio0".into()), ""),
            ("vfio=./a=b:1", VfioDevice::Path("./a=b:1".into()), ""),
            ("vfio=fd:11", VfioDevice::Fd(11), ""),
        ] {
            let expected = EndpointKind::Vfio { device: device.clone(), pasid: false };
            assert_eq!(properties.parse(), Ok(expected), "{properties}");
            let typed = properties.trim_start_matches("vfio=");
            assert_eq!(device.to_string(), if shown.is_empty() { typed } else { shown });
        }
    }

    #[test]
    fn what_is_no_physical_device_is_refused_with_how_to_write_one() {
        for (properties, problem) in [
            ("vfio", "`vfio` has no value; write vfio=DEVICE"),
            ("vfio=vfio0", "`vfio0` is not a device of this machine; write its PCI address such as"),
            ("vfio=0000:65:20.0", "`0000:65:20.0` is not a device of this machine; "),
            ("vfio=fd:", "`` is not the number of a file descriptor; "),
            ("vfio=fd:-1", "`-1` is not the number of a file descriptor; "),
            ("vfio=fd:1x", "`1x` is not the number of a file descriptor; "),
            ("vfio=fd:3,vfio=fd:4", "`vfio` is given twice; "),
            ("vfio=fd:3,vhost-user=f,backend=b", "one device stands behind an endpoint, "),
            ("backend=b,vfio=fd:3", "one device stands behind an endpoint, "),
            ("vfio=fd:3,pasid=yes", "`yes` is not a value of pasid; write pasid=on or pasid=off"),
            ("vhost-user=f,backend=b,pasid=on", "only a physical device has PASIDs; "),
            ("pasid=off", "only a physical device has PASIDs; "),
        ] {
            let error = properties.parse::<EndpointKind>().expect_err(properties).to_string();
            assert!(error.starts_with(problem), "{properties}: {error}");
        }
    }
}
