// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Nested translation in the arm64 host, which has an SMMUv3 that translates both stages.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use viommu_tests::l1::{self, Machine, Testbed};

/// Far more than a busy machine takes.
const WITHIN: Duration = Duration::from_secs(600);

/// The daemon with devices that do DMA through tables of a guest, by the tests in `tests/vfio_tables`. The environment variable
/// `TABLES_TESTS` has further arguments for them, such as a part of a name.
#[test]
fn devices_reach_what_the_guests_tables_say_and_nothing_else() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/l1/setpriv");
    let arguments = env::var("TABLES_TESTS").unwrap_or_default();
    let job = format!(
        "for function in $(pci_functions 1b36:0005) $(pci_functions 1234:11e8); do
          give_to_vfio $function >/dev/null
        done
        tests --test-threads=1 {arguments}"
    );
    let report = Machine::new(&testbed)
        // Behind ports: that is how a daemon learns which of several devices one is.
        .device("pcie-root-port,id=port1,chassis=1")
        .device("pcie-root-port,id=port2,chassis=2")
        .device("iommu-testdev,bus=port1")
        .device("iommu-testdev,bus=port2")
        .device("edu,dma_mask=0xffffffffffff")
        .program("setpriv", Path::new(stand_in))
        .program("vhost-user-iommu", &l1::build("vhost-user-iommu", "vhost-user-iommu")?)
        .program("tests", &l1::build_test("viommu-tests", "vfio_tables", "l1")?)
        .job(&job)
        .run(WITHIN)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    println!("{}", report.lines.join("\n"));
    Ok(())
}
