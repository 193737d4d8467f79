// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one ring of the disk, and the requests in it. To read: "Split Virtqueues" in the virtio specification.

use anyhow::{Result, bail, ensure};

use super::function::Ring;
use super::session::Session;

/// Bytes of data of one access.
const CHUNK: usize = 64 << 10;
/// Descriptors of one chain.
const CHAIN_MAX: usize = 256;

/// Addresses and lengths.
type Segments = Vec<(u64, u32)>;

impl Session {
    /// Serves what is available; whether the driver is to be told.
    pub(super) fn serve_ring(&mut self, ring: &mut Ring) -> Result<bool> {
        let mut is_used = false;
        loop {
            let [flags, index] = [0, 2].map(|at| self.read_u16(ring.driver + at));
            let (flags, index) = (flags?, index?);
            if index == ring.next {
                return Ok(is_used && flags & 1 == 0);
            }
            let slot = u64::from(ring.next % ring.size);
            let head = self.read_u16(ring.driver + 4 + 2 * slot)?;
            let (readable, writable) = self.chain(ring, head)?;
            let written = self.serve_request(&readable, writable)?;
            let element = [u32::from(head).to_le_bytes(), written.to_le_bytes()].concat();
            self.write(ring.device + 4 + 8 * slot, &element)?;
            ring.next = ring.next.wrapping_add(1);
            self.write(ring.device + 2, &ring.next.to_le_bytes())?;
            is_used = true;
        }
    }

    fn read_u16(&mut self, address: u64) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn chain(&mut self, ring: &Ring, head: u16) -> Result<(Segments, Segments)> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut next = head;
        for _ in 0..CHAIN_MAX {
            let mut descriptor = [0; 16];
            self.read(ring.descriptors + 16 * u64::from(next), &mut descriptor)?;
            let field = |at: usize, length: usize| {
                descriptor[at..at + length]
                    .iter()
                    .rev()
                    .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            };
            let segment = (field(0, 8), field(8, 4) as u32);
            let flags = field(12, 2);
            if flags & 2 == 0 { &mut readable } else { &mut writable }.push(segment);
            if flags & 1 == 0 {
                return Ok((readable, writable));
            }
            next = field(14, 2) as u16;
        }
        bail!("a chain without an end")
    }

    /// Serves one request: how many bytes were written.
    fn serve_request(&mut self, readable: &Segments, mut writable: Segments) -> Result<u32> {
        const OK: u8 = 0;
        const IO_ERROR: u8 = 1;
        const UNSUPPORTED: u8 = 2;
        let (Some((header_at, 16)), Some((status_at, 1))) = (readable.first().copied(), writable.pop())
        else {
            bail!("a request of another form than Linux and SeaBIOS make")
        };
        let mut header = [0; 16];
        self.read(header_at, &mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = header[8..].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let done = match kind {
            0 => self.copy(sector, &writable, Direction::ToMemory),
            1 => self.copy(sector, &readable[1..], Direction::ToDisk),
            _ => {
                self.write(status_at, &[UNSUPPORTED])?;
                return Ok(1);
            }
        };
        let written: u32 = writable.iter().map(|(_, length)| length).sum();
        let status = if done.is_ok() { OK } else { IO_ERROR };
        self.write(status_at, &[status])?;
        Ok(if done.is_ok() { written + 1 } else { 1 })
    }

    fn copy(&mut self, sector: u64, segments: &[(u64, u32)], direction: Direction) -> Result<()> {
        let length: u64 = segments.iter().map(|(_, length)| u64::from(*length)).sum();
        let start = self.shared.image.offset(sector, length);
        ensure!(start.is_some(), "beyond the disk");
        let mut offset = start.unwrap_or_default();
        for (address, length) in segments {
            for at in (0..*length as usize).step_by(CHUNK) {
                let mut bytes = vec![0; CHUNK.min(*length as usize - at)];
                let address = address + at as u64;
                match direction {
                    Direction::ToMemory => {
                        self.shared.image.read(&mut bytes, offset)?;
                        self.write(address, &bytes)?;
                    }
                    Direction::ToDisk => {
                        self.read(address, &mut bytes)?;
                        self.shared.image.write(&bytes, offset)?;
                    }
                }
                offset += bytes.len() as u64;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToMemory,
    ToDisk,
}
