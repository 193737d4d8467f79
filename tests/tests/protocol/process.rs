// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process: how it ends, and the sockets it leaves, takes and refuses.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::Buffer;
use viommu_tests::front_end::{Connection, FrontEnd, Wanted};

use crate::scene::*;

/// What "quickly" means to whoever ends it.
const QUICK: Duration = Duration::from_secs(2);

/// Runs the program, which has to end by itself.
pub fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(Daemon::program().expect("built"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn assert_refused(arguments: &[&str]) {
    let output = run(arguments);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
}

/// Lets a daemon inherit the descriptor under its own number.
fn inherit(fd: impl AsFd) -> String {
    fcntl_setfd(&fd, FdFlags::empty()).expect("an open descriptor");
    fd.as_fd().as_raw_fd().to_string()
}

#[test]
fn a_signal_ends_it_at_once_and_its_socket_with_it() {
    for signal in [Signal::TERM, Signal::INT] {
        for is_connected in [false, true] {
            let served = Served::new();
            let vmm = is_connected.then(|| served.vmm());
            let began = Instant::now();
            let (status, lines) = served.daemon.end_by(signal).expect("it ends");
            assert_eq!(status.code(), Some(0), "{lines:?}");
            assert!(began.elapsed() < QUICK);
            assert!(!served.socket.exists());
            drop(vmm);
        }
    }
}

#[test]
fn the_other_end_of_a_pipe_ends_it_like_a_signal() {
    for is_connected in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("iommu.sock");
        let (read, write) = std::io::pipe().expect("a pipe");
        let path = socket.to_str().expect("UTF-8");
        let own = ["--socket-path", path, "--endpoint", "00:02.0", "--exit-with", &inherit(&read)];
        let served = Served { daemon: Daemon::start(own).expect("it gets ready"), socket, folder };
        drop(read);
        let vmm = is_connected.then(|| served.vmm());
        drop(write);
        let (status, lines) = served.daemon.wait_for_end().expect("it ends");
        assert_eq!(status.code(), Some(0), "{lines:?}");
        let last = lines.last().expect("a log");
        assert!(last.contains("ends with the VMM; served "), "{last}");
        assert!(!served.socket.exists());
        drop(vmm);
    }
}

#[test]
fn whoever_started_it_is_told_when_it_is_ready_and_when_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let notices = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
    notices.set_read_timeout(Some(PATIENCE)).expect("set");
    let notice = || {
        let mut text = [0; 64];
        let length = notices.recv(&mut text).expect("a notice");
        String::from_utf8(text[..length].to_vec()).expect("UTF-8")
    };
    let mut command = Command::new(Daemon::program().expect("built"));
    command.args(["--socket-path", "iommu.sock", "--endpoint", "1"]).current_dir(folder.path());
    let mut process = command.env("NOTIFY_SOCKET", "notify").stderr(Stdio::null()).spawn().expect("it runs");
    assert_eq!(notice(), "READY=1\n");
    UnixStream::connect(folder.path().join("iommu.sock")).expect("it listens");
    kill_process(Pid::from_child(&process), Signal::TERM).expect("it runs");
    assert_eq!(notice(), "STOPPING=1\n");
    assert!(process.wait().expect("it ends").success());
}

#[test]
fn a_signal_ends_it_while_requests_are_under_way() {
    let served = Served::new();
    let mut vmm = served.vmm_with(Setup { size: 1024, ..Setup::default() });
    let byte = vmm.place(&[0xff]);
    for _ in 0..1024 {
        vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
    }
    vmm.driver.requests().kick();
    let began = Instant::now();
    let (status, _) = served.daemon.end_by(Signal::TERM).expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < QUICK && !served.socket.exists());
}

#[test]
fn a_socket_that_a_killed_daemon_left_is_replaced() {
    let served = Served::new();
    let Served { daemon, socket, folder } = served;
    drop(daemon);
    assert!(socket.exists(), "SIGKILL leaves it");
    let daemon = Daemon::start(["--socket-path", socket.to_str().expect("UTF-8"), "--endpoint", "00:02.0"]);
    let served = Served { daemon: daemon.expect("it gets ready"), socket, folder };
    served.assert_serves();
}

