// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A command line and a configuration file of any content: refused in one line, or a device that can be made.
//!
//! An input is text: the words of the command line, one in a line; then, after an empty line, the file. What ends the
//! process (`--help`) or reads files of others (`--config`) is left out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost_user_iommu::iommu::Iommu;
use vhost_user_iommu::sync::Wake;
use vhost_user_iommu::{Command, Config, EndpointConfig, PciAddress, ViotCommand, parse};

/// Parses them as the program does.
pub fn run(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n");
    let (words, text) = end.map_or((data, None), |end| (&data[..end], Some(&data[end + 2..])));
    let words = words.split(|byte| *byte == b'\n').filter(|word| is_harmless(word));
    let mut words: Vec<OsString> = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
    words.insert(0, "vhost-user-iommu".into());
    // Open until it is read.
    let file = text.map(file_of);
    if let Some(file) = &file {
        words.extend(["--config".into(), format!("/proc/self/fd/{}", file.as_raw_fd()).into()]);
    }
    match parse(words) {
        Ok(Command::Serve(config)) => check_config(&config),
        Ok(Command::Viot(viot)) => check_viot(&viot),
        Ok(Command::Launch(launch)) => assert!(launch.script().ends_with('\n')),
        Ok(Command::Ctl(_) | Command::PrintCapabilities) => {}
        Err(error) => check_error(&error.to_string()),
    }
}

fn is_harmless(word: &[u8]) -> bool {
    let is_short = word.starts_with(b"-") && !word.starts_with(b"--");
    let ends = (is_short && word.iter().any(|byte| b"hV".contains(byte)))
        || [&b"--help"[..], b"--version"].contains(&word);
    !word.is_empty() && !word.contains(&0) && !word.starts_with(b"--config") && !ends
}

fn file_of(text: &[u8]) -> File {
    let mut file = File::from(memfd_create("config", MemfdFlags::CLOEXEC).expect("a file descriptor"));
    file.write_all(text).expect("memory");
    file
}

/// One line that says what is wrong, and how to mend it.
fn check_error(line: &str) {
    assert!(!line.chars().any(char::is_control), "{line:?}");
    let (problem, mend) = line.rsplit_once("; ").expect("two parts");
    assert!(!problem.is_empty() && !mend.is_empty(), "{line}");
}

fn check_config(config: &Config) {
    let event_waits = Arc::new(Wake::new().expect("a file descriptor"));
    Iommu::new(config, None, event_waits).expect("a device that can be made");
    config.endpoints.iter().for_each(check_endpoint);
}

/// Its id is what its label says, and a PCI address is shown as it can be typed.
fn check_endpoint(endpoint: &EndpointConfig) {
    let again: EndpointConfig = endpoint.label.parse().expect("a label that can be typed");
    assert_eq!((again.id, again.pci), (endpoint.id, endpoint.pci));
    let address = PciAddress::of_endpoint_id(endpoint.id);
    assert_eq!(address.to_string().parse(), Ok(address));
}

/// The table says how long it is, and its bytes add up to nothing.
fn check_viot(viot: &ViotCommand) {
    let table = viot.table().expect("few endpoints");
    assert_eq!(table[4..8], u32::try_from(table.len()).expect("a short table").to_le_bytes());
    assert_eq!(table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
}
