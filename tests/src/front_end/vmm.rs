// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that drives one vhost-user device, step by step as a test wants it.
//!
//! Speaks through the front-end of the `vhost` crate, so that the device is held to what other people's
//! code expects of it. To read: QEMU, `docs/interop/vhost-user.rst`.

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use vhost::{
    Error, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{
            VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
        },
    },
};
use viommu_core::wire;
use vm_memory::GuestMemoryBackend;
use zerocopy::{FromZeros, IntoBytes};

use super::Connection;
use crate::driver::{GuestMemory, SplitQueue};

/// A VMM connected to a vhost-user device.
pub struct FrontEnd {
    vhost: Frontend,
    connection: Connection,
    features: u64,
    protocol_features: VhostUserProtocolFeatures,
}

/// The features a VMM accepts where the device offers them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Virtio feature bits. That of the protocol features itself need not be named.
    pub features: u64,
    /// Protocol features.
    pub protocol: VhostUserProtocolFeatures,
}

impl Default for Wanted {
    /// Everything, but what a VMM has to offer a service for.
    fn default() -> Wanted {
        Wanted {
            features: u64::MAX,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::DEVICE_STATE
                | VhostUserProtocolFeatures::STATUS,
        }
    }
}

impl FrontEnd {
    /// Connects to the device at `path`, which has `limit` to come to be.
    ///
    /// # Errors
    /// Nobody listening there in time.
    pub fn connect(path: &Path, limit: Duration) -> io::Result<FrontEnd> {
        FrontEnd::of(Connection::open(path, limit)?)
    }

    /// The VMM's side of an open connection.
    ///
    /// # Errors
    /// A host that is out of file descriptors.
    pub fn of(connection: Connection) -> io::Result<FrontEnd> {
        Ok(FrontEnd {
            vhost: Frontend::from_stream(connection.stream().try_clone()?, QUEUES_MAX),
            connection,
            features: 0,
            protocol_features: VhostUserProtocolFeatures::empty(),
        })
    }

    /// Becomes the owner and accepts the features that are wanted and offered. With REPLY_ACK among them,
    /// every later step waits until the device has done it.
    ///
    /// # Errors
    /// As for every step: a connection that is closed, a reply that is malformed or negative, and no
    /// reply within a minute.
    pub fn negotiate(&mut self, wanted: Wanted) -> Result<(), Error> {
        let offered = self.step(|vhost| vhost.get_features())?;
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.features = offered & (wanted.features | protocol_bit);
        if offered & protocol_bit != 0 {
            let offered = self.step(|vhost| vhost.get_protocol_features())?;
            self.protocol_features = offered & wanted.protocol;
            let accepted = self.protocol_features;
            self.step(|vhost| vhost.set_protocol_features(accepted))?;
        }
        if self.protocol_features.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.step(|vhost| vhost.set_owner())?;
        let accepted = self.features;
        self.step(|vhost| vhost.set_features(accepted))
    }

    /// The virtio features that were accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features that were accepted.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol_features
    }

    /// Gives the device all of `memory`.
    ///
    /// # Errors
    /// As for every step.
    pub fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        let regions = memory.mmap().iter().map(VhostUserMemoryRegionInfo::from_guest_region);
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        self.step(|vhost| vhost.set_mem_table(&regions)).map(drop)
    }

    /// Starts the ring `index` where the driver of `queue` stands.
    ///
    /// # Errors
    /// As for every step.
    pub fn start_ring(&mut self, index: usize, queue: &SplitQueue) -> Result<(), Error> {
        let (memory, rings) = (queue.memory(), queue.rings());
        let addresses = VringConfigData {
            queue_max_size: queue.size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: memory.vmm_address(rings.descriptors),
            used_ring_addr: memory.vmm_address(rings.used),
            avail_ring_addr: memory.vmm_address(rings.avail),
            log_addr: None,
        };
        self.step(|vhost| vhost.set_vring_num(index, queue.size()))?;
        self.step(|vhost| vhost.set_vring_base(index, queue.next_used()))?;
        self.step(|vhost| vhost.set_vring_addr(index, &addresses))?;
        self.step(|vhost| vhost.set_vring_call(index, queue.call_fd()))?;
        self.step(|vhost| vhost.set_vring_kick(index, queue.kick_fd()))?;
        self.enable_ring(index)
    }

    /// Enables the ring `index`, if the protocol features allow it; else a ring is enabled when it starts.
    ///
    /// # Errors
    /// As for every step.
    pub fn enable_ring(&mut self, index: usize) -> Result<(), Error> {
        match self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() {
            0 => Ok(()),
            _ => self.step(|vhost| vhost.set_vring_enable(index, true)),
        }
    }

    /// Stops the ring `index`: the index of the available ring at which the device would go on.
    ///
    /// # Errors
    /// As for every step.
    pub fn stop_ring(&mut self, index: usize) -> Result<u32, Error> {
        self.step(|vhost| vhost.get_vring_base(index))
    }

    /// Resets the device and leaves the connection as it is.
    ///
    /// # Errors
    /// As for every step.
    pub fn reset_device(&mut self) -> Result<(), Error> {
        self.step(|vhost| vhost.reset_device())
    }

    /// The whole configuration space of the IOMMU.
    ///
    /// # Errors
    /// As for every step.
    pub fn config(&mut self) -> Result<wire::Config, Error> {
        let mut config = wire::Config::new_zeroed();
        let bytes = self.read_config(0, size_of::<wire::Config>())?;
        config.as_mut_bytes().copy_from_slice(&bytes);
        Ok(config)
    }

    /// `length` bytes of the configuration space from `offset` on.
    ///
    /// # Errors
    /// As for every step.
    pub fn read_config(&mut self, offset: u32, length: usize) -> Result<Vec<u8>, Error> {
        let flags = VhostUserConfigFlags::empty();
        let size = u32::try_from(length).expect("a configuration space is small");
        self.step(|vhost| vhost.get_config(offset, size, flags, &vec![0; length])).map(|(_, bytes)| bytes)
    }

    /// Writes to the configuration space from `offset` on, as the guest does through the VMM.
    ///
    /// # Errors
    /// As for every step.
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.step(|vhost| vhost.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes))
    }

    /// Gives the device a channel for requests of its own: the VMM's side of it.
    ///
    /// # Errors
    /// As for every step.
    pub fn open_back_end_channel(&mut self) -> Result<Connection, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::IOError)?;
        self.step(|vhost| vhost.set_backend_request_fd(&theirs))?;
        Ok(Connection::of(ours))
    }

    /// The same connection as bytes. What is sent there, the other methods do not know of.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Any other step: `act` on the front-end of the `vhost` crate. It waits for a reply without a limit,
    /// so the connection is shut down under it after a minute.
    ///
    /// # Errors
    /// What `act` returns.
    pub fn step<T>(&mut self, act: impl FnOnce(&mut Frontend) -> Result<T, Error>) -> Result<T, Error> {
        let (done, watched) = mpsc::channel::<()>();
        let stream = self.connection.stream();
        thread::scope(|scope| {
            scope.spawn(move || {
                if watched.recv_timeout(STEP_LIMIT) == Err(RecvTimeoutError::Timeout) {
                    // Fails only when the connection is gone, which ends the step as well.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
            let result = act(&mut self.vhost);
            drop(done);
            result
        })
    }
}

const QUEUES_MAX: u64 = 16;
const STEP_LIMIT: Duration = Duration::from_secs(60);
