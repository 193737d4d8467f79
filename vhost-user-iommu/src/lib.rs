// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual IOMMU outside the VMM.

mod args;
mod config;
mod machine_layout;
mod pci;
mod size;
mod viot;

use std::io::{self, Write};

pub use config::{Command, Config, EndpointConfig, EndpointKind, Limits, Listen, UsageError, parse};
pub use pci::PciAddress;
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

/// Serves the device until told to stop.
///
/// # Errors
/// What keeps the device from being served.
pub fn run(_config: Config) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

const CAPABILITIES: &str = r#"{"type":"iommu","features":["boot-bypass","vhost-user-endpoint"]}"#;
