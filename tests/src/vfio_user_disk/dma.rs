// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory as the server reaches it: mapped where it was given a file, by messages elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use vhost_user_iommu::vfio_user::message::{Command, DmaAccess, DmaMap, Message};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use zerocopy::IntoBytes;

use super::Told;
use super::session::Session;

/// What the client has told.
#[derive(Default)]
pub(super) struct Mappings(BTreeMap<u64, (DmaMap, Option<MmapRegion>)>);

impl Mappings {
    pub(super) fn add(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<()> {
        let memory = |fd: OwnedFd| {
            let place = FileOffset::new(File::from(fd), map.offset);
            Ok::<_, anyhow::Error>(MmapRegion::from_file(place, usize::try_from(map.size)?)?)
        };
        let end = map.address.checked_add(map.size - 1).context("wraps")?;
        let overlaps = |(other, _): &(DmaMap, _)| {
            other.address <= end && map.address <= other.address + (other.size - 1)
        };
        ensure!(!self.0.values().any(overlaps), "overlaps: {map:x?}");
        self.0.insert(map.address, (map, fd.map(memory).transpose()?));
        Ok(())
    }

    pub(super) fn remove(&mut self, address: u64, size: u64) -> Result<()> {
        let known = self.0.get(&address).with_context(|| format!("nothing at {address:#x}"))?;
        ensure!(known.0.size == size, "{size:#x} bytes of {:#x}", known.0.size);
        self.0.remove(&address);
        Ok(())
    }

    pub(super) fn told(&self) -> Vec<Told> {
        self.0.values().map(|(map, memory)| (map.address, map.size, map.flags, memory.is_some())).collect()
    }

    /// Memory for an access that the client allowed, if the server has it.
    fn slice(&self, address: u64, length: usize, flag: u32) -> Option<VolatileSlice<'_>> {
        let (_, (map, memory)) = self.0.range(..=address).next_back()?;
        let memory = memory.as_ref().filter(|_| map.flags & flag != 0)?;
        memory.get_slice(usize::try_from(address - map.address).ok()?, length).ok()
    }
}

impl Session {
    /// Reads memory.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<()> {
        if let Some(slice) = self.mappings.slice(address, bytes.len(), DmaMap::READ) {
            slice.copy_to(bytes);
            return Ok(());
        }
        let access = DmaAccess { address, count: bytes.len() as u64 };
        let reply = self.ask(Message::command(0, Command::DMA_READ, &access))?;
        let (_, data) = reply.body_with_data::<DmaAccess>().context("a reply without a body")?;
        ensure!(data.len() == bytes.len(), "{} bytes of {}", data.len(), bytes.len());
        bytes.copy_from_slice(data);
        Ok(())
    }

    /// Writes memory.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        if let Some(slice) = self.mappings.slice(address, bytes.len(), DmaMap::WRITE) {
            slice.copy_from(bytes);
            return Ok(());
        }
        let access = DmaAccess { address, count: bytes.len() as u64 };
        let payload = [access.as_bytes(), bytes].concat();
        self.ask(Message::command(0, Command::DMA_WRITE, &payload[..])).map(drop)
    }

    /// Sends a command and waits for a good answer; what else comes meanwhile is served later.
    fn ask(&mut self, message: Message) -> Result<Message> {
        let reply = self.ask_anything(message)?;
        ensure!(!reply.flags.is_error(), "refused with error {}", reply.error);
        Ok(reply)
    }
}