/// Requests are done in the order of the ring, so its used index says which are: no other record is needed.
#[test]
fn a_daemon_that_takes_the_place_of_a_killed_one_goes_on_after_the_last_request_that_was_done() {
    let mut served = Served::new();
    let mut vmm = served.vmm();
    let request = vmm.place(&[0xff]);
    let mut found_at_work = 0;
    for round in 0..40u32 {
        let queue = vmm.driver.requests();
        let mut add = || u32::from(queue.add(&[Buffer::readable(request, 1)]).expect("there is room"));
        let requests: Vec<u32> = (0..60).map(|_| add()).collect();
        vmm.driver.requests().kick_if_wanted();
        // At another request each time.
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        let Served { daemon, socket, folder } = served;
        drop(daemon);
        let taken = |vmm: &mut Vmm| vmm.driver.requests().take_used().map(|used| used.head);
        let mut done: Vec<u32> = std::iter::from_fn(|| taken(&mut vmm)).collect();
        found_at_work += u32::from(!done.is_empty() && done.len() < requests.len());
        let daemon =
            Daemon::start(["--socket-path", socket.to_str().expect("UTF-8"), "--endpoint", "00:02.0"]);
        served = Served { daemon: daemon.expect("it gets ready"), socket, folder };
        vmm.front_end = served.front_end(u64::MAX);
        vmm.front_end.set_memory(&vmm.memory).expect("two regions");
        vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
        while done.len() < requests.len() {
            done.push(vmm.used().head);
        }
        assert_eq!(done, requests, "round {round}");
    }
    println!("{found_at_work} of 40 daemons were killed in the midst of their work");
    vmm.assert_served();
}

#[test]
fn a_socket_on_which_somebody_listens_stays_theirs() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let path = served.socket.to_str().expect("UTF-8");
    assert_refused(&["--socket-path", path, "--endpoint", "00:02.0"]);
    vmm.assert_served();
    drop(vmm);
    served.assert_serves();
    assert_refused(&["--socket-path", path, "--endpoint", "00:02.0"]);
    served.assert_serves();
}

#[test]
fn a_path_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").expect("written");
    assert_refused(&["--socket-path", file.to_str().expect("UTF-8"), "--endpoint", "1"]);
    assert_refused(&["--socket-path", folder.path().to_str().expect("UTF-8"), "--endpoint", "1"]);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "mine");
}

#[test]
fn a_socket_that_took_its_place_is_not_removed_at_the_end() {
    let served = Served::new();
    std::fs::remove_file(&served.socket).expect("removed");
    let theirs = UnixListener::bind(&served.socket).expect("a new one in its place");
    served.daemon.end().expect("it ends");
    assert!(served.socket.exists());
    drop(theirs);
}

#[test]
fn a_listening_socket_may_be_inherited_blocking_or_not() {
    for is_blocking in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("iommu.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(!is_blocking).expect("set");
        let daemon = Daemon::start(["--fd", &inherit(&listener), "--endpoint", "00:02.0"]);
        drop(listener);
        let served = Served { daemon: daemon.expect("it gets ready"), socket, folder };
        served.assert_serves();
        served.assert_serves();
        let busy = served.processor_time_in_half_a_second();
        assert!(busy < Duration::from_millis(100), "blocking {is_blocking}: {busy:?} without a VMM");
        let (status, _) = served.daemon.end().expect("it ends");
        assert_eq!(status.code(), Some(0));
        assert!(served.socket.exists(), "it belongs to whoever made it");
    }
}

#[test]
fn a_connected_socket_may_be_inherited_and_the_daemon_ends_with_it() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let daemon = Daemon::start(["--fd", &inherit(&theirs), "--endpoint", "00:02.0"]).expect("it gets ready");
    drop(theirs);
    let mut front_end = FrontEnd::of(Connection::of(ours)).expect("a descriptor");
    front_end.negotiate(Wanted::default()).expect("negotiated");
    let mut vmm = Vmm::of(front_end, Setup::default());
    vmm.attach();
    vmm.assert_served();
    drop(vmm);
    let (status, lines) = daemon.wait_for_end().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(
        lines.iter().any(|line| line.contains("ends with the VMM, which was to be the only one")),
        "{lines:?}"
    );
}

#[test]
fn a_descriptor_that_is_no_socket_of_a_vmm_is_refused() {
    let datagrams = UnixDatagram::unbound().expect("a socket");
    let file = File::open("/dev/null").expect("a file");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    for number in [inherit(&datagrams), inherit(&file), inherit(&tcp)] {
        assert_refused(&["--fd", &number, "--endpoint", "1"]);
    }
    for number in ["999", "0", "2", "2147483647"] {
        assert_refused(&["--fd", number, "--endpoint", "1"]);
    }
}
