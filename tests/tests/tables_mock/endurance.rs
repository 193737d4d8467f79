// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that lets its devices ask and never answers: nothing grows, and every request has its answer.

use std::fs;
use std::time::{Duration, Instant};

use viommu_core::Limits;

use crate::bed::{Bed, Made, OK, ONE, OTHER, eventually};
use crate::guest::EVENT;

const REQUESTS: u64 = 100_000;
/// What may wait at once.
const WAITING: u64 = 2 * 8;

/// Descriptors, and bytes of this process and of the kernel's own.
#[derive(Clone, Copy, Debug)]
struct Size {
    descriptors: usize,
    resident: u64,
    kernel: u64,
}

fn size() -> Size {
    let kib = |file: &str, name: &str| -> u64 {
        let text = fs::read_to_string(file).expect(file);
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim_end_matches("kB").trim().parse().expect("a number")
    };
    Size {
        descriptors: fs::read_dir("/proc/self/fd").expect("descriptors").count(),
        resident: kib("/proc/self/status", "VmRSS:") << 10,
        kernel: kib("/proc/meminfo", "SUnreclaim:") << 10,
    }
}

/// Some of all that a hostile guest can do, over and over.
fn misbehave(bed: &mut Bed, number: u64) {
    let endpoint = if number.is_multiple_of(3) { OTHER } else { ONE };
    let pasid = [0, 0, 5, 6][(number % 4) as usize];
    bed.ask(endpoint, pasid, (number % 1000) as u32);
    match number % 512 {
        0 => assert_eq!(bed.attach(1, ONE, 1 + number / 512 % 8), OK),
        100 => assert_eq!(bed.attach_pasid(1, ONE, 5, 1 + number / 512 % 8), OK),
        200 => {
            assert_eq!(bed.detach(1, OTHER), OK);
            assert_eq!(bed.attach(1, OTHER, 3), OK);
        }
        // Of those that were taken the device has none any more.
        300 => while_there_are_events(bed),
        _ => {}
    }
    if number.is_multiple_of(64) {
        eventually("no more wait than may", || bed.answers.count() + WAITING >= bed.asked());
    }
}

fn while_there_are_events(bed: &mut Bed) {
    while bed.guest().driver.events().take_used().is_some() {}
}

#[test]
fn a_hundred_thousand_requests_that_nobody_answers_leave_nothing() {
    let limits = Limits { page_requests_max: 12, ..Limits::default() };
    let made = Made { requests_max: 8, timeout: Duration::from_millis(20), limits, ..Made::default() };
    let mut bed = Bed::new(&made);
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach(1, OTHER, 1), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    let begin = Instant::now();
    let mut first = None;
    for number in 1..=REQUESTS {
        misbehave(&mut bed, number);
        // By then all that is kept for later is there.
        if number == REQUESTS / 5 {
            first = Some(size());
        }
        if number == REQUESTS / 2 {
            bed.guest().lend(64, EVENT);
        }
    }
    eventually("all are answered", || bed.answers.count() == bed.asked());
    let (first, last) = (first.expect("it was measured"), size());
    println!("{REQUESTS} requests in {:.1?}; {first:?}, then {last:?}", begin.elapsed());
    assert_eq!(first.descriptors, last.descriptors);
    assert!(last.resident < first.resident + (256 << 10), "{first:?}, {last:?}");
    assert!(last.kernel < first.kernel + (1 << 20), "{first:?}, {last:?}");
}
