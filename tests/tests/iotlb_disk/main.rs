// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk behind an IOTLB, driven by a small front-end over a real socket.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost_user_iommu::message::features::{self, protocol};
use vhost_user_iommu::message::{Access, Config, ConfigHeader, FrontendRequest, IotlbMessage, Message};
use viommu_tests::iotlb_disk::{Event, Image, IotlbDisk, OnInvalidate, Options, Outcome, StrayDma};

mod frontend;

use frontend::{
    DATA, FEATURES, Frontend, MEMORY_LEN, PAGE, PATIENCE, PROTOCOL_FEATURES, RING, USER, guest_address,
};

const SECTOR: usize = 512;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A disk of 64 sectors, each filled with its own number.
struct Bench {
    disk: IotlbDisk,
    path: PathBuf,
    _directory: TempDir,
}

impl Bench {
    fn new(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.sock");
        let content: Vec<u8> = (0..64u8).flat_map(|sector| [sector; SECTOR]).collect();
        let disk = IotlbDisk::serve(&path, Image::memory(&content).unwrap(), options).unwrap();
        Self { disk, path, _directory: directory }
    }

    /// A front-end with a running ring, and one page for data.
    fn start(&self) -> Frontend {
        let mut frontend = Frontend::connect(&self.path);
        frontend.map_ring();
        frontend.map(DATA, Access::READ_WRITE);
        frontend.start_ring(0);
        frontend
    }

    fn wait_for(&self, event: impl Fn(&Event) -> bool) {
        assert!(
            self.disk.wait_until(PATIENCE, |_, events| events.iter().any(&event)),
            "{:x?}",
            self.disk.events()
        );
    }
}

/// Stops a thread even if the test panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn data_is_read_and_written_through_translations_of_scattered_pages() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    frontend.map(DATA + PAGE, Access::READ_WRITE);
    let across = DATA + PAGE - 512;
    assert_eq!(frontend.read_disk(5, &[(across, 1024)]), OK);
    assert_eq!(frontend.read::<[u8; SECTOR]>(across), [5; SECTOR]);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA + PAGE), [6; SECTOR]);

    frontend.write(DATA, &[0xaa; SECTOR]);
    assert_eq!(frontend.write_disk(63, &[(DATA, 100), (DATA + 100, 412)]), OK);
    frontend.indirect = true;
    assert_eq!(frontend.read_disk(62, &[(DATA + PAGE, 512), (DATA + PAGE + 512, 512)]), OK);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA + PAGE), [62; SECTOR]);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA + PAGE + 512), [0xaa; SECTOR]);

    let stats = bench.disk.stats();
    assert_eq!((stats.requests, stats.failed_requests, stats.bytes), (3, 0, 1024 + 512 + 1024));
    assert_eq!(stats.refused_misses, 0);
    assert_eq!(stats.updates, stats.misses);
    let negotiated = bench.disk.negotiated().unwrap();
    assert_eq!((negotiated.features, negotiated.protocol_features), (FEATURES, PROTOCOL_FEATURES));
}

#[test]
fn an_entry_is_asked_for_once_and_used_until_it_is_invalidated() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    let asked = frontend.misses.len();
    for sector in 2..40 {
        assert_eq!(frontend.read_disk(sector, &[(DATA, 512)]), OK);
    }
    assert_eq!(frontend.misses.len(), asked, "requests after the first ask for nothing");

    assert_eq!(frontend.unmap(DATA), 0);
    assert_eq!(frontend.read_disk(40, &[(DATA, 512)]), IOERR);
    assert_eq!(
        frontend.read::<[u8; SECTOR]>(DATA),
        [39; SECTOR],
        "nothing was written after the invalidation"
    );
    frontend.map(DATA, Access::READ_WRITE);
    assert_eq!(frontend.read_disk(40, &[(DATA, 512)]), OK);
    assert!(bench.disk.events().contains(&Event::Invalidate { iova: DATA, size: PAGE }));
}

