// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life of the daemon: everything that can fail is done first, then threads serve until a signal comes.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use log::{error, info, warn};
use sd_notify::NotifyState;

use crate::config::{Config, Listen};
use crate::control;
use crate::ending::{End, Ending};
use crate::fd::{VmmSocket, inherited_pipe, inherited_socket};
use crate::iommu::Iommu;
use crate::listen::{SocketFile, listen, listen_privately};
use crate::relaying::Relaying;
use crate::session::Session;
use crate::sync::Wake;
use crate::usage_error::UsageError;
use crate::vfio::Vfio;

/// Serves the device until SIGTERM, SIGINT, SIGQUIT or SIGHUP, or until whoever it is to end with is gone, and then
/// leaves nothing behind.
///
/// # Errors
/// What keeps the device from being served as asked; nothing is left behind then either.
pub fn run(config: &Config) -> Result<(), UsageError> {
    env_logger::Builder::new().filter_level(config.log_level).format_target(false).init();
    let mut files = Vec::new();
    // What takes a file descriptor by its number comes before anything else is opened.
    let pipe = config.exit_with.map(|number| inherited_pipe("exit-with", number)).transpose()?;
    let socket = match &config.listen {
        Listen::Fd(number) => inherited_socket(*number)?,
        Listen::Path(path) => VmmSocket::Listening(keep(listen("socket-path", path)?, &mut files)),
    };
    let control = config.control.as_deref().map(|path| listen_privately("control", path)).transpose()?;
    let control = control.map(|control| keep(control, &mut files));
    let vfio = Vfio::prepare(config)?;
    let given = config;
    let config = &narrowed(config, vfio.as_ref())?;
    let mut ending = Ending::new(pipe).map_err(UsageError::short_of)?;
    if let Some(vfio) = &vfio {
        ending.or_when(vfio.released(), End::DevicesReleased);
    }
    let event_waits = Arc::new(Wake::new().map_err(UsageError::short_of)?);
    let iommu = Iommu::new(config, vfio, event_waits.clone());
    let iommu =
        Arc::new(iommu.map_err(|error| UsageError::new(error.to_string(), "change the option it names"))?);
    let relaying = Arc::new(Relaying::new(iommu.clone(), given.clone(), config.aperture));
    config.endpoints.iter().try_for_each(|endpoint| relaying.start(endpoint))?;
    let tended_iommu = iommu.clone();
    start("devices", move || tended_iommu.tend_devices())?;
    if config.mode.is_table() {
        let watched_iommu = iommu.clone();
        start("tables", move || watched_iommu.watch_tables())?;
    }
    let session = Session::new(iommu.clone(), event_waits, config.poll).map_err(UsageError::no_folder)?;
    start_session(session, socket, &mut ending)?;
    if let Some(control) = control {
        let controlled = relaying.clone();
        start("control", move || control::serve(&control, &*controlled))?;
    }
    info!("ready: {} endpoints, aperture {}", config.endpoints.len(), config.aperture);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!("nobody can be told through NOTIFY_SOCKET: {error}");
    }
    let end = ending.wait();
    // Whoever wanted to know of the start may be gone.
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    iommu.release_devices();
    // Clients of the control socket are served to the last.
    relaying.remove_sockets();
    info!("{}; {}", end.map_err(UsageError::short_of)?, iommu.account());
    Ok(())
}

/// With an aperture that the devices of the host can have.
fn narrowed(config: &Config, vfio: Option<&Vfio>) -> Result<Config, UsageError> {
    // The guest's own tables lie before the host's.
    let vfio = vfio.filter(|_| !config.mode.is_table());
    let narrow = |vfio: &Vfio| vfio.narrow(config.aperture, config.page_size_mask);
    let aperture = vfio.map_or(Ok(config.aperture), narrow)?;
    Ok(Config { aperture, ..config.clone() })
}

fn start_session(session: Session, socket: VmmSocket, ending: &mut Ending) -> Result<(), UsageError> {
    match socket {
        VmmSocket::Listening(listener) => start("session", move || session.serve(&listener)),
        VmmSocket::Connected(vmm) => {
            let left = Arc::new(Wake::new().map_err(UsageError::short_of)?);
            ending.or_when(left.clone(), End::VmmLeft);
            start("session", move || {
                if let Err(error) = session.serve_one(vmm) {
                    error!("cannot serve the VMM: {error}");
                }
                left.wake();
            })
        }
    }
}

fn start(name: &str, serve: impl FnOnce() + Send + 'static) -> Result<(), UsageError> {
    thread::Builder::new().name(name.to_owned()).spawn(serve).map(drop).map_err(UsageError::short_of)
}

fn keep((listener, file): (UnixListener, SocketFile), files: &mut Vec<SocketFile>) -> UnixListener {
    files.push(file);
    listener
}
