// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The signals that ask a process to end, as a file descriptor to wait for.
//!
//! What becomes of the process then is its own matter.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, atomic::AtomicBool};
use std::{fs, io};

use signal_hook::consts::{SIGHUP, TERM_SIGNALS};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// SIGTERM, SIGINT, SIGQUIT and SIGHUP, which end the process no more by themselves.
#[derive(Debug)]
pub struct EndSignals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    caught: Vec<c_int>,
}

impl EndSignals {
    /// Catches all of them.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn catch() -> io::Result<EndSignals> {
        EndSignals::of(end_signals())
    }

    /// Catches those that whoever started this process did not have it ignore.
    ///
    /// # Errors
    /// The process has no file descriptor left, or /proc cannot be read.
    pub fn catch_unless_ignored() -> io::Result<EndSignals> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        EndSignals::of(end_signals().filter(|signal| ignored >> (signal - 1) & 1 == 0))
    }

    /// One that has arrived since the last call.
    pub fn arrived(&mut self) -> Option<c_int> {
        self.delivery.pending().next()
    }

    /// From now on, lets the caught signals do what they do by themselves.
    ///
    /// # Errors
    /// One has arrived before.
    pub fn let_through(&mut self) -> Result<(), c_int> {
        let always = Arc::new(AtomicBool::new(true));
        for signal in &self.caught {
            // Fails only for signals that cannot be caught.
            let _ = register_conditional_default(*signal, always.clone());
        }
        self.arrived().map_or(Ok(()), Err)
    }

    fn of(signals: impl Iterator<Item = c_int>) -> io::Result<EndSignals> {
        let (read, write) = UnixStream::pair()?;
        let caught: Vec<c_int> = signals.collect();
        Ok(EndSignals { delivery: SignalDelivery::with_pipe(read, write, SignalOnly, &caught)?, caught })
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

/// The set of ignored signals in the status of a process, signal 1 in bit 0.
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or_default()
}

fn end_signals() -> impl Iterator<Item = c_int> {
    TERM_SIGNALS.iter().copied().chain([SIGHUP])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status =
            "Name:\tsh\nSigBlk:\t0000000000000004\nSigIgn:\t8000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(ignored(status), 1 << 63 | 1 << 12 | 1);
        assert_eq!(ignored(""), 0);
    }
}
