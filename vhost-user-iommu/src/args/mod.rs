// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line as clap sees it: names, values, defaults and help.
//!
//! Makes no sense of the options together: that is [`Config`](crate::Config)'s matter. What the program does besides
//! serving is in [`tools`].

mod tools;

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Parser, ValueEnum};
use viommu_core::mapping::Mappings;
use viommu_core::{Granule, IovaRange, Mode};

use crate::{
    config::EndpointConfig,
    machine_layout::GuestMemoryLayout,
    size::{format_size, parse_range, parse_size},
    usage_error::UsageError,
};

pub(crate) use tools::{CtlAction, CtlArgs, LaunchArgs, MonitorArgs, Tool, ViotArgs};

/// A virtual IOMMU outside the VMM: serves virtio-iommu (device id 23) over vhost-user
#[derive(Debug, Parser)]
#[command(
    name = "vhost-user-iommu",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = EXAMPLE
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) tool: Option<Tool>,

    #[command(flatten)]
    pub(crate) options: Options,

    /// Read options from FILE as well
    ///
    /// The file is TOML: the keys are the names of the long options, `endpoint` is a list. An option
    /// on the command line wins over the file; endpoints add up.
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub(crate) config: Option<PathBuf>,

    /// Print what this program can do as JSON, and exit; all other arguments are ignored
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

