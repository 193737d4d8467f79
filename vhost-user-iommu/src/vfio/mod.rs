// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Physical devices behind the IOMMU: duplicates of the files by which a VMM has them, and what a change of the device
//! means to them.
//!
//! The VMM binds them and attaches them to an address space of its own, which is what *bypass* is until the guest's
//! driver attaches them. Everything after that is attached here. The calls are `viommu_nested`'s; when they are made
//! is decided in [`iommu`](crate::iommu).

mod device;
mod facts;
mod iovas;
mod lasting;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use log::info;
use rustix::io::Errno;
use viommu_core::{EndpointId, Granule, HostError, IovaRange, Mode, PageRequestSupport, TableSupport};
use viommu_nested::object::Context;
use viommu_nested::shadow::{Lasting, MemoryRegion, Shadow};
use viommu_nested::{Cdev, Error};

use crate::config::{Config, EndpointKind, VfioDevice};
use crate::fd::inherited;
use crate::sync::{Wake, lock};
use crate::usage_error::UsageError;

use lasting::LastingMemory;

pub use device::{Device, HostDevice};
pub use facts::Facts;

/// The devices and their address spaces.
#[derive(Debug)]
pub struct Vfio {
    shadow: Mutex<Shadow<Device>>,
    /// Of the devices that endpoints have, or had last. Locked for moments; nothing else is taken meanwhile.
    facts: Mutex<BTreeMap<EndpointId, Facts>>,
    patience: Duration,
    /// The endpoints of which the guest sees a PASID capability.
    with_pasids: BTreeSet<EndpointId>,
    /// What a guest may leave unanswered.
    page_requests: PageRequestSupport,
    mode: Mode,
    /// The user's own MSI region, or that there is none; otherwise the host's counts.
    msi_region: Option<Option<IovaRange>>,
    released: Arc<Wake>,
    lasting: LastingMemory,
}

/// A device for an endpoint.
#[derive(Debug)]
pub struct Given {
    /// Whose it is.
    pub endpoint: EndpointId,
    /// How it is reached.
    pub file: Box<dyn HostDevice>,
    /// What the host says about it.
    pub facts: Facts,
    /// Whether the guest sees a PASID capability of it.
    pub shows_pasids: bool,
}

impl Vfio {
    /// Takes over the descriptors that `config` names, if any, and finds out what the host makes of the devices.
    ///
    /// # Errors
    /// A descriptor or a device that is not suited, or a kernel.
    pub fn prepare(config: &Config) -> Result<Option<Vfio>, UsageError> {
        let Some(number) = config.iommufd else { return Ok(None) };
        let about = |error: UsageError| error.about("iommufd", number.to_string());
        let context = Context::adopt(inherited(number).map_err(about)?);
        let mend = "pass an open /dev/iommu, the same that the VMM has";
        let context = context.map_err(|error| about(UsageError::new(error.to_string(), mend)))?;
        tell_missing(&context);
        let mut devices = Vec::new();
        for endpoint in &config.endpoints {
            let EndpointKind::Vfio { device: VfioDevice::Fd(number), pasid } = endpoint.kind else {
                continue;
            };
            let about = |error: UsageError| error.about("endpoint", &endpoint.label);
            let cdev = inherited(number).map_err(about)?;
            let facts = Facts::of(cdev.as_fd(), context.as_fd()).map_err(about)?;
            info!("endpoint {}: {facts}", endpoint.label);
            check_mode(config.mode, &facts).map_err(about)?;
            let file = Box::new(Cdev::adopt(cdev));
            devices.push(Given { endpoint: endpoint.id, file, facts, shows_pasids: pasid });
        }
        Vfio::with(config, &context, devices, PAGE_REQUESTS).map(Some)
    }

