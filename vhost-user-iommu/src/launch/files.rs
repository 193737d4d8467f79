// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that the daemon and the VMM are to have open: opened or taken over, then passed on as duplicates.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::template::{File, files_to_share};
use crate::config::{Config, EndpointKind, Listen, VfioDevice};
use crate::fd::{inherited, inherited_socket};
use crate::host::{Host, is_same_device};
use crate::usage_error::UsageError;

/// Open files, closed in whatever this process executes.
#[derive(Debug)]
pub struct Files(BTreeMap<File, OwnedFd>);

/// Duplicates that whatever this process executes inherits, until this is dropped.
#[derive(Debug)]
pub struct Passed(BTreeMap<File, OwnedFd>);

impl Files {
    /// Opens what `config` names; what it names by number is taken over.
    ///
    /// # Errors
    /// Something that cannot be opened, or is not what it is said to be.
    pub fn open(config: &Config, host: &Host) -> Result<Files, UsageError> {
        let mut files = BTreeMap::new();
        // Before anything is opened, since a number says nothing of whose it is.
        if let Listen::Fd(number) = config.listen {
            files.insert(File::Listener, inherited_socket(number)?.into());
        }
        if let Some(number) = config.iommufd {
            let taken = inherited(number).and_then(|fd| host.check_iommu(&fd).map(|()| fd));
            files.insert(File::Iommufd, taken.map_err(|error| error.about("iommufd", number.to_string()))?);
        }
        let (given, to_open): (Vec<_>, Vec<_>) =
            devices(config).partition(|(.., device)| matches!(device, VfioDevice::Fd(_)));
        for (file, label, device) in given.into_iter().chain(to_open) {
            let opened = host.open_device(device).and_then(|fd| check_first(&files, fd, config));
            files.insert(file, opened.map_err(|error| error.about("endpoint", label))?);
        }
        if files_to_share(config).contains(&File::Iommufd) && !files.contains_key(&File::Iommufd) {
            files.insert(File::Iommufd, host.open_iommu()?);
        }
        Ok(Files(files))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = (File, BorrowedFd<'_>)> {
        self.0.iter().map(|(file, fd)| (*file, fd.as_fd()))
    }
}

impl Passed {
    /// Duplicates of `files`.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new<'a>(files: impl Iterator<Item = (File, BorrowedFd<'a>)>) -> io::Result<Passed> {
        // Unlike `try_clone`, leaves the duplicate open in what is executed.
        let duplicates = files.map(|(file, fd)| Ok((file, rustix::io::dup(fd)?)));
        duplicates.collect::<io::Result<_>>().map(Passed)
    }

    /// The number under which a file is inherited.
    pub fn number_of(&self, file: File) -> String {
        self.0.get(&file).map_or_else(String::new, |fd| fd.as_raw_fd().to_string())
    }
}

/// The physical devices of `config`: as which file, of which endpoint, and how to come by it.
pub fn devices(config: &Config) -> impl Iterator<Item = (File, &str, &VfioDevice)> {
    config.endpoints.iter().enumerate().filter_map(|(at, endpoint)| match &endpoint.kind {
        EndpointKind::Vfio { device, .. } => Some((File::Device(at), endpoint.label.as_str(), device)),
        EndpointKind::Listed | EndpointKind::VhostUser { .. } | EndpointKind::VfioUser { .. } => None,
    })
}

/// Refuses a device that another endpoint has under another name.
fn check_first(files: &BTreeMap<File, OwnedFd>, fd: OwnedFd, config: &Config) -> Result<OwnedFd, UsageError> {
    let others = devices(config).filter_map(|(file, label, _)| Some((label, files.get(&file)?)));
    match others.into_iter().find(|(_, other)| is_same_device(&fd, other)) {
        Some((label, _)) => Err(UsageError::new(
            format!("the device is that of {label} already"),
            "give every endpoint a device of its own",
        )),
        None => Ok(fd),
    }
}
