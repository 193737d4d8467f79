// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's device with two endpoints, in this process, and requests of its driver.
//!
//! What the daemon logs is formatted and thrown away: a guest's bytes go into it, too.

use std::fmt::Write;
use std::sync::{Arc, Once};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use vhost_user_iommu::iommu::Iommu;
use vhost_user_iommu::orders::orders;
use vhost_user_iommu::relay::Relay;
use vhost_user_iommu::sync::Wake;
use vhost_user_iommu::throttle::Throttle;
use vhost_user_iommu::{Config, EndpointConfig, EndpointKind, Listen, Protocol};
use viommu_core::{Access, EndpointId, Features, Iova, IovaRange, Limits};

use super::input::Input;
use crate::model::request::{self, Wire};

/// The endpoint that may be relayed.
pub const ENDPOINT: EndpointId = EndpointId(0x10);
/// Another one.
pub const OTHER: EndpointId = EndpointId(0x18);
/// How long an invalidation may go unacknowledged: longer than any input takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// As the default: for two requests that follow each other at once the second one is looked for.
pub const POLL: Duration = Duration::from_micros(200);

/// The device and what tells of its events. A VMM has yet to connect.
pub fn iommu() -> (Arc<Iommu>, Arc<Wake>) {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        // Fails only when a test of this process has a logger of its own.
        let _ = log::set_logger(&Formatted);
        log::set_max_level(LevelFilter::Debug);
    });
    let event_waits = Arc::new(Wake::new().expect("a file descriptor"));
    let iommu = Iommu::new(&config(), None, event_waits.clone()).expect("a device that can be made");
    (Arc::new(iommu), event_waits)
}

/// The relay of [`ENDPOINT`], whose device has a VMM. What the device itself orders is done at once: orders that count are
/// given by the thread that takes the relay's steps, since that could not wait for them.
pub fn relay(protocol: Protocol) -> Relay {
    let (unheard, _) = orders(protocol).expect("a file descriptor");
    let (iommu, _) = iommu();
    iommu.add_relay(ENDPOINT, unheard);
    iommu.connected();
    iommu.negotiate(Features::OFFERED.bits());
    Relay {
        endpoint: ENDPOINT,
        label: "00:02.0".to_owned(),
        protocol,
        backend: "unused".into(),
        iommu,
        page_size_mask: 0x1000,
        aperture: IovaRange::ALL,
        unmap_timeout: PATIENCE,
        complaints: Throttle::new(Level::Warn),
    }
}

/// # Panics
/// When an endpoint reaches anything, which it must not without a VMM.
pub fn assert_blocked(iommu: &Iommu) {
    for endpoint in [ENDPOINT, OTHER] {
        for iova in [0, 0x1000, u64::MAX] {
            let reached = iommu.translate(endpoint, Iova(iova), Access::READ);
            assert!(reached.is_err(), "{endpoint} reaches {reached:?}");
        }
    }
}

/// A request that makes sense, or nearly: its readable part, and the size of the writable one.
pub fn request(input: &mut Input<'_>) -> (Vec<u8>, usize) {
    let kind = input.u8();
    let domain = input.pick(&[1, 1, 2, 0]);
    let endpoint = input.pick(&[ENDPOINT.0, ENDPOINT.0, OTHER.0, 7]);
    let page = |number: u8| u64::from(number) << 12;
    let first = input.u8();
    let range = (page(first), page(first) + page(input.u8() % 16) + 0xfff);
    match kind % 8 {
        0 | 1 => wire(request::attach(domain, endpoint)),
        2 => wire(request::attach_bypass(domain, endpoint)),
        3 => wire(request::detach(domain, endpoint)),
        4 | 5 => wire(request::map(domain, range, page(input.u8()), u32::from(kind >> 3) % 4)),
        6 => wire(request::unmap(domain, range)),
        _ => wire(request::probe(endpoint)),
    }
}

fn wire(request: impl Wire) -> (Vec<u8>, usize) {
    (request.readable(), request.writable())
}

fn config() -> Config {
    let endpoint = |id: EndpointId, label: &str| EndpointConfig {
        id,
        label: label.to_owned(),
        pci: None,
        kind: EndpointKind::Listed,
    };
    Config {
        listen: Listen::Path("unused".into()),
        endpoints: vec![endpoint(ENDPOINT, "00:02.0"), endpoint(OTHER, "00:03.0")],
        iommufd: None,
        exit_with: None,
        page_size_mask: 0x1000,
        aperture: IovaRange::ALL,
        boot_bypass: true,
        msi_region: IovaRange::new(0xfee0_0000, 0xfeef_ffff),
        msi_region_is_given: false,
        limits: Limits {
            domains_max: 8,
            mappings_max: 64,
            mapping_bytes_max: 1 << 20,
            faults_max: 8,
            ..Limits::default()
        },
        control: None,
        unmap_timeout: PATIENCE,
        poll: POLL,
        mode: viommu_core::Mode::Map,
        log_level: LevelFilter::Debug,
    }
}

/// Formats every line and keeps none.
struct Formatted;

/// Takes any text.
struct Nowhere;

impl Log for Formatted {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        write!(Nowhere, "{}", record.args()).expect("nowhere takes everything");
    }

    fn flush(&self) {}
}

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        Ok(())
    }
}
