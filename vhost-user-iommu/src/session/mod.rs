// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user conversation with the VMM: one connection after another, each a power-on of its machine.
//!
//! The protocol itself is `vhost-user-backend`'s; what it lets a back-end decide is in [`backend`], and what it does not
//! speak is in `filter`, on the way to it: so the crate is used as it is, and one codec serves the session and the relays.
//! Here each connection gets a daemon object of its own, since the crate's does not survive its first connection.

pub mod backend;
mod chain;
mod event_queue;
mod filter;
mod kick;
mod polling;
mod private;
mod queues;
mod request_queue;
pub mod ring;
mod ring_memory;
mod transfer;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use vhost::vhost_user::Error as ProtocolError;
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::iommu::Iommu;
use crate::message::ChannelError;
use crate::sync::Wake;

use backend::{Backend, EVENT_WAITS};
use filter::{End, Filter};
use private::Private;

/// What serves VMMs, one at a time.
#[derive(Debug)]
pub struct Session {
    iommu: Arc<Iommu>,
    event_waits: Arc<Wake>,
    poll: Duration,
    /// Where `vhost-user-backend` is reached.
    private: Private,
}

impl Session {
    /// Of this device. After a request the next one is looked for as long as `poll`.
    ///
    /// # Errors
    /// No file can be made in the folder for temporary files, or the process has no file descriptor left.
    pub fn new(iommu: Arc<Iommu>, event_waits: Arc<Wake>, poll: Duration) -> io::Result<Session> {
        Ok(Session { iommu, event_waits, poll, private: Private::new()? })
    }

    /// Serves the VMMs that connect to `listener` for the life of the process.
    pub fn serve(&self, listener: &UnixListener) {
        loop {
            let accepted = listener.accept().map_err(Error::StartDaemon);
            if let Err(error) = accepted.and_then(|(vmm, _)| self.serve_one(vmm)) {
                error!("cannot serve a VMM: {error}; trying again in a second");
                thread::sleep(RETRY);
            }
        }
    }

    /// Serves one connection to its end, of which the iommu is told however it comes.
    ///
    /// # Errors
    /// The process is out of file descriptors or threads; what the VMM does wrong is none.
    pub fn serve_one(&self, vmm: UnixStream) -> Result<(), Error> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Backend::new(self.iommu.clone(), self.event_waits.clone(), self.poll);
        let backend = Arc::new(backend.map_err(Error::StartDaemon)?);
        let daemon = VhostUserDaemon::new("session".to_owned(), backend.clone(), memory);
        let served = daemon.and_then(|daemon| self.converse(daemon, &backend, vmm));
        if backend.is_powered_on() {
            self.iommu.disconnected();
        }
        served
    }

    fn converse(
        &self,
        mut daemon: VhostUserDaemon<Arc<Backend>>,
        backend: &Backend,
        vmm: UnixStream,
    ) -> Result<(), Error> {
        for handler in daemon.get_epoll_handlers() {
            let fd = self.event_waits.as_fd().as_raw_fd();
            handler
                .register_listener(fd, EventSet::IN, u64::from(EVENT_WAITS))
                .map_err(Error::StartDaemon)?;
        }
        let (crate_side, mut listener) = self.private.connect().map_err(Error::StartDaemon)?;
        daemon.start(&mut listener)?;
        info!("VMM connected");
        let end = Filter::new(backend, vmm, crate_side).run();
        let refusal = match daemon.wait() {
            Err(Error::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) => None,
            Err(Error::HandleRequest(error)) => Some(error),
            ended => ended.map(|()| None)?,
        };
        // The crate waits for its worker when it is dropped.
        backend.end();
        tell_of(&end, refusal);
        Ok(())
    }
}

/// How long a process that is short of something waits for it.
const RETRY: Duration = Duration::from_secs(1);

/// Says why a connection has ended, unless the VMM has just left.
fn tell_of(end: &End, refusal: Option<ProtocolError>) {
    match (end, refusal) {
        (End::Vmm(ChannelError::Disconnected | ChannelError::Truncated { .. }), _) => {}
        (end, Some(refusal)) => warn!("the VMM's connection ends: {end}: {refusal}"),
        (end, None) => warn!("the VMM's connection ends: {end}"),
    }
}
