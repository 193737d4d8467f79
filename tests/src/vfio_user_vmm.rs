// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of a vfio-user connection, well-behaved or hostile: it says what it is told to, and waits for answers.
//!
//! To read: `vfio-user.rst` of QEMU.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::PollFlags;
use vhost_user_iommu::message::Channel;
use vhost_user_iommu::vfio_user::message::{Command, DmaMap, DmaUnmap, Message, RegionAccess};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::IntoBytes;

use crate::driver::GuestMemory;
use crate::iotlb_disk::wait::wait;

/// A VMM with one device.
#[derive(Debug)]
pub struct VfioUserVmm {
    channel: Channel<Message>,
    next_id: u16,
    patience: Duration,
}

/// What QEMU 11.1 proposes.
pub const PROPOSAL: &str = r#"{"capabilities":{"migration":{"max_bitmap_size":268435456,"pgsize":4096},"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":65535,"write_multiple":true,"twin_socket":{"supported":true}}}"#;

impl VfioUserVmm {
    /// Connects; answers are waited for as long as `patience`.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path, patience: Duration) -> Result<VfioUserVmm> {
        let channel = Channel::new(UnixStream::connect(path)?);
        Ok(VfioUserVmm { channel, next_id: 100, patience })
    }

    /// Negotiates a version: the JSON of the answer.
    ///
    /// # Errors
    /// There is no good answer.
    pub fn negotiate(&mut self) -> Result<String> {
        let payload = [&[0, 0, 1, 0], PROPOSAL.as_bytes(), &[0]].concat();
        let reply = self.ask_well(Command::VERSION, &payload)?;
        Ok(String::from_utf8(reply.payload[4..reply.payload.len() - 1].to_vec())?)
    }

    /// Gives all of a guest's memory.
    ///
    /// # Errors
    /// It is refused.
    pub fn give(&mut self, memory: &GuestMemory) -> Result<()> {
        for region in memory.mmap().iter() {
            let place = region.file_offset().context("memory without a file")?;
            let fd: OwnedFd = place.file().try_clone()?.into();
            let map = map_of(region.start_addr().0, region.len(), place.start());
            let reply = self.ask(Command::DMA_MAP, map.as_bytes(), vec![fd])?;
            ensure!(!reply.flags.is_error(), "refused with {}", reply.error);
        }
        Ok(())
    }

    /// Takes memory back.
    ///
    /// # Errors
    /// It is refused.
    pub fn take_back(&mut self, address: u64, size: u64) -> Result<()> {
        let unmap = DmaUnmap { argsz: 24, flags: 0, address, size };
        let reply = self.ask_well(Command::DMA_UNMAP, unmap.as_bytes())?;
        ensure!(reply.body() == Some(unmap), "{:x?}", reply.payload);
        Ok(())
    }

    /// Reads a region of the device.
    ///
    /// # Errors
    /// It is refused.
    pub fn read_region(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>> {
        let access = RegionAccess { offset, region, count };
        let reply = self.ask_well(Command::REGION_READ, access.as_bytes())?;
        let (_, data) = reply.body_with_data::<RegionAccess>().context("no data")?;
        Ok(data.to_vec())
    }

    /// Writes to a region of the device.
    ///
    /// # Errors
    /// It is refused.
    pub fn write_region(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        self.ask_well(Command::REGION_WRITE, &[access.as_bytes(), data].concat()).map(drop)
    }

    /// Lets the device be a bus master, or not.
    ///
    /// # Errors
    /// It is refused.
    pub fn set_bus_master(&mut self, is_master: bool) -> Result<()> {
        self.write_region(RegionAccess::PCI_CONFIG, 4, &[if is_master { 6 } else { 2 }, 0])
    }

    /// Sends a command and waits for an answer that is no error.
    ///
    /// # Errors
    /// There is none.
    pub fn ask_well(&mut self, command: Command, payload: &[u8]) -> Result<Message> {
        let reply = self.ask(command, payload, Vec::new())?;
        ensure!(!reply.flags.is_error(), "{command:?} is refused with {}", reply.error);
        Ok(reply)
    }

    /// Sends a command and waits for the answer.
    ///
    /// # Errors
    /// There is none.
    pub fn ask(&mut self, command: Command, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Message> {
        let id = self.send(command, payload, fds)?;
        let reply = self.receive()?.context("the connection ended")?;
        ensure!(reply.id == id && reply.command == command && reply.flags.is_reply(), "{reply:?}");
        Ok(reply)
    }

    /// Sends a command: its id.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send(&mut self, command: Command, payload: &[u8], fds: Vec<OwnedFd>) -> Result<u16> {
        let id = self.next_id;
        self.next_id += 1;
        self.send_message(Message::command(id, command, payload).with_fds(fds))?;
        Ok(id)
    }

    /// Sends any message.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_message(&mut self, message: Message) -> Result<()> {
        self.channel.queue(message)?;
        self.channel.flush()?;
        Ok(())
    }

    /// Waits for the next message; nothing if the connection ends instead.
    ///
    /// # Errors
    /// Nothing comes.
    pub fn receive(&mut self) -> Result<Option<Message>> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.channel.receive() {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) => {}
                Err(_) => return Ok(None),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no message within {:?}", self.patience);
            }
            wait(&[(self.channel.as_fd(), PollFlags::IN)], Some(left))?;
        }
    }
}

/// A mapping to be read and written.
pub fn map_of(address: u64, size: u64, offset: u64) -> DmaMap {
    DmaMap { argsz: 32, flags: DmaMap::READ | DmaMap::WRITE, offset, address, size }
}
