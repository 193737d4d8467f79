// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the control socket that sends anything, with file descriptors or without: answered line by line, and
//! nothing of it is left.
//!
//! An input is lines. The first byte of each is not sent: `f` sends a file descriptor along, `g` two, any other none.

use std::cell::RefCell;
use std::io::{ErrorKind, IoSlice, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_user_iommu::EndpointConfig;
use vhost_user_iommu::control::protocol::{Code, EndpointStatus, Refusal, Reply, VFIO};
use vhost_user_iommu::control::{Connection, Controlled, reply};
use viommu_core::EndpointId;

/// Endpoint 1, whose device is any file.
#[derive(Default)]
struct Device(RefCell<Option<OwnedFd>>);

/// Sends what `data` says, and reads what answers it.
pub fn run(data: &[u8]) {
    let (mut file_reader, file) = std::io::pipe().expect("file descriptors");
    serve(data, &file);
    drop(file);
    // Nobody has a duplicate any more.
    assert_eq!(file_reader.read(&mut [0]).expect("a pipe"), 0);
}

fn serve(data: &[u8], file: &PipeWriter) {
    let (client, server) = UnixStream::pair().expect("file descriptors");
    client.set_nonblocking(true).expect("a socket");
    let (device, mut connection) = (Device::default(), Connection::new(server));
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let (kind, text) = line.split_first().expect("it is not empty");
        let files = match kind {
            b'f' => vec![file.as_fd()],
            b'g' => vec![file.as_fd(), file.as_fd()],
            _ => vec![],
        };
        send(&client, text, &files);
        // Each time takes what has come, once.
        let mut times = 0..text.len() / 1024 + 2;
        let is_over = times.any(|_| connection.serve(|line| reply(line, &device)).is_err());
        check_replies(&client);
        if is_over {
            return;
        }
    }
}

/// As much as the socket takes.
fn send(client: &UnixStream, text: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    let _ = sendmsg(client, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL);
}

fn check_replies(mut client: &UnixStream) {
    let mut replies = Vec::new();
    if let Err(error) = client.read_to_end(&mut replies) {
        assert!([ErrorKind::WouldBlock, ErrorKind::ConnectionReset].contains(&error.kind()), "{error}");
    }
    let text = String::from_utf8(replies).expect("UTF-8");
    for line in text.lines() {
        serde_json::from_str::<Reply>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    assert!(text.is_empty() || text.ends_with('\n'));
}

impl Controlled for Device {
    fn endpoints(&self) -> Vec<EndpointStatus> {
        let (endpoint, kind, state) = ("1".to_owned(), VFIO.to_owned(), "blocked".to_owned());
        vec![EndpointStatus { endpoint, kind, device: None, state, domain: None, reason: None }]
    }

    fn block(&self, _: EndpointId) -> Result<(), Refusal> {
        Ok(())
    }

    fn unblock(&self, _: EndpointId) -> Result<(), Refusal> {
        Err(Refusal::new(Code::BackEnd, "none"))
    }

    fn remove(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        match self.0.take() {
            Some(_) if endpoint == EndpointId(1) => Ok(()),
            _ => Err(Refusal::new(Code::NoDevice, "none")),
        }
    }

    fn add(&self, _: &EndpointConfig, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let cdev = file.ok_or_else(|| Refusal::new(Code::NoDescriptor, "none"))?;
        self.0.replace(Some(cdev));
        Ok(())
    }
}