    /// With these devices, all bound to `context` or going to be. A guest may leave so many page requests of each
    /// unanswered, for so long.
    ///
    /// # Errors
    /// A kernel that is not suited, and no file descriptor left.
    pub fn with(
        config: &Config,
        context: &Arc<Context>,
        devices: Vec<Given>,
        page_requests: PageRequestSupport,
    ) -> Result<Vfio, UsageError> {
        let msi_region = config.msi_region_is_given.then_some(config.msi_region);
        let of_host = || devices.iter().find_map(|given| iovas::msi_region(&given.facts));
        let mut shadow =
            Shadow::new(context, msi_region.unwrap_or_else(of_host)).map_err(|error| not_suited(&error))?;
        let (mut facts, mut with_pasids) = (BTreeMap::new(), BTreeSet::new());
        for given in devices {
            let device = Device::new(given.file, config.unmap_timeout);
            shadow.add(given.endpoint, device, given.facts.group);
            with_pasids.extend(given.shows_pasids.then_some(given.endpoint));
            facts.insert(given.endpoint, given.facts);
        }
        let released = Wake::new().map_err(|error| {
            UsageError::new(
                format!("the system refuses a file descriptor: {error}"),
                "raise its limits (ulimit)",
            )
        })?;
        let vfio = Vfio {
            shadow: Mutex::new(shadow),
            facts: Mutex::new(facts),
            patience: config.unmap_timeout,
            with_pasids,
            page_requests,
            mode: config.mode,
            msi_region,
            released: Arc::new(released),
            lasting: LastingMemory::default(),
        };
        for (endpoint, support) in vfio.tables() {
            vfio.shadow().set_page_requests(endpoint, support.page_requests.is_some());
        }
        Ok(vfio)
    }

    /// Takes another device file for an endpoint, of which the VMM has a duplicate, and returns its IOMMU group.
    ///
    /// # Errors
    /// It is no such file, or the host lets it use other IOVAs than the guest was told.
    pub fn add(&self, endpoint: EndpointId, cdev: OwnedFd) -> Result<Option<u32>, UsageError> {
        let context = self.shadow().context().clone();
        let found = Facts::of(cdev.as_fd(), context.as_fd())?;
        let what_counts = |facts: &Facts| {
            let tables = facts.tables.filter(|_| self.mode.is_table());
            (iovas::usable(facts), iovas::msi_region(facts), tables)
        };
        let told = lock(&self.facts).get(&endpoint).map(what_counts);
        if told != Some(what_counts(&found)) {
            let problem =
                format!("the device {} can use other addresses or tables than the one before it", found.name);
            return Err(UsageError::new(problem, "plug in one that is behind the same IOMMU"));
        }
        let has_requests =
            self.support(endpoint, &found).is_some_and(|support| support.page_requests.is_some());
        let group = found.group;
        let mut shadow = self.shadow();
        shadow.add(endpoint, Device::new(Box::new(Cdev::adopt(cdev)), self.patience), group);
        shadow.set_page_requests(endpoint, has_requests && self.mode.is_table());
        drop(shadow);
        lock(&self.facts).insert(endpoint, found);
        Ok(group)
    }

    /// What becomes readable when the devices have been let go of: the descriptors serve one VMM.
    pub fn released(&self) -> Arc<Wake> {
        self.released.clone()
    }

    /// The part of `aperture` in which all of the devices can be mapped to, in whole granules.
    ///
    /// # Errors
    /// There is none, or the granule is too small.
    pub fn narrow(&self, aperture: IovaRange, page_size_mask: u64) -> Result<IovaRange, UsageError> {
        let granule = Granule::of_mask(page_size_mask);
        let narrowed = granule
            .map_or(Ok(aperture), |granule| iovas::narrowed(aperture, granule, lock(&self.facts).values()))?;
        if narrowed != aperture && aperture != IovaRange::ALL {
            info!("aperture {narrowed} instead of {aperture}: the devices' IOMMUs translate no more");
        }
        Ok(narrowed)
    }

    /// The endpoints that have a device of the host, and the IOMMU groups of those.
    pub fn groups(&self) -> Vec<(EndpointId, Option<u32>)> {
        lock(&self.facts).iter().map(|(endpoint, facts)| (*endpoint, facts.group)).collect()
    }

    /// Whether an endpoint is one of physical devices, though its own may be gone.
    pub fn has(&self, endpoint: EndpointId) -> bool {
        lock(&self.facts).contains_key(&endpoint)
    }

    /// The name of the device that an endpoint has now.
    pub fn name_of(&self, endpoint: EndpointId) -> Option<String> {
        self.shadow().device(endpoint)?;
        lock(&self.facts).get(&endpoint).map(|facts| facts.name.clone())
    }

