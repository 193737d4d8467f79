// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file descriptors that options name: each number once, and those that a VMM has to share.
//!
//! Whether there is such a file descriptor shows when it is taken over, see [`crate::fd`].

use std::{collections::HashMap, os::fd::RawFd};

use super::{EndpointConfig, EndpointKind, VfioDevice};
use crate::{args::Options, usage_error::UsageError};

/// Refuses a number that two options share.
pub(super) fn check_numbers(options: &Options) -> Result<(), UsageError> {
    let own = [("fd", options.fd), ("iommufd", options.iommufd), ("exit-with", options.exit_with)];
    let own = own.into_iter().filter_map(|(option, number)| Some((option, number?, None)));
    let of_endpoints = options.endpoints.iter().filter_map(|endpoint| match endpoint.kind {
        EndpointKind::Vfio { device: VfioDevice::Fd(number), .. } => {
            Some(("endpoint", number, Some(&endpoint.label)))
        }
        _ => None,
    });
    let mut seen = HashMap::new();
    for (option, number, label) in own.chain(of_endpoints) {
        if let Some(first) = seen.insert(number, option) {
            let value = label.map_or_else(|| number.to_string(), String::clone);
            let problem = format!("the file descriptor {number} is given as --{first} already");
            let error = UsageError::new(problem, "give each file descriptor once");
            return Err(error.about(option, value));
        }
    }
    Ok(())
}

/// Refuses a physical device that is not given as a file descriptor, and one without the `iommufd` that goes with it.
pub(super) fn check_shared(iommufd: Option<RawFd>, endpoints: &[EndpointConfig]) -> Result<(), UsageError> {
    for EndpointConfig { label, kind, .. } in endpoints {
        let EndpointKind::Vfio { device, .. } = kind else { continue };
        let problem = match device {
            VfioDevice::Fd(_) if iommufd.is_some() => continue,
            VfioDevice::Fd(_) => "nothing says on which /dev/iommu the VMM has this device".to_owned(),
            _ => format!("a VMM has to share the file descriptors of {device} and of /dev/iommu"),
        };
        let mend = "use `vhost-user-iommu launch`, which opens them for both, or pass them: vfio=fd:N and --iommufd N";
        return Err(UsageError::new(problem, mend).about("endpoint", label));
    }
    Ok(())
}
