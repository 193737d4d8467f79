// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Physical devices that come and go while the guest runs: the daemon and QEMU, each in its turn.
//!
//! Both have a duplicate of one file, and the kernel takes a device back when the last of them is closed. The daemon has
//! its own before QEMU binds the device, and until QEMU is done with it, so that the device never reaches more than the
//! guest has said. What is done to the device is theirs.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::daemon::{Answer, Daemon};
use super::properties::Properties;
use super::qmp::{Qmp, QmpError};
use super::{CtlError, told_at_start};
use crate::config::{EndpointConfig, EndpointKind, VfioDevice};
use crate::control::protocol::{Code, Refusal, Reply, Request, VFIO};
use crate::host::Host;
use crate::usage_error::UsageError;

/// Where QEMU's monitor is, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Its socket.
    pub path: PathBuf,
    /// For one answer, or for the guest to let go of a device.
    pub patience: Duration,
}

/// Plug in a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    endpoint: String,
    device: VfioDevice,
    properties: Properties,
    monitor: Monitor,
}

/// Unplug a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplug {
    /// The endpoint that it is.
    pub endpoint: EndpointConfig,
    /// What QEMU calls it.
    pub name: String,
    /// Where QEMU is.
    pub monitor: Monitor,
}

impl Plug {
    /// The device of `endpoint`, with these properties.
    ///
    /// # Errors
    /// The endpoint has no physical device.
    pub fn new(
        endpoint: EndpointConfig,
        properties: Properties,
        monitor: Monitor,
    ) -> Result<Plug, UsageError> {
        match endpoint.kind {
            EndpointKind::Vfio { pasid: true, .. } => Err(told_at_start(&endpoint.label)),
            EndpointKind::Vfio { device, .. } => {
                Ok(Plug { endpoint: endpoint.label, device, properties, monitor })
            }
            EndpointKind::Listed | EndpointKind::VhostUser { .. } | EndpointKind::VfioUser { .. } => {
                let error = UsageError::new("`plug` is for physical devices", "write ID,vfio=DEVICE");
                Err(error.at(endpoint.label))
            }
        }
    }

    /// Opens the device, and plugs it in. Returns the daemon's answer.
    ///
    /// # Errors
    /// There is no such device, or QEMU refuses it. Then the daemon has none of it either.
    pub fn run(&self, control: &Path) -> Result<Answer, CtlError> {
        let opened = Host::new().open_device(&self.device);
        let file = opened.map_err(|error| error.at(format!("vfio={}", self.device)))?;
        self.share(file.as_fd(), control)
    }

    /// Gives a duplicate of the device's file to the daemon at `control`, then one to QEMU.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn share(&self, file: BorrowedFd<'_>, control: &Path) -> Result<Answer, CtlError> {
        // Before anything is changed.
        let mut qmp = self.monitor.connect()?;
        let mut daemon = Daemon::connect(control)?;
        qmp.rehearse(&self.properties).map_err(|error| CtlError::Qemu(error.to_string()))?;
        let answer = daemon.ask(&Request::Add { endpoint: self.endpoint.clone() }, Some(file))?;
        if let Reply::Error(_) = answer.reply {
            return Ok(answer);
        }
        if let Err(error) = qmp.pass(FILE, file) {
            return Err(CtlError::Qemu(format!("{error}; {}", self.give_back(&mut daemon))));
        }
        let Err(error) = qmp.add_device(&self.properties, FILE) else { return Ok(answer) };
        let outcome = match error {
            QmpError::Refused { .. } => {
                // Refused as well, unless the device is refused before QEMU looks for its file.
                let _ = qmp.close(FILE);
                format!(
                    "{}; next time give it another id, which QEMU has not kept",
                    self.give_back(&mut daemon)
                )
            }
            // What QEMU has must not be without the daemon.
            _ => {
                format!("the daemon keeps the device: if QEMU has not got it, `ctl remove {}`", self.endpoint)
            }
        };
        Err(CtlError::Qemu(format!("{error}; {outcome}")))
    }

    /// Says what comes of it.
    fn give_back(&self, daemon: &mut Daemon) -> String {
        let removed = daemon.ask(&Request::Remove { endpoint: self.endpoint.clone() }, None);
        match removed {
            Ok(Answer { reply: Reply::Result(_), .. }) => {
                "the daemon has let go of the device again".to_owned()
            }
            Ok(Answer { reply: Reply::Error(refusal), .. }) => {
                format!("the daemon keeps the device: {}", refusal.message)
            }
            Err(error) => format!("the daemon keeps the device: {error}"),
        }
    }
}

impl Unplug {
    /// Has QEMU unplug the device, and when the guest has let go of it, the daemon at `control` let go of its duplicate.
    /// Returns the daemon's answer.
    ///
    /// # Errors
    /// QEMU refuses, or the guest does. Then the daemon keeps its duplicate.
    pub fn run(&self, control: &Path) -> Result<Answer, CtlError> {
        let mut daemon = Daemon::connect(control)?;
        let list = daemon.ask(&Request::List {}, None)?;
        if let Err(refusal) = self.check_listed(&list.reply) {
            return Ok(Answer::refused(refusal));
        }
        let mut qmp = self.monitor.connect()?;
        qmp.delete_device(&self.name).map_err(|error| {
            let mend = match error {
                QmpError::Refused { .. } => {
                    format!("if QEMU is done with it, `ctl remove {}`", self.endpoint.label)
                }
                _ => "unplug it again".to_owned(),
            };
            CtlError::Qemu(format!("{error}; the daemon keeps the device: {mend}"))
        })?;
        // The next client of the monitor need not wait for the daemon.
        drop(qmp);
        daemon.ask(&Request::Remove { endpoint: self.endpoint.label.clone() }, None)
    }

    /// Refuses what the daemon would, before anything is unplugged.
    fn check_listed(&self, list: &Reply) -> Result<(), Refusal> {
        let Reply::Result(done) = list else { return Ok(()) };
        let id_of = |label: &str| label.parse::<EndpointConfig>().map(|endpoint| endpoint.id);
        let mut endpoints = done.endpoints.iter().flatten();
        match endpoints.find(|listed| id_of(&listed.endpoint) == Ok(self.endpoint.id)) {
            None => Err(Refusal::new(Code::UnknownEndpoint, "the daemon was given no such endpoint")),
            Some(listed) if listed.kind != VFIO => {
                Err(Refusal::new(Code::NotVfio, format!("{} is no VFIO endpoint", listed.endpoint)))
            }
            Some(listed) if listed.device.is_none() => {
                Err(Refusal::new(Code::NoDevice, "the endpoint has no device"))
            }
            Some(_) => Ok(()),
        }
    }
}

impl Monitor {
    fn connect(&self) -> Result<Qmp, UsageError> {
        Qmp::connect(&self.path, self.patience)
    }
}

/// What QEMU calls the file for a moment.
const FILE: &str = "vhost-user-iommu";
