// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM itself: its own address space with all of the guest's memory, its devices, and the guest's drivers.
//!
//! What a test needs to go wrong it does step by step: [`VfioVmm::of`], [`plug`](VfioVmm::plug),
//! [`connect`](VfioVmm::connect).

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::io::fcntl_dupfd_cloexec;
use tempfile::TempDir;
use vhost::VhostBackend;
use viommu_core::{Access, DomainId, EndpointId, Gpa, Invalidation, IovaRange};
use viommu_nested::object::{Context, Hwpt, HwptFlags, Ioas, PageTable};
use viommu_nested::{Attached, Cdev};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Launch, Registers, SharedDevice, TestDevice, Written};
use crate::driver::{Arena, DriverError, EventIdx, GuestMemory, IommuDriver, Reply, SplitQueue};
use crate::front_end::{FrontEnd, Wanted};
use crate::model::request::Wire;

/// A VMM with devices. Dropping it ends it as a kill would: nothing is detached, all files are closed.
pub struct VfioVmm {
    guest: Option<Guest>,
    devices: Vec<Device>,
    /// The guest's memory.
    pub memory: GuestMemory,
    space: Arc<Ioas>,
    table: Option<Arc<Hwpt>>,
    arena: Arena,
    _folder: TempDir,
}

/// A device of the VMM's.
struct Device {
    shared: SharedDevice,
    registers: Registers,
    attached: Option<Attached<Cdev>>,
}

/// The guest, and how the VMM speaks for it.
pub struct Guest {
    /// The connection with the daemon.
    pub front_end: FrontEnd,
    /// The guest's driver of the IOMMU.
    pub driver: IommuDriver,
}

impl VfioVmm {
    /// Bytes of each of the first two regions of the guest's memory, which lie side by side.
    pub const REGION: u64 = 32 << 20;
    /// Where the first begins.
    pub const LOW: u64 = 1 << 30;
    /// Where the second begins.
    pub const MIDDLE: u64 = Self::LOW + Self::REGION;
    /// Where the third begins; rings and buffers lie there.
    pub const HIGH: u64 = 1 << 32;
    /// Bytes of the third.
    pub const HIGH_BYTES: u64 = 4 << 20;

    /// Takes over the launcher's files; nothing is bound or connected yet.
    ///
    /// # Errors
    /// The host is out of something.
    pub fn of(launch: Launch) -> Result<VfioVmm> {
        let regions =
            [(Self::LOW, Self::REGION), (Self::MIDDLE, Self::REGION), (Self::HIGH, Self::HIGH_BYTES)];
        let Launch { context, devices, folder, .. } = launch;
        let space = Ioas::new(&context)?;
        let devices = devices.into_iter().map(|shared| {
            let registers = Registers::of(duplicate(&shared.file)?);
            Ok(Device { shared, registers, attached: None })
        });
        Ok(VfioVmm {
            guest: None,
            devices: devices.collect::<Result<_>>()?,
            memory: GuestMemory::new(&regions)?,
            space,
            table: None,
            arena: Arena::new(Self::HIGH, Self::HIGH_BYTES),
            _folder: folder,
        })
    }

    /// The usual: all devices plugged, and then a guest at `socket`.
    ///
    /// # Errors
    /// As for the steps.
    pub fn running(launch: Launch) -> Result<VfioVmm> {
        let socket = launch.socket();
        let mut vmm = VfioVmm::of(launch)?;
        vmm.plug_all()?;
        vmm.connect(&socket)?;
        Ok(vmm)
    }

    /// Binds all devices, lets them reach the guest's memory, and lets them do DMA.
    ///
    /// # Errors
    /// As for [`plug`](Self::plug).
    pub fn plug_all(&mut self) -> Result<()> {
        (0..self.devices.len()).try_for_each(|device| self.plug(device))
    }

