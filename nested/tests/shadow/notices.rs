// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests for pages and events, from the mock to whoever reads them, and the answers on their way back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use viommu_core::{PageRequest, Pasid, RequestGroup, ResponseCode, TableAccess};
use viommu_nested::Attach;
use viommu_nested::shadow::Notice;

use super::tables::{DOMAIN, ONE, OTHER, TableBed, in_viommu, on_parent};
use super::*;

const PASID: Pasid = Pasid(5);

/// The kernel's trace of the answers that this thread makes the mock driver get: by its own hand, or by the kernel's when
/// it takes a table away.
struct Answers {
    _alone: MutexGuard<'static, ()>,
}

/// There is one trace.
static TRACE: Mutex<()> = Mutex::new(());

const TRACING: &str = "/sys/kernel/tracing";

impl Answers {
    fn begin() -> Answers {
        let _alone = TRACE.lock().unwrap_or_else(PoisonError::into_inner);
        let file = |name: &str| Path::new(TRACING).join(name);
        let probe =
            "p:answer mock_domain_page_response pasid=+0(%x2):u32 group=+4(%x2):u32 code=+8(%x2):u32\n";
        if !file("events/kprobes/answer").exists() {
            fs::write(file("kprobe_events"), probe).expect("a kernel with kprobes");
        }
        let thread = fs::read_link("/proc/thread-self").expect("its number");
        let thread = thread.file_name().and_then(|name| name.to_str()).expect("a number");
        fs::write(file("events/kprobes/answer/filter"), format!("common_pid == {thread}")).expect("a filter");
        fs::write(file("events/kprobes/answer/enable"), "1").expect("it begins");
        fs::write(file("trace"), "").expect("it is empty");
        Answers { _alone }
    }

    /// Group and code of those since the last time.
    fn take(&self) -> Vec<(u32, u32)> {
        let text = fs::read_to_string(Path::new(TRACING).join("trace")).expect("a trace");
        fs::write(Path::new(TRACING).join("trace"), "").expect("it is empty");
        let field = |line: &str, name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        text.lines().filter_map(|line| Some((field(line, " group=")?, field(line, " code=")?))).collect()
    }
}

impl TableBed {
    /// With a table that requests come from.
    fn asking() -> TableBed {
        let mut bed = TableBed::new();
        bed.shadow.set_page_requests(ONE, true);
        bed.attach(ONE, None, on_parent(1).0).expect("it is attached");
        bed
    }

    fn has_notices(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(self.shadow.sources(), PollFlags::IN)], Some(&now)) == Ok(1)
    }

    /// What there is to tell now; something, if it is said so.
    fn notices(&mut self) -> Vec<Notice> {
        let has_some = self.has_notices();
        let mut notices = Vec::new();
        self.shadow.read_notices(&mut notices).expect("it reads");
        assert_eq!(!notices.is_empty(), has_some);
        notices
    }

    /// What there is to tell once the mock has handed it to the kernel's own thread, and that to the queue.
    fn arrived(&mut self) -> Vec<Notice> {
        let within = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut sources = [PollFd::from_borrowed_fd(self.shadow.sources(), PollFlags::IN)];
        assert_eq!(poll(&mut sources, Some(&within)), Ok(1), "nothing arrives");
        let mut notices = Vec::new();
        self.shadow.read_notices(&mut notices).expect("it reads");
        notices
    }

    fn ask(&mut self, pasid: Option<Pasid>, group: u32) -> u64 {
        let number = pasid.map_or(0, |pasid| pasid.0);
        self.mock(ONE).request_page(number, group, 3, 0xdead_b000).expect("it is raised");
        let notices = self.arrived();
        let [Notice::Pages { to, cookie, pages }] = &notices[..] else { panic!("{notices:?}") };
        assert_eq!(*to, RequestGroup { endpoint: ONE, pasid, group });
        let access = TableAccess::READ | TableAccess::WRITE;
        assert_eq!(pages[..], [PageRequest { address: 0xdead_b000, access }]);
        *cookie
    }

    fn answer(&mut self, cookie: u64, code: ResponseCode) {
        self.shadow.respond(cookie, code).expect("it is answered");
    }
}

#[test]
fn a_request_is_told_and_its_answer_reaches_the_device_once() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    assert_eq!(bed.notices(), []);
    bed.attach(ONE, Some(PASID), on_parent(2).0).expect("it is attached");
    for (pasid, group, code, told) in [
        (None, 1, ResponseCode::Success, 0),
        (Some(PASID), 2, ResponseCode::Success, 0),
        (Some(PASID), 3, ResponseCode::Invalid, 1),
        (None, 4, ResponseCode::Failure, 1),
        // It has no table, and so comes under that of the device.
        (Some(Pasid(6)), 5, ResponseCode::Invalid, 1),
    ] {
        let request = bed.ask(pasid, group);
        assert_eq!(answers.take(), []);
        bed.answer(request, code);
        assert_eq!(answers.take(), [(group, told)]);
        bed.answer(request, ResponseCode::Success);
        assert_eq!(answers.take(), [], "it was answered");
    }
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    let requests = [1, 2, 3].map(|group| bed.ask(None, group));
    for (index, code) in [(1, ResponseCode::Success), (2, ResponseCode::Invalid), (0, ResponseCode::Success)]
    {
        bed.answer(requests[index], code);
    }
    assert_eq!(answers.take(), [(2, 0), (3, 1), (1, 0)]);
}

