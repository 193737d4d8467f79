// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells apart who wrote a line of the host's console, and reads each writer's lines on their own.

use std::time::Duration;

use anyhow::Result;

use crate::guest::RunningGuest;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stream {
    /// A guest, on its console.
    Guest,
    /// The monitor of the guest's QEMU.
    Monitor,
    /// QEMU itself, and what started it.
    Vmm,
    /// The host: what its commands wrote.
    Host,
}

/// How far each writer's lines were read.
#[derive(Debug, Default)]
pub(super) struct Streams {
    next: [usize; 4],
}

impl Stream {
    const MARKED: [(Stream, &str); 3] =
        [(Stream::Guest, "guest| "), (Stream::Monitor, "qmp| "), (Stream::Vmm, "vmm| ")];

    /// Who wrote this line, and the line without its mark.
    pub(super) fn of(line: &str) -> (Stream, &str) {
        let marked = |(stream, mark)| Some((stream, line.strip_prefix(mark)?));
        Self::MARKED.into_iter().find_map(marked).unwrap_or((Stream::Host, line))
    }
}

impl Streams {
    /// Skips what was written so far.
    pub(super) fn skip(&mut self, machine: &RunningGuest) {
        self.next = [machine.lines().len(); 4];
    }

    /// The first line of this writer's, after the last one that was waited for, that contains `pattern`.
    pub(super) fn wait_for(
        &mut self,
        machine: &RunningGuest,
        stream: Stream,
        pattern: &str,
        within: Duration,
    ) -> Result<String> {
        let next = &mut self.next[stream as usize];
        let is_it =
            |line: &str| matches!(Stream::of(line), (of, text) if of == stream && text.contains(pattern));
        let what = format!("{pattern:?} of {stream:?}");
        let (position, line) = machine.wait_for_line(*next, is_it, &what, within)?;
        *next = position + 1;
        Ok(Stream::of(&line).1.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_writers_without_the_mark() {
        assert_eq!(Stream::of("guest| guest: init 1.2"), (Stream::Guest, "guest: init 1.2"));
        assert_eq!(Stream::of("qmp| {}"), (Stream::Monitor, "{}"));
        assert_eq!(Stream::of("VmPin: 3 kB"), (Stream::Host, "VmPin: 3 kB"));
    }
}
