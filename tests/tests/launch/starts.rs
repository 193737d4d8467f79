// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM is started with, and the daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use crate::scene::*;

const LIST: &str = "ls -l /proc/$$/fd";

/// The files that a script with [`LIST`] has open: by number, where they lead.
fn open_files(listed: &str) -> BTreeMap<u32, String> {
    let links = listed.lines().filter_map(|line| line.split_once(" -> "));
    let numbered =
        links.filter_map(|(left, to)| Some((left.split(' ').next_back()?.parse().ok()?, to.to_owned())));
    numbered.collect()
}

/// Those of a process that would outlive an exec, above the standard three.
fn inheritable(process: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("it runs");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let outlives = |number: &u32| {
        let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("02000000").trim();
        u32::from_str_radix(flags, 8).expect("octal") & 0o2_000_000 == 0
    };
    numbers.filter(|number| *number > 2 && outlives(number)).collect()
}

#[test]
fn the_vmm_finds_the_daemon_ready_and_gets_its_arguments_as_they_are() {
    let scene = Scene::new();
    let disk = ["--guest-memory", "512M", "--endpoint", "1,vhost-user=front.sock,backend=back.sock"];
    let mut command =
        scene.launch(&disk, "test -S iommu.sock -a -S front.sock && echo $NOTIFY_SOCKET \"$0 $1|$2\"");
    let output = run(command.args(["--a{b}", "{iommu}", "--fd=x y"]));
    assert_eq!(text(&output.stdout), "--a{b} {iommu}|--fd=x y\n");
    assert_eq!(output.status.code(), Some(0));
    let log = text(&output.stderr);
    assert!(
        log.contains("ready: 2 endpoints") && log.contains("ends with the VMM; served 0 ATTACH"),
        "{log}"
    );
    assert!(!scene.path("front.sock").exists());
    scene.assert_nothing_left();
}

#[test]
fn the_status_is_the_vmms() {
    let scene = Scene::new();
    assert_eq!(run(&mut scene.launch(&[], "exit 7")).status.code(), Some(7));
}

#[test]
fn options_may_stand_in_a_file() {
    let scene = Scene::new();
    fs::write(scene.path("vm.toml"), "socket-path = 'iommu.sock'\nendpoint = ['1', '2']\n").expect("written");
    let mut command = scene.program();
    let output = run(command.args(["launch", "--config", "vm.toml", "--endpoint", "3", "--", "true"]));
    assert!(text(&output.stderr).contains("ready: 3 endpoints"), "{output:?}");
}

#[test]
fn the_vmm_inherits_one_end_of_a_pipe_and_the_daemon_nothing_that_it_was_not_told_of() {
    let scene = Scene::new();
    let script = format!("{LIST}; {RUNNING}");
    let mut launched = Launched::start(&mut scene.launch(&[], &script));
    let mut listed = String::new();
    loop {
        match launched.line().as_str() {
            "running" => break,
            line => listed.extend([line, "\n"]),
        }
    }
    assert_eq!(inheritable(launched.daemon()), [0; 0]);
    drop(launched.end());

    let mut plain = Command::new("sh");
    let without = plain.args(["-c", LIST]).output().expect("a shell");
    let without = open_files(text(&without.stdout));
    let with = open_files(&listed);
    let more: Vec<_> = with.iter().filter(|(number, _)| !without.contains_key(number)).collect();
    assert!(matches!(more.as_slice(), [(_, to)] if to.starts_with("pipe:")), "{more:?} of {with:?}");
}

#[test]
fn what_the_caller_left_open_is_for_the_vmm() {
    let scene = Scene::new();
    let command = scene.launch(&[], &format!("readlink /proc/$$/fd/5; {RUNNING}"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut launched = Launched::start(&mut scene.through_shell("exec \"$@\" 5</dev/zero", &command, reader));
    assert_eq!([launched.line(), launched.line()], ["/dev/zero", "running"]);
    let daemon = launched.daemon();
    let of_daemon = fs::read_link(format!("/proc/{daemon}/fd/5"));
    assert!(of_daemon.map_or(true, |file| file.as_os_str() != "/dev/zero"), "its own, or none");
    drop(writer);
    launched.end();
}

#[test]
fn a_listening_socket_goes_to_the_daemon_alone() {
    let scene = Scene::new();
    let listener = UnixListener::bind(scene.path("given.sock")).expect("a socket");
    let mut command = scene.program();
    command.args(["launch", "--fd", "5", "--endpoint", "1", "--", "sh", "-c"]);
    command.arg(format!("{LIST}; echo end; sleep 0.1"));
    let mut launched =
        Launched::start(&mut scene.through_shell("exec \"$@\" 5<&0 </dev/null", &command, listener));
    let mut listed = String::new();
    while !listed.ends_with("end\n") {
        listed.extend([launched.line().as_str(), "\n"]);
    }
    UnixStream::connect(scene.path("given.sock")).expect("the daemon listens");
    let files = open_files(&listed);
    assert!(!files.values().any(|to| to.starts_with("socket:")), "{files:?}");
    let output = launched.end();
    assert!(text(&output.stderr).contains("ready: 1 endpoints"), "{output:?}");
}

#[test]
fn a_file_that_is_not_dev_iommu_is_told_before_anything_is_started() {
    let scene = Scene::new();
    let command = scene.launch(&["--iommufd", "5"], "echo started {iommufd}");
    let null = File::open("/dev/null").expect("a Linux machine");
    let output = run(&mut scene.through_shell("exec \"$@\" 5</dev/zero", &command, null));
    let error = "vhost-user-iommu: --iommufd 5: this is not /dev/iommu but /dev/zero; open /dev/iommu and pass its number\n";
    assert_eq!((text(&output.stderr), text(&output.stdout), output.status.code()), (error, "", Some(2)));
}

#[test]
fn print_starts_nothing() {
    let scene = Scene::new();
    let output = run(scene
        .launch(&["--print", "--endpoint", "1,vfio=65:00.0"], "echo started")
        .args(["{iommufd}{vfio:1}"]));
    let script = text(&output.stdout);
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    assert!(script.ends_with("exec sh \\\n    -c 'echo started' \"$iommufd\"\"$vfio_1\"\n"), "{script}");
    scene.assert_nothing_left();
}
