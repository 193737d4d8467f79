// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the control socket: lines that come with file descriptors, and lines that go out. Never blocks.
//!
//! A client can make this hold one line, one file descriptor and one reply.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::cmsg_space;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};

/// Bytes of a line at most, with its end.
pub const LINE_MAX: usize = 4096;

/// A connection to a client.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    input: Vec<u8>,
    file: Option<OwnedFd>,
    output: Vec<u8>,
    is_over: bool,
    last_heard: Instant,
}

/// There is nothing more to come.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// What a client did that ends its connection with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// A line of more than [`LINE_MAX`] bytes.
    Line,
    /// More than one file descriptor for a line.
    Files,
}

impl Connection {
    /// To a client that has just come.
    pub fn new(socket: UnixStream) -> Connection {
        let (input, output) = (Vec::new(), Vec::new());
        Connection { socket, input, file: None, output, is_over: false, last_heard: Instant::now() }
    }

    /// When something last came from it.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// What to wait for: nothing more is read while a reply waits to be sent.
    pub fn interest(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on where the socket allows it; `answer` makes a reply of each line, and of an excess.
    ///
    /// # Errors
    /// The client is gone, or has to go.
    pub fn serve(&mut self, answer: impl Fn(Result<Line<'_>, Excess>) -> String) -> Result<(), Closed> {
        self.flush()?;
        if self.output.is_empty() && !self.input.contains(&b'\n') {
            // Once: there may be others who wait.
            if let Some(excess) = self.receive()? {
                self.is_over = true;
                self.reply(&answer(Err(excess)))?;
            }
        }
        while self.output.is_empty() && !self.is_over {
            let Some(text) = self.next_line() else { break };
            let reply = answer(Ok(Line { text: &text, file: &mut self.file }));
            self.reply(&reply)?;
        }
        if self.is_over && self.output.is_empty() { Err(Closed) } else { Ok(()) }
    }

    fn reply(&mut self, reply: &str) -> Result<(), Closed> {
        self.output.extend_from_slice(reply.as_bytes());
        self.output.push(b'\n');
        self.flush()
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    /// Takes what has come; an excess in it is returned.
    fn receive(&mut self) -> Result<Option<Excess>, Closed> {
        let mut bytes = [0; LINE_MAX];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let room = &mut bytes[..LINE_MAX - self.input.len()];
        let received = match recvmsg(&self.socket, &mut [IoSliceMut::new(room)], &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(_) => return Err(Closed),
            Ok(received) if received.bytes == 0 => return Err(Closed),
            Ok(received) => received,
        };
        let files: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
        self.last_heard = Instant::now();
        self.input.extend_from_slice(room.get(..received.bytes).unwrap_or_default());
        let is_cut = received.flags.contains(ReturnFlags::CTRUNC);
        if is_cut || files.len() + usize::from(self.file.is_some()) > 1 {
            return Ok(Some(Excess::Files));
        }
        self.file = self.file.take().or(files.into_iter().next());
        let is_full = self.input.len() == LINE_MAX && !self.input.contains(&b'\n');
        Ok(is_full.then_some(Excess::Line))
    }

    fn flush(&mut self) -> Result<(), Closed> {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A line, and the file descriptor that came before its end and that no line before has taken.
#[derive(Debug)]
pub struct Line<'a> {
    /// Without its end.
    pub text: &'a [u8],
    /// To be taken.
    pub file: &'a mut Option<OwnedFd>,
}

fn rights(message: RecvAncillaryMessage<'_>) -> Option<impl Iterator<Item = OwnedFd>> {
    match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    }
}
