// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel refused, and why.

use std::fmt;

use rustix::io::Errno;

use crate::uapi::ioctl::Command;

/// A call that failed: its name, what it was about, and the kernel's reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}{about}: {errno}")]
pub struct Error {
    call: &'static str,
    about: String,
    errno: Errno,
}

/// What nearly everything here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Of an ioctl; `about` says on what.
    pub(crate) fn of<C: Command>(errno: Errno, about: fmt::Arguments<'_>) -> Error {
        Error { call: C::NAME, about: format!(" ({about})"), errno }
    }

    /// Of any other system call.
    pub(crate) fn of_call(call: &'static str, errno: Errno, about: fmt::Arguments<'_>) -> Error {
        Error { call, about: format!(" ({about})"), errno }
    }

    /// The kernel's reason.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The call as the kernel's headers name it.
    pub fn call(&self) -> &'static str {
        self.call
    }
}
