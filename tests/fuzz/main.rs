// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! libFuzzer's entry: runs the target that the environment variable `FUZZ_TARGET` names.
//!
//! The targets themselves are in `viommu_tests::fuzz`; `scripts/fuzz` builds and runs this.
#![no_main]

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use signal_hook::consts::SIGPIPE;
use viommu_tests::fuzz::{self, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    fuzz::find(&name).expect("a target of this name")
});

fuzz_target!(
    init: {
        // As Rust's own entry has it: to write to a closed socket is an error, not the end.
        signal_hook::flag::register(SIGPIPE, Arc::new(AtomicBool::new(false))).expect("a signal can be caught");
    },
    |data: &[u8]| (TARGET.run)(data)
);
