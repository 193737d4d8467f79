// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fuzz targets: one for each border across which somebody else's bytes come in.
//!
//! A target is a function of bytes that panics when something is wrong, so that a fuzzer and a test can run the same
//! ones: `scripts/fuzz` searches for bytes, and the test `fuzz_corpus` repeats those that were found worth keeping in
//! `tests/fuzz/corpus`. The daemon's parts run in this process. Nothing here knows of a fuzzer.

mod config;
mod control;
mod device;
mod engine;
pub mod input;
mod model;
mod relay;
mod requests;
mod rings;
mod session;
mod tables;
mod vfio_user;

/// One border.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called, on the command line and as the folder of its corpus.
    pub name: &'static str,
    /// What comes in there.
    pub border: &'static str,
    /// Does with some bytes what the border's other side could do, and panics when that does harm.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, border: &'static str, run: fn(&[u8])) -> Target {
    Target { name, border, run }
}

/// All targets.
#[rustfmt::skip]
pub static TARGETS: [Target; 10] = [
    target("requests", "a guest's requests and writes to the configuration space, as bytes",  requests::run),
    target("model",    "the life of a device, beside the naive reference",                    model::run),
    target("tables",   "the life of a device of tables, beside the naive reference",          tables::run),
    target("engine",   "the mappings of one domain, beside a BTreeMap",                       engine::run),
    target("rings",    "virtqueues of any content in guest memory",                           rings::run),
    target("session",  "a VMM's messages to the device, with file descriptors",               session::run),
    target("relay",    "both sides of a relay: a VMM, and a back-end with an IOTLB",          relay::run),
    target("vfio_user", "both sides of a vfio-user relay: a VMM, and a server",                vfio_user::run),
    target("config",   "the command line and the configuration file",                         config::run),
    target("control",  "a client of the control socket, with file descriptors",               control::run),
];

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