#[test]
fn a_refused_buffer_fails_its_request_alone() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    frontend.map(DATA + PAGE, Access::READ);
    assert_eq!(frontend.read_disk(1, &[(DATA + 5 * PAGE, 512)]), IOERR, "unmapped");
    assert_eq!(frontend.read_disk(1, &[(DATA + PAGE, 512)]), IOERR, "mapped for reading alone");
    assert_eq!(frontend.read_disk(1, &[(DATA, 512), (DATA + PAGE, 512)]), IOERR, "one of two");
    assert_eq!(frontend.read_disk(1, &[(u64::MAX - 100, 512)]), IOERR, "wraps");
    assert_eq!(frontend.write_disk(1, &[(DATA + PAGE, 512)]), OK, "the device reads what it may read");
    assert_eq!(frontend.read_disk(2, &[(DATA, 512)]), OK);
    let stats = bench.disk.stats();
    assert_eq!((stats.requests, stats.failed_requests), (6, 4));
    assert!(bench.disk.events().contains(&Event::MissRefused { iova: DATA + PAGE, access: Access::WRITE }));
}

#[test]
fn requests_are_served_as_the_block_device_defines_them() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    assert_eq!(frontend.request(4, 0, &[]), OK, "FLUSH");
    assert_eq!(frontend.request(8, 0, &[(DATA, 20)]), OK, "GET_ID");
    assert_eq!(&frontend.read::<[u8; 20]>(DATA), b"iotlb-disk\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(frontend.request(77, 0, &[(DATA, 20)]), UNSUPPORTED);
    assert_eq!(frontend.read_disk(64, &[(DATA, 512)]), IOERR, "past the end");
    assert_eq!(frontend.read_disk(63, &[(DATA, 1024)]), IOERR, "over the end");
    assert_eq!(frontend.write_disk(u64::MAX, &[(DATA, 512)]), IOERR, "wraps");

    let read_config = |frontend: &mut Frontend, offset, size| {
        let header = ConfigHeader { offset, size, flags: 0 };
        let payload = Config { header, bytes: vec![0; size as usize] }.payload();
        frontend.send(Message::new(FrontendRequest::GET_CONFIG, payload.as_slice()));
        frontend.reply(FrontendRequest::GET_CONFIG)
    };
    let config = Config::parse(&read_config(&mut frontend, 0, 60)).unwrap();
    assert_eq!(config.bytes[..8], 64u64.to_le_bytes());
    assert_eq!(config.bytes[20..24], 512u32.to_le_bytes());
    assert!(read_config(&mut frontend, 90, 60).payload.is_empty());
}

#[test]
fn a_stray_dma_is_refused_where_nothing_is_mapped_and_done_where_something_is() {
    let bench = Bench::new(Options::default());
    assert_eq!(bench.disk.stray_dma(DATA, StrayDma::Read(4)), Outcome::NoMemory);
    let mut frontend = bench.start();
    frontend.write(DATA, b"secret");
    let disk = &bench.disk;
    let mut stray = |address, dma: StrayDma| {
        std::thread::scope(|scope| {
            let done = scope.spawn(move || disk.stray_dma(address, dma));
            frontend.serve_until(|_| done.is_finished());
            done.join().unwrap()
        })
    };
    assert_eq!(stray(DATA, StrayDma::Read(6)), Outcome::Read(b"secret".to_vec()));
    assert_eq!(stray(DATA, StrayDma::Write(b"xyz".to_vec())), Outcome::Written);
    assert_eq!(stray(DATA, StrayDma::Read(6)), Outcome::Read(b"xyzret".to_vec()));
    for (address, dma) in [
        (DATA + 7 * PAGE, StrayDma::Read(4)),
        (guest_address(DATA), StrayDma::Read(4)),
        (DATA + PAGE - 2, StrayDma::Write(vec![0; 4])),
        (u64::MAX, StrayDma::Read(1)),
        (DATA, StrayDma::Read(usize::MAX)),
    ] {
        assert!(matches!(stray(address, dma.clone()), Outcome::Refused(_)), "{address:#x} {dma:?}");
    }
    assert_eq!(frontend.read::<[u8; 6]>(DATA), *b"xyzret");
}

