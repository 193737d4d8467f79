// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The endpoints a user names: which ids there are, and that no two of them are or use the same.
//!
//! Opens no socket and asks no bus: what is named here may not exist yet.

use std::{collections::HashMap, fmt, path::Path, str::FromStr};

use viommu_core::EndpointId;

use super::kind::{Dma, EndpointKind, Protocol, Relayed, VfioDevice, absolute};
use crate::usage_error::UsageError;
use crate::{pci::PciAddress, size::parse_number};

/// One endpoint, from `ID[,vhost-user=FRONT_SOCKET,backend=BACK_SOCKET]`,
/// `ID,vfio-user=FRONT_SOCKET,server=SERVER_SOCKET[,dma=message]` or `ID,vfio=DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The id under which the guest knows the endpoint.
    pub id: EndpointId,
    /// The id as the user typed it, for messages.
    pub label: String,
    /// The PCI function, when the id was given as one.
    pub pci: Option<PciAddress>,
    /// What stands behind the endpoint.
    pub kind: EndpointKind,
}

impl EndpointConfig {
    /// Refuses an id that two of `endpoints` share, however it is written.
    pub(crate) fn check_ids(endpoints: &[EndpointConfig]) -> Result<(), UsageError> {
        let mut seen = HashMap::new();
        for EndpointConfig { id, label, .. } in endpoints {
            let Some(first) = seen.insert(*id, label) else {
                continue;
            };
            let problem = if first == label {
                "the endpoint is given twice".to_owned()
            } else {
                format!("this is the same endpoint as {first}")
            };
            return Err(UsageError::new(problem, "name every endpoint once").about("endpoint", label));
        }
        Ok(())
    }

    /// Refuses a socket that two of `endpoints` share, or one of them and the device itself, whose are `own`.
    pub(crate) fn check_sockets(
        own: &[(&'static str, &Path)],
        endpoints: &[EndpointConfig],
    ) -> Result<(), UsageError> {
        let mut seen: HashMap<_, _> = own.iter().map(|(option, path)| (absolute(path), *option)).collect();
        for EndpointConfig { label, kind, .. } in endpoints {
            for socket in kind.relayed().into_iter().flat_map(|relayed| [relayed.front, relayed.back]) {
                if let Some(user) = seen.insert(absolute(socket), label.as_str()) {
                    let problem = format!("the socket {} is taken already by {user}", socket.display());
                    let error = UsageError::new(problem, "give every connection a socket of its own");
                    return Err(error.about("endpoint", label));
                }
            }
        }
        Ok(())
    }

    /// Refuses a physical device that two of `endpoints` share, as far as their names tell.
    pub(crate) fn check_devices(endpoints: &[EndpointConfig]) -> Result<(), UsageError> {
        let mut seen: Vec<(&VfioDevice, &str)> = Vec::new();
        for EndpointConfig { label, kind, .. } in endpoints {
            let EndpointKind::Vfio { device, .. } = kind else { continue };
            if let Some((_, user)) = seen.iter().find(|(other, _)| device.is(other)) {
                let problem = format!("the device {device} is that of {user} already");
                let error = UsageError::new(problem, "give every endpoint a device of its own");
                return Err(error.about("endpoint", label));
            }
            seen.push((device, label));
        }
        Ok(())
    }
}

/// As it is written, with paths that mean the same in every folder.
impl fmt::Display for EndpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)?;
        let Some(Relayed { protocol, front, back }) = self.kind.relayed() else { return Ok(()) };
        let (front, back) = (absolute(front), absolute(back));
        let (front, back) = (front.display(), back.display());
        match protocol {
            Protocol::VhostUser => write!(f, ",vhost-user={front},backend={back}"),
            Protocol::VfioUser(Dma::Shared) => write!(f, ",vfio-user={front},server={back}"),
            Protocol::VfioUser(Dma::Message) => write!(f, ",vfio-user={front},server={back},dma=message"),
        }
    }
}

impl FromStr for EndpointConfig {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<EndpointConfig, UsageError> {
        let (label, kind) = match text.split_once(',') {
            Some((label, properties)) => (label, properties.parse()?),
            None => (text, EndpointKind::Listed),
        };
        let pci = label.contains([':', '.']).then(|| label.parse::<PciAddress>()).transpose()?;
        let id = match pci {
            Some(address) => address.endpoint_id(),
            None => numeric_id(label)?,
        };
        Ok(EndpointConfig { id, label: label.to_owned(), pci, kind })
    }
}

