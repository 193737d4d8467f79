// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's own record of what it puts into the invalidation queue (`intel_iommu:qi_submit`).
//!
//! To read first: the kernel's `Documentation/trace/events.rst` and `drivers/iommu/intel/trace.h`.

use std::fs;

use crate::descriptor::Descriptor;

const TRACING: &str = "/sys/kernel/tracing";

/// What is recorded from now on; nothing any more when it is dropped.
pub struct Trace(());

impl Trace {
    pub fn begin() -> Trace {
        enable("1");
        let trace = Trace(());
        trace.take();
        trace
    }

    /// All since the last time. Descriptors that wait for others are not recorded.
    #[track_caller]
    pub fn take(&self) -> Vec<Descriptor> {
        let path = format!("{TRACING}/trace");
        let text = fs::read_to_string(&path).expect("a kernel with tracing");
        fs::write(&path, "").expect("it is emptied");
        let lost = text.lines().find_map(|line| line.split_once("entries-in-buffer/entries-written: "));
        let counts = lost.and_then(|(_, counts)| counts.split_whitespace().next()?.split_once('/'));
        let (kept, written) = counts.expect("how many there are");
        assert_eq!(kept, written, "the record is too small");
        let events = text.lines().filter_map(|line| Some(line.split_once(" qi_submit: ")?.1));
        events.filter_map(descriptor).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        enable("0");
    }
}

fn enable(value: &str) {
    fs::write(format!("{TRACING}/events/intel_iommu/qi_submit/enable"), value).expect("an event of VT-d");
}

/// `KIND IOMMU: FOUR WORDS`. Where interrupts go is another matter.
fn descriptor(event: &str) -> Option<Descriptor> {
    let (kind, words) = event.split_once(": ").expect("an IOMMU");
    if kind.starts_with("iec_inv ") {
        return None;
    }
    let word = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("a number");
    let words: Vec<u64> = words.split_whitespace().map(word).collect();
    Some(Descriptor::of(words.try_into().expect("four words")))
}
