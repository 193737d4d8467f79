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
    /// A device served over vfio-user by another process, with this one in between.
    VfioUser {
        /// Where the VMM connects: this process listens here.
        front: PathBuf,
        /// Where the device's own server listens.
        server: PathBuf,
        /// How the server reaches memory.
        dma: Dma,
    },
    /// A physical device, which the VMM drives as well.
    Vfio {
        /// How to come by it.
        device: VfioDevice,
        /// Whether the guest sees a PASID capability of it, which VFIO hides and the VMM has to show instead.
        pasid: bool,
    },
}

/// How a vfio-user server reaches guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// It gets the memory's file descriptors, and maps what it is told.
    Shared,
    /// It asks for each access by a message.
    Message,
}

/// What is spoken with another process that serves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// vhost-user.
    VhostUser,
    /// vfio-user.
    VfioUser(Dma),
}

/// A device served by another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed<'a> {
    /// What is spoken, on both sides.
    pub protocol: Protocol,
    /// Where the VMM connects: this process listens here.
    pub front: &'a Path,
    /// Where the other process listens.
    pub back: &'a Path,
}

impl EndpointKind {
    /// The device that another process serves, if this is one.
    pub fn relayed(&self) -> Option<Relayed<'_>> {
        match self {
            EndpointKind::Listed | EndpointKind::Vfio { .. } => None,
            EndpointKind::VhostUser { front, backend } => {
                Some(Relayed { protocol: Protocol::VhostUser, front, back: backend })
            }
            EndpointKind::VfioUser { front, server, dma } => {
                Some(Relayed { protocol: Protocol::VfioUser(*dma), front, back: server })
            }
        }
    }
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
        let mut given = Properties::default();
        for property in properties.split(',') {
            let (key, value) = property.split_once('=').unwrap_or((property, ""));
            let (slot, values) = match key {
                "vhost-user" => (&mut given.vhost_user, "SOCKET"),
                "backend" => (&mut given.backend, "SOCKET"),
                "vfio-user" => (&mut given.vfio_user, "SOCKET"),
                "server" => (&mut given.server, "SOCKET"),
                "dma" => (&mut given.dma, "shared|message"),
                "vfio" => (&mut given.vfio, "DEVICE"),
                "pasid" => (&mut given.pasid, "on|off"),
                _ => {
                    let problem = format!("`{key}` is not a property of an endpoint");
                    let mend = "the properties are vhost-user and backend, vfio-user, server and dma, or vfio and pasid";
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
        given.check_one_device()?;
        if given.vfio_user.or(given.server).or(given.dma).is_some() {
            return given.vfio_user();
        }
        of_properties(given.vhost_user, given.backend, given.vfio, given.pasid)
    }
}

/// The properties of an endpoint, as given.
#[derive(Default)]
struct Properties<'a> {
    vhost_user: Option<&'a str>,
    backend: Option<&'a str>,
    vfio_user: Option<&'a str>,
    server: Option<&'a str>,
    dma: Option<&'a str>,
    vfio: Option<&'a str>,
    pasid: Option<&'a str>,
}

impl Properties<'_> {
    fn check_one_device(&self) -> Result<(), UsageError> {
        let vhost_user = self.vhost_user.or(self.backend);
        let vfio_user = self.vfio_user.or(self.server).or(self.dma);
        if [vhost_user, vfio_user, self.vfio].iter().flatten().count() <= 1 {
            return Ok(());
        }
        Err(UsageError::new(
            "one device stands behind an endpoint, a physical one or one that is served over vhost-user or vfio-user",
            "keep vfio, vhost-user and backend, or vfio-user and server",
        ))
    }

    fn vfio_user(&self) -> Result<EndpointKind, UsageError> {
        if self.pasid.is_some() {
            return Err(no_pasids());
        }
        let dma = match self.dma {
            None | Some("shared") => Dma::Shared,
            Some("message") => Dma::Message,
            Some(other) => {
                let problem = format!("`{other}` is not a value of dma");
                return Err(UsageError::new(problem, "write dma=shared or dma=message"));
            }
        };
        match (self.vfio_user, self.server) {
            (Some(front), Some(server)) => {
                Ok(EndpointKind::VfioUser { front: front.into(), server: server.into(), dma })
            }
            (front, _) => Err(UsageError::new(
                "a vfio-user endpoint needs both of its sockets",
                if front.is_some() {
                    "add server=SOCKET, where the device's own server listens"
                } else {
                    "add vfio-user=SOCKET, where the VMM is to connect"
                },
            )),
        }
    }
}

fn no_pasids() -> UsageError {
    UsageError::new("only a physical device has PASIDs", "leave pasid out, or add vfio")
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
        (_, _, None) if pasid.is_some() => Err(no_pasids()),
        (_, _, Some(device)) => device.parse().map(|device| EndpointKind::Vfio { device, pasid: has_pasid }),
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
    fn a_vfio_user_endpoint_has_two_sockets_and_a_way_to_memory() {
        for (properties, dma) in [
            ("vfio-user=f,server=s", Dma::Shared),
            ("server=s,dma=shared,vfio-user=f", Dma::Shared),
            ("vfio-user=f,server=s,dma=message", Dma::Message),
        ] {
            let expected = EndpointKind::VfioUser { front: "f".into(), server: "s".into(), dma };
            assert_eq!(properties.parse(), Ok(expected), "{properties}");
        }
        for (properties, problem) in [
            ("vfio-user=f", "a vfio-user endpoint needs both of its sockets; add server=SOCKET"),
            ("server=s", "a vfio-user endpoint needs both of its sockets; add vfio-user=SOCKET"),
            ("dma=message", "a vfio-user endpoint needs both of its sockets; add vfio-user=SOCKET"),
            (
                "vfio-user=f,server=s,dma=none",
                "`none` is not a value of dma; write dma=shared or dma=message",
            ),
            ("vfio-user=f,backend=b", "one device stands behind an endpoint, "),
            ("vhost-user=f,backend=b,dma=message", "one device stands behind an endpoint, "),
            ("vfio-user=f,server=s,vfio=fd:3", "one device stands behind an endpoint, "),
            ("vfio-user=f,server=s,pasid=on", "only a physical device has PASIDs; "),
        ] {
            let error = properties.parse::<EndpointKind>().expect_err(properties).to_string();
            assert!(error.starts_with(problem), "{properties}: {error}");
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