/// The kernel numbers the next request as one that it has answered itself.
#[test]
fn a_late_answer_is_no_answer_to_another_request() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    bed.attach(ONE, Some(PASID), on_parent(2).0).expect("it is attached");
    let (own, of_pasid) = (bed.ask(None, 1), bed.ask(Some(PASID), 2));
    bed.attach(ONE, None, on_parent(3).0).expect("it is replaced");
    assert_eq!(answers.take(), [(1, 1)], "by the kernel");
    let next = bed.ask(None, 3);
    bed.answer(own, ResponseCode::Success);
    assert_eq!(answers.take(), []);
    bed.answer(next, ResponseCode::Success);
    assert_eq!(answers.take(), [(3, 0)]);
    bed.apply(Change::DetachPasid { endpoint: ONE, pasid: PASID, from: DOMAIN }).expect("it goes");
    assert_eq!(answers.take(), [(2, 1)], "by the kernel");
    bed.answer(of_pasid, ResponseCode::Success);
    assert_eq!(answers.take(), []);
}

/// As above, and nobody here knows that the kernel has answered.
#[test]
fn an_answer_after_the_vmm_moved_the_device_is_no_answer_to_another_request() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    let table = PageTable::Hwpt(bed.shadow.nested(ONE, None).expect("a table").clone());
    let old = bed.ask(None, 1);
    let elsewhere = PageTable::Auto(Ioas::new(bed.shadow.context()).expect("an address space"));
    bed.mock(ONE).attach(&elsewhere, None).expect("the VMM takes it away");
    bed.mock(ONE).attach(&table, None).expect("and gives it back");
    assert_eq!(answers.take(), [(1, 1)], "by the kernel");
    let next = bed.ask(None, 2);
    bed.answer(old, ResponseCode::Success);
    assert_eq!(answers.take(), []);
    bed.answer(next, ResponseCode::Success);
    assert_eq!(answers.take(), [(2, 0)]);
}

#[test]
fn what_a_device_asks_for_that_nobody_has_any_more_is_answered() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    bed.shadow.device(ONE).expect("its device").set_stuck(true);
    let left = bed.shadow.remove(ONE).expect("its device");
    left.mock().request_page(0, 9, 1, 0x1000).expect("it is raised");
    assert_eq!(bed.arrived(), []);
    assert_eq!(answers.take(), [(9, 1)]);
    assert!(!bed.has_notices());
}

#[test]
fn whoever_leaves_gets_an_answer_to_what_was_read_and_to_what_was_not() {
    let mut bed = TableBed::asking();
    let answers = Answers::begin();
    bed.ask(None, 1);
    bed.mock(ONE).request_page(0, 2, 1, 0x1000).expect("it is raised");
    while !bed.has_notices() {}
    drop(bed.shadow.remove(ONE));
    let mut told = answers.take();
    told.sort_unstable();
    assert_eq!(told, [(1, 1), (2, 1)]);
    assert_eq!(bed.notices(), []);
}

#[test]
fn devices_without_page_requests_have_none() {
    let mut bed = TableBed::asking();
    bed.attach(OTHER, None, on_parent(1).0).expect("it is attached");
    let ids = [ONE, OTHER].map(|endpoint| bed.shadow.nested(endpoint, None).expect("a table").id());
    assert_ne!(ids[0], ids[1], "one is told of requests, and the other is not");
}

#[test]
fn failed_accesses_are_told_and_so_is_their_loss() {
    let mut bed = TableBed::new();
    for endpoint in ENDPOINTS {
        bed.attach(endpoint, None, in_viommu(1).0).expect("it is attached");
    }
    assert_eq!(bed.notices(), []);
    bed.mock(OTHER).raise_event().expect("it is raised");
    let notices = bed.notices();
    let [Notice::Failed(fault)] = notices[..] else { panic!("{notices:?}") };
    assert_eq!((fault.endpoint, fault.address, fault.pasid), (OTHER, None, None));
    (0..300).for_each(|_| bed.mock(ONE).raise_event().expect("it is raised"));
    let notices = bed.notices();
    let failed =
        notices.iter().filter(|notice| matches!(notice, Notice::Failed(fault) if fault.endpoint == ONE));
    assert_eq!(failed.count(), 256);
    assert_eq!(notices.iter().filter(|notice| matches!(notice, Notice::Lost(_))).count(), 1);
    assert!(matches!(notices.last(), Some(Notice::Lost(_))));
    assert_eq!(bed.notices(), []);
}
