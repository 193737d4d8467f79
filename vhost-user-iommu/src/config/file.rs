// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration file: the command line written down as TOML.
//!
//! Each `key = value` becomes the option `--key=value`, so there is one definition of every option.
//! Decides nothing about how options go together. To read: the TOML specification, 1.1.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Args as _, Command};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{EndpointConfig, clap_error};
use crate::args::Options;
use crate::usage_error::UsageError;

/// The options that a configuration file gives, each one valid by itself.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    path: PathBuf,
    entries: Vec<Entry>,
}

/// One option of a file; a list makes one entry for each item.
#[derive(Debug)]
struct Entry {
    line: usize,
    key: String,
    value: String,
}

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML, a key that is no option, a value that the option
    /// does not take, and two options that exclude each other.
    pub(super) fn load(path: &Path) -> Result<ConfigFile, UsageError> {
        let text = fs::read_to_string(path).map_err(|error| {
            UsageError::new(
                format!("the configuration file cannot be read: {error}"),
                "name a file that exists and is readable",
            )
            .about("config", path.to_string_lossy())
        })?;
        ConfigFile::parse(path, &text)
    }

    /// Parses `text`; `path` is only named in errors.
    pub(super) fn parse(path: &Path, text: &str) -> Result<ConfigFile, UsageError> {
        let mut file = ConfigFile { path: path.to_owned(), entries: Vec::new() };
        let table = DeTable::parse(text).map_err(|error| {
            let line = line_of(text, &error.span().unwrap_or_default());
            UsageError::new(error.message(), "correct the TOML at this place").at(file.place(line))
        })?;
        for (key, value) in table.get_ref() {
            for item in items(key.get_ref(), value) {
                let line = line_of(text, &item.span());
                let entry = Entry::new(line, key.get_ref(), item.get_ref());
                file.entries.push(entry.map_err(|error| error.at(file.place(line)))?);
            }
        }
        file.check_rivals()?;
        Ok(file)
    }

    /// Forgets the options that `is_given` on the command line, and those that such an option excludes.
    pub(super) fn yield_to(&mut self, is_given: impl Fn(&str) -> bool) {
        let excluded = |key: &str| rivals_of(key).any(&is_given);
        self.entries
            .retain(|entry| entry.key == REPEATABLE || !(is_given(&entry.key) || excluded(&entry.key)));
    }

    /// The entries as command line options.
    pub(super) fn options(&self) -> impl Iterator<Item = String> {
        self.entries.iter().map(Entry::option)
    }

    /// The endpoints the file names.
    pub(super) fn endpoints(&self) -> Result<Vec<EndpointConfig>, UsageError> {
        let endpoints = self.entries.iter().filter(|entry| entry.key == REPEATABLE);
        endpoints.map(|entry| entry.value.parse()).collect()
    }

    /// The same error, placed at the line of this file that it is about, if there is one.
    pub(super) fn locate(&self, error: UsageError) -> UsageError {
        let line = error.subject().and_then(|subject| {
            let mut entries = self.entries.iter().rev();
            let found = entries.find(|entry| entry.key == subject.option && entry.is_about(&subject.value));
            found.map(|entry| entry.line)
        });
        match line {
            Some(line) => error.at(self.place(line)),
            None => error,
        }
    }

    fn check_rivals(&self) -> Result<(), UsageError> {
        for entry in &self.entries {
            let earlier =
                |rival: &str| self.entries.iter().any(|other| other.key == rival && other.line <= entry.line);
            if let Some(rival) = rivals_of(&entry.key).find(|rival| earlier(rival)) {
                return Err(UsageError::new(format!("{rival} is given as well"), "keep one of the two")
                    .about(&entry.key, &entry.value)
                    .at(self.place(entry.line)));
            }
        }
        Ok(())
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

impl Entry {
    fn new(line: usize, key: &str, value: &DeValue<'_>) -> Result<Entry, UsageError> {
        let command = Options::augment_args(Command::new("options"))
            .no_binary_name(true)
            .disable_help_flag(true)
            .disable_version_flag(true);
        if !command.get_arguments().any(|option| option.get_long() == Some(key)) {
            return Err(UsageError::new(
                format!("`{key}` is not an option"),
                "the keys are the long options that --help lists, without dashes",
            ));
        }
        let entry = Entry { line, key: key.to_owned(), value: text_of(key, value)? };
        command.try_get_matches_from([entry.option()]).map_err(|error| clap_error::to_usage_error(&error))?;
        Ok(entry)
    }

    fn option(&self) -> String {
        format!("--{}={}", self.key, self.value)
    }

    /// Whether an error about `value` is about this entry: of the endpoints, errors name the id alone.
    fn is_about(&self, value: &str) -> bool {
        self.key != REPEATABLE || self.value.split(',').next() == Some(value)
    }
}

/// The values of a key: the items of the one option that is a list, or the value itself.
fn items<'a, 'i>(key: &str, value: &'a Spanned<DeValue<'i>>) -> Vec<&'a Spanned<DeValue<'i>>> {
    match value.get_ref() {
        DeValue::Array(list) if key == REPEATABLE => list.iter().collect(),
        _ => vec![value],
    }
}

fn text_of(key: &str, value: &DeValue<'_>) -> Result<String, UsageError> {
    let text = match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        DeValue::Integer(number) => {
            u64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        _ => None,
    };
    text.ok_or_else(|| {
        let mend = match key {
            REPEATABLE => "write a list of strings",
            _ => "write one string or one whole number from 0",
        };
        UsageError::new(format!("`{key}` does not take a value of this type"), mend)
    })
}

fn rivals_of(key: &str) -> impl Iterator<Item = &'static str> {
    RIVALS.iter().filter(move |(option, _)| *option == key).map(|(_, rival)| *rival)
}