    /// Whether the guest's tables translate where an endpoint's device writes interrupts.
    pub fn translates_interrupts(&self, endpoint: EndpointId) -> bool {
        let tables = lock(&self.facts).get(&endpoint).and_then(|facts| facts.tables);
        self.mode.is_table() && tables.is_some_and(|tables| tables.translates_interrupts)
    }

    /// The IOVAs that an endpoint's device can use, in order, and where it writes interrupts. `None` for an endpoint of
    /// another kind.
    pub fn iovas(&self, endpoint: EndpointId) -> Option<(Vec<IovaRange>, Option<IovaRange>)> {
        let facts = lock(&self.facts);
        let facts = facts.get(&endpoint)?;
        let msi = self.msi_region.unwrap_or_else(|| iovas::msi_region(facts));
        Some((iovas::usable(facts), msi))
    }

    /// What the endpoints that can have tables of the guest's can do with them; none unless the device is one of tables.
    pub fn tables(&self) -> Vec<(EndpointId, TableSupport)> {
        let facts = lock(&self.facts);
        let tables = facts.iter().filter(|_| self.mode.is_table());
        tables.filter_map(|(endpoint, facts)| Some((*endpoint, self.support(*endpoint, facts)?))).collect()
    }

    fn support(&self, endpoint: EndpointId, facts: &Facts) -> Option<TableSupport> {
        let (tables, is_shown) = (facts.tables?, self.with_pasids.contains(&endpoint));
        let tables = if is_shown { tables } else { tables.without_pasids() };
        Some(tables.support(self.page_requests))
    }

    /// Guest memory that the kernel knows by its address.
    pub fn lasting(&self) -> &LastingMemory {
        &self.lasting
    }

    /// Takes all of the guest's memory as it is now; says what is to be told of a part that cannot be had.
    pub fn set_memory(&self, regions: &[MemoryRegion<'_>], lasting: Lasting<'_>) -> Option<String> {
        let error = self.shadow().set_memory(regions, lasting).err()?;
        Some(format!("a part of the guest's memory is out of reach of its devices: {error}{}", mend(&error)))
    }

    /// Whether the device of an endpoint does no DMA, and neither do those that move with it.
    pub fn is_quiet(&self, endpoint: EndpointId) -> bool {
        let shadow = self.shadow();
        shadow
            .group_of(endpoint)
            .into_iter()
            .all(|member| shadow.device(member).is_some_and(Device::is_quiet))
    }

    /// The address spaces.
    pub fn shadow(&self) -> MutexGuard<'_, Shadow<Device>> {
        lock(&self.shadow)
    }
}

/// What a guest may leave unanswered: groups of a device, and for how long.
const PAGE_REQUESTS: PageRequestSupport =
    PageRequestSupport { requests_max: 128, timeout: Duration::from_secs(10) };

/// Refuses a device that could never translate anything.
fn check_mode(mode: Mode, facts: &Facts) -> Result<(), UsageError> {
    if !mode.is_table() || facts.tables.is_some() {
        return Ok(());
    }
    let (problem, mend) = match facts.translated {
        Some(_) => (
            format!("behind the IOMMU of {} the host's kernel nests no tables of a guest's", facts.name),
            "leave --mode table out; it takes an Arm SMMUv3 or Intel VT-d with nesting, and Linux 6.13 or newer",
        ),
        None => (
            format!("the device {} could not be tried out, so nothing is known of its tables", facts.name),
            "start the daemon before the VMM binds the device, with the right to open both files anew",
        ),
    };
    Err(UsageError::new(problem, mend))
}

/// What the device makes of the host's error.
pub fn host_error(error: &Error) -> HostError {
    HostError { operation: error.call(), errno: error.errno().raw_os_error() }
}

/// Commands that an older kernel lacks are not all needed.
fn tell_missing(context: &Context) {
    let missing = context.missing_commands();
    if !missing.is_empty() {
        info!("the host's kernel does not know {}", missing.join(", "));
    }
}

fn not_suited(error: &Error) -> UsageError {
    UsageError::new(format!("the host's kernel refuses: {error}"), "look at its log")
}

/// What whoever runs the machine can do about an error of the host.
pub fn mend(error: &Error) -> &'static str {
    match error.errno() {
        Errno::NOMEM => "; if this process may lock no more memory, raise its limit (ulimit -l)",
        _ => "",
    }
}
