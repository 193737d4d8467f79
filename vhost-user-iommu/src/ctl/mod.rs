// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl`: what is asked of a running daemon, and its reply for people.
//!
//! One request is one line there and back; to plug a device in or to unplug it takes QEMU as well, see [`hotplug`].

mod daemon;
mod hotplug;
mod lines;
mod properties;
mod qmp;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::args::{CtlAction, CtlArgs, MonitorArgs};
use crate::config::{EndpointConfig, EndpointKind, VfioDevice};
use crate::control::protocol::{Code, Refusal, Reply, Request};
use crate::fd::inherited;
use crate::host::Host;
use crate::usage_error::UsageError;

use daemon::{Answer, Daemon};
use hotplug::{Monitor, Plug, Unplug};

pub(crate) use properties::Properties;

/// Ask the daemon at this socket for this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtlCommand {
    socket: PathBuf,
    action: Action,
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// One request, and the number of the file descriptor that goes with it.
    Ask(Request, Option<i32>),
    Plug(Plug),
    Unplug(Unplug),
}

/// Why the request is not done.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// It cannot be asked for.
    #[error(transparent)]
    Refused(#[from] UsageError),
    /// The daemon says so.
    #[error("{0}")]
    Daemon(String),
    /// QEMU or its guest says so, or says nothing.
    #[error("{0}")]
    Qemu(String),
    /// There is no reply, or it cannot be shown.
    #[error("the daemon cannot be understood: {0}")]
    Failed(#[from] io::Error),
}

impl CtlCommand {
    /// What `args` ask for.
    ///
    /// # Errors
    /// `add` without a device, or without the open file that the VMM has as well of a physical one.
    pub(crate) fn new(args: CtlArgs) -> Result<CtlCommand, UsageError> {
        let action = match args.action {
            CtlAction::List => Action::Ask(Request::List {}, None),
            CtlAction::Block { endpoint } => Action::Ask(Request::Block { endpoint: endpoint.label }, None),
            CtlAction::Unblock { endpoint } => {
                Action::Ask(Request::Unblock { endpoint: endpoint.label }, None)
            }
            CtlAction::Remove { endpoint } => Action::Ask(Request::Remove { endpoint: endpoint.label }, None),
            CtlAction::Add { endpoint } => {
                let file = file_of(&endpoint)?;
                Action::Ask(Request::Add { endpoint: endpoint.to_string() }, file)
            }
            CtlAction::Plug { endpoint, device, monitor } => {
                Action::Plug(Plug::new(endpoint, device, monitor.into())?)
            }
            CtlAction::Unplug { endpoint, name, monitor } => {
                Action::Unplug(Unplug { endpoint, name, monitor: monitor.into() })
            }
        };
        Ok(CtlCommand { socket: args.socket, action, json: args.json })
    }

    /// Asks, and prints what comes of it.
    ///
    /// # Errors
    /// It is not done.
    pub fn run(&self) -> Result<(), CtlError> {
        let answer = match &self.action {
            Action::Ask(request, file) => {
                let file = file.map(take_over).transpose()?;
                Daemon::connect(&self.socket)?.ask(request, file.as_ref().map(AsFd::as_fd))
            }
            Action::Plug(plug) => plug.run(&self.socket),
            Action::Unplug(unplug) => unplug.run(&self.socket),
        };
        self.show(answer?)
    }

    fn show(&self, Answer { line, reply }: Answer) -> Result<(), CtlError> {
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{line}")?;
        }
        match reply {
            Reply::Error(Refusal { message, .. }) if !self.json => Err(CtlError::Daemon(message)),
            Reply::Error(Refusal { code, .. }) => Err(CtlError::Daemon(word(code))),
            Reply::Result(_) if self.json => Ok(()),
            Reply::Result(done) => {
                let endpoints = done.endpoints.unwrap_or_default();
                Ok(endpoints.iter().try_for_each(|endpoint| writeln!(stdout, "{endpoint}"))?)
            }
        }
    }
}

impl From<MonitorArgs> for Monitor {
    fn from(args: MonitorArgs) -> Monitor {
        Monitor { path: args.qmp, patience: Duration::from_secs(args.timeout.get().into()) }
    }
}

/// The file that goes with `add`, if one does. The daemon can attach a physical device by a file alone that the VMM has
/// bound.
fn file_of(endpoint: &EndpointConfig) -> Result<Option<i32>, UsageError> {
    let (problem, mend) = match &endpoint.kind {
        EndpointKind::Vfio { pasid: true, .. } => return Err(told_at_start(&endpoint.label)),
        EndpointKind::Vfio { device: VfioDevice::Fd(number), .. } => return Ok(Some(*number)),
        EndpointKind::Vfio { device, .. } => (
            format!("a VMM has to share the file descriptor of {device}"),
            "use `ctl plug`, which opens it for both, or pass it: vfio=fd:N, with the same file open in the VMM",
        ),
        EndpointKind::VhostUser { .. } | EndpointKind::VfioUser { .. } => return Ok(None),
        EndpointKind::Listed => (
            "nothing says which device is added".to_owned(),
            "write ID,vhost-user=SOCKET,backend=SOCKET, or ID,vfio-user=SOCKET,server=SOCKET, or ID,vfio=fd:N",
        ),
    };
    Err(UsageError::new(problem, mend).at(&endpoint.label))
}

/// A guest is told of its endpoints' PASIDs when it looks, which is before a device comes.
fn told_at_start(label: &str) -> UsageError {
    let problem = "whether the guest sees a PASID capability is said when the daemon starts";
    UsageError::new(problem, "leave pasid out here, and give it to the daemon").at(label)
}

fn take_over(number: i32) -> Result<OwnedFd, UsageError> {
    let taken = inherited(number).and_then(|fd| Host::new().check_device(&fd).map(|()| fd));
    taken.map_err(|error| error.at(format!("vfio=fd:{number}")))
}

fn word(code: Code) -> String {
    serde_json::to_value(code).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