fn numeric_id(label: &str) -> Result<EndpointId, UsageError> {
    parse_number(label).and_then(|id| u32::try_from(id).ok()).map(EndpointId).ok_or_else(|| {
        UsageError::new(
            format!("`{label}` is not an endpoint id"),
            "write a PCI address such as 00:02.0, or a number below 2^32",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(specs: &[&str]) -> Vec<EndpointConfig> {
        specs.iter().map(|spec| spec.parse().expect(spec)).collect()
    }

    #[test]
    fn an_endpoint_is_a_pci_function_or_a_number() {
        for (spec, id, is_pci) in [
            ("00:02.0", 0x10, true),
            ("1:00:00.1", 0x1_0001, true),
            ("16", 0x10, false),
            ("0x10", 0x10, false),
            ("4294967295", u32::MAX, false),
        ] {
            let endpoint: EndpointConfig = spec.parse().expect(spec);
            assert_eq!((endpoint.id, endpoint.pci.is_some()), (EndpointId(id), is_pci), "{spec}");
            assert_eq!((endpoint.label.as_str(), endpoint.kind), (spec, EndpointKind::Listed));
        }
    }

    #[test]
    fn a_vhost_user_endpoint_has_two_sockets_in_any_order() {
        let expected = EndpointKind::VhostUser { front: "f".into(), backend: "b=c".into() };
        for spec in ["0:2.0,vhost-user=f,backend=b=c", "0:2.0,backend=b=c,vhost-user=f"] {
            assert_eq!(spec.parse::<EndpointConfig>().expect(spec).kind, expected);
        }
    }

    #[test]
    fn the_device_of_another_process_is_written_as_it_was_read() {
        for spec in [
            "00:02.0,vhost-user=/f,backend=/b=c",
            "9,vfio-user=/f,server=/s",
            "9,vfio-user=/f,server=/s,dma=message",
        ] {
            assert_eq!(spec.parse::<EndpointConfig>().expect(spec).to_string(), spec);
        }
        let here = "9,vhost-user=f,backend=/b".parse::<EndpointConfig>().expect("an endpoint").to_string();
        assert!(here.starts_with("9,vhost-user=/") && here.ends_with("/f,backend=/b"), "{here}");
    }

    #[test]
    fn a_wrong_specification_says_what_is_wrong_with_it() {
        for (spec, problem) in [
            ("", "`` is not an endpoint id"),
            ("net0", "`net0` is not an endpoint id"),
            ("4k", "`4k` is not an endpoint id"),
            ("4294967296", "`4294967296` is not an endpoint id"),
            ("00:20.0", "`00:20.0` is not the address of a PCI function"),
            ("1,", "`` is not a property"),
            ("1,vdpa=0000:65:00.0", "`vdpa` is not a property"),
            ("1,vhost-user=,backend=b", "`vhost-user` has no value"),
            ("1,vhost-user=a,vhost-user=b", "`vhost-user` is given twice"),
            ("1,vhost-user=a", "a vhost-user endpoint needs both of its sockets; add backend=SOCKET"),
            ("1,backend=a", "a vhost-user endpoint needs both of its sockets; add vhost-user=SOCKET"),
        ] {
            let error = spec.parse::<EndpointConfig>().expect_err(spec).to_string();
            assert!(error.starts_with(problem), "{spec}: {error}");
        }
    }

    #[test]
    fn a_device_is_given_once() {
        let check = |specs: &[&str]| EndpointConfig::check_devices(&endpoints(specs));
        assert_eq!(check(&["1,vfio=65:00.0", "2,vfio=65:00.1", "3,vfio=/a/b", "4,vfio=fd:3"]), Ok(()));
        for (first, second, device) in [
            ("65:00.0", "0000:65:00.0", "0000:65:00.0"),
            ("/dev/vfio/devices/vfio0", "/dev//vfio/devices/./vfio0", "/dev//vfio/devices/./vfio0"),
            ("fd:3", "fd:3", "fd:3"),
        ] {
            let error = check(&[&format!("1,vfio={first}"), &format!("2,vfio={second}")]);
            let error = error.expect_err("the same device").to_string();
            let line = format!("--endpoint 2: the device {device} is that of 1 already; ");
            assert!(error.starts_with(&line), "{error}");
        }
    }

    #[test]
    fn an_id_is_given_once_however_it_is_written() {
        assert_eq!(EndpointConfig::check_ids(&endpoints(&["0", "00:00.1", "1:00:00.1"])), Ok(()));
        for (specs, line) in [
            (["00:02.0", "00:02.0"], "--endpoint 00:02.0: the endpoint is given twice"),
            (["00:02.0", "16"], "--endpoint 16: this is the same endpoint as 00:02.0"),
            (["0:2.0", "0000:00:02.0"], "--endpoint 0000:00:02.0: this is the same endpoint as 0:2.0"),
        ] {
            let error = EndpointConfig::check_ids(&endpoints(&specs)).expect_err("same id");
            assert!(error.to_string().starts_with(line), "{error}");
        }
    }

    #[test]
    fn a_socket_serves_one_connection() {
        let two = endpoints(&["1,vhost-user=f1,backend=b1", "2,vhost-user=f2,backend=b2", "3"]);
        assert_eq!(EndpointConfig::check_sockets(&[("control", Path::new("own"))], &two), Ok(()));
        for (own, specs, problem) in [
            ("own", ["1,vhost-user=a,backend=./a", "3"], "the socket ./a is taken already by 1"),
            (
                "own",
                ["1,vhost-user=a,backend=b", "2,vhost-user=c,backend=b"],
                "the socket b is taken already by 1",
            ),
            ("./a", ["1,vhost-user=a,backend=b", "3"], "the socket a is taken already by socket-path"),
        ] {
            let error = EndpointConfig::check_sockets(&[("socket-path", Path::new(own))], &endpoints(&specs))
                .expect_err("same socket");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