/// The options of the daemon, each of which can also stand in the configuration file.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Listen for the VMM on the Unix socket PATH
    #[arg(long, value_name = "PATH", help_heading = CONNECTION)]
    pub(crate) socket_path: Option<PathBuf>,

    /// Serve the VMM on the open file descriptor N: a Unix socket that listens, or one that is connected
    /// to it; then the daemon ends with it
    #[arg(long, value_name = "N", help_heading = CONNECTION, conflicts_with = "socket_path")]
    #[arg(value_parser = parse_fd)]
    pub(crate) fd: Option<i32>,

    #[allow(rustdoc::broken_intra_doc_links, reason = "the brackets are for the reader of --help")]
    /// An endpoint behind the IOMMU (repeatable): ID[,vhost-user=FRONT,backend=BACK],
    /// ID,vfio-user=FRONT,server=SERVER[,dma=shared|message] or ID,vfio=DEVICE
    ///
    /// ID is a PCI address [SEGMENT:]BUS:DEV.FN or a number (decimal, or 0x and hexadecimal). With the
    /// two sockets, the VMM connects to FRONT for the device that a vhost-user back-end serves at
    /// BACK, or a vfio-user server at SERVER: with dma=message that gets no file of guest memory and
    /// asks for each access, which is checked; with dma=shared (the default) it is told what to map,
    /// and trusted to keep to it. DEVICE is a physical one: fd:N is its VFIO device file, as the VMM has it open; `launch`
    /// also takes its PCI address on this machine, or the path of that file. pasid=on says that the
    /// VMM shows the guest a PASID capability of it (table mode). With none of
    /// these, the endpoint is known to the guest and nothing is enforced.
    #[arg(long = "endpoint", value_name = "SPEC", help_heading = ENDPOINTS, verbatim_doc_comment)]
    pub(crate) endpoints: Vec<EndpointConfig>,

    /// Attach physical devices through the open file descriptor N, the VMM's own /dev/iommu
    #[arg(long, value_name = "N", help_heading = ENDPOINTS, value_parser = parse_fd)]
    pub(crate) iommufd: Option<i32>,

    /// The smallest unit of mapping in bytes: a power of two, 4k to 1G
    ///
    /// Not above the guest's page size. 2M and 1G are announced as well where they are larger.
    #[arg(long, value_name = "SIZE", help_heading = ADDRESSES, default_value = "4k", value_parser = parse_granule)]
    #[arg(verbatim_doc_comment)]
    pub(crate) granule: Granule,

    /// The addresses a guest may map (IOVAs), both inclusive, in whole granules
    /// [default: the whole 64-bit space, when no endpoint is served over vhost-user]
    #[arg(long, value_name = "START-LAST", help_heading = ADDRESSES, value_parser = parse_range, verbatim_doc_comment)]
    pub(crate) aperture: Option<IovaRange>,

    /// Lay the aperture over the guest's memory: SIZE[,machine=q35|pc|virt], SIZE as given to the VMM
    ///
    /// Needed, or --aperture inside guest memory, for endpoints served over vhost-user: the VMM takes
    /// their ring addresses for guest-physical ones. The machine is q35 unless it is named.
    #[arg(long, value_name = "SIZE", help_heading = ADDRESSES, conflicts_with = "aperture", verbatim_doc_comment)]
    pub(crate) guest_memory: Option<GuestMemoryLayout>,

    /// Where devices write interrupts, which is not translated: START-LAST, inclusive, or none
    /// [default: 0xfee00000-0xfeefffff, the x86 doorbell; none with machine=virt]
    #[arg(long, value_name = "START-LAST|none", help_heading = ADDRESSES, value_parser = parse_msi_region)]
    #[arg(verbatim_doc_comment)]
    pub(crate) msi_region: Option<MsiRegion>,

    /// What the guest's driver makes domains of: map, by telling of each mapping, or table, by page tables in its memory
    ///
    /// Linux has a driver for map. In table mode the tables are those of the host's own IOMMU, which walks them; it is for
    /// physical devices behind an Arm SMMUv3 or Intel VT-d with nesting. The manual has the specification
    /// (viommu_core::manual::tables).
    #[arg(long, value_name = "map|table", help_heading = BEHAVIOUR, default_value = "map", hide_possible_values = true)]
    pub(crate) mode: ModeName,

    /// The number of table mode's feature bit, 7 to 23
    #[arg(long, value_name = "N", help_heading = BEHAVIOUR, value_parser = parse_feature_bit)]
    pub(crate) table_feature_bit: Option<u8>,

    /// Whether endpoints reach guest memory untranslated until the guest's driver attaches them
    ///
    /// Firmware needs it: it drives disks before any IOMMU driver runs.
    #[arg(long, value_name = "on|off", help_heading = BEHAVIOUR, default_value = "on", hide_possible_values = true)]
    pub(crate) boot_bypass: Switch,

    /// End, as if by SIGTERM, when the other end of the pipe at the open file descriptor N is closed
    ///
    /// Whoever holds that end decides how long this process lives: `launch` gives it to the VMM.
    #[arg(long, value_name = "N", help_heading = BEHAVIOUR, value_parser = parse_fd, verbatim_doc_comment)]
    pub(crate) exit_with: Option<i32>,

    /// Listen for `vhost-user-iommu ctl` on the Unix socket PATH, which is for this user alone
    #[arg(long, value_name = "PATH", help_heading = BEHAVIOUR)]
    pub(crate) control: Option<PathBuf>,

    /// How long an UNMAP or DETACH waits for a back-end to confirm, in milliseconds
    #[arg(long, value_name = "MS", help_heading = BEHAVIOUR, default_value = "2000", value_parser = parse_positive)]
    pub(crate) unmap_timeout: NonZeroU32,

    /// How long to look for the guest's next request before going to sleep, in microseconds; 0 is not at all, 10000 the
    /// most
    ///
    /// Saves the guest an exit and a wake-up for each request of a flock, and takes processor time meanwhile. A request that
    /// comes alone is not waited for. Has no effect on a host with one processor.
    #[arg(long, value_name = "US", help_heading = BEHAVIOUR, default_value = "200", value_parser = parse_poll)]
    pub(crate) poll: u32,

    /// What to report on standard error: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", help_heading = BEHAVIOUR, default_value = "info", hide_possible_values = true)]
    pub(crate) log_level: LogLevel,

    /// Domains (address spaces) at most
    #[arg(long, value_name = "N", help_heading = LIMITS, default_value = "4096", value_parser = parse_positive)]
    pub(crate) max_domains: NonZeroU32,

    /// Mappings at most, in all domains together (those of before a reset may come on top)
    #[arg(long, value_name = "N", help_heading = LIMITS, default_value = "1048576", value_parser = parse_positive)]
    pub(crate) max_mappings: NonZeroU32,

    /// Memory for mappings at most, in all domains together: 20 to 80 bytes a mapping, 3k to 23k a domain; up to 1G
    #[arg(long, value_name = "SIZE", help_heading = LIMITS, default_value = "96M", value_parser = parse_mapping_memory)]
    pub(crate) max_mapping_memory: usize,

    /// Faults held at most while the guest gives no event buffer; about 64 bytes each
    #[arg(long, value_name = "N", help_heading = LIMITS, default_value = "256", value_parser = parse_positive)]
    pub(crate) max_faults: NonZeroU32,
}

