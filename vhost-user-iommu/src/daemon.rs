// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life of the daemon: everything that can fail is done first, then threads serve until a signal comes.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use log::{Level, error, info, warn};
use sd_notify::NotifyState;
use viommu_core::EndpointId;

use crate::config::{Config, Listen, Protocol, Relayed};
use crate::control;
use crate::ending::{End, Ending};
use crate::fd::{VmmSocket, inherited_pipe, inherited_socket};
use crate::iommu::Iommu;
use crate::listen::{SocketFile, listen, listen_privately};
use crate::orders::{Orders, RelayHandle, orders};
use crate::relay::Relay;
use crate::session::Session;
use crate::sync::Wake;
use crate::throttle::Throttle;
use crate::usage_error::UsageError;
use crate::vfio::Vfio;

/// A relay before it has a device to ask.
struct Prepared {
    endpoint: EndpointId,
    label: String,
    protocol: Protocol,
    backend: PathBuf,
    listener: UnixListener,
    orders: Orders,
}

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
    let config = &narrowed(config, vfio.as_ref())?;
    let mut ending = Ending::new(pipe).map_err(short_of)?;
    if let Some(vfio) = &vfio {
        ending.or_when(vfio.released(), End::DevicesReleased);
    }
    let (relays, handles) = prepare_relays(config, &mut files)?;
    let event_waits = Arc::new(Wake::new().map_err(short_of)?);
    let iommu = Iommu::new(config, handles, vfio, event_waits.clone());
    let iommu =
        Arc::new(iommu.map_err(|error| UsageError::new(error.to_string(), "change the option it names"))?);
    for prepared in relays {
        start_relay(prepared, config, &iommu)?;
    }
    let tended_iommu = iommu.clone();
    start("devices", move || tended_iommu.tend_devices())?;
    if config.mode.is_table() {
        let watched_iommu = iommu.clone();
        start("tables", move || watched_iommu.watch_tables())?;
    }
    if let Some(control) = control {
        let controlled_iommu = iommu.clone();
        start("control", move || control::serve(&control, &*controlled_iommu))?;
    }
    let session = Session::new(iommu.clone(), event_waits, config.poll).map_err(short_of)?;
    start_session(session, socket, &mut ending)?;
    info!("ready: {} endpoints, aperture {}", config.endpoints.len(), config.aperture);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!("nobody can be told through NOTIFY_SOCKET: {error}");
    }
    let end = ending.wait().map_err(short_of)?;
    // Whoever wanted to know of the start may be gone.
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    iommu.release_devices();
    info!("{end}; {}", iommu.account());
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

fn prepare_relays(
    config: &Config,
    files: &mut Vec<SocketFile>,
) -> Result<(Vec<Prepared>, BTreeMap<EndpointId, RelayHandle>), UsageError> {
    let mut relays = Vec::new();
    let mut handles = BTreeMap::new();
    for endpoint in &config.endpoints {
        let Some(Relayed { protocol, front, back }) = endpoint.kind.relayed() else { continue };
        let listener = keep(listen("endpoint", front)?, files);
        let (handle, orders) = orders(protocol).map_err(short_of)?;
        handles.insert(endpoint.id, handle);
        let (label, backend) = (endpoint.label.clone(), back.to_owned());
        relays.push(Prepared { endpoint: endpoint.id, label, protocol, backend, listener, orders });
    }
    Ok((relays, handles))
}

fn start_relay(prepared: Prepared, config: &Config, iommu: &Arc<Iommu>) -> Result<(), UsageError> {
    let Prepared { endpoint, label, protocol, backend, listener, orders } = prepared;
    let relay = Relay {
        endpoint,
        label,
        protocol,
        backend,
        iommu: iommu.clone(),
        page_size_mask: config.page_size_mask,
        aperture: config.aperture,
        unmap_timeout: config.unmap_timeout,
        complaints: Throttle::new(Level::Warn),
    };
    start("relay", move || relay.serve(&listener, &orders))
}

fn start_session(session: Session, socket: VmmSocket, ending: &mut Ending) -> Result<(), UsageError> {
    match socket {
        VmmSocket::Listening(listener) => start("session", move || session.serve(&listener)),
        VmmSocket::Connected(vmm) => {
            let left = Arc::new(Wake::new().map_err(short_of)?);
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
    thread::Builder::new().name(name.to_owned()).spawn(serve).map(drop).map_err(short_of)
}

fn keep((listener, file): (UnixListener, SocketFile), files: &mut Vec<SocketFile>) -> UnixListener {
    files.push(file);
    listener
}

fn short_of(error: io::Error) -> UsageError {
    UsageError::new(
        format!("the system refuses a file descriptor or a thread: {error}"),
        "raise its limits (ulimit)",
    )
}
