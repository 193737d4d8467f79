// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are plugged in and unplugged, with a daemon and a QEMU that only remember what they were asked.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{PollFd, poll};
use rustix::fs::fstat;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::control::Connection;
use crate::control::tests::{Double, Served, watched};
use crate::sync::lock;

/// The two, and what QEMU was told.
struct Scene {
    served: Served,
    qmp: PathBuf,
    told: Arc<Mutex<Vec<Told>>>,
    _folder: TempDir,
}

/// A command, and the inode of the file that came with it.
#[derive(Debug, PartialEq)]
struct Told(Value, Option<u64>);

impl Scene {
    /// QEMU says `greeting`, to a device without a file `rehearsed`, and to other commands what `answer` gives, while the
    /// daemon is as it is.
    fn of(
        greeting: &str,
        rehearsed: &str,
        answer: impl Fn(&str, &Double) -> String + Send + 'static,
    ) -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        let qmp = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&qmp).expect("a socket");
        let (served, told) = (Served::new(), Arc::new(Mutex::new(Vec::new())));
        let (double, list) = (served.double.clone(), told.clone());
        let (greeting, rehearsed) = (greeting.to_owned(), rehearsed.to_owned());
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            socket.write_all(greeting.as_bytes()).expect("it reads");
            serve(socket, |told| {
                let command = told.0["execute"].as_str().expect("a command").to_owned();
                let is_rehearsal = command == "device_add" && told.0["arguments"].get("fd").is_none();
                lock(&list).push(told);
                match command.as_str() {
                    "qmp_capabilities" => DONE.to_owned(),
                    _ if is_rehearsal => rehearsed.clone(),
                    command => answer(command, &double),
                }
            });
        });
        Scene { served, qmp, told, _folder: folder }
    }

    fn new(answer: impl Fn(&str, &Double) -> String + Send + 'static) -> Scene {
        Scene::of(GREETING, MISSED, answer)
    }

    /// One whose daemon has a device, and whose QEMU says this to `device_del`.
    fn with_device(answer: &str) -> Scene {
        let answer = answer.to_owned();
        let scene = Scene::new(move |_, daemon| {
            assert!(lock(&daemon.device).is_some(), "it has to have the device still");
            answer.clone()
        });
        *lock(&scene.served.double.device) = Some(watched().0.into());
        scene
    }

    fn monitor(&self) -> Monitor {
        Monitor { path: self.qmp.clone(), patience: Duration::from_millis(300) }
    }

    fn plug(&self, file: &File) -> Result<Answer, CtlError> {
        let endpoint = "00:03.0,vfio=65:00.0".parse().expect("an endpoint");
        let properties = "id=d,iommufd=i,addr=0".parse().expect("properties");
        let plug = Plug::new(endpoint, properties, self.monitor()).expect("a physical device");
        plug.share(file.as_fd(), &self.served.socket)
    }

    fn unplug(&self, endpoint: &str) -> Result<Answer, CtlError> {
        let endpoint = endpoint.parse().expect("an endpoint");
        let unplug = Unplug { endpoint, name: "d".to_owned(), monitor: self.monitor() };
        unplug.run(&self.served.socket)
    }

    /// What QEMU was told once it was ready.
    fn told(&self) -> Vec<Told> {
        lock(&self.told).drain(..).skip(1).collect()
    }

    fn has_device(&self) -> bool {
        lock(&self.served.double.device).is_some()
    }
}

/// Answers each line, until the client goes.
fn serve(socket: UnixStream, answer: impl Fn(Told) -> String) {
    let mut connection = Connection::new(socket);
    let is_served = |connection: &mut Connection| {
        let reply = connection.serve(|line| {
            let line = line.expect("no excess");
            let command = serde_json::from_slice(line.text).expect("JSON");
            answer(Told(command, line.file.take().map(inode)))
        });
        reply.is_ok()
    };
    while is_served(&mut connection) {
        let interest = connection.interest();
        poll(&mut [PollFd::new(&connection, interest)], None).expect("a socket");
    }
}

fn inode(file: impl AsFd) -> u64 {
    fstat(file).expect("open").st_ino
}