/// The number of the line in which `span` starts, from 1.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

/// The one option that can be given more than once.
const REPEATABLE: &str = "endpoint";

/// Options of which only one makes sense, in both directions.
const RIVALS: [(&str, &str); 4] = [
    ("socket-path", "fd"),
    ("fd", "socket-path"),
    ("aperture", "guest-memory"),
    ("guest-memory", "aperture"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, UsageError> {
        ConfigFile::parse(Path::new("vm.toml"), text)
    }

    fn options(text: &str) -> Vec<String> {
        let mut options: Vec<String> = parse(text).expect(text).options().collect();
        options.sort();
        options
    }

    #[test]
    fn every_key_becomes_the_option_of_its_name() {
        let text = r#"
            # a virtual machine
            socket-path = "iommu.sock"
            boot-bypass = false
            granule = 0x4000
            max-mappings = 65_536
            endpoint = ["00:02.0", "00:03.0,vhost-user=f,backend=b"]
        "#;
        assert_eq!(
            options(text),
            [
                "--boot-bypass=off",
                "--endpoint=00:02.0",
                "--endpoint=00:03.0,vhost-user=f,backend=b",
                "--granule=16384",
                "--max-mappings=65536",
                "--socket-path=iommu.sock",
            ]
        );
        assert_eq!(options("endpoint = '00:02.0'"), ["--endpoint=00:02.0"]);
        assert!(options("").is_empty());
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (text, message) in [
            ("\n\ngranul = '4k'", "vm.toml:3: `granul` is not an option; "),
            ("config = 'x'", "vm.toml:1: `config` is not an option; "),
            ("help = true", "vm.toml:1: `help` is not an option; "),
            ("'socket-path=a' = 'b'", "vm.toml:1: `socket-path=a` is not an option; "),
            ("granule = '3k'", "vm.toml:1: granule 3k: a granule is a power of two"),
            ("max-domains = -1", "vm.toml:1: `max-domains` does not take a value of this type; "),
            ("granule = 1.5", "vm.toml:1: `granule` does not take a value of this type; "),
            ("granule = ['4k']", "vm.toml:1: `granule` does not take a value of this type; "),
            ("endpoint = [\n '1',\n true,\n]", "vm.toml:3: endpoint on: `on` is not an endpoint id; "),
            ("endpoint = [\n '1',\n 'x',\n]", "vm.toml:3: endpoint x: `x` is not an endpoint id; "),
            ("[limits]\nmax-faults = 1", "vm.toml:1: `limits` is not an option; "),
            ("fd = 3\nsocket-path = 'a'", "vm.toml:2: socket-path a: fd is given as well; "),
            (
                "guest-memory = '1G'\naperture = '1M-2M'",
                "vm.toml:2: aperture 1M-2M: guest-memory is given as well; ",
            ),
            ("fd = 3\nfd = 4", "vm.toml:2: duplicate key; "),
            ("\nfd =\n", "vm.toml:2: "),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(message), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_an_option_and_over_what_excludes_it() {
        let mut file =
            parse("fd = 3\ngranule = '4k'\naperture = '1M-0x1fffff'\nendpoint = ['1']").expect("valid");
        file.yield_to(|key| ["socket-path", "granule", "endpoint"].contains(&key));
        let mut left: Vec<String> = file.options().collect();
        left.sort();
        assert_eq!(left, ["--aperture=1M-0x1fffff", "--endpoint=1"]);
    }

    #[test]
    fn an_error_about_an_option_of_the_file_is_placed_there() {
        let file = parse("fd = 3\nendpoint = [\n'1',\n'2,vhost-user=f,backend=b']").expect("valid");
        let error =
            |option, value: &str| file.locate(UsageError::new("p", "m").about(option, value)).to_string();
        assert_eq!(error("endpoint", "2"), "vm.toml:4: endpoint 2: p; m");
        assert_eq!(error("endpoint", "3"), "--endpoint 3: p; m");
        assert_eq!(error("fd", "3"), "vm.toml:1: fd 3: p; m");
    }
}
