// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the words of a command line to what is to be done.
//!
//! Prints help and version, which end the process; does nothing else of what it returns.

use std::{ffi::OsString, path::Path};

use clap::{ArgMatches, CommandFactory, FromArgMatches, error::ErrorKind, parser::ValueSource};

use super::{Config, EndpointConfig, clap_error, file::ConfigFile};
use crate::usage_error::UsageError;
use crate::{
    args::{Args, LaunchArgs, Tool, ViotArgs},
    ctl::CtlCommand,
    launch::LaunchCommand,
    viot::ViotCommand,
};

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve the device until told to stop.
    Serve(Config),
    /// Write a VIOT table.
    Viot(ViotCommand),
    /// Start the daemon, then a VMM.
    Launch(LaunchCommand),
    /// Ask a running daemon.
    Ctl(CtlCommand),
    /// Say in JSON what this program can do.
    PrintCapabilities,
}

/// Parses a command line, whose first word is the program's name, and the configuration file that it names.
///
/// `--help` and `--version` are answered here, and end the process.
///
/// # Errors
/// Anything that cannot be done as asked.
pub fn parse(words: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command, UsageError> {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let own = words.iter().skip(1).take_while(|word| *word != "--");
    if own.into_iter().any(|word| word == "--print-capabilities") {
        return Ok(Command::PrintCapabilities);
    }
    let (matches, args) = read(&words)?;
    match (args.tool, matches.subcommand()) {
        (Some(Tool::Viot(viot)), _) => parse_viot(viot).map(Command::Viot),
        (Some(Tool::Launch(launch)), Some((_, given))) => {
            parse_launch(&words, given, &launch).map(Command::Launch)
        }
        (Some(Tool::Ctl(ctl)), _) => CtlCommand::new(ctl).map(Command::Ctl),
        _ => parse_serve(&words, &matches, args.config.as_deref()).map(Command::Serve),
    }
}

fn read(words: &[OsString]) -> Result<(ArgMatches, Args), UsageError> {
    let read = || {
        let matches = Args::command().try_get_matches_from(words)?;
        let args = Args::from_arg_matches(&matches)?;
        Ok((matches, args))
    };
    read().map_err(|error: clap::Error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => clap_error::to_usage_error(&error),
    })
}

fn parse_serve(words: &[OsString], given: &ArgMatches, path: Option<&Path>) -> Result<Config, UsageError> {
    let file = load_beside(given, path)?;
    let (_, args) = read(&with_file(words, 1, &file))?;
    let config = Config::from_options(args.options);
    config.and_then(|config| config.check_served().map(|()| config)).map_err(|error| file.locate(error))
}

fn parse_launch(
    words: &[OsString],
    given: &ArgMatches,
    args: &LaunchArgs,
) -> Result<LaunchCommand, UsageError> {
    let file = load_beside(given, args.config.as_deref())?;
    // The subcommand is the second word, since options before it are refused.
    let (matches, all) = read(&with_file(words, 2, &file))?;
    let (Some(Tool::Launch(all)), Some((_, given))) = (all.tool, matches.subcommand()) else {
        return Err(UsageError::new("`launch` is not the first argument", "give it before all options"));
    };
    let launch = Config::from_options(all.options)
        .and_then(|config| LaunchCommand::new(config, given, &all.vmm, all.print));
    launch.map_err(|error| file.locate(error))
}

fn parse_viot(args: ViotArgs) -> Result<ViotCommand, UsageError> {
    let file = load(args.config.as_deref())?;
    let mut endpoints: Vec<EndpointConfig> = file.endpoints()?;
    endpoints.extend(args.endpoints);
    ViotCommand::new(args.iommu, &endpoints, args.output).map_err(|error| file.locate(error))
}

/// The file, without what the options `given` take precedence over.
fn load_beside(given: &ArgMatches, path: Option<&Path>) -> Result<ConfigFile, UsageError> {
    let mut file = load(path)?;
    file.yield_to(|key| given.value_source(&key.replace('-', "_")) == Some(ValueSource::CommandLine));
    Ok(file)
}

/// The command line with the file's options before those that stand there, after the first `own` words.
fn with_file(words: &[OsString], own: usize, file: &ConfigFile) -> Vec<OsString> {
    let (own, given) = words.split_at(words.len().min(own));
    let from_file = file.options().map(OsString::from);
    own.iter().cloned().chain(from_file).chain(given.iter().cloned()).collect()
}

fn load(path: Option<&Path>) -> Result<ConfigFile, UsageError> {
    path.map_or_else(|| Ok(ConfigFile::default()), ConfigFile::load)
}