fn assert_done(answer: Result<Answer, CtlError>) {
    let answer = answer.expect("done");
    assert!(matches!(answer.reply, Reply::Result(_)), "{answer:?}");
}

#[test]
fn a_device_is_the_daemons_and_then_qemus() {
    let scene = Scene::new(|_, daemon| {
        assert!(lock(&daemon.device).is_some(), "the daemon comes first");
        format!("{{\"event\": \"RTC_CHANGE\", \"data\": {{\"offset\": 1}}}}\n{DONE}")
    });
    let (file, _other_end) = watched();
    assert_done(scene.plug(&file));
    let name = "vhost-user-iommu";
    let rehearsed = json!({ "driver": "vfio-pci", "id": "d", "iommufd": "i", "addr": "0" });
    let device = json!({ "driver": "vfio-pci", "fd": name, "id": "d", "iommufd": "i", "addr": "0" });
    let expected = [
        Told(json!({ "execute": "device_add", "arguments": rehearsed }), None),
        Told(json!({ "execute": "getfd", "arguments": { "fdname": name } }), Some(inode(&file))),
        Told(json!({ "execute": "device_add", "arguments": device }), None),
    ];
    assert_eq!(scene.told(), expected);
    assert_eq!(lock(&scene.served.double.device).as_ref().map(inode), Some(inode(&file)));
}

#[test]
fn what_qemu_refuses_without_the_file_it_is_not_given() {
    for (rehearsed, line) in [
        (REFUSED, "QEMU refuses device_add: no  [31m bus"),
        (DONE, "there is no answer of QEMU's to device_add: it takes a device that is none of the host's"),
    ] {
        let scene = Scene::of(GREETING, rehearsed, |_, _| DONE.to_owned());
        let error = scene.plug(&watched().0).expect_err(line).to_string();
        assert_eq!(error, line);
        assert!(lock(&scene.served.double.asked).is_empty());
        assert_eq!(scene.told().len(), 1);
    }
}

#[test]
fn what_qemu_refuses_nobody_has() {
    let again = "; next time give it another id, which QEMU has not kept";
    for (refused, told, mend) in [("getfd", 2, ""), ("device_add", 4, again)] {
        let answer =
            move |command: &str, _: &Double| if command == refused { REFUSED } else { DONE }.to_owned();
        let scene = Scene::new(answer);
        let (file, mut other_end) = watched();
        let error = scene.plug(&file).expect_err("refused").to_string();
        let expected =
            format!("QEMU refuses {refused}: no  [31m bus; the daemon has let go of the device again{mend}");
        assert_eq!(error, expected);
        let commands = scene.told();
        assert_eq!(commands.len(), told);
        assert!(refused == "getfd" || commands[3].0["execute"] == "closefd", "{commands:?}");
        drop(file);
        assert_eq!(other_end.read(&mut [0]).expect("nobody holds it"), 0);
    }
}

#[test]
fn what_the_daemon_refuses_qemu_is_not_told() {
    let scene = Scene::with_device(DONE);
    let answer = scene.plug(&watched().0).expect("an answer");
    assert!(matches!(answer.reply, Reply::Error(Refusal { code: Code::HasDevice, .. })), "{answer:?}");
    assert!(scene.told().iter().all(|told| told.1.is_none()), "no file");
}

