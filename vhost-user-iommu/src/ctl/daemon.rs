// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as its clients see it: a request, and what answers it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::CtlError;
use super::lines::Lines;
use crate::control::protocol::{Refusal, Reply, Request};
use crate::usage_error::UsageError;

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Daemon(Lines);

/// What answers a request.
#[derive(Debug)]
pub struct Answer {
    /// As it came.
    pub line: String,
    /// What it says.
    pub reply: Reply,
}

impl Daemon {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Daemon, UsageError> {
        Lines::connect(path).map(Daemon).map_err(|error| {
            UsageError::new(
                format!("no daemon can be asked there: {error}"),
                "name the PATH that the daemon was given as --control, as the daemon's user",
            )
            .about("socket", path.display().to_string())
        })
    }

    /// Asks, with the file that goes with the request.
    ///
    /// # Errors
    /// There is no reply, or none that makes sense. That the daemon refuses is none.
    pub fn ask(&mut self, request: &Request, file: Option<BorrowedFd<'_>>) -> Result<Answer, CtlError> {
        let line = serde_json::to_string(request).map_err(io::Error::from)?;
        self.0.send(&line, file, PATIENCE)?;
        let line = self.0.receive(Instant::now() + PATIENCE)?;
        let reply = serde_json::from_str(&line).map_err(io::Error::from)?;
        Ok(Answer { line, reply })
    }
}

impl Answer {
    /// What the daemon would answer, did it know.
    pub fn refused(refusal: Refusal) -> Answer {
        let reply = Reply::Error(refusal);
        Answer { line: serde_json::to_string(&reply).unwrap_or_default(), reply }
    }
}

/// Far more than a daemon takes that waits for the host's kernel and for other devices.
const PATIENCE: Duration = Duration::from_secs(60);
