// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM's side of a disk, as QEMU is: it knows no IOMMU, clears `ACCESS_PLATFORM` and takes IOVAs for GPAs. With it
//! the guest's driver of the disk, which reads sectors.
//!
//! To read: "Block Device" in the virtio specification.

use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_iommu::message::features::ACCESS_PLATFORM;
use viommu_tests::driver::{Arena, Buffer, EventIdx, GuestMemory, Rings, SplitQueue, WaitError};
use viommu_tests::front_end::{FrontEnd, Wanted};
use vm_memory::GuestMemoryBackend;

use crate::bed::{Bed, HIGH, PATIENCE, SECTOR};

/// A stretch of guest memory for each disk.
pub struct Area {
    start: u64,
    length: u64,
}

/// Rings, request headers and status bytes.
pub const RINGS: Area = Area { start: 4 << 20, length: 0x4000 };
/// Data, in the other region.
pub const DATA: Area = Area { start: HIGH.0 + (1 << 20), length: 0x2000 };

impl Area {
    /// First GPA and bytes of the disk `number`.
    pub const fn of(&self, number: usize) -> (u64, u64) {
        (self.start + number as u64 * self.length, self.length)
    }
}

/// One disk of a VMM, and the guest's driver of it.
pub struct DiskVmm {
    /// The VMM's connection.
    pub front: FrontEnd,
    /// The driver's ring.
    pub queue: SplitQueue,
    memory: GuestMemory,
    number: usize,
    /// How far the driver's IOVAs lie above the GPAs behind them.
    shift: u64,
    /// Header of the request at hand, with the status in the same page.
    header: u64,
}

/// What a VMM says of a ring first. The protocol does not care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Where it goes on, as QEMU does.
    BaseFirst,
    /// Where it lies.
    AddressesFirst,
}

/// A read that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// The disk's status.
    Status(u8),
    /// Nothing came.
    Silence(WaitError),
}

/// What such a VMM accepts.
pub fn wanted() -> Wanted {
    Wanted { features: !ACCESS_PLATFORM, ..Wanted::default() }
}

impl DiskVmm {
    /// The VMM finds the disk `number` and gives it memory.
    pub fn plug(bed: &Bed, number: usize) -> DiskVmm {
        DiskVmm::plug_with(bed, number, wanted())
    }

    /// The same, by a VMM that accepts other features.
    pub fn plug_with(bed: &Bed, number: usize, wanted: Wanted) -> DiskVmm {
        let mut vmm = DiskVmm::connect(bed, number);
        vmm.front.negotiate(wanted).expect("negotiates");
        vmm.front.set_memory(&bed.memory).expect("memory");
        vmm
    }

    /// The VMM connects and says nothing yet.
    pub fn connect(bed: &Bed, number: usize) -> DiskVmm {
        let front = FrontEnd::connect(&bed.front_path(number), PATIENCE).expect("connects");
        let (start, length) = RINGS.of(number);
        let mut arena = Arena::new(start, length);
        let queue = SplitQueue::new(&bed.memory, &mut arena, 16, EventIdx::On).expect("a ring");
        let header = arena.take(512, 512);
        DiskVmm { front, queue, memory: bed.memory.clone(), number, shift: 0, header }
    }

    /// The driver starts its ring anew, at IOVAs `shift` above its GPAs.
    pub fn start(&mut self, shift: u64) {
        self.shift = shift;
        self.queue.restart_at(0);
        self.resume();
    }

    /// The VMM starts the ring where it was.
    pub fn resume(&mut self) {
        self.resume_with(Order::BaseFirst);
    }

    /// The same, as other VMMs do it.
    pub fn resume_with(&mut self, order: Order) {
        let Rings { descriptors, avail, used } = self.queue.rings();
        let addresses = [descriptors, avail, used].map(|gpa| self.memory.vmm_address(gpa + self.shift));
        let (size, base) = (self.queue.size(), self.queue.next_used());
        self.front.step(|vhost| vhost.set_vring_num(0, size)).expect("size");
        if order == Order::AddressesFirst {
            self.set_ring_addresses(addresses).expect("addresses");
        }
        self.front.step(|vhost| vhost.set_vring_base(0, base)).expect("base");
        if order == Order::BaseFirst {
            self.set_ring_addresses(addresses).expect("addresses");
        }
        let queue = &self.queue;
        self.front.step(|vhost| vhost.set_vring_call(0, queue.call_fd())).expect("call");
        self.front.step(|vhost| vhost.set_vring_kick(0, queue.kick_fd())).expect("kick");
        self.front.enable_ring(0).expect("enables");
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn set_ring_addresses(&mut self, addresses: [u64; 3]) -> Result<(), vhost::Error> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = addresses;
        let size = self.queue.size();
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        self.front.step(|vhost| vhost.set_vring_addr(0, &config))
    }

    /// The VMM stops the ring: where it would go on.
    pub fn stop(&mut self) -> u32 {
        self.front.stop_ring(0).expect("stops")
    }

    /// The VMM takes the region `index` of memory away.
    pub fn remove_memory(&mut self, index: usize) {
        let region = self.region(index);
        self.front.step(|vhost| vhost.remove_mem_region(&region)).expect("removes");
    }

    /// The VMM gives the region `index` back.
    pub fn add_memory(&mut self, index: usize) {
        let region = self.region(index);
        self.front.step(|vhost| vhost.add_mem_region(&region)).expect("adds");
    }

    /// The VMM gives all memory again, `distance` lower in its own address space. Addresses there are mere keys, so
    /// it need not be true.
    pub fn move_memory(&mut self, distance: u64) {
        let mut regions = [0, 1, 2].map(|index| self.region(index));
        regions.iter_mut().for_each(|region| region.userspace_addr -= distance);
        self.front.step(|vhost| vhost.set_mem_table(&regions)).expect("memory");
    }

    fn region(&self, index: usize) -> VhostUserMemoryRegionInfo {
        let region = self.memory.mmap().iter().nth(index).expect("a region");
        VhostUserMemoryRegionInfo::from_guest_region(region).expect("a file behind it")
    }

    /// Reads one sector.
    pub fn read_sector(&mut self, sector: u64) -> Result<[u8; SECTOR], Failed> {
        self.read_sector_within(sector, PATIENCE)
    }

    /// Reads one sector, which may take `limit`.
    pub fn read_sector_within(&mut self, sector: u64, limit: Duration) -> Result<[u8; SECTOR], Failed> {
        self.submit(sector);
        self.queue.kick_if_wanted();
        self.complete(limit)
    }

    /// Puts a request for a sector into the ring, without a kick.
    pub fn submit(&mut self, sector: u64) {
        let data = DATA.of(self.number).0;
        let mut header = [0; 16];
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(self.header, &header);
        self.memory.write(self.header + 16, &[0xee]);
        self.memory.write(data, &[0xdd; SECTOR]);
        let buffers = [
            Buffer::readable(self.header + self.shift, 16),
            Buffer::writable(data + self.shift, SECTOR as u32),
            Buffer::writable(self.header + self.shift + 16, 1),
        ];
        self.queue.add(&buffers).expect("room for a request");
    }

    /// Waits for the answer.
    pub fn complete(&mut self, limit: Duration) -> Result<[u8; SECTOR], Failed> {
        self.queue.wait_used(limit).map_err(Failed::Silence)?;
        match self.memory.read(self.header + 16, 1)[0] {
            0 => {
                let data = self.memory.read(DATA.of(self.number).0, SECTOR);
                Ok(data.try_into().expect("a sector"))
            }
            status => Err(Failed::Status(status)),
        }
    }
}
