// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual IOMMU outside the VMM.
//!
//! A program, not a library for others: what is public beside [`parse`] and [`run`] is there so that tests reach each
//! border without a process between.

mod args;
mod config;
pub mod control;
mod ctl;
mod daemon;
mod ending;
mod fd;
mod host;
pub mod iommu;
mod launch;
mod listen;
mod machine_layout;
pub mod message;
pub mod orders;
mod pci;
pub mod relay;
mod relaying;
pub mod session;
mod signals;
mod size;
pub mod sync;
pub mod throttle;
mod usage_error;
pub mod vfio;
pub mod vfio_user;
mod viot;

use std::io::{self, Write};

pub use config::{Command, Config, Dma, EndpointConfig, EndpointKind, Listen, Protocol, VfioDevice, parse};
pub use ctl::{CtlCommand, CtlError};
pub use daemon::run;
pub use launch::{LaunchCommand, LaunchError};
pub use pci::PciAddress;
pub use usage_error::UsageError;
pub use viot::ViotCommand;

/// Prints what this program can do, as QEMU's conventions for back-end programs have it.
///
/// # Errors
/// Standard output that cannot be written.
pub fn print_capabilities() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{CAPABILITIES}")?;
    stdout.flush()
}

const CAPABILITIES: &str =
    r#"{"type":"iommu","features":["boot-bypass","vhost-user-endpoint","vfio-user-endpoint"]}"#;
