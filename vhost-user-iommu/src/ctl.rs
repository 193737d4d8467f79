// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl`: one request to a running daemon, and its reply for people.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::args::{CtlAction, CtlArgs};
use crate::config::{EndpointConfig, EndpointKind, VfioDevice};
use crate::control::protocol::{Code, Refusal, Reply, Request};
use crate::fd::inherited;
use crate::host::Host;
use crate::usage_error::UsageError;

/// Ask the daemon at this socket for this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtlCommand {
    socket: PathBuf,
    request: Request,
    /// The number of the file descriptor that goes with the request.
    file: Option<i32>,
    json: bool,
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
    /// There is no reply, or it cannot be shown.
    #[error("the daemon cannot be understood: {0}")]
    Failed(#[from] io::Error),
}

impl CtlCommand {
    /// What `args` ask for.
    ///
    /// # Errors
    /// `add` without the open file that the VMM has as well.
    pub(crate) fn new(args: CtlArgs) -> Result<CtlCommand, UsageError> {
        let (request, file) = match args.action {
            CtlAction::List => (Request::List {}, None),
            CtlAction::Remove { endpoint } => (Request::Remove { endpoint: endpoint.label }, None),
            CtlAction::Add { endpoint } => {
                let file = file_of(&endpoint)?;
                (Request::Add { endpoint: endpoint.label }, Some(file))
            }
        };
        Ok(CtlCommand { socket: args.socket, request, file, json: args.json })
    }

    /// Asks, and prints what comes of it.
    ///
    /// # Errors
    /// It is not done.
    pub fn run(&self) -> Result<(), CtlError> {
        let file = self.file.map(take_over).transpose()?;
        let socket = UnixStream::connect(&self.socket).map_err(|error| {
            UsageError::new(
                format!("no daemon can be asked there: {error}"),
                "name the PATH that the daemon was given as --control, as the daemon's user",
            )
            .about("socket", self.socket.display().to_string())
        })?;
        let line = ask(&socket, &self.request, file)?;
        let reply: Reply = serde_json::from_str(&line).map_err(io::Error::from)?;
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", line.trim_end())?;
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

/// The file that goes with `add`. The daemon can attach a device by a file alone that the VMM has bound.
fn file_of(endpoint: &EndpointConfig) -> Result<i32, UsageError> {
    let (problem, mend) = match &endpoint.kind {
        EndpointKind::Vfio { device: VfioDevice::Fd(number) } => return Ok(*number),
        EndpointKind::Vfio { device } => (
            format!("a VMM has to share the file descriptor of {device}"),
            "open its file in /dev/vfio/devices for both, pass the descriptor to the VMM (QMP getfd), and write vfio=fd:N",
        ),
        EndpointKind::Listed | EndpointKind::VhostUser { .. } => {
            ("only physical devices come and go".to_owned(), "write ID,vfio=fd:N")
        }
    };
    Err(UsageError::new(problem, mend).at(&endpoint.label))
}

fn take_over(number: i32) -> Result<OwnedFd, UsageError> {
    let taken = inherited(number).and_then(|fd| Host::new().check_device(&fd).map(|()| fd));
    taken.map_err(|error| error.at(format!("vfio=fd:{number}")))
}

/// The line that answers the request.
fn ask(socket: &UnixStream, request: &Request, file: Option<OwnedFd>) -> io::Result<String> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    let mut socket = socket;
    socket.write_all(line.get(sent..).unwrap_or_default())?;
    let mut reply = String::new();
    BufReader::new(socket.take(REPLY_MAX)).read_line(&mut reply)?;
    Ok(reply)
}

fn word(code: Code) -> String {
    serde_json::to_value(code).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Bytes of a reply at most.
const REPLY_MAX: u64 = 16 << 20;