#[test]
fn what_qemu_may_have_the_daemon_keeps() {
    for (answer, problem) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{}", "a line is no message of QMP"),
        (r#"{"return": null}"#, "a line is no message of QMP"),
        (r#"{"error": "no"}"#, "invalid type: string "),
        (r#"{"event": "STOP"}"#, "the time for it is over"),
        ("[1, 2]", "invalid length 2"),
        (&"[".repeat(100_000), "recursion limit exceeded"),
    ] {
        let text = answer.to_owned();
        let answer = move |command: &str, _: &Double| match command {
            "device_add" => text.clone(),
            _ => DONE.to_owned(),
        };
        let scene = Scene::new(answer);
        let error = scene.plug(&watched().0).expect_err(problem).to_string();
        let begin = format!("there is no answer of QEMU's to device_add: {problem}");
        assert!(error.starts_with(&begin), "{error}");
        let end = "; the daemon keeps the device: if QEMU has not got it, `ctl remove 00:03.0`";
        assert!(error.ends_with(end), "{error}");
        assert!(scene.has_device());
    }
}

#[test]
fn what_is_no_monitor_is_asked_for_nothing() {
    for (greeting, problem) in [
        ("", "the time for it is over"),
        ("{}\n", "a line is no message of QMP"),
        ("{\"return\": {}}\n", "it does not begin as QMP does"),
        ("SSH-2.0-OpenSSH\n", "expected value at line 1 column 1"),
    ] {
        let scene = Scene::of(greeting, MISSED, |_, _| DONE.to_owned());
        let error = scene.plug(&watched().0).expect_err(problem).to_string();
        let begin =
            format!("--qmp {}: there is no answer of QEMU's to a new connection: ", scene.qmp.display());
        assert!(error.starts_with(&format!("{begin}{problem}")), "{error}");
        assert!(error.ends_with(
            "; name a QMP socket that no other program is connected to: QEMU serves one at a time"
        ));
        assert!(lock(&scene.served.double.asked).is_empty() && scene.told().is_empty());
    }
}

#[test]
fn a_device_is_let_go_of_when_the_guest_has() {
    let others = [
        r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/d/x"}}"#,
        r#"{"event": "DEVICE_DELETED", "data": {"device": "e", "path": "/machine/peripheral/e"}}"#,
        r#"{"event": "DEVICE_DELETED", "data": ["d"]}"#,
    ];
    let others = others.join("\n");
    for answer in [format!("{others}\n{DONE}\n{DELETED}"), format!("{DELETED}\n{others}\n{DONE}")] {
        let scene = Scene::with_device(&answer);
        assert_done(scene.unplug("0x18"));
        let expected = json!({ "execute": "device_del", "arguments": { "id": "d" } });
        assert_eq!(scene.told(), [Told(expected, None)]);
        assert!(!scene.has_device());
    }
}

#[test]
fn a_device_that_the_guest_keeps_the_daemon_keeps() {
    let refused = r#"{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "d", "path": "p"}}"#;
    for (answer, line) in [
        (
            DONE.to_owned(),
            "the guest has not let go of d in time; the daemon keeps the device: unplug it again",
        ),
        (DELETED.to_owned(), "there is no answer of QEMU's to device_del: the time for it is over; "),
        (format!("{DONE}\n{refused}"), "the guest refuses to let go of d; "),
        (
            REFUSED.to_owned(),
            "QEMU refuses device_del: no  [31m bus; the daemon keeps the device: if QEMU is done with it, `ctl remove 0:3.0`",
        ),
    ] {
        let scene = Scene::with_device(&answer);
        let error = scene.unplug("0:3.0").expect_err(line).to_string();
        assert!(error.starts_with(line), "{error}");
        assert!(scene.has_device());
    }
}

#[test]
fn what_the_daemon_has_not_is_not_unplugged() {
    let scene = Scene::new(|_, _| DELETED.to_owned());
    for (endpoint, expected) in [("00:04.0", Code::UnknownEndpoint), ("00:03.0", Code::NoDevice)] {
        let answer = scene.unplug(endpoint).expect("an answer");
        assert!(
            matches!(&answer.reply, Reply::Error(Refusal { code, .. }) if *code == expected),
            "{answer:?}"
        );
        let again: Reply = serde_json::from_str(&answer.line).expect("JSON");
        assert_eq!(again, answer.reply);
    }
    assert_eq!(scene.told(), []);
}

const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\n";
const DONE: &str = r#"{"return": {}}"#;
const REFUSED: &str = r#"{"error": {"class": "GenericError", "desc": "no\n\u001b[31m bus"}}"#;
const MISSED: &str = r#"{"error": {"class": "GenericError", "desc": "No provided host device"}}"#;
const DELETED: &str =
    r#"{"event": "DEVICE_DELETED", "data": {"device": "d", "path": "/machine/peripheral/d"}}"#;
