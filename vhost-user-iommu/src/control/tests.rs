// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Good clients and bad ones, of a device that only remembers what it was asked.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::fstat;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
use tempfile::TempDir;

use super::*;
use crate::sync::lock;

/// A device with the one endpoint 00:03.0, and what was asked of it.
#[derive(Default)]
pub(crate) struct Double {
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) device: Mutex<Option<OwnedFd>>,
}

impl Controlled for Double {
    fn endpoints(&self) -> Vec<EndpointStatus> {
        vec![EndpointStatus {
            endpoint: "00:03.0".to_owned(),
            kind: protocol::VFIO.to_owned(),
            device: lock(&self.device).as_ref().map(|_| "0000:65:00.0".to_owned()),
            state: "bypass".to_owned(),
            domain: None,
            reason: None,
        }]
    }

    fn block(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        lock(&self.asked).push(format!("block {}", endpoint.0));
        Ok(())
    }

    fn unblock(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        lock(&self.asked).push(format!("unblock {}", endpoint.0));
        Ok(())
    }

    fn remove(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        lock(&self.asked).push(format!("remove {}", endpoint.0));
        lock(&self.device).take().map(drop).ok_or_else(|| Refusal::new(Code::NoDevice, "none"))
    }

    fn add(&self, endpoint: &EndpointConfig, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let cdev = file.ok_or_else(|| Refusal::new(Code::NoDescriptor, "none"))?;
        lock(&self.asked).push(format!("add {}", endpoint.id.0));
        match &mut *lock(&self.device) {
            Some(_) => Err(Refusal::new(Code::HasDevice, "one")),
            free => {
                *free = Some(cdev);
                Ok(())
            }
        }
    }
}

/// A socket that is served as long as the process lives.
pub(crate) struct Served {
    pub(crate) double: Arc<Double>,
    pub(crate) socket: PathBuf,
    _folder: TempDir,
}

impl Served {
    pub(crate) fn new() -> Served {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let double = Arc::new(Double::default());
        let served = double.clone();
        thread::spawn(move || serve(&listener, &*served));
        Served { double, socket, _folder: folder }
    }

