// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one kind of error a user can make on the command line or in a configuration file.
//!
//! Says what is wrong, where, and how to mend it, in one line. Not for errors of a running daemon.

use std::fmt::{self, Write};
use std::io;

/// Something the user asked for that cannot be done.
///
/// Shown as one line, `WHERE: WHAT IS WRONG; HOW TO MEND IT`, whatever the user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError {
    subject: Option<Subject>,
    place: Option<String>,
    problem: String,
    mend: String,
}

/// The option an error is about, and the value it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The long name, without dashes.
    pub(crate) option: String,
    /// The value as typed.
    pub(crate) value: String,
}

impl UsageError {
    /// An error that says what is wrong and how to mend it.
    pub fn new(problem: impl Into<String>, mend: impl Into<String>) -> UsageError {
        UsageError { subject: None, place: None, problem: problem.into(), mend: mend.into() }
    }

    /// The system refuses what every program may have some of.
    pub(crate) fn short_of(error: io::Error) -> UsageError {
        UsageError::new(
            format!("the system refuses a file descriptor, a thread or a process: {error}"),
            "raise its limits (ulimit)",
        )
    }

    /// A program that talks to itself has no place to do so.
    pub(crate) fn no_folder(error: io::Error) -> UsageError {
        UsageError::new(
            format!("no socket can be made in a folder for temporary files: {error}"),
            "name another folder in TMPDIR, with a short path",
        )
    }

    /// The same error, said of the option `option` (its long name without dashes) with the value `value`.
    pub(crate) fn about(mut self, option: &str, value: impl Into<String>) -> UsageError {
        self.subject = Some(Subject { option: option.to_owned(), value: value.into() });
        self
    }

    /// The same error, found at `place`: `FILE` or `FILE:LINE`.
    pub(crate) fn at(mut self, place: impl Into<String>) -> UsageError {
        self.place = Some(place.into());
        self
    }

    /// The same error, said to who gave the value in another way than by its option.
    pub(crate) fn of_no_option(mut self) -> UsageError {
        self.place = self.place.or(self.subject.take().map(|subject| subject.value));
        self
    }

    /// The option the error is about, if it is about one.
    pub(crate) fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }
}

impl std::error::Error for UsageError {}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine(f);
        if let Some(place) = &self.place {
            write!(line, "{place}: ")?;
        }
        if let Some(Subject { option, value }) = &self.subject {
            let dashes = if self.place.is_none() { "--" } else { "" };
            write!(line, "{dashes}{option} {value}: ")?;
        }
        write!(line, "{}; {}", self.problem, self.mend)
    }
}

/// Writes control characters escaped: values and paths are echoed, and may hold line breaks.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| {
            if c.is_control() { write!(self.0, "{}", c.escape_default()) } else { self.0.write_char(c) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_names_place_option_problem_and_mend() {
        let error = UsageError::new("not a size", "write 4k").about("granule", "4\nk");
        assert_eq!(error.to_string(), r"--granule 4\nk: not a size; write 4k");
        let placed = error.at("vm.toml:3");
        assert_eq!(placed.to_string(), r"vm.toml:3: granule 4\nk: not a size; write 4k");
    }
}
