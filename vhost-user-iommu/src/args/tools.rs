// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the program does besides serving, as clap sees it.

use std::{ffi::OsString, num::NonZeroU32, path::PathBuf};

use clap::Subcommand;

use super::{Options, parse_positive};
use crate::{config::EndpointConfig, ctl::Properties, pci::PciAddress};

/// What the program does besides serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Write the ACPI table that tells a guest which PCI functions are behind the IOMMU
    ///
    /// The table is VIOT, for example for `qemu-system-x86_64 -acpitable file=viot.dat`. The ids in it
    /// are those the daemon uses for the same endpoints.
    #[command(verbatim_doc_comment)]
    Viot(ViotArgs),

    /// Start the daemon, then a VMM that has the same physical devices open
    ///
    /// Opens /dev/iommu and the device of each endpoint that is given with vfio=DEVICE, starts the
    /// daemon, waits until that is ready, and becomes the VMM. In the VMM's arguments {iommufd} and
    /// {vfio:ID} are replaced by the numbers of the open files. The daemon ends when the VMM has.
    #[command(verbatim_doc_comment, after_help = LAUNCH_EXAMPLE)]
    Launch(LaunchArgs),

    /// Ask a running daemon for its endpoints, block one, or have devices come and go
    ///
    /// The daemon has to be started with --control PATH. `plug` and `unplug` do all that it takes, in
    /// QEMU as well; `add` and `remove` are the daemon's part alone, for other managers of guests.
    #[command(verbatim_doc_comment, after_help = CTL_EXAMPLE)]
    Ctl(CtlArgs),
}

/// The options of `ctl`.
#[derive(Debug, clap::Args)]
pub(crate) struct CtlArgs {
    /// The daemon's --control
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,

    /// Print the reply as the daemon sends it, in JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) action: CtlAction,
}

/// What a daemon can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum CtlAction {
    /// Show the endpoints, what is behind them, and what they reach
    List,

    /// Cut the endpoint ID off from the guest's memory now, whatever the guest asks for
    ///
    /// All of its accesses are refused, and its back-end has forgotten what it knew when this returns.
    /// The guest's mappings stay. Of an IOMMU group of the host's all devices are blocked. It lasts until
    /// `unblock`, also when the guest or the VMM starts anew.
    #[command(verbatim_doc_comment)]
    Block {
        /// The endpoint, as it was given to the daemon
        #[arg(value_name = "ID")]
        endpoint: EndpointConfig,
    },

    /// Let the endpoint ID reach again what the guest lets it reach
    Unblock {
        /// The endpoint, as it was given to the daemon
        #[arg(value_name = "ID")]
        endpoint: EndpointConfig,
    },

    /// Plug a device into the guest, for an endpoint that has none now: ID,vfio=DEVICE
    ///
    /// DEVICE is its PCI address on this machine, the path of its VFIO device file, or fd:N. The
    /// daemon and QEMU get a duplicate each of that file, opened anew. If QEMU refuses the device, the
    /// daemon lets go of it again.
    #[command(verbatim_doc_comment)]
    Plug {
        /// The endpoint and the device
        #[arg(value_name = "SPEC")]
        endpoint: EndpointConfig,

        /// The device's properties for QEMU's vfio-pci: iommufd and id, most often bus and addr
        ///
        /// Values are text. Where QEMU wants a number or a truth value, write all as a JSON object.
        #[arg(long, value_name = "KEY=VALUE,...", verbatim_doc_comment)]
        device: Properties,

        #[command(flatten)]
        monitor: MonitorArgs,
    },

    /// Unplug the device of the endpoint ID, and let go of it when the guest has
    ///
    /// The device is then free for others: nobody has its file open any more.
    #[command(verbatim_doc_comment)]
    Unplug {
        /// The endpoint, as it was given to the daemon
        #[arg(value_name = "ID")]
        endpoint: EndpointConfig,

        /// What QEMU calls the device
        #[arg(long = "id", value_name = "NAME")]
        name: String,

        #[command(flatten)]
        monitor: MonitorArgs,
    },

    /// Let go of the device of the endpoint ID, once the VMM has unplugged it
    ///
    /// From then on it reaches nothing. A VMM that is still connected to the socket of another process's
    /// device loses that device, and its back-end has to leave: it may use memory until then.
    #[command(verbatim_doc_comment)]
    Remove {
        /// The endpoint, as it was given to the daemon
        #[arg(value_name = "ID")]
        endpoint: EndpointConfig,
    },

    /// Take a device for an endpoint that has none, before the VMM plugs it in
    ///
    /// ID,vhost-user=SOCKET,backend=SOCKET and ID,vfio-user=SOCKET,server=SOCKET[,dma=message] are for
    /// endpoints that were given to the daemon by their ID alone, or whose device was removed: as in
    /// --endpoint. ID,vfio=fd:N is for those whose physical device was removed: N is the open VFIO device
    /// file that the VMM is given as well.
    #[command(verbatim_doc_comment)]
    Add {
        /// The endpoint and the device
        #[arg(value_name = "SPEC")]
        endpoint: EndpointConfig,
    },
}

