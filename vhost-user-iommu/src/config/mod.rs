// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon is to do, checked and plain: the result of the command line and the configuration file.
//!
//! Opens and creates nothing; whether a socket or file descriptor is usable shows when it is used.

mod clap_error;
mod command;
mod descriptors;
mod endpoint;
mod file;
mod kind;

use std::{
    os::fd::RawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use log::LevelFilter;
use viommu_core::{Granule, IovaRange, Limits, Mode};

use crate::{
    args::{LogLevel, ModeName, MsiRegion, Options, Switch},
    machine_layout::X86_MSI_REGION,
    usage_error::UsageError,
};

pub use command::{Command, parse};
pub use endpoint::EndpointConfig;
pub use kind::{Dma, EndpointKind, Protocol, Relayed, VfioDevice};

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the VMM connects for the IOMMU device.
    pub listen: Listen,
    /// The endpoints behind the device, each id once.
    pub endpoints: Vec<EndpointConfig>,
    /// The file descriptor of the VMM's /dev/iommu, for physical devices; not checked yet.
    pub iommufd: Option<RawFd>,
    /// The page sizes the device announces; its lowest bit is the granule of a mapping.
    pub page_size_mask: u64,
    /// What the guest's driver makes domains of.
    pub mode: Mode,
    /// The IOVAs a guest may map, in whole granules.
    pub aperture: IovaRange,
    /// Whether unattached endpoints are in bypass mode until the guest's driver says otherwise.
    pub boot_bypass: bool,
    /// The IOVAs that reach the interrupt controller untranslated.
    pub msi_region: Option<IovaRange>,
    /// Whether the user has named it: otherwise the host knows better for its devices.
    pub msi_region_is_given: bool,
    /// How much state a guest can make this process hold.
    pub limits: Limits,
    /// The file descriptor of a pipe whose other end, when closed, ends the daemon; not checked yet.
    pub exit_with: Option<RawFd>,
    /// Where clients of the control socket connect.
    pub control: Option<PathBuf>,
    /// How long an UNMAP or DETACH waits for a back-end to confirm.
    pub unmap_timeout: Duration,
    /// How long the guest's next request is looked for before the thread sleeps.
    pub poll: Duration,
    /// What is reported on standard error.
    pub log_level: LevelFilter,
}

/// Where the VMM connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket to be made at this path.
    Path(PathBuf),
    /// An open file descriptor of this process, said to be a Unix socket; not checked yet.
    Fd(RawFd),
}

impl Config {
    /// Takes the options together.
    pub(crate) fn from_options(options: Options) -> Result<Config, UsageError> {
        EndpointConfig::check_ids(&options.endpoints)?;
        EndpointConfig::check_sockets(
            &own_sockets(options.socket_path.as_deref(), options.control.as_deref())?,
            &options.endpoints,
        )?;
        EndpointConfig::check_devices(&options.endpoints)?;
        descriptors::check_numbers(&options)?;
        Ok(Config {
            mode: mode(&options)?,
            page_size_mask: page_size_mask(options.granule),
            aperture: aperture(&options)?,
            msi_region: msi_region(&options),
            msi_region_is_given: options.msi_region.is_some(),
            listen: listen(options.socket_path, options.fd)?,
            endpoints: options.endpoints,
            iommufd: options.iommufd,
            boot_bypass: options.boot_bypass == Switch::On,
            limits: Limits {
                domains_max: options.max_domains.get() as usize,
                mappings_max: options.max_mappings.get() as usize,
                mapping_bytes_max: options.max_mapping_memory,
                faults_max: options.max_faults.get() as usize,
                ..Limits::default()
            },
            exit_with: options.exit_with,
            control: options.control,
            unmap_timeout: Duration::from_millis(options.unmap_timeout.get().into()),
            poll: Duration::from_micros(options.poll.into()),
            log_level: options.log_level.into(),
        })
    }

    /// Refuses the device of another process for an endpoint beside these, whose devices are others' too, in a daemon that
    /// runs.
    pub(crate) fn check_addition(
        &self,
        others: &[EndpointConfig],
        added: &EndpointConfig,
    ) -> Result<(), UsageError> {
        let all: Vec<EndpointConfig> = others.iter().chain([added]).cloned().collect();
        let socket_path = match &self.listen {
            Listen::Path(path) => Some(path.as_path()),
            Listen::Fd(_) => None,
        };
        EndpointConfig::check_sockets(&own_sockets(socket_path, self.control.as_deref())?, &all)?;
        check_mode(self.mode, &all)?;
        check_aperture(self.aperture, &all)
    }

    /// Refuses what the daemon itself cannot open, because a VMM has to have the same files open.
    pub(crate) fn check_served(&self) -> Result<(), UsageError> {
        descriptors::check_shared(self.iommufd, &self.endpoints)
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        }
    }
}

