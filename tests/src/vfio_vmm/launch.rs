// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a launcher does before it becomes the VMM: it opens `/dev/iommu` and the devices, and starts the daemon with
//! duplicates.

use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::io::{dup, fcntl_dupfd_cloexec};
use tempfile::TempDir;
use viommu_core::EndpointId;
use viommu_nested::object::Context;

use super::Function;
use crate::daemon::Daemon;

/// The files of a VMM and of its daemon.
#[derive(Debug)]
pub struct Launch {
    pub(super) context: Arc<Context>,
    pub(super) devices: Vec<SharedDevice>,
    pub(super) folder: TempDir,
    shows_pasids: bool,
}

/// A device, and the endpoint that it is to the guest.
#[derive(Debug)]
pub struct SharedDevice {
    /// What it is on the host.
    pub function: Function,
    /// What it is to the guest.
    pub endpoint: EndpointId,
    pub(super) file: OwnedFd,
}

impl Launch {
    /// Opens these functions; the first is the guest's 00:03.0, and so on.
    ///
    /// # Errors
    /// Of `open`.
    pub fn of(functions: &[Function]) -> Result<Launch> {
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map(OwnedFd::from).with_context(|| format!("opening {}", path.display()))
        };
        let devices = functions.iter().zip(3..).map(|(function, slot)| {
            let file = open(&function.cdev)?;
            Ok(SharedDevice { function: function.clone(), endpoint: EndpointId(slot << 3), file })
        });
        let context = Context::adopt(open(Path::new("/dev/iommu"))?)?;
        let devices = devices.collect::<Result<_>>()?;
        Ok(Launch { context, devices, folder: folder()?, shows_pasids: false })
    }

    /// Has the daemon know that the guest sees the PASID capability of the devices.
    pub fn with_pasids(self) -> Launch {
        Launch { shows_pasids: true, ..self }
    }

    /// The same files once more, with another socket.
    ///
    /// # Errors
    /// The host is out of something.
    pub fn duplicate(&self) -> Result<Launch> {
        let devices = self.devices.iter().map(|device| {
            let file = fcntl_dupfd_cloexec(&device.file, 3)?;
            Ok(SharedDevice { function: device.function.clone(), endpoint: device.endpoint, file })
        });
        Ok(Launch {
            context: self.context.clone(),
            devices: devices.collect::<Result<_>>()?,
            folder: folder()?,
            shows_pasids: self.shows_pasids,
        })
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("iommu.sock")
    }

    /// Starts the daemon with duplicates of all the files and with further `arguments`.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        self.daemon_with(arguments, |_| ())
    }

    /// The same with a command that `change` may change, to be another user's for example.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn daemon_with(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Result<Daemon> {
        // A duplicate outlives an exec, until it is closed here.
        let iommufd = dup(self.context.as_fd())?;
        let cdevs = self.devices.iter().map(|device| Ok(dup(&device.file)?)).collect::<Result<Vec<_>>>()?;
        let socket = self.socket().display().to_string();
        let mut own = vec!["--socket-path".to_owned(), socket, "--iommufd".to_owned(), number(&iommufd)];
        let pasids = if self.shows_pasids { ",pasid=on" } else { "" };
        for (device, cdev) in self.devices.iter().zip(&cdevs) {
            let slot = device.endpoint.0 >> 3;
            let endpoint = format!("00:{slot:02x}.0,vfio=fd:{}{pasids}", number(cdev));
            own.extend(["--endpoint".to_owned(), endpoint]);
        }
        let mut command = Daemon::command(own.iter().map(String::as_str).chain(arguments.iter().copied()))?;
        change(&mut command);
        Daemon::of(command)
    }
}

/// For a daemon of any user.
fn folder() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    Ok(folder)
}

fn number(file: &OwnedFd) -> String {
    file.as_raw_fd().to_string()
}
