// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How it ends, for the daemon and for the VMM, whoever is the first.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Output;

use rustix::process::Signal;

use crate::scene::*;

const WITH_THE_VMM: &str = "ends with the VMM; served";

fn assert_log(output: &Output, pattern: &str) {
    assert!(text(&output.stderr).contains(pattern), "{pattern} is not in {output:?}");
}

#[test]
fn a_vmm_that_cannot_be_started_ends_the_daemon() {
    let scene = Scene::new();
    let own = ["launch", "--socket-path", "iommu.sock", "--endpoint", "1", "--", "./nowhere"];
    let output = run(scene.program().args(own));
    assert_log(&output, "the VMM ./nowhere cannot be started: No such file or directory");
    assert_log(&output, "told to end; ");
    assert_eq!(output.status.code(), Some(2));
    scene.assert_nothing_left();
}

#[test]
fn a_daemon_that_refuses_gives_its_status_and_no_vmm_is_started() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "").expect("written");
    let own = ["launch", "--socket-path", "file", "--endpoint", "1", "--", "touch", "started"];
    let output = run(scene.program().args(own));
    assert_log(&output, "--socket-path file: the path is in use; ");
    assert_log(&output, "the daemon ended before it was ready (exit status: 2); the VMM is not started");
    assert_eq!(output.status.code(), Some(2));
    assert!(!scene.path("started").exists());
    scene.assert_nothing_left();
}

#[test]
fn the_daemon_ends_with_the_vmm_however_that_ends() {
    for signal in [None, Some(Signal::KILL), Some(Signal::INT)] {
        let scene = Scene::new();
        let mut launched = Launched::start(&mut scene.launch(&[], RUNNING));
        assert_eq!(launched.line(), "running");
        // A terminal's signal is for the VMM: the daemon goes on as long as that does.
        signal.into_iter().for_each(|signal| launched.signal(signal));
        let output = launched.end();
        assert_log(&output, WITH_THE_VMM);
        scene.assert_nothing_left();
    }
}

#[test]
fn a_vmm_that_goes_into_the_background_keeps_the_daemon() {
    let scene = Scene::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let command = scene.launch(&[], "(read line <&5; exit) & exit 3");
    let mut launched = Launched::start(&mut scene.through_shell("exec \"$@\" 5<&0", &command, reader));
    launched.wait();
    UnixStream::connect(scene.path("iommu.sock")).expect("the daemon serves");
    drop(writer);
    let output = launched.end();
    assert_eq!(output.status.code(), Some(3));
    assert_log(&output, WITH_THE_VMM);
    scene.assert_nothing_left();
}

#[test]
fn a_daemon_that_is_killed_leaves_the_vmm_to_itself() {
    let scene = Scene::new();
    let mut launched = Launched::start(&mut scene.launch(&[], &format!("{RUNNING}; echo on; exit 4")));
    assert_eq!(launched.line(), "running");
    let daemon = rustix::process::Pid::from_raw(launched.daemon() as i32).expect("not 0");
    rustix::process::kill_process(daemon, Signal::KILL).expect("it runs");
    let output = launched.end();
    assert_eq!((text(&output.stdout), output.status.code()), ("on\n", Some(4)));
}

#[test]
fn a_signal_while_it_waits_ends_all() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let scene = Scene::new();
        let mut command = scene.launch(&[], "touch started");
        let obstacle = Obstacle::before(&mut command);
        let launched = Launched::start(&mut command);
        drop(command);
        let daemon = launched.daemon();
        launched.signal(signal);
        let said = obstacle.clear();
        assert_eq!(launched.end().status.code(), Some(128 + signal.as_raw()));
        assert!(said.contains("the VMM is not started"), "{said}");
        assert!(!fs::exists(format!("/proc/{daemon}")).expect("procfs"));
        assert!(!scene.path("started").exists());
        scene.assert_nothing_left();
    }
}

#[test]
fn the_vmm_is_not_started_before_the_daemon_is_ready() {
    let scene = Scene::new();
    let mut command = scene.launch(&[], "touch started");
    let obstacle = Obstacle::before(&mut command);
    let launched = Launched::start(&mut command);
    drop(command);
    launched.daemon();
    assert!(!scene.path("started").exists());
    let said = obstacle.clear();
    launched.end();
    assert!(said.contains(WITH_THE_VMM), "{said}");
    assert!(scene.path("started").exists());
}

#[test]
fn a_signal_that_the_caller_ignores_the_vmm_ignores() {
    let scene = Scene::new();
    let command = scene.launch(&[], "kill -HUP $$; echo alive");
    let null = File::open("/dev/null").expect("a Linux machine");
    let output = run(&mut scene.through_shell("trap '' HUP; exec \"$@\"", &command, null));
    assert_eq!((text(&output.stdout), output.status.code()), ("alive\n", Some(0)));
}