/// The sockets that are not an endpoint's, with the options that name them.
fn own_sockets<'a>(
    socket_path: Option<&'a Path>,
    control: Option<&'a Path>,
) -> Result<Vec<(&'static str, &'a Path)>, UsageError> {
    let named = [("socket-path", socket_path), ("control", control)];
    let named: Vec<_> = named.into_iter().filter_map(|(name, path)| Some((name, path?))).collect();
    match named.as_slice() {
        [(_, path), (option, other)] if kind::absolute(path) == kind::absolute(other) => {
            let error = UsageError::new("this is --socket-path", "give every connection a socket of its own");
            Err(error.about(option, other.display().to_string()))
        }
        _ => Ok(named),
    }
}

fn listen(path: Option<PathBuf>, fd: Option<i32>) -> Result<Listen, UsageError> {
    match (path, fd) {
        (Some(path), _) => Ok(Listen::Path(path)),
        (None, Some(fd)) => Ok(Listen::Fd(fd)),
        (None, None) => Err(UsageError::new(
            "nothing says where the VMM connects",
            "add --socket-path PATH, or --fd N with an open socket",
        )),
    }
}

/// The granule, and above it the sizes of a large and a huge page: a guest then prefers to map in those.
fn page_size_mask(granule: Granule) -> u64 {
    //= virtio#devicenormative:IOMMU/Device configuration layout A4a A4b
    // The granule is there in any case.
    let larger = [2 << 20, 1 << 30].into_iter().filter(|size| *size > granule.bytes());
    larger.fold(granule.bytes(), |mask, size| mask | size)
}

fn aperture(options: &Options) -> Result<IovaRange, UsageError> {
    if let Some(range) = options.aperture {
        return whole_granules(range, options.granule);
    }
    if let Some(layout) = options.guest_memory {
        return layout.aperture(options.granule).ok_or_else(|| {
            UsageError::new(
                "so little or so much memory leaves no aperture",
                "give the size that the VMM is given, with its suffix, such as 512M",
            )
            .about("guest-memory", layout.to_string())
        });
    }
    check_aperture(IovaRange::ALL, &options.endpoints).map(|()| IovaRange::ALL)
}

fn check_aperture(aperture: IovaRange, endpoints: &[EndpointConfig]) -> Result<(), UsageError> {
    let relayed = |endpoint: &&EndpointConfig| matches!(endpoint.kind, EndpointKind::VhostUser { .. });
    match endpoints.iter().find(relayed).filter(|_| aperture == IovaRange::ALL) {
        None => Ok(()),
        Some(endpoint) => Err(UsageError::new(
            "the aperture has to lie inside guest memory, because the VMM takes the ring addresses of a \
             vhost-user device for guest-physical ones",
            "add --guest-memory SIZE with the size of the guest's memory, or --aperture START-LAST",
        )
        .about("endpoint", &endpoint.label)),
    }
}

fn whole_granules(range: IovaRange, granule: Granule) -> Result<IovaRange, UsageError> {
    if granule.is_start(range.start()) && granule.is_last(range.last()) {
        return Ok(range);
    }
    let mask = granule.bytes() - 1;
    let (start, last) = (range.start() & !mask, range.last() | mask);
    Err(UsageError::new(
        format!("the range does not consist of whole granules of {:#x} bytes", granule.bytes()),
        format!("the last byte is part of the range: the next larger one is {start:#x}-{last:#x}"),
    )
    .about("aperture", range.to_string()))
}

fn mode(options: &Options) -> Result<Mode, UsageError> {
    match (options.mode, options.table_feature_bit) {
        (ModeName::Map, None) => Ok(Mode::Map),
        (ModeName::Map, Some(bit)) => {
            let error = UsageError::new("a device of mappings has no such feature", "add --mode table");
            Err(error.about("table-feature-bit", bit.to_string()))
        }
        (ModeName::Table, bit) => {
            let mode = Mode::Table { feature_bit: bit.unwrap_or(Mode::FEATURE_BIT) };
            check_mode(mode, &options.endpoints).map(|()| mode)
        }
    }
}

/// Nothing walks tables for a device that another process serves.
fn check_mode(mode: Mode, endpoints: &[EndpointConfig]) -> Result<(), UsageError> {
    let is_relayed = |endpoint: &&EndpointConfig| endpoint.kind.relayed().is_some();
    match endpoints.iter().find(is_relayed).filter(|_| mode.is_table()) {
        None => Ok(()),
        Some(endpoint) => Err(UsageError::new(
            "in table mode hardware walks the guest's tables, and a device of another process has none",
            "serve it by a device of its own in map mode, or leave --mode table out",
        )
        .about("endpoint", &endpoint.label)),
    }
}

fn msi_region(options: &Options) -> Option<IovaRange> {
    match (options.msi_region, options.guest_memory) {
        (Some(MsiRegion::At(region)), _) => Some(region),
        (Some(MsiRegion::None), _) => None,
        (None, Some(layout)) => layout.msi_region(),
        (None, None) => Some(X86_MSI_REGION),
    }
}

#[cfg(test)]
mod tests;
