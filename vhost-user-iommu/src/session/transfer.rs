// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state on its way through a pipe of the VMM.
//!
//! The VMM reads or writes only after its request is answered, and asks in the end how it went: so this is a thread's
//! work. A VMM that leaves its end alone ends it; nobody waits for it longer than that.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

use crate::iommu::Iommu;

use super::kick::non_blocking;

/// One transfer.
#[derive(Debug)]
pub struct Transfer(JoinHandle<io::Result<()>>);

/// How long the VMM may leave its end of the pipe alone.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
const PIECE: usize = 64 * 1024;

impl Transfer {
    /// Starts one in this direction; `done` is called when a state has been put into the device.
    ///
    /// # Errors
    /// The device's state cannot be moved, the pipe cannot be used, or the process has no thread left.
    pub fn start(
        direction: Direction,
        pipe: File,
        iommu: Arc<Iommu>,
        done: impl FnOnce() + Send + 'static,
    ) -> io::Result<Transfer> {
        let pipe = non_blocking(pipe)?;
        let work: Box<dyn FnOnce() -> io::Result<()> + Send> = match direction {
            Direction::SAVE => {
                let state = iommu.save().ok_or(ErrorKind::Unsupported)?;
                Box::new(move || write_all(pipe, &state))
            }
            Direction::LOAD => Box::new(move || {
                let state = read_all(pipe, iommu.state_size_max())?;
                iommu.load(&state).map_err(io::Error::other)?;
                done();
                Ok(())
            }),
        };
        let work = || work().inspect_err(|error| warn!("the device's state could not be moved: {error}"));
        Ok(Transfer(thread::Builder::new().name("state".to_owned()).spawn(work)?))
    }

    /// Waits until it is done; how it went.
    ///
    /// # Errors
    /// Not all has gone through, or what came was no state for this device.
    pub fn finish(self) -> io::Result<()> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the transfer has failed")))
    }
}

fn write_all(mut pipe: File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) => wait(&pipe, PollFlags::OUT, error)?,
        }
    }
    Ok(())
}

fn read_all(mut pipe: File, size_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(read) if bytes.len() + read > size_max => {
                return Err(io::Error::other(format!("it takes more than the {size_max} bytes that it can")));
            }
            Ok(read) => bytes.extend_from_slice(piece.get(..read).unwrap_or_default()),
            Err(error) => wait(&pipe, PollFlags::IN, error)?,
        }
    }
}

/// Waits until the pipe can be used again, if `error` says that it cannot now.
fn wait(pipe: &File, what: PollFlags, error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => return Ok(()),
        ErrorKind::WouldBlock => {}
        _ => return Err(error),
    }
    match poll(&mut [PollFd::new(pipe, what)], Some(&PATIENCE)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
