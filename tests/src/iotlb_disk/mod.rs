// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user-blk back-end that reaches guest memory through an IOTLB alone, rings and buffers alike: the device
//! behind the IOMMU in the demo, the tests and the benchmarks.
//!
//! It runs on threads of the process that makes it, serves one connection after another and one queue, and can be
//! told to misbehave in the ways that a relay has to bear. It is no disk for production: requests are served one
//! at a time.
//!
//! Read first: "IOMMU support" in QEMU's `docs/interop/vhost-user.rst`; "Block Device" in the virtio specification.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::PollFlags;
use vm_memory::{Bytes, GuestAddress};

mod backend_channel;
mod blk;
mod image;
mod memory;
mod options;
mod record;
mod ring;
mod session;
mod tlb;
pub(crate) mod wait;

pub use image::Image;
pub use options::{OnInvalidate, Options};
pub use record::{Event, Negotiated, Stats};

use memory::DmaMemory;
use record::Record;
use session::Session;
use wait::{Stop, wait};

/// Longest stray DMA, in bytes.
pub const STRAY_LEN_MAX: usize = 1 << 20;

/// A disk that listens, until it is dropped.
#[derive(Debug)]
pub struct IotlbDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    server: Option<JoinHandle<()>>,
}

/// What the handle and the threads behind it have in common.
#[derive(Debug)]
struct Shared {
    image: Image,
    options: Options,
    on_invalidate: Mutex<OnInvalidate>,
    record: Record,
    /// Guest memory as the device sees it now, for accesses that no request asks for.
    memory: Mutex<Option<DmaMemory>>,
}

/// An access that no driver asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StrayDma {
    /// Reads this many bytes, at most [`STRAY_LEN_MAX`].
    Read(usize),
    /// Writes these bytes.
    Write(Vec<u8>),
}

/// What became of a stray access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It read these bytes.
    Read(Vec<u8>),
    /// It wrote all of its bytes.
    Written,
    /// It was refused, for this reason. A write over several pages may have written some of them.
    Refused(String),
    /// There is no guest memory: no front-end, or none that has shared any.
    NoMemory,
}

impl IotlbDisk {
    /// Serves `image` on a new socket at `path`; when this returns, a front-end can connect.
    ///
    /// # Errors
    /// The socket cannot be made: it exists, or its directory does not.
    pub fn serve(path: &Path, image: Image, options: Options) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            image,
            on_invalidate: Mutex::new(options.on_invalidate),
            options,
            record: Record::default(),
            memory: Mutex::new(None),
        });
        let stop = Arc::new(Stop::new()?);
        let server = {
            let (shared, stop) = (shared.clone(), stop.clone());
            thread::Builder::new()
                .name("iotlb-disk".into())
                .spawn(move || serve(&listener, &shared, &stop))?
        };
        Ok(Self { path: path.to_path_buf(), shared, stop, server: Some(server) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it has done up to now.
    pub fn stats(&self) -> Stats {
        self.shared.record.stats()
    }

    /// What has happened, oldest first; only the last few thousand events are kept.
    pub fn events(&self) -> Vec<Event> {
        self.shared.record.events()
    }

    /// Waits until what it has done fulfils `condition`; false if it does not within `timeout`.
    pub fn wait_until(&self, timeout: Duration, condition: impl FnMut(&Stats, &[Event]) -> bool) -> bool {
        self.shared.record.wait_until(timeout, condition)
    }

    /// The features of the connection that is, or was the last; nothing before the first `SET_FEATURES`.
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.shared.record.negotiated()
    }

    /// Changes how invalidations are answered, from the next one on.
    pub fn set_on_invalidate(&self, on_invalidate: OnInvalidate) {
        *lock(&self.shared.on_invalidate) = on_invalidate;
    }

    /// Does an access that no driver asked for, by the same way as every other: where `ACCESS_PLATFORM` was
    /// negotiated, through the IOTLB, with a miss where it has no entry; elsewhere `address` is a guest address.
    pub fn stray_dma(&self, address: u64, dma: StrayDma) -> Outcome {
        let Some(memory) = lock(&self.shared.memory).clone() else {
            return Outcome::NoMemory;
        };
        let done = match dma {
            StrayDma::Read(len) if len > STRAY_LEN_MAX => return Outcome::Refused("too long".into()),
            StrayDma::Read(len) => {
                let mut bytes = vec![0; len];
                memory.read_slice(&mut bytes, GuestAddress(address)).map(|()| Outcome::Read(bytes))
            }
            StrayDma::Write(bytes) => {
                memory.write_slice(&bytes, GuestAddress(address)).map(|()| Outcome::Written)
            }
        };
        done.unwrap_or_else(|error| Outcome::Refused(error.to_string()))
    }
}

impl Drop for IotlbDisk {
    /// Ends the connection, waits for the threads and removes the socket.
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(server) = self.server.take() {
            // A panic of the server has been printed; a second one here would only hide it.
            let _ = server.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Accepts one connection after another and serves it to its end.
fn serve(listener: &UnixListener, shared: &Arc<Shared>, stop: &Stop) {
    while !stop.is_signalled() {
        if wait(&[(listener.as_fd(), PollFlags::IN), (stop.as_fd(), PollFlags::IN)], None).is_err() {
            return;
        }
        if let Ok((socket, _)) = listener.accept() {
            serve_connection(socket, shared, stop);
        }
    }
}

fn serve_connection(socket: UnixStream, shared: &Arc<Shared>, stop: &Stop) {
    shared.record.add(Event::Connected);
    let reason = match Session::new(socket, shared.clone()) {
        Ok(mut session) => {
            let served = session.run(stop);
            // Before the front-end sees the end of the connection, which says that nothing is used any more.
            *lock(&shared.memory) = None;
            served
        }
        Err(error) => Err(error.into()),
    };
    shared.record.add(Event::Disconnected { reason: reason.err().map(|error| format!("{error:#}")) });
}

/// Takes a lock; a thread that panicked with it left nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
