// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's monitor (QMP), as far as it takes to plug in a device and to unplug it.
//!
//! Whoever answers may be anybody: every answer is checked, and none is waited for without end. To read: QEMU,
//! `docs/interop/qmp-spec.rst`, and `getfd`, `device_add` and `device_del` in its QMP reference.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::lines::Lines;
use super::properties::Properties;
use crate::usage_error::UsageError;

/// A connection to the monitor, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines,
    /// How long an answer may take.
    patience: Duration,
}

/// Why a command is not done.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU says why, and has done nothing.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// The guest says so.
    #[error("the guest refuses to let go of {0}")]
    RefusedByGuest(String),
    /// The guest has said nothing yet.
    #[error("the guest has not let go of {0} in time")]
    NotYet(String),
    /// There is no telling whether it is done.
    #[error("there is no answer of QEMU's to {command}: {error}")]
    NoAnswer {
        /// The command.
        command: &'static str,
        /// What there is instead.
        error: io::Error,
    },
}

/// A line of the monitor's: of these keys it has one, and those that go with it.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    done: Option<Value>,
    error: Option<Reason>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    desc: String,
}

impl Qmp {
    /// Connects to the monitor that listens at `path`, which has to be served to one client at a time.
    ///
    /// # Errors
    /// Nobody listens there, or it is no monitor, or one that another client has.
    pub fn connect(path: &Path, patience: Duration) -> Result<Qmp, UsageError> {
        let refuse = |problem: String, mend: &str| {
            UsageError::new(problem, mend).about("qmp", path.display().to_string())
        };
        let lines = Lines::connect(path).map_err(|error| {
            let mend =
                "start QEMU with -qmp unix:PATH,server=on,wait=off, and name that PATH, as QEMU's user";
            refuse(format!("no monitor of QEMU's can be asked there: {error}"), mend)
        })?;
        let mut qmp = Qmp { lines, patience };
        let greeted = qmp.greet().and_then(|()| qmp.execute("qmp_capabilities", json!({}), None));
        greeted.map_err(|error| {
            let mend = "name a QMP socket that no other program is connected to: QEMU serves one at a time";
            refuse(error.to_string(), mend)
        })?;
        Ok(qmp)
    }

    /// Hands over a file, which a command after this can name as `name`.
    ///
    /// # Errors
    /// Of the command.
    pub fn pass(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute("getfd", json!({ "fdname": name }), Some(file))
    }

    /// Closes a file that was handed over and that no command has taken.
    ///
    /// # Errors
    /// Of the command; there is no such file, for example.
    pub fn close(&mut self, name: &str) -> Result<(), QmpError> {
        self.execute("closefd", json!({ "fdname": name }), None)
    }

    /// Plugs in a device of the host, which `properties` name by the file that was handed over as `file`.
    ///
    /// # Errors
    /// Of the command.
    pub fn add_device(&mut self, properties: &Properties, file: &str) -> Result<(), QmpError> {
        self.execute(ADD, Value::Object(properties.with([DRIVER, ("fd", file)])), None)
    }

    /// Has QEMU find out what it would refuse in `properties`, without a file.
    ///
    /// It keeps what it is handed over if it refuses the device after that, under the device's id; a second attempt with
    /// this id may then end QEMU. Without a file it comes as far as to miss one.
    ///
    /// # Errors
    /// Of the command.
    pub fn rehearse(&mut self, properties: &Properties) -> Result<(), QmpError> {
        match self.execute(ADD, Value::Object(properties.with([DRIVER])), None) {
            Err(QmpError::Refused { reason, .. }) if reason.contains(MISSED) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(odd(ADD, "it takes a device that is none of the host's".to_owned())),
        }
    }

    /// Unplugs the device called `name`, and waits until the guest has let go of it.
    ///
    /// # Errors
    /// Of the command, and of the guest.
    pub fn delete_device(&mut self, name: &str) -> Result<(), QmpError> {
        let until = Instant::now() + self.patience;
        self.send(DELETE, json!({ "id": name }), None)?;
        let (mut is_told, mut is_gone) = (false, false);
        while !(is_told && is_gone) {
            let message = match self.receive(DELETE, until) {
                Err(QmpError::NoAnswer { error, .. })
                    if is_told && error.kind() == io::ErrorKind::TimedOut =>
                {
                    return Err(QmpError::NotYet(name.to_owned()));
                }
                message => message?,
            };
            is_told |= message.done.is_some();
            match message.event_of(name) {
                Some("DEVICE_DELETED") => is_gone = true,
                Some("DEVICE_UNPLUG_GUEST_ERROR") => return Err(QmpError::RefusedByGuest(name.to_owned())),
                _ => {}
            }
        }
        Ok(())
    }

    fn greet(&mut self) -> Result<(), QmpError> {
        let command = "a new connection";
        match self.receive(command, Instant::now() + self.patience)?.greeting {
            Some(_) => Ok(()),
            None => Err(odd(command, "it does not begin as QMP does".to_owned())),
        }
    }

    /// Waits for the answer; events that come before it are no matter.
    fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), QmpError> {
        let until = Instant::now() + self.patience;
        self.send(command, arguments, file)?;
        while self.receive(command, until)?.done.is_none() {}
        Ok(())
    }

    fn send(
        &mut self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), QmpError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.lines.send(&line, file, self.patience).map_err(|error| QmpError::NoAnswer { command, error })
    }

    /// The next line, which is a message that makes sense; `command` is what was asked for last.
    fn receive(&mut self, command: &'static str, until: Instant) -> Result<Message, QmpError> {
        let line = self.lines.receive(until).map_err(|error| QmpError::NoAnswer { command, error })?;
        let message: Message =
            serde_json::from_str(&line).map_err(|error| odd(command, error.to_string()))?;
        match message {
            Message { error: Some(Reason { desc }), .. } => {
                Err(QmpError::Refused { command, reason: desc.replace(char::is_control, " ") })
            }
            Message { greeting: None, done: None, event: None, .. } => {
                Err(odd(command, "a line is no message of QMP".to_owned()))
            }
            message => Ok(message),
        }
    }
}

impl Message {
    /// The event, if it is one of this device.
    fn event_of(&self, device: &str) -> Option<&str> {
        let of = self.data.as_ref()?.get("device")?.as_str()?;
        self.event.as_deref().filter(|_| of == device)
    }
}

fn odd(command: &'static str, problem: String) -> QmpError {
    QmpError::NoAnswer { command, error: io::Error::new(io::ErrorKind::InvalidData, problem) }
}

const ADD: &str = "device_add";
const DELETE: &str = "device_del";
const DRIVER: (&str, &str) = ("driver", "vfio-pci");
/// What QEMU says of such a device when there is nothing else to say.
const MISSED: &str = "No provided host device";
