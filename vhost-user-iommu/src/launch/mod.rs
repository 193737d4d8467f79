// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `launch`: starts the daemon, and when that is ready becomes the VMM, with the same device files open in both.
//!
//! A physical device is driven by both: the VMM binds it to an iommufd, the daemon attaches it to address spaces. So
//! somebody has to open the files before either runs. Does nothing with them itself.

mod daemon;
mod files;

mod options;
mod print;
mod template;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, ExitStatus};

use clap::ArgMatches;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::Config;
use crate::fd::withhold_inherited;
use crate::host::Host;
use crate::signals::EndSignals;
use crate::usage_error::UsageError;

use daemon::{Daemon, NotReady, Notices};
use files::{Files, Passed};

use template::{File, Word, files_to_share, placeholder};

/// Start the daemon, then this VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchCommand {
    config: Config,
    /// The daemon's options.
    daemon: Vec<Word>,
    /// The VMM's program and arguments.
    vmm: Vec<Word>,
    print: bool,
}

/// Why there is no VMM.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What was asked for cannot be done.
    #[error(transparent)]
    Refused(#[from] UsageError),
    /// The daemon has refused, and has said why.
    #[error("the daemon ended before it was ready ({0}); the VMM is not started")]
    DaemonEnded(ExitStatus),
    /// This process was told to end while it waited.
    #[error("told to end by signal {0}; the VMM is not started")]
    Told(i32),
}

impl LaunchCommand {
    /// To start the daemon with `config`, which is what `given` comes to, and then `vmm`.
    ///
    /// # Errors
    /// The VMM's arguments do not name the files that it has to share, or others.
    pub(crate) fn new(
        config: Config,
        given: &ArgMatches,
        vmm: &[OsString],
        print: bool,
    ) -> Result<LaunchCommand, UsageError> {
        if let Some(number) = config.exit_with {
            let error = UsageError::new("the daemon is to end with the VMM", "leave the option to launch");
            return Err(error.about("exit-with", number.to_string()));
        }
        let daemon = options::of_daemon(given, &config);
        let vmm = vmm.iter().map(|word| Word::parse(word, &config)).collect::<Result<Vec<_>, _>>()?;
        check_shared(&vmm, &config)?;
        Ok(LaunchCommand { config, daemon, vmm, print })
    }

    /// Becomes the VMM, or only says how that would be done.
    ///
    /// # Errors
    /// There is no VMM; no daemon is left then either.
    pub fn run(&self) -> Result<(), LaunchError> {
        if self.print {
            print!("{}", self.script());
            return Ok(());
        }
        if let Some(note) = print::note(self) {
            eprintln!("vhost-user-iommu: {note}");
        }
        let mut signals = EndSignals::catch_unless_ignored().map_err(UsageError::short_of)?;
        let files = Files::open(&self.config, &Host::new())?;
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|errno| UsageError::short_of(errno.into()))?;
        let notices = Notices::new().map_err(UsageError::no_folder)?;
        let mut daemon = self.start_daemon(&files, read, &notices).map_err(UsageError::short_of)?;
        let ready = daemon.wait_until_ready(&notices, &mut signals);
        drop(notices);
        let error = match ready.and_then(|()| signals.let_through().map_err(NotReady::Signal)) {
            Ok(()) => self.become_vmm(&files, &write).into(),
            Err(NotReady::Ended(status)) => return Err(LaunchError::DaemonEnded(status)),
            Err(NotReady::System(error)) => UsageError::short_of(error).into(),
            Err(NotReady::Signal(signal)) => LaunchError::Told(signal),
        };
        // If it does not end now, it does when the pipe is closed.
        let _ = daemon.end();
        Err(error)
    }

    /// How a shell does the same.
    pub fn script(&self) -> String {
        print::script(self)
    }

    fn start_daemon(&self, files: &Files, pipe: OwnedFd, notices: &Notices) -> io::Result<Daemon> {
        // What the caller left open is the VMM's business.
        let _withheld = withhold_inherited()?;
        let passed = Passed::new(files.iter().chain([(File::Pipe, pipe.as_fd())]))?;
        Daemon::start(&self.daemon, &passed, notices)
    }

    /// Comes back only with the reason why that cannot be.
    fn become_vmm(&self, files: &Files, pipe: &OwnedFd) -> UsageError {
        let named: Vec<File> = self.vmm.iter().flat_map(Word::files).collect();
        let files = files.iter().filter(|(file, _)| named.contains(file));
        let passed = match Passed::new(files.chain([(File::Pipe, pipe.as_fd())])) {
            Ok(passed) => passed,
            Err(error) => return UsageError::short_of(error),
        };
        let mut words = self.vmm.iter().map(|word| word.fill(|file| passed.number_of(file)));
        let program = words.next().unwrap_or_default();
        let error = process::Command::new(&program).args(words).exec();
        UsageError::new(
            format!("the VMM {} cannot be started: {error}", program.display()),
            "name a program that is there and may be executed, after `--`",
        )
    }
}

impl LaunchError {
    /// The status to exit with.
    pub fn exit_status(&self) -> u8 {
        let code = match self {
            LaunchError::Refused(_) => None,
            LaunchError::DaemonEnded(status) => status.code().or(status.signal().map(|signal| 128 + signal)),
            LaunchError::Told(signal) => Some(128 + signal),
        };
        code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(2)
    }
}

/// Refuses a VMM that is not told of every file that it has to share.
fn check_shared(vmm: &[Word], config: &Config) -> Result<(), UsageError> {
    let named: Vec<File> = vmm.iter().flat_map(Word::files).collect();
    match files_to_share(config).into_iter().find(|file| !named.contains(file)) {
        None => Ok(()),
        Some(file) => {
            let name = placeholder(file, config);
            let option = match file {
                File::Device(_) => format!("-device vfio-pci,iommufd=iommufd0,fd={name}"),
                _ => format!("-object iommufd,id=iommufd0,fd={name}"),
            };
            let problem = format!("`{name}` is missing in the VMM's arguments, which has to share the file");
            Err(UsageError::new(problem, format!("for QEMU, add {option}")))
        }
    }
}

#[cfg(test)]
mod tests;
