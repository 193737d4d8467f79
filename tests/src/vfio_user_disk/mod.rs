// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vfio-user server: a virtio-blk function on PCI, which any guest has a driver for.
//!
//! It reaches memory as it is told, by the file descriptors that it gets, and asks by messages for what it has none for. It
//! can be told to misbehave. To read: `vfio-user.rst` of QEMU; "Virtio Over PCI Bus" and "Block Device" in the virtio
//! specification.

mod blk;
mod dma;
mod function;
mod session;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::PollFlags;
use vhost_user_iommu::sync::Wake;
use vhost_user_iommu::vfio_user::message::Message;

use crate::iotlb_disk::wait::{Stop, wait};
use crate::iotlb_disk::{Image, Outcome, StrayDma};

use session::Session;

/// How the server takes what it is told of mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conduct {
    /// As it should.
    #[default]
    Honest,
    /// It says nothing to DMA_MAP.
    IgnoresMap,
    /// It refuses DMA_MAP.
    RefusesMap,
    /// It says nothing to DMA_UNMAP, and keeps the memory.
    IgnoresUnmap,
    /// It refuses DMA_UNMAP.
    RefusesUnmap,
    /// It answers DMA_UNMAP after this time.
    UnmapsLate(Duration),
    /// It answers DMA_UNMAP under another id.
    WrongId,
    /// It answers DMA_UNMAP as another command.
    WrongCommand,
    /// It says to have unmapped something else.
    WrongAddress,
    /// It says to have unmapped more.
    WrongSize,
    /// It answers DMA_UNMAP by half a message, and then nothing.
    HalfAnAnswer,
    /// It leaves when it is told of DMA_UNMAP.
    Leaves,
    /// It leaves memory alone but takes nothing that is said any more, once it is told of DMA_UNMAP.
    Deaf,
}

/// What the server holds: first address, bytes, flags, and whether there is a file.
pub type Told = (u64, u64, u32, bool);

/// Its capabilities, as JSON.
pub const CAPABILITIES: &str =
    r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"pgsizes":4096}}"#;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct VfioUserDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    orders: Sender<Order>,
    server: Option<JoinHandle<()>>,
}

/// What the server is asked by a test.
enum Order {
    Access(u64, StrayDma, Sender<Outcome>),
    Say(Vec<u8>),
    Deafen,
    Tell(Message, Sender<Option<Message>>),
}

#[derive(Debug)]
struct Shared {
    image: Image,
    conduct: Mutex<Conduct>,
    capabilities: String,
    told: Mutex<Vec<Told>>,
    changed: Condvar,
    vectors: AtomicUsize,
    wake: Wake,
}

impl VfioUserDisk {
    /// Serves `image` on a new socket at `path`; when this returns, a client can connect.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn serve(path: &Path, image: Image) -> io::Result<VfioUserDisk> {
        VfioUserDisk::serve_with(path, image, CAPABILITIES)
    }

    /// The same, by a server with these capabilities.
    ///
    /// # Errors
    /// As for [`VfioUserDisk::serve`].
    pub fn serve_with(path: &Path, image: Image, capabilities: &str) -> io::Result<VfioUserDisk> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            image,
            conduct: Mutex::default(),
            capabilities: capabilities.to_owned(),
            told: Mutex::default(),
            changed: Condvar::new(),
            vectors: AtomicUsize::new(0),
            wake: Wake::new()?,
        });
        let stop = Arc::new(Stop::new()?);
        let (orders, ordered) = channel();
        let server = {
            let (shared, stop) = (shared.clone(), stop.clone());
            thread::spawn(move || serve(&listener, &shared, &stop, &ordered))
        };
        Ok(VfioUserDisk { path: path.to_owned(), shared, stop, orders, server: Some(server) })
    }

    /// Changes how it takes what it is told, from now on.
    pub fn set_conduct(&self, conduct: Conduct) {
        *lock(&self.shared.conduct) = conduct;
    }

    /// What it has been told of, by address.
    pub fn told(&self) -> Vec<Told> {
        lock(&self.shared.told).clone()
    }

    /// Waits until what it has been told of fulfils `condition`; false if it does not within `limit`.
    pub fn wait_told(&self, limit: Duration, condition: impl Fn(&[Told]) -> bool) -> bool {
        let told = lock(&self.shared.told);
        let waited = self.shared.changed.wait_timeout_while(told, limit, |told| !condition(told));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How many of its vectors have an eventfd.
    pub fn vectors(&self) -> usize {
        self.shared.vectors.load(Ordering::Acquire)
    }

    /// Does an access that no driver asked for.
    pub fn stray_dma(&self, address: u64, dma: StrayDma) -> Outcome {
        let (done, outcome) = channel();
        self.order(Order::Access(address, dma, done));
        outcome.recv().unwrap_or(Outcome::NoMemory)
    }

    /// Sends any bytes to the client.
    pub fn say(&self, bytes: &[u8]) {
        self.order(Order::Say(bytes.to_vec()));
    }

    /// Has it take nothing any more that is said.
    pub fn deafen(&self) {
        self.order(Order::Deafen);
    }

    /// Sends any command to the client, and waits for the answer; nothing if the connection ends first.
    pub fn tell(&self, message: Message) -> Option<Message> {
        let (done, answer) = channel();
        self.order(Order::Tell(message, done));
        answer.recv().ok().flatten()
    }

    fn order(&self, order: Order) {
        // Fails only when the server is gone, and then nothing is answered.
        let _ = self.orders.send(order);
        self.shared.wake.wake();
    }
}

impl Drop for VfioUserDisk {
    fn drop(&mut self) {
        self.stop.signal();
        // A panic of the server has been printed; a second one here would only hide it.
        let _ = self.server.take().map(JoinHandle::join);
        let _ = fs::remove_file(&self.path);
    }
}

impl Shared {
    fn set_told(&self, told: Vec<Told>) {
        *lock(&self.told) = told;
        self.changed.notify_all();
    }
}

/// Accepts one connection after another and serves it to its end.
fn serve(listener: &UnixListener, shared: &Arc<Shared>, stop: &Arc<Stop>, orders: &Receiver<Order>) {
    while !stop.is_signalled() {
        let waited = wait(
            &[
                (listener.as_fd(), PollFlags::IN),
                (stop.as_fd(), PollFlags::IN),
                (shared.wake.as_fd(), PollFlags::IN),
            ],
            None,
        );
        if waited.is_err() {
            return;
        }
        // Nobody is connected, so nothing can be done.
        shared.wake.clear();
        orders.try_iter().for_each(drop);
        if let Ok((socket, _)) = listener.accept() {
            if let Err(error) = Session::new(socket, shared.clone(), stop.clone()).run(orders) {
                eprintln!("vfio-user disk: {error:#}");
            }
            shared.set_told(Vec::new());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