    /// The same for one device. The first brings in the guest's memory.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn plug(&mut self, device: usize) -> Result<()> {
        let context = self.context().clone();
        let device = &mut self.devices[device];
        let cdev = Cdev::adopt(duplicate(&device.shared.file)?);
        let id = cdev.bind(&context)?;
        let is_first = self.table.is_none();
        let table = match self.table.take() {
            Some(table) => table,
            None => Hwpt::paging(id, &self.space, HwptFlags::empty())?,
        };
        let mut attached = Attached::new(cdev);
        attached.attach(PageTable::Hwpt(table.clone()), None)?;
        self.table = Some(table);
        device.registers.set_bus_master(true)?;
        device.attached = Some(attached);
        if is_first { self.pin(&self.memory.clone()) } else { Ok(()) }
    }

    /// Brings memory into the VMM's address space.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pin(&self, memory: &GuestMemory) -> Result<()> {
        for region in memory.mmap().iter() {
            let range = IovaRange::from_length(region.start_addr().0, region.len()).context("a region")?;
            let place = region.file_offset().context("a file")?;
            self.space.map_file(&range, place.file().as_fd(), place.start(), Access::all().into())?;
        }
        Ok(())
    }

    /// Takes memory out of the VMM's address space.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unpin(&self, range: &IovaRange) -> Result<()> {
        self.space.unmap(range)?;
        Ok(())
    }

    /// Connects to the daemon at `socket` and has the guest's driver start.
    ///
    /// # Errors
    /// The daemon does not do what it has to.
    pub fn connect(&mut self, socket: &Path) -> Result<()> {
        let mut front_end = FrontEnd::connect(socket, PATIENCE)?;
        front_end.negotiate(Wanted::default())?;
        front_end.set_memory(&self.memory)?;
        let queue = |arena: &mut Arena| SplitQueue::new(&self.memory, arena, 64, EventIdx::On);
        let (requests, events) = (queue(&mut self.arena)?, queue(&mut self.arena)?);
        front_end.start_ring(0, &requests)?;
        front_end.start_ring(1, &events)?;
        let probe_size = front_end.config()?.probe_size.get();
        let driver = IommuDriver::new(&mut self.arena, requests, events, probe_size, PATIENCE);
        self.guest = Some(Guest { front_end, driver });
        Ok(())
    }

    /// Stops both rings, as a VMM does when the guest is paused or its driver resets the device: where they stand.
    ///
    /// # Errors
    /// As for [`FrontEnd::stop_ring`].
    pub fn stop_rings(&mut self) -> Result<[u32; 2]> {
        let front_end = &mut self.guest().front_end;
        Ok([front_end.stop_ring(0)?, front_end.stop_ring(1)?])
    }

    /// Starts both rings where they were stopped, as for a guest that was paused.
    ///
    /// # Errors
    /// They were stopped elsewhere.
    pub fn start_rings(&mut self, stopped: [u32; 2]) -> Result<()> {
        let Guest { front_end, driver } = self.guest();
        for (index, at) in stopped.into_iter().enumerate() {
            let queue = if index == 0 { driver.requests() } else { driver.events() };
            ensure!(at == u32::from(queue.next_used()), "ring {index} was stopped at {at}");
            front_end.start_ring(index, queue)?;
        }
        Ok(())
    }

    /// Starts both rings anew, as for a driver that has reset the device.
    ///
    /// # Errors
    /// As for [`FrontEnd::start_ring`].
    pub fn restart_rings(&mut self) -> Result<()> {
        let Guest { front_end, driver } = self.guest();
        driver.restart();
        // A reset of the device has taken them back.
        let features = front_end.features();
        front_end.step(|vhost| vhost.set_features(features))?;
        front_end.start_ring(0, driver.requests())?;
        front_end.start_ring(1, driver.events())?;
        Ok(())
    }

    /// Detaches a device, as for a hot-unplug.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unplug(&mut self, device: usize) -> Result<()> {
        let attached = self.devices[device].attached.take();
        Ok(attached.context("it is not plugged")?.detach(None)?)
    }

    /// Closes the connection with the daemon, and keeps the devices.
    pub fn disconnect(&mut self) {
        self.guest = None;
    }

    /// The context of the devices.
    pub fn context(&self) -> &Arc<Context> {
        self.space.context()
    }

    /// The VMM's own address space.
    pub fn space(&self) -> &Ioas {
        &self.space
    }

    /// The guest.
    ///
    /// # Panics
    /// It is not connected.
    pub fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("connected")
    }

    /// The endpoint that a device is.
    pub fn endpoint(&self, device: usize) -> EndpointId {
        self.devices[device].shared.endpoint
    }

    /// A device as the VMM has it, once it is plugged.
    pub fn cdev(&self, device: usize) -> Option<&Cdev> {
        Some(self.devices[device].attached.as_ref()?.device())
    }

    /// The registers of a device.
    pub fn registers(&self, device: usize) -> &Registers {
        &self.devices[device].registers
    }

    /// The same in other hands: for a thread of its own.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn duplicate_registers(&self, device: usize) -> Result<Registers> {
        Ok(Registers::of(duplicate(&self.devices[device].shared.file)?))
    }

    /// Has a device write four bytes to `iova`; it is an `iommu-testdev`.
    ///
    /// # Errors
    /// As for [`TestDevice::write`].
    pub fn write(&self, device: usize, iova: u64) -> Result<Written> {
        TestDevice(self.registers(device)).write(iova, 4)
    }

    /// Any request: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn send(&mut self, request: &impl Wire) -> Result<u8> {
        status(self.guest().driver.request(&request.readable(), request.writable()))
    }

    /// ATTACH of a device: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn attach(&mut self, domain: u32, device: usize, flags: u32) -> Result<u8> {
        let endpoint = self.endpoint(device);
        status(self.guest().driver.attach(DomainId(domain), endpoint, flags))
    }

    /// DETACH of a device: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn detach(&mut self, domain: u32, device: usize) -> Result<u8> {
        let endpoint = self.endpoint(device);
        status(self.guest().driver.detach(DomainId(domain), endpoint))
    }

    /// MAP of `length` bytes at `iova` to `gpa`: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn map(&mut self, domain: u32, iova: u64, gpa: u64, length: u64, flags: u32) -> Result<u8> {
        let range = IovaRange::from_length(iova, length).context("a range")?;
        status(self.guest().driver.map(DomainId(domain), range, Gpa(gpa), flags))
    }

    /// UNMAP of `length` bytes at `iova`: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn unmap(&mut self, domain: u32, iova: u64, length: u64) -> Result<u8> {
        let range = IovaRange::from_length(iova, length).context("a range")?;
        status(self.guest().driver.unmap(DomainId(domain), range))
    }
}

/// The requests of a device of tables.
impl VfioVmm {
    /// ATTACH_TABLE of a device with these words of a stream table entry: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn attach_table(&mut self, domain: u32, device: usize, ste: [u64; 2]) -> Result<u8> {
        let endpoint = self.endpoint(device);
        status(self.guest().driver.attach_table(DomainId(domain), endpoint, ste))
    }

    /// INVALIDATE: the status.
    ///
    /// # Errors
    /// No reply.
    pub fn invalidate(&mut self, domain: u32, what: &Invalidation) -> Result<u8> {
        status(self.guest().driver.invalidate(DomainId(domain), what))
    }
}

/// Longest wait for anything that has to come; the host is emulated.
const PATIENCE: Duration = Duration::from_secs(30);

fn duplicate(file: impl AsFd) -> Result<std::os::fd::OwnedFd> {
    Ok(fcntl_dupfd_cloexec(file, 3)?)
}

fn status(reply: Result<Reply, DriverError>) -> Result<u8> {
    reply.map(|reply| reply.status()).map_err(|error| anyhow!("no reply: {error:?}"))
}