#[test]
fn without_an_iommu_addresses_are_the_guests() {
    let bench = Bench::new(Options::without_iotlb());
    let offered = features::ACCESS_PLATFORM;
    let mut frontend =
        Frontend::connect_with(&bench.path, FEATURES & !offered, PROTOCOL_FEATURES & !protocol::BACKEND_REQ);
    assert_eq!(frontend.ask(FrontendRequest::GET_FEATURES, &()) & offered, 0);
    frontend.start_ring(0);
    assert_eq!(frontend.read_disk(9, &[(DATA, 512)]), OK);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA), [9; SECTOR]);
    let stray = bench.disk.stray_dma(guest_address(DATA), StrayDma::Read(3));
    assert_eq!(stray, Outcome::Read(vec![9; 3]), "nothing stops a stray DMA");
    assert_eq!(bench.disk.stats().misses, 0);
}

#[test]
fn a_ring_that_is_refused_is_tried_a_bounded_number_of_times_and_again_after_a_kick() {
    let bench = Bench::new(Options::default());
    let mut frontend = Frontend::connect(&bench.path);
    frontend.start_ring(0);
    let failed =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::RingFailed { .. })).count();
    frontend.serve_until(|_| failed(&bench.disk.events()) == 1);
    let asked = frontend.misses.len();
    assert!((1..=20).contains(&asked), "{asked} misses");

    frontend.map_ring();
    frontend.map(DATA, Access::READ_WRITE);
    assert_eq!(frontend.read_disk(3, &[(DATA, 512)]), OK);

    // A ring that is lost while it is in use fails as well, and comes back.
    frontend.unmap(RING + PAGE);
    frontend.kick();
    frontend.serve_until(|_| failed(&bench.disk.events()) == 2);
    frontend.map_ring();
    assert_eq!(frontend.read_disk(4, &[(DATA, 512)]), OK);
}

#[test]
fn a_ring_stops_while_a_miss_is_unanswered_and_leaves_the_request_for_the_next_start() {
    let bench = Bench::new(Options::default().with_miss_timeout(Duration::from_secs(600)));
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    frontend.map(DATA + PAGE, Access::READ_WRITE);
    frontend.submit(0, 2, &[(DATA + PAGE, 512)]);
    bench.wait_for(|event| matches!(event, Event::Miss { iova, .. } if *iova == DATA + PAGE));
    assert_eq!(frontend.stop_ring(), 1);
    assert_eq!(frontend.used(), 1);
    bench.wait_for(|event| *event == Event::RingStopped { next_available: 1 });

    // The late answer belongs to the miss that was given up: it must not pass for that of the next one.
    frontend.start_ring(1);
    assert_eq!(frontend.complete(), OK);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA + PAGE), [2; SECTOR]);
    frontend.unmap(DATA + PAGE);
    assert_eq!(frontend.read_disk(2, &[(DATA + PAGE, 512)]), IOERR);
}

#[test]
fn without_reply_ack_an_update_answers_a_miss_and_silence_refuses_it() {
    let options = Options::default().without_protocol_features(protocol::REPLY_ACK);
    let bench = Bench::new(options.with_miss_timeout(Duration::from_millis(300)));
    let mut frontend =
        Frontend::connect_with(&bench.path, FEATURES, PROTOCOL_FEATURES & !protocol::REPLY_ACK);
    frontend.map_ring();
    frontend.map(DATA, Access::READ_WRITE);
    frontend.start_ring(0);
    assert_eq!(frontend.read_disk(7, &[(DATA, 512)]), OK);
    assert_eq!(frontend.read_disk(7, &[(DATA + PAGE, 512)]), IOERR);
}

#[test]
fn updates_that_make_no_sense_are_refused() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    for (iova, size, user_address, access) in [
        (DATA, PAGE, 0x1000, Access::READ),
        (DATA, PAGE, USER + MEMORY_LEN, Access::READ),
        (DATA, PAGE, USER + MEMORY_LEN - 1, Access::READ),
        (DATA, u64::MAX, USER, Access::READ),
        (DATA, 0, USER, Access::READ),
        (DATA, PAGE, USER, Access::NONE),
        (DATA, PAGE, USER, Access(7)),
        (0u64.wrapping_sub(PAGE), PAGE, USER, Access::READ),
    ] {
        assert_ne!(
            frontend.update(IotlbMessage::update(iova, size, user_address, access)),
            0,
            "{iova:#x}+{size:#x}"
        );
        assert!(bench.disk.events().contains(&Event::UpdateRefused { iova, size }));
    }
    for (iova, size) in [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX - 4095, 4096)] {
        let invalidate = IotlbMessage::invalidate(iova, size);
        frontend.send(Message::from(&invalidate).with_need_reply());
        assert_eq!(frontend.acknowledgement(FrontendRequest::IOTLB_MSG), 0);
    }
    assert_eq!(frontend.read_disk(7, &[(DATA, 512)]), OK);
}

