// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side: commands in the right form, nearly, or not at all.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendFlags, send};
use vhost_user_iommu::message::Channel;
use vhost_user_iommu::vfio_user::message::{Command, DmaMap, DmaUnmap, Flags, Message, RegionAccess};
use zerocopy::IntoBytes;

use super::super::input::Input;

/// A VMM. All of its memory is one file, in which each page is where its number has it.
pub struct Vmm {
    channel: Channel<Message>,
    stream: UnixStream,
    memory: File,
}

/// Bytes of memory.
const MEMORY: u64 = 1 << 20;

impl Vmm {
    pub fn new(stream: UnixStream) -> Vmm {
        let channel = Channel::new(stream.try_clone().expect("a file descriptor"));
        let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory"));
        memory.set_len(MEMORY).expect("memory");
        Vmm { channel, stream, memory }
    }

    /// The file of its memory.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    pub fn say(&mut self, input: &mut Input<'_>) {
        let (id, kind) = (u16::from(input.u8()), input.u8());
        let mut fds: Vec<OwnedFd> = Vec::new();
        let (command, payload) = match kind % 8 {
            0 => (Command::VERSION, version(input)),
            1 | 2 => {
                // Mostly where it lies in the file, so that what is told can be checked by it.
                let address = u64::from(input.u8()) << 12;
                let size = (u64::from(input.u8()) << 12).min(MEMORY - address);
                let flags = input.pick(&[3, 3, 3, 1, 2, 0, 4]);
                if input.u8() > 31 {
                    fds.push(self.memory.try_clone().expect("a file descriptor").into());
                }
                let map = DmaMap { argsz: 32, flags, offset: address, address, size };
                (Command::DMA_MAP, map.as_bytes().to_vec())
            }
            3 => {
                let (address, size) = (u64::from(input.u8()) << 12, u64::from(input.u8()) << 12);
                let unmap = DmaUnmap { argsz: 24, flags: input.pick(&[0, 0, 2]), address, size };
                (Command::DMA_UNMAP, unmap.as_bytes().to_vec())
            }
            4 => {
                let access = RegionAccess { offset: input.pick(&[4, 4, 0, 8]), region: 7, count: 2 };
                (Command::REGION_WRITE, [access.as_bytes(), &[input.u8(), 0]].concat())
            }
            5 => (Command::DEVICE_RESET, Vec::new()),
            _ => (Command(u16::from(input.u8() % 20)), input.bytes(24).to_vec()),
        };
        let flags = Flags(u32::from(kind >> 3 == 31) << 4);
        let message = Message { flags, ..Message::command(id, command, &payload[..]) }.with_fds(fds);
        // Fails when the relay has left or does not read, which shows.
        let _ = self.channel.queue(message);
        let _ = self.channel.flush();
    }

    pub fn say_anything(&mut self, input: &mut Input<'_>) {
        let length = usize::from(input.u8() % 64);
        let _ = send(&self.stream, input.bytes(length), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    /// Takes all that has come.
    pub fn receive(&mut self) {
        while let Ok(Some(message)) = self.channel.receive() {
            assert!(message.flags.is_reply(), "the relay asks {:?}", message.command);
        }
    }
}

/// A version, with capabilities of a kind.
pub fn version(input: &mut Input<'_>) -> Vec<u8> {
    const JSON: [&str; 6] = [
        "",
        r#"{"capabilities":{"max_msg_fds":8,"pgsizes":4096,"max_data_xfer_size":65536}}"#,
        r#"{"capabilities":{"max_dma_maps":2,"write_multiple":true}}"#,
        r#"{"capabilities":{"max_dma_maps":0,"pgsizes":0}}"#,
        r#"{"capabilities":{"twin_socket":{"supported":true},"max_msg_fds":18446744073709551615}}"#,
        r#"{"capabilities":[]}"#,
    ];
    let json = input.pick(&JSON);
    let nul: &[u8] = if json.is_empty() { &[] } else { &[0] };
    [&[0, 0, 1, 0], json.as_bytes(), nul].concat()
}
