// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the mock driver gets as answers to page requests, whoever gives them: the daemon, or the kernel when it takes a
//! table away. The kernel's trace of the function that receives them.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};

/// All answers from a moment on.
#[derive(Debug)]
pub struct Answers {
    /// Whoever reads it takes what there is.
    trace: File,
    hits_before: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub group: u32,
    pub pasid: u32,
    pub code: u32,
}

/// The driver's `IOMMU_PAGE_RESP_SUCCESS` and `IOMMU_PAGE_RESP_INVALID`.
pub const SUCCESS: u32 = 0;
pub const INVALID: u32 = 1;

/// The arguments of `struct iommu_page_response`, which is the third parameter.
const PROBE: &str =
    "p:answer mock_domain_page_response pasid=+0(%x2):u32 group=+4(%x2):u32 code=+8(%x2):u32\n";

impl Answers {
    pub fn begin() -> Answers {
        if !file("events/kprobes/answer").exists() {
            fs::write(file("kprobe_events"), PROBE).expect("a kernel with kprobes");
        }
        fs::write(file("events/kprobes/answer/enable"), "1").expect("it begins");
        fs::write(file("trace"), "").expect("it is empty");
        let trace =
            open(file("trace_pipe"), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        Answers { trace: trace.expect("it opens").into(), hits_before: hits() }
    }

    /// How many there were, be they taken or not.
    pub fn count(&self) -> u64 {
        hits() - self.hits_before
    }

    /// Those since the last time, in order of their groups.
    pub fn take(&self) -> Vec<Answer> {
        let mut bytes = Vec::new();
        // Its end is an error: there may be more later.
        let _ = (&self.trace).read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).expect("text");
        let mut answers: Vec<Answer> = text.lines().filter_map(answer).collect();
        answers.sort_unstable();
        answers
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/tracing").join(name)
}

/// How often the probe was hit; what the trace has no room for is counted, too.
fn hits() -> u64 {
    let profile = fs::read_to_string(file("kprobe_profile")).expect("it is counted");
    let mut lines = profile.lines().map(str::split_whitespace);
    let mut line =
        lines.find_map(|mut words| (words.next() == Some("answer")).then_some(words)).expect("it is there");
    let (hits, missed) = (line.next(), line.next());
    assert_eq!(missed, Some("0"), "the kernel has missed some");
    hits.and_then(|hits| hits.parse().ok()).expect("a number")
}

fn answer(line: &str) -> Option<Answer> {
    let field = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(Answer { group: field(" group=")?, pasid: field(" pasid=")?, code: field(" code=")? })
}