#[test]
fn an_invalidation_is_acknowledged_late_when_asked_for() {
    let delay = Duration::from_millis(300);
    let bench = Bench::new(Options::default().with_on_invalidate(OnInvalidate::AcknowledgeAfter(delay)));
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    let started = Instant::now();
    assert_eq!(frontend.unmap(DATA), 0);
    assert!(started.elapsed() >= delay);
}

#[test]
fn an_invalidation_is_never_acknowledged_when_asked_for_but_other_messages_are_served() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    bench.disk.set_on_invalidate(OnInvalidate::NeverAcknowledge);
    frontend.forget(DATA);
    frontend.send(Message::from(&IotlbMessage::invalidate(DATA, PAGE)).with_need_reply());
    assert!(!frontend.hears_within(Duration::from_millis(300)));
    assert_eq!(frontend.read_disk(2, &[(DATA, 512)]), IOERR);
    assert_eq!(frontend.ask(FrontendRequest::GET_QUEUE_NUM, &()), 1);
}

#[test]
fn a_disk_that_misses_first_acknowledges_only_after_its_miss_is_answered() {
    let bench = Bench::new(Options::default().with_on_invalidate(OnInvalidate::MissFirst));
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    frontend.forget(DATA);
    frontend.send(Message::from(&IotlbMessage::invalidate(DATA, PAGE)).with_need_reply());
    assert!(
        !frontend.hears_within(Duration::from_millis(200)),
        "acknowledged although the miss is unanswered"
    );
    let asked = frontend.misses.len();
    frontend.serve_until(|frontend| frontend.misses.len() > asked);
    assert_eq!(frontend.acknowledgement(FrontendRequest::IOTLB_MSG), 0);
    let (miss, granted) = frontend.misses[asked];
    assert_eq!((miss.iova, granted), (DATA, false));
    bench.wait_for(|event| *event == Event::MissRefused { iova: DATA, access: Access::READ });
}

#[test]
fn a_disk_that_misses_afterwards_takes_the_entry_back_if_it_is_granted() {
    let bench = Bench::new(Options::default().with_on_invalidate(OnInvalidate::MissAfterwards));
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    assert_eq!(frontend.unmap(DATA), 0);
    let asked = frontend.misses.len();
    frontend.serve_until(|frontend| frontend.misses.len() > asked);
    bench.wait_for(|event| *event == Event::MissRefused { iova: DATA, access: Access::READ });

    frontend.map(DATA, Access::READ_WRITE);
    frontend.send(Message::from(&IotlbMessage::invalidate(DATA, PAGE)).with_need_reply());
    assert_eq!(frontend.acknowledgement(FrontendRequest::IOTLB_MSG), 0);
    let asked = frontend.misses.len();
    frontend.serve_until(|frontend| frontend.misses.len() > asked);
    bench.wait_for(|event| *event == Event::MissAnswered { iova: DATA, access: Access::READ });
    let asked = frontend.misses.len();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    assert_eq!(frontend.misses.len(), asked);
}

#[test]
fn memory_regions_come_and_go_one_by_one() {
    let bench = Bench::new(Options::default());
    let wanted = PROTOCOL_FEATURES | protocol::CONFIGURE_MEM_SLOTS;
    let mut frontend = Frontend::connect_with(&bench.path, FEATURES, wanted);
    frontend.map_ring();
    frontend.map(DATA, Access::READ_WRITE);
    frontend.start_ring(0);
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    let extra = frontend::ExtraRegion::new(MEMORY_LEN);
    frontend.send_and_check(extra.add());
    frontend.mappings.insert(DATA + PAGE, (extra.user_address(), Access::READ_WRITE));
    assert_eq!(frontend.read_disk(8, &[(DATA + PAGE, 512)]), OK);
    assert_eq!(extra.start(), [8; SECTOR]);

    frontend.send_and_check(extra.remove());
    assert_eq!(frontend.read_disk(9, &[(DATA + PAGE, 512)]), IOERR);
    assert_eq!(extra.start(), [8; SECTOR]);
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
}

