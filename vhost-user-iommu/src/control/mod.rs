// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket: for those who run the machine, not for its guest.
//!
//! One thread serves all clients. None keeps it from another by what it sends, or does not read; but what is asked for is
//! done one after the other, and may have to wait for a back-end. What is done is the device's own matter, see
//! [`Controlled`]. To read: [`protocol`] for the lines, `unix(7)` for file descriptors beside them.

mod connection;
pub mod protocol;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::thread::sleep;
use std::time::Duration;

use log::{Level, info};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use viommu_core::EndpointId;

use crate::config::{EndpointConfig, EndpointKind};
use crate::throttle::Throttle;

pub use connection::{Closed, Connection, Excess, LINE_MAX, Line};
use protocol::{Code, Done, EndpointStatus, Refusal, Reply, Request};

/// What can be done through the socket.
pub trait Controlled {
    /// All endpoints, in the order of their ids.
    fn endpoints(&self) -> Vec<EndpointStatus>;

    /// Cuts an endpoint off from the guest's memory, whatever the guest asks for, until it is unblocked. One that is
    /// blocked already is told so again.
    ///
    /// # Errors
    /// There is no such endpoint, or it cannot be known that it reaches nothing.
    fn block(&self, endpoint: EndpointId) -> Result<(), Refusal>;

    /// Lets an endpoint reach what the guest lets it reach.
    ///
    /// # Errors
    /// There is no such endpoint, or it stays blocked.
    fn unblock(&self, endpoint: EndpointId) -> Result<(), Refusal>;

    /// Lets go of the device of an endpoint, so that the VMM's release of it is the last: it reaches nothing first.
    ///
    /// # Errors
    /// There is no such endpoint or device; then nothing is changed. Or the device of another process may still use
    /// memory; then it keeps its endpoint, and no VMM gets it, until this is asked for again.
    fn remove(&self, endpoint: EndpointId) -> Result<(), Refusal>;

    /// Takes a device for an endpoint that has none: one that another process serves, as `endpoint` says, or else a
    /// physical one, by the VFIO device file of which the VMM has a duplicate. It belongs where the endpoint is attached.
    ///
    /// # Errors
    /// There is no such endpoint, it has a device, or this one is not suited; then nothing is changed.
    fn add(&self, endpoint: &EndpointConfig, file: Option<OwnedFd>) -> Result<(), Refusal>;
}

/// Serves clients that connect to `listener`, for the life of the process.
pub fn serve(listener: &UnixListener, controlled: &impl Controlled) {
    let complaints = Throttle::new(Level::Warn);
    let mut connections = Vec::new();
    loop {
        if let Err(error) = serve_once(listener, &mut connections, controlled) {
            complaints.log(|| format!("control socket: {error}"));
            sleep(PAUSE);
        }
    }
}

/// Waits until there is something to do, and does it.
fn serve_once(
    listener: &UnixListener,
    connections: &mut Vec<Connection>,
    controlled: &impl Controlled,
) -> io::Result<()> {
    let waits = connections.iter().map(|connection| PollFd::new(connection, connection.interest()));
    let mut fds: Vec<PollFd<'_>> = [PollFd::new(listener, PollFlags::IN)].into_iter().chain(waits).collect();
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut is_ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
    let is_new = is_ready.next() == Some(true);
    connections.retain_mut(|connection| {
        is_ready.next() != Some(true) || connection.serve(|line| reply(line, controlled)).is_ok()
    });
    if is_new {
        let (socket, _) = listener.accept()?;
        make_room(connections);
        connections.push(Connection::new(socket));
    }
    Ok(())
}

/// Closes the connection that has been silent for longest, if there are too many.
fn make_room(connections: &mut Vec<Connection>) {
    if connections.len() >= CONNECTIONS_MAX {
        let silent = connections.iter().enumerate().min_by_key(|(_, connection)| connection.last_heard());
        if let Some((at, _)) = silent {
            connections.swap_remove(at);
        }
    }
}

/// The line that answers a line.
pub fn reply(line: Result<Line<'_>, Excess>, controlled: &impl Controlled) -> String {
    let result = line.map_err(refuse_excess).and_then(|line| answer(line, controlled));
    let reply = Reply::from(result);
    serde_json::to_string(&reply).unwrap_or_else(|_| String::from("{}"))
}

fn answer(line: Line<'_>, controlled: &impl Controlled) -> Result<Done, Refusal> {
    let request: Request = serde_json::from_slice(line.text)
        .map_err(|error| Refusal::new(Code::InvalidRequest, error.to_string()))?;
    match request {
        Request::List {} => return Ok(Done { endpoints: Some(controlled.endpoints()) }),
        Request::Block { endpoint } => {
            controlled.block(id_of(&endpoint)?)?;
            info!("endpoint {}: blocked, as asked for", endpoint.escape_debug());
        }
        Request::Unblock { endpoint } => {
            controlled.unblock(id_of(&endpoint)?)?;
            info!("endpoint {}: blocked no more, as asked for", endpoint.escape_debug());
        }
        Request::Remove { endpoint } => {
            controlled.remove(id_of(&endpoint)?)?;
            info!("endpoint {}: its device is removed, as asked for", endpoint.escape_debug());
        }
        Request::Add { endpoint } => {
            let endpoint = endpoint_of(&endpoint)?;
            controlled.add(&endpoint, line.file.take())?;
            info!("endpoint {}: a device is added, as asked for", endpoint.label.escape_debug());
        }
    }
    Ok(Done::default())
}

fn id_of(endpoint: &str) -> Result<EndpointId, Refusal> {
    let EndpointConfig { id, kind, .. } = endpoint_of(endpoint)?;
    match kind {
        EndpointKind::Listed => Ok(id),
        _ => Err(Refusal::new(Code::InvalidRequest, "write the id of the endpoint alone")),
    }
}

fn endpoint_of(text: &str) -> Result<EndpointConfig, Refusal> {
    let parsed: Result<EndpointConfig, _> = text.parse();
    parsed.map_err(|error| Refusal::new(Code::UnknownEndpoint, error.to_string()))
}

fn refuse_excess(excess: Excess) -> Refusal {
    let message = match excess {
        Excess::Line => format!("a line has more than {LINE_MAX} bytes"),
        Excess::Files => "more than one file descriptor came for a line".to_owned(),
    };
    Refusal::new(Code::InvalidRequest, message)
}

/// Clients at a time.
const CONNECTIONS_MAX: usize = 8;
/// How long to wait where the system refuses a file descriptor.
const PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
pub(crate) mod tests;
