// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots the x86-64 host whose VT-d is claimed to nest.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use viommu_tests::l1::{self, Machine, VtdTestbed};

/// Far more than a busy machine takes.
const WITHIN: Duration = Duration::from_secs(600);

/// The daemon with tables of a guest behind VT-d, by the tests in `tests/vtd_tables`. The environment variable `VTD_TESTS` has
/// further arguments for them, such as a part of a name.
#[test]
fn what_a_guest_asks_for_is_what_the_hardware_is_told() -> Result<()> {
    let Some(testbed) = VtdTestbed::find_for_test()? else {
        return Ok(());
    };
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/l1/setpriv");
    let arguments = env::var("VTD_TESTS").unwrap_or_default();
    let job = format!(
        "for function in $(pci_functions 1b36:0005) $(pci_functions 1af4:1044); do
          give_to_vfio $function >/dev/null
        done
        tests --test-threads=1 --skip qemu_refuses {arguments}
        if dmesg | grep -E 'WARNING|Invalidation Queue Error|Invalidation Time-out'; then exit 1; fi
        tests --test-threads=1 qemu_refuses"
    );
    let mut machine = Machine::with_vtd(&testbed);
    // Behind ports: that is how a daemon learns which of several devices one is.
    for (port, device) in ["iommu-testdev", "iommu-testdev", RANDOM, RANDOM].iter().enumerate() {
        machine = machine
            .device(&format!("pcie-root-port,id=port{port},chassis={port}"))
            .device(&format!("{device},bus=port{port}"));
    }
    let report = machine
        .program("setpriv", Path::new(stand_in))
        .program("vhost-user-iommu", &l1::build_for_x86_64("vhost-user-iommu", "vhost-user-iommu")?)
        .program("tests", &l1::build_test_for_x86_64("viommu-tests", "vtd_tables", "l1")?)
        .job(&job)
        .run(WITHIN)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    println!("{}", report.lines.join("\n"));
    Ok(())
}

/// Of those that QEMU emulates it is one of the few with the capability ATS; nothing drives it here.
const RANDOM: &str = "virtio-rng-pci,disable-legacy=on,ats=on";