/// `map` or `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    Map,
    Table,
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// How much to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `START-LAST` or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MsiRegion {
    None,
    At(IovaRange),
}

pub(crate) fn parse_fd(text: &str) -> Result<i32, UsageError> {
    text.parse().ok().filter(|fd| *fd >= 0).ok_or_else(|| {
        UsageError::new(
            format!("`{text}` is not the number of a file descriptor"),
            "write the number under which this process was given it",
        )
    })
}

fn parse_positive(text: &str) -> Result<NonZeroU32, UsageError> {
    text.parse().map_err(|_| {
        UsageError::new(
            format!("`{text}` is not a whole number from 1 to {}", u32::MAX),
            "write it in decimal digits",
        )
    })
}

fn parse_feature_bit(text: &str) -> Result<u8, UsageError> {
    text.parse().ok().filter(|bit| Mode::FEATURE_BITS.contains(bit)).ok_or_else(|| {
        let (first, last) = (Mode::FEATURE_BITS.start(), Mode::FEATURE_BITS.end());
        UsageError::new(
            format!("`{text}` is not a whole number from {first} to {last}"),
            "take the number that the guest's driver looks for",
        )
    })
}

/// Longer than any guest's pause between requests that belong together; a VMM that stops the ring may wait as long.
const POLL_MAX: u32 = 10_000;

fn parse_poll(text: &str) -> Result<u32, UsageError> {
    text.parse().ok().filter(|poll| *poll <= POLL_MAX).ok_or_else(|| {
        UsageError::new(
            format!("`{text}` is not a whole number from 0 to {POLL_MAX}"),
            "write microseconds in decimal digits",
        )
    })
}

fn parse_msi_region(text: &str) -> Result<MsiRegion, UsageError> {
    match text {
        "none" => Ok(MsiRegion::None),
        _ => parse_range(text).map(MsiRegion::At),
    }
}

fn parse_granule(text: &str) -> Result<Granule, UsageError> {
    let bytes = parse_size(text)?;
    let range = GRANULE_MIN..=GRANULE_MAX;
    let granule = Granule::of_mask(bytes).filter(|_| bytes.is_power_of_two() && range.contains(&bytes));
    granule.ok_or_else(|| {
        let nearest = bytes.clamp(GRANULE_MIN, GRANULE_MAX).next_power_of_two();
        UsageError::new(
            "a granule is a power of two from 4k to 1G",
            format!("write the guest's page size or less, such as {}", format_size(nearest)),
        )
    })
}

fn parse_mapping_memory(text: &str) -> Result<usize, UsageError> {
    let bytes = usize::try_from(parse_size(text)?).ok();
    bytes.filter(|bytes| (1..=Mappings::BYTES_LIMIT).contains(bytes)).ok_or_else(|| {
        UsageError::new(
            format!("`{text}` is not a size from 1 to {} bytes", Mappings::BYTES_LIMIT),
            "write how much memory a guest may take, such as 96M",
        )
    })
}

const GRANULE_MIN: u64 = 4 << 10;
const GRANULE_MAX: u64 = 1 << 30;

const CONNECTION: &str = "Connection (one of them is needed)";
const ENDPOINTS: &str = "Endpoints";
const ADDRESSES: &str = "Addresses (decimal, 0x and hexadecimal, or decimal with k, M, G, T)";
const BEHAVIOUR: &str = "Behaviour";
const LIMITS: &str = "Limits (above them a guest's request is refused with NOMEM)";

const EXAMPLE: &str = "\
Example: a disk that another vhost-user back-end serves at blk.sock, behind the IOMMU
  vhost-user-iommu viot --iommu 00:08.0 --endpoint 00:09.0 --output viot.dat
  vhost-user-iommu --socket-path iommu.sock --guest-memory 512M \\
      --endpoint 00:09.0,vhost-user=blk-front.sock,backend=blk.sock
  qemu-system-x86_64 -M q35,memory-backend=m -m 512 -acpitable file=viot.dat ... \\
      -object memory-backend-memfd,id=m,size=512M,share=on \\
      -chardev socket,id=c0,path=iommu.sock \\
      -device vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=c0,addr=8 \\
      -chardev socket,id=c1,path=blk-front.sock \\
      -device vhost-user-blk-pci,chardev=c1,iommu_platform=on,disable-legacy=on,addr=9";