    fn client(&self) -> Client {
        Client(BufReader::new(UnixStream::connect(&self.socket).expect("it listens")))
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    /// Sends the line, and returns what answers it.
    fn ask(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"), &[]);
        self.reply()
    }

    fn send(&self, text: &str, files: &[&File]) {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(&files)));
        let sent = sendmsg(self.0.get_ref(), &[IoSlice::new(text.as_bytes())], &mut control, no_signal());
        assert_eq!(sent, Ok(text.len()));
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        line.trim_end().to_owned()
    }

    fn assert_served(&mut self) {
        let list = self.ask(r#"{"command":"list"}"#);
        assert!(list.starts_with(r#"{"result":{"endpoints":[{"endpoint":"00:03.0""#), "{list}");
    }

    fn assert_closed(&mut self) {
        // What it did not read is lost, which is told as an error.
        let closed = self.0.read(&mut [0]);
        assert!(!matches!(closed, Ok(1)), "{closed:?}");
    }
}

fn no_signal() -> rustix::net::SendFlags {
    rustix::net::SendFlags::NOSIGNAL
}

/// A file whose last duplicate shows when it is closed: then the other end is at its end.
pub(crate) fn watched() -> (File, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    (File::from(OwnedFd::from(writer)), reader)
}

const ADD: &str = "{\"command\":\"add\",\"endpoint\":\"0:3.0\"}\n";
const REMOVE: &str = "{\"command\":\"remove\",\"endpoint\":\"0x18\"}\n";

#[test]
fn a_device_is_added_with_its_file_and_let_go_of_when_it_is_removed() {
    let served = Served::new();
    let mut client = served.client();
    let (file, mut other_end) = watched();
    client.send(ADD, &[&file]);
    assert_eq!(client.reply(), r#"{"result":{}}"#);
    let inode = |file: &OwnedFd| fstat(file).expect("open").st_ino;
    let theirs = lock(&served.double.device).as_ref().map(inode);
    assert_eq!(theirs, Some(fstat(&file).expect("open").st_ino));
    drop(file);
    assert_eq!(client.ask(REMOVE.trim()), r#"{"result":{}}"#);
    assert_eq!(other_end.read(&mut [0]).expect("nobody holds it"), 0);
    assert_eq!(client.ask(REMOVE.trim()), r#"{"error":{"code":"no-device","message":"none"}}"#);
    assert_eq!(*lock(&served.double.asked), ["add 24", "remove 24", "remove 24"]);
}

#[test]
fn an_endpoint_is_blocked_and_unblocked_however_it_is_written() {
    let served = Served::new();
    let mut client = served.client();
    for (command, endpoint) in [("block", "00:03.0"), ("unblock", "24"), ("block", "0x18")] {
        let line = format!(r#"{{"command":"{command}","endpoint":"{endpoint}"}}"#);
        assert_eq!(client.ask(&line), r#"{"result":{}}"#);
    }
    assert_eq!(*lock(&served.double.asked), ["block 24", "unblock 24", "block 24"]);
}

#[test]
fn what_is_no_request_is_answered_and_the_next_line_served() {
    let served = Served::new();
    let mut client = served.client();
    for (line, code) in [
        ("", "invalid-request"),
        ("list", "invalid-request"),
        ("\u{0}\u{1b}[31m", "invalid-request"),
        (&"[".repeat(4000), "invalid-request"),
        (r#"{"command":"remove","endpoint":"eth0"}"#, "unknown-endpoint"),
        (ADD.trim(), "no-descriptor"),
    ] {
        let reply = client.ask(line);
        assert!(reply.starts_with(&format!(r#"{{"error":{{"code":"{code}","message":""#)), "{line}: {reply}");
        client.assert_served();
    }
    assert!(lock(&served.double.asked).is_empty());
}

#[test]
fn lines_may_come_in_pieces_and_many_at_once() {
    let served = Served::new();
    let mut client = served.client();
    for byte in r#"{"command":"list"}"#.chars() {
        client.send(&byte.to_string(), &[]);
    }
    assert!(client.ask("").starts_with(r#"{"result""#));
    client.send(&"{\"command\":\"list\"}\n".repeat(100), &[]);
    for _ in 0..100 {
        assert!(client.reply().starts_with(r#"{"result""#));
    }
}

#[test]
fn a_line_without_an_end_ends_the_connection() {
    let served = Served::new();
    let mut client = served.client();
    client.0.get_ref().write_all(&[b' '; LINE_MAX]).expect("there is room");
    let reply = client.reply();
    assert!(reply.contains("a line has more than 4096 bytes"), "{reply}");
    client.assert_closed();
    served.client().assert_served();
}

#[test]
fn files_that_nobody_asked_for_are_closed() {
    let served = Served::new();
    let (file, mut other_end) = watched();
    let mut client = served.client();
    client.send("{\"command\":\"list\"}\n", &[&file]);
    assert!(client.reply().starts_with(r#"{"result""#));
    drop(client);
    for count in [2, 8] {
        let mut client = served.client();
        client.send(ADD, &vec![&file; count]);
        let reply = client.reply();
        assert!(reply.contains("more than one file descriptor"), "{reply}");
        client.assert_closed();
    }
    let mut client = served.client();
    client.send("{", &[&file]);
    client.send("}", &[&file]);
    assert!(client.reply().contains("more than one file descriptor"));
    client.assert_closed();
    drop(file);
    assert_eq!(other_end.read(&mut [0]).expect("nobody holds it"), 0);
    assert!(lock(&served.double.asked).is_empty());
}

#[test]
fn clients_that_are_silent_or_do_not_read_keep_nobody_from_being_served() {
    let served = Served::new();
    let mut early = served.client();
    early.assert_served();
    let silent: Vec<Client> = (0..3 * CONNECTIONS_MAX).map(|_| served.client()).collect();
    for client in &silent {
        // Fails for those that had to go already.
        let _ = client.0.get_ref().write(b"{");
    }
    let deaf = served.client();
    deaf.0.get_ref().set_nonblocking(true).expect("set");
    while deaf.0.get_ref().write(&b"\n".repeat(1000)).is_ok() {}
    for _ in 0..3 {
        served.client().assert_served();
    }
    // Whoever was silent for longest had to go.
    early.assert_closed();
}

#[test]
fn a_client_that_has_said_all_gets_its_replies() {
    let served = Served::new();
    let mut client = served.client();
    client.send("{\"command\":\"list\"}\n{\"command\":\"list\"}\n{", &[]);
    client.0.get_ref().shutdown(std::net::Shutdown::Write).expect("open");
    let mut replies = String::new();
    client.0.read_to_string(&mut replies).expect("to the end");
    assert_eq!(replies.lines().count(), 2);
}
