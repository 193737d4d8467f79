// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user conversation with the VMM: one connection after another, each a power-on of its machine.
//!
//! The protocol itself is `vhost-user-backend`'s; what it lets a back-end decide is in [`backend`]. Here each
//! connection gets a daemon object of its own, since the crate's does not survive its first connection.

pub mod backend;
mod chain;
mod event_queue;
mod kick;
mod polling;
mod queues;
mod request_queue;
pub mod ring;
mod ring_memory;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::iommu::Iommu;
use crate::sync::Wake;

use backend::{Backend, EVENT_WAITS};

/// Serves the VMMs that connect to `listener`, one at a time, for the life of the process. After a request the next one is
/// looked for as long as `poll`.
pub fn serve(listener: UnixListener, iommu: &Arc<Iommu>, event_waits: &Arc<Wake>, poll: Duration) {
    let mut listener = Listener::from(listener);
    loop {
        if let Err(error) = serve_one(&mut listener, iommu, event_waits, poll) {
            error!("cannot serve a VMM: {error}; trying again in a second");
            thread::sleep(RETRY);
        }
    }
}

const RETRY: Duration = Duration::from_secs(1);

/// Accepts one connection and serves it to its end, of which the iommu is told however it comes.
///
/// # Errors
/// The process is out of file descriptors or threads; what the VMM does wrong is none.
pub fn serve_one(
    listener: &mut Listener,
    iommu: &Arc<Iommu>,
    event_waits: &Arc<Wake>,
    poll: Duration,
) -> Result<(), Error> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend::new(iommu.clone(), event_waits.clone(), poll).map_err(Error::StartDaemon)?;
    let backend = Arc::new(backend);
    let daemon = VhostUserDaemon::new("session".to_owned(), backend.clone(), memory);
    let served = daemon.and_then(|daemon| converse(daemon, &backend, listener, event_waits));
    if backend.is_powered_on() {
        iommu.disconnected();
    }
    match served {
        Err(Error::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) => Ok(()),
        Err(Error::HandleRequest(error)) => {
            warn!("the VMM's connection ends: {error}");
            Ok(())
        }
        served => served,
    }
}

fn converse(
    mut daemon: VhostUserDaemon<Arc<Backend>>,
    backend: &Backend,
    listener: &mut Listener,
    event_waits: &Wake,
) -> Result<(), Error> {
    for handler in daemon.get_epoll_handlers() {
        let fd = event_waits.as_fd().as_raw_fd();
        handler.register_listener(fd, EventSet::IN, u64::from(EVENT_WAITS)).map_err(Error::StartDaemon)?;
    }
    daemon.start(listener)?;
    info!("VMM connected");
    let served = daemon.wait();
    // The crate waits for its worker when it is dropped.
    backend.end();
    served
}
