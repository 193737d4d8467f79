// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Block requests: from a descriptor chain to its status byte.
//!
//! Read first: "Block Device / Device Operation" in the virtio specification.

use std::collections::VecDeque;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::image::{Image, SECTOR_LEN};
use super::memory::DmaMemory;

/// Most data segments of a request, as the configuration space says.
const SEGMENTS_MAX: u32 = 126;

/// Most bytes that are copied at once.
const PIECE_LEN_MAX: u32 = 64 * 1024;

/// What a request starts with (`struct virtio_blk_req`).
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}
const _: () = assert!(size_of::<Header>() == 16);

/// The configuration space (`struct virtio_blk_config`), as far as the offered features reach.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: U32,
    blk_size: U32,
    /// What belongs to features that are not offered.
    rest: [u8; 72],
}
const _: () = assert!(size_of::<Config>() == 96);

/// Why a request fails.
enum Failure {
    /// Memory that cannot be reached, a malformed request, or the image.
    Io,
    Unsupported,
}

/// The disk's configuration space.
pub(super) fn config(image: &Image) -> Vec<u8> {
    let mut config = Config::new_zeroed();
    config.capacity = image.sectors().into();
    config.seg_max = SEGMENTS_MAX.into();
    config.blk_size = (SECTOR_LEN as u32).into();
    config.as_bytes().to_vec()
}

/// What a request came to.
pub(super) struct Served {
    /// Bytes of the chain that were written, at least. Zero also if its status byte cannot be reached.
    pub(super) written: u32,
    /// Bytes of disk data that were read or written; nothing if the request failed.
    pub(super) data_len: Option<u64>,
}

/// Serves a request.
pub(super) fn serve(image: &Image, memory: &DmaMemory, chain: DescriptorChain<&DmaMemory>) -> Served {
    let (writable, readable): (Vec<Descriptor>, Vec<Descriptor>) = chain.partition(Descriptor::is_write_only);
    let (mut readable, mut writable) = (Segments::of(&readable), Segments::of(&writable));
    let Some(status_address) = writable.take_last_byte() else {
        return Served { written: 0, data_len: None };
    };
    let (status, written, data_len) = match serve_data(image, memory, &mut readable, &writable) {
        Ok(written) => (VIRTIO_BLK_S_OK, written, Some(readable.len() + writable.len())),
        Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0, None),
        Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0, None),
    };
    match memory.write_slice(&[status as u8], status_address) {
        Ok(()) => Served { written: written.saturating_add(1), data_len },
        Err(_) => Served { written: 0, data_len: None },
    }
}

/// Does what a request asks for; how many bytes of its data were written.
fn serve_data(
    image: &Image,
    memory: &DmaMemory,
    readable: &mut Segments,
    writable: &Segments,
) -> Result<u32, Failure> {
    let header = readable.take_header(memory)?;
    match header.kind.get() {
        VIRTIO_BLK_T_IN => {
            let mut offset = image.offset(header.sector.get(), writable.len()).ok_or(Failure::Io)?;
            for (address, len) in writable.pieces() {
                let mut bytes = vec![0; len];
                image.read(&mut bytes, offset).map_err(|_| Failure::Io)?;
                memory.write_slice(&bytes, address).map_err(|_| Failure::Io)?;
                offset += len as u64;
            }
            Ok(u32::try_from(writable.len()).unwrap_or(u32::MAX))
        }
        VIRTIO_BLK_T_OUT => {
            let mut offset = image.offset(header.sector.get(), readable.len()).ok_or(Failure::Io)?;
            for (address, len) in readable.pieces() {
                let mut bytes = vec![0; len];
                memory.read_slice(&mut bytes, address).map_err(|_| Failure::Io)?;
                image.write(&bytes, offset).map_err(|_| Failure::Io)?;
                offset += len as u64;
            }
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => image.flush().map(|()| 0).map_err(|_| Failure::Io),
        VIRTIO_BLK_T_GET_ID => write_id(memory, writable),
        _ => Err(Failure::Unsupported),
    }
}

fn write_id(memory: &DmaMemory, writable: &Segments) -> Result<u32, Failure> {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    id[..ID.len()].copy_from_slice(ID);
    let mut left = id.as_slice();
    for (address, len) in writable.pieces() {
        let (now, later) = left.split_at(len.min(left.len()));
        memory.write_slice(now, address).map_err(|_| Failure::Io)?;
        left = later;
    }
    Ok((id.len() - left.len()) as u32)
}

const ID: &[u8] = b"iotlb-disk";

/// A part of a chain, whatever descriptors it is cut into: addresses and lengths, none of them empty.
struct Segments(VecDeque<(u64, u32)>);

impl Segments {
    fn of(descriptors: &[Descriptor]) -> Self {
        let segments = descriptors.iter().map(|descriptor| (descriptor.addr().0, descriptor.len()));
        Self(segments.filter(|(_, len)| *len > 0).collect())
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.0.pop_back()?;
        if len > 1 {
            self.0.push_back((address, len - 1));
        }
        address.checked_add(u64::from(len - 1)).map(GuestAddress)
    }

    fn take_header(&mut self, memory: &DmaMemory) -> Result<Header, Failure> {
        let mut header = Header::new_zeroed();
        let mut left = header.as_mut_bytes();
        while !left.is_empty() {
            let (address, len) = self.0.pop_front().ok_or(Failure::Io)?;
            let taken = (len as usize).min(left.len());
            let (now, later) = left.split_at_mut(taken);
            memory.read_slice(now, GuestAddress(address)).map_err(|_| Failure::Io)?;
            if taken < len as usize {
                let rest = address.checked_add(taken as u64).ok_or(Failure::Io)?;
                self.0.push_front((rest, len - taken as u32));
            }
            left = later;
        }
        Ok(header)
    }

    /// The same bytes in pieces that are small enough to be copied at once.
    fn pieces(&self) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
        self.0.iter().flat_map(|&(address, len)| {
            (0..len).step_by(PIECE_LEN_MAX as usize).map(move |start| {
                // An address that wraps is refused when it is reached: it is the end of the address space.
                let address = GuestAddress(address.saturating_add(u64::from(start)));
                (address, (len - start).min(PIECE_LEN_MAX) as usize)
            })
        })
    }
}
