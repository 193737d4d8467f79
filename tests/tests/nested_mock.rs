// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots the arm64 host for the tests of guests' tables with the kernel's mock devices, see `tests/tables_mock`.

use std::env;
use std::time::Duration;

use anyhow::Result;
use viommu_tests::l1::{self, Machine, Testbed};

/// Far more than a busy machine takes.
const WITHIN: Duration = Duration::from_secs(900);

/// The environment variable `MOCK_TESTS` has further arguments for them, such as a part of a name.
#[test]
fn tables_and_page_requests_go_all_the_way_through_the_daemon() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let tests = l1::build_test("viommu-tests", "tables_mock", "mock")?;
    let arguments = env::var("MOCK_TESTS").unwrap_or_default();
    let job = format!("tests --test-threads=1 {arguments}");
    let report = Machine::new(&testbed).program("tests", &tests).job(&job).run(WITHIN)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    println!("{}", report.lines.join("\n"));
    Ok(())
}