/// Where QEMU is.
#[derive(Debug, clap::Args)]
pub(crate) struct MonitorArgs {
    /// The Unix socket of QEMU's monitor (-qmp unix:PATH,server=on,wait=off), with no other client
    #[arg(long, value_name = "PATH")]
    pub(crate) qmp: PathBuf,

    /// How long to wait for an answer of QEMU's, or for the guest to let go of a device
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_positive)]
    pub(crate) timeout: NonZeroU32,
}

/// The options of `launch`.
#[derive(Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    #[command(flatten)]
    pub(crate) options: Options,

    /// Read options of the daemon from FILE as well, as the daemon does
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Start nothing: print how the same is done in bash
    #[arg(long)]
    pub(crate) print: bool,

    /// The VMM's program and arguments, after `--`
    #[arg(last = true, required = true, value_name = "VMM")]
    pub(crate) vmm: Vec<OsString>,
}

/// The options of `viot`.
#[derive(Debug, clap::Args)]
pub(crate) struct ViotArgs {
    /// Where the guest finds the IOMMU itself
    #[arg(long, value_name = "[SEGMENT:]BUS:DEV.FN")]
    pub(crate) iommu: PciAddress,

    /// A PCI function behind the IOMMU; properties after a comma are ignored (repeatable)
    #[arg(long = "endpoint", value_name = "ID")]
    pub(crate) endpoints: Vec<EndpointConfig>,

    /// The daemon's configuration file: its endpoints are added
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where to write the table [default: standard output, unless it is a terminal]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

const LAUNCH_EXAMPLE: &str = "\
Example: the NVMe disk 0000:65:00.0 behind the IOMMU
  vhost-user-iommu viot --iommu 00:08.0 --endpoint 00:09.0 --output viot.dat
  vhost-user-iommu launch --socket-path iommu.sock --endpoint 00:09.0,vfio=0000:65:00.0 -- \\
      qemu-system-x86_64 -M q35,memory-backend=m -m 512 -acpitable file=viot.dat ... \\
      -object memory-backend-memfd,id=m,size=512M,share=on \\
      -chardev socket,id=c0,path=iommu.sock \\
      -device vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=c0,addr=8 \\
      -object iommufd,id=iommufd0,fd={iommufd} \\
      -device vfio-pci,iommufd=iommufd0,fd={vfio:00:09.0},addr=9";

const CTL_EXAMPLE: &str = "\
Example: the NVMe disk 0000:65:00.0 leaves the guest and comes back, behind its root port port1
  vhost-user-iommu ctl --socket control.sock unplug 01:00.0 --qmp qmp.sock --id nvme1
  vhost-user-iommu ctl --socket control.sock plug 01:00.0,vfio=0000:65:00.0 --qmp qmp.sock \\
      --device iommufd=iommufd0,id=nvme1,bus=port1,addr=0";