#[test]
fn nothing_is_written_through_an_entry_after_its_invalidation_is_acknowledged() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopped_at_last = SetOnDrop(&stop);
        scope.spawn(|| {
            for number in (0..=u8::MAX).cycle() {
                bench.disk.stray_dma(DATA, StrayDma::Write(vec![number; PAGE as usize]));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..200 {
            frontend.map(DATA, Access::READ_WRITE);
            let before: [u8; PAGE as usize] = frontend.read(DATA);
            frontend.serve_until(|frontend| frontend.read::<[u8; PAGE as usize]>(DATA) != before);
            assert_eq!(frontend.unmap(DATA), 0);
            let after: [u8; PAGE as usize] = frontend.read(DATA);
            assert!(after.iter().all(|&byte| byte == after[0]), "acknowledged in the middle of a write");
            let asked = frontend.misses.len();
            frontend.serve_until(|frontend| frontend.misses.len() >= asked + 2);
            assert_eq!(frontend.read::<[u8; PAGE as usize]>(DATA), after);
        }
        drop(stopped_at_last);
        frontend.map(DATA, Access::READ_WRITE);
        frontend.serve_until(|frontend| frontend.misses.last().is_some_and(|(_, granted)| *granted));
    });
}

#[test]
fn a_reset_stops_the_ring_and_it_can_be_started_anew() {
    let bench = Bench::new(Options::default());
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    frontend.send_and_check(Message::new(FrontendRequest::RESET_DEVICE, &()));
    bench.wait_for(|event| *event == Event::RingStopped { next_available: 1 });
    frontend.submit(0, 2, &[(DATA, 512)]);
    assert_eq!(frontend.ask(FrontendRequest::GET_QUEUE_NUM, &()), 1);
    assert_eq!(frontend.used(), 1);
    frontend.start_ring(1);
    assert_eq!(frontend.complete(), OK);
    assert_eq!(frontend.read::<[u8; SECTOR]>(DATA), [2; SECTOR]);
}

#[test]
fn a_message_that_makes_no_sense_ends_its_connection_and_nothing_else() {
    let bench = Bench::new(Options::default());
    let ends: [fn() -> Message; 6] = [
        || Message::new(FrontendRequest::SET_FEATURES, &1u32),
        || Message::new(FrontendRequest::SET_FEATURES, &u64::MAX),
        || Message::new(FrontendRequest::SET_MEM_TABLE, &[9u32, 0]),
        || Message::new(FrontendRequest::SET_VRING_KICK, &1u64),
        || Message::new(FrontendRequest::IOTLB_MSG, &[0u8; 31]),
        || Message::new(FrontendRequest(4711), &()),
    ];
    for message in ends {
        let mut frontend = bench.start();
        assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
        frontend.send(message());
        assert!(frontend.hears_within(PATIENCE));
        assert!(frontend.main.receive().is_err(), "{:?} was served", message());
    }
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    frontend.send(Message::new(FrontendRequest(4711), &()).with_need_reply());
    assert_eq!(
        frontend.acknowledgement(FrontendRequest(4711)),
        1,
        "asked for an acknowledgement, it gets one"
    );
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
}

#[test]
fn a_dropped_disk_ends_its_connection_its_threads_and_its_socket() {
    let bench = Bench::new(Options::default().with_miss_timeout(Duration::from_secs(600)));
    let mut frontend = bench.start();
    assert_eq!(frontend.read_disk(1, &[(DATA, 512)]), OK);
    frontend.submit(0, 2, &[(DATA + PAGE, 512)]);
    bench.wait_for(|event| matches!(event, Event::Miss { iova, .. } if *iova == DATA + PAGE));
    let Bench { disk, path, _directory } = bench;
    drop(disk);
    assert!(!path.exists());
    assert!(frontend.main.receive().is_err());
    assert_eq!(frontend.used(), 1, "the request at hand was not completed");
}
