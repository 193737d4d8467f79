// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the words of a command line to what is to be done.
//!
//! Prints help and version, which end the process; does nothing else of what it returns.

use std::{ffi::OsString, path::Path};

use clap::{ArgMatches, CommandFactory, FromArgMatches, error::ErrorKind, parser::ValueSource};

use super::{Config, EndpointConfig, clap_error, file::ConfigFile};
use crate::usage_error::UsageError;
use crate::{
    args::{Args, Tool, ViotArgs},
    viot::ViotCommand,
};

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve the device until told to stop.
    Serve(Config),
    /// Write a VIOT table.
    Viot(ViotCommand),
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
    if words.iter().skip(1).any(|word| word == "--print-capabilities") {
        return Ok(Command::PrintCapabilities);
    }
    let (matches, args) = read(&words)?;
    match args.tool {
        Some(Tool::Viot(viot)) => parse_viot(viot).map(Command::Viot),
        None => parse_serve(&words, &matches, args.config.as_deref()).map(Command::Serve),
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

/// The file's options are read as if they stood on the command line before those that stand there.
fn parse_serve(words: &[OsString], matches: &ArgMatches, path: Option<&Path>) -> Result<Config, UsageError> {
    let mut file = load(path)?;
    file.yield_to(|key| matches.value_source(&key.replace('-', "_")) == Some(ValueSource::CommandLine));
    let (program, given) = words.split_at(words.len().min(1));
    let from_file = file.options().map(OsString::from);
    let all: Vec<OsString> = program.iter().cloned().chain(from_file).chain(given.iter().cloned()).collect();
    let (_, args) = read(&all)?;
    let config = Config::from_options(args.options);
    config.and_then(|config| config.check_served().map(|()| config)).map_err(|error| file.locate(error))
}

fn parse_viot(args: ViotArgs) -> Result<ViotCommand, UsageError> {
    let file = load(args.config.as_deref())?;
    let mut endpoints: Vec<EndpointConfig> = file.endpoints()?;
    endpoints.extend(args.endpoints);
    ViotCommand::new(args.iommu, &endpoints, args.output).map_err(|error| file.locate(error))
}

fn load(path: Option<&Path>) -> Result<ConfigFile, UsageError> {
    path.map_or_else(|| Ok(ConfigFile::default()), ConfigFile::load)
}
