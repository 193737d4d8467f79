// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ctrl-C: ends the demo's processes, and the demo then finds them gone and cleans up behind itself.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::iterator::Signals;

/// Whether a signal came, and what it ends.
pub struct Interrupt {
    processes: Arc<Mutex<Vec<Pid>>>,
    came: Arc<AtomicBool>,
}

impl Interrupt {
    /// Waits for a signal, on a thread of its own, as long as the demo runs.
    pub fn watch() -> io::Result<Interrupt> {
        let interrupt = Interrupt { processes: Arc::default(), came: Arc::default() };
        let (processes, came) = (interrupt.processes.clone(), interrupt.came.clone());
        let mut signals = Signals::new(TERM_SIGNALS)?;
        thread::spawn(move || {
            for _ in signals.forever() {
                came.store(true, Ordering::Relaxed);
                let processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                processes.iter().copied().for_each(end);
            }
        });
        Ok(interrupt)
    }

    /// Adds a process that a signal ends; at once, if it came already.
    pub fn ends(&self, process: u32) {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw);
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.extend(process);
        if self.came() {
            process.into_iter().for_each(end);
        }
    }

    /// Whether a signal came.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}

fn end(process: Pid) {
    // Fails only for a process that is gone already, by the same Ctrl-C.
    let _ = kill_process(process, Signal::TERM);
}
