// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! libFuzzer's entry: runs the target that the environment variable `FUZZ_TARGET` names.
//!
//! The targets themselves are in `viommu_tests::fuzz`; `scripts/fuzz` builds and runs this.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use viommu_tests::fuzz::{self, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    fuzz::find(&name).expect("a target of this name")
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
