// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words of a command line in which file descriptors are still names, and what they become.
//!
//! Knows no option of any program: a name may stand anywhere in a word, and several times.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::config::{Config, EndpointKind};
use crate::usage_error::UsageError;

/// A file that another program is to have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// /dev/iommu.
    Iommufd,
    /// The device of the endpoint at this place among all.
    Device(usize),
    /// The listening socket.
    Listener,
    /// An end of the pipe that tells the daemon of the VMM's end.
    Pipe,
}

/// One word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(Vec<Piece>);

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(OsString),
    /// The number of a file descriptor.
    Number(File),
}

impl Word {
    /// `text` as it is.
    pub fn plain(text: impl Into<OsString>) -> Word {
        Word(vec![Piece::Text(text.into())])
    }

    /// `text`, and then the number of `file`.
    pub fn ending_with(text: impl Into<OsString>, file: File) -> Word {
        Word(vec![Piece::Text(text.into()), Piece::Number(file)])
    }

    /// A word of the VMM's, in which `{iommufd}` and `{vfio:ID}` stand for numbers.
    ///
    /// # Errors
    /// A name that stands for nothing in `config`.
    pub fn parse(text: &OsStr, config: &Config) -> Result<Word, UsageError> {
        let mut word = Word::default();
        let mut rest = text.as_bytes();
        while let Some(name) = next_name(rest)? {
            word.push_text(&rest[..name.start]);
            word.0.push(Piece::Number(file_of(&rest[name.clone()], config)?));
            rest = &rest[name.end..];
        }
        word.push_text(rest);
        Ok(word)
    }

    /// The files it names.
    pub fn files(&self) -> impl Iterator<Item = File> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Number(file) => Some(*file),
            Piece::Text(_) => None,
        })
    }

    /// Its parts.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// The word with the numbers that `number_of` gives.
    pub fn fill(&self, number_of: impl Fn(File) -> String) -> OsString {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Number(file) => number_of(*file).into(),
        });
        pieces.collect()
    }

    fn push_text(&mut self, text: &[u8]) {
        if !text.is_empty() {
            self.0.push(Piece::Text(OsString::from_vec(text.to_vec())));
        }
    }
}

/// How the VMM's arguments name the file of an endpoint.
pub fn placeholder(file: File, config: &Config) -> String {
    match file {
        File::Device(at) => {
            let label = config.endpoints.get(at).map_or("?", |endpoint| endpoint.label.as_str());
            format!("{{vfio:{label}}}")
        }
        File::Iommufd | File::Listener | File::Pipe => IOMMUFD.to_owned(),
    }
}

/// The files that the VMM's arguments have to name, each at least once.
pub fn files_to_share(config: &Config) -> Vec<File> {
    let endpoints = config.endpoints.iter().enumerate();
    let devices = endpoints.filter(|(_, endpoint)| matches!(endpoint.kind, EndpointKind::Vfio { .. }));
    let devices: Vec<File> = devices.map(|(at, _)| File::Device(at)).collect();
    match devices.is_empty() {
        true => devices,
        false => [File::Iommufd].into_iter().chain(devices).collect(),
    }
}

/// Where the next name stands, with its braces.
fn next_name(text: &[u8]) -> Result<Option<Range<usize>>, UsageError> {
    let is_name = |rest: &[u8]| rest.starts_with(IOMMUFD.as_bytes()) || rest.starts_with(DEVICE.as_bytes());
    let Some(start) = (0..text.len()).find(|at| is_name(&text[*at..])) else { return Ok(None) };
    let rest = &text[start..];
    match rest.iter().position(|byte| *byte == b'}') {
        Some(last) => Ok(Some(start..start + last + 1)),
        None => Err(UsageError::new(
            format!("`{}` in the VMM's arguments does not end", String::from_utf8_lossy(rest)),
            "write {vfio:ID}, with the ID of an endpoint",
        )),
    }
}

fn file_of(name: &[u8], config: &Config) -> Result<File, UsageError> {
    let files = files_to_share(config);
    if name == IOMMUFD.as_bytes() && config.iommufd.is_some() {
        return Ok(File::Iommufd);
    }
    let found = files.iter().find(|file| placeholder(**file, config).as_bytes() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<String> = files.iter().map(|file| placeholder(*file, config)).collect();
        let mend = match names.as_slice() {
            [] => "add an endpoint with vfio=DEVICE, or leave it out".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        let name = String::from_utf8_lossy(name);
        UsageError::new(format!("`{name}` in the VMM's arguments stands for nothing"), mend)
    })
}

const IOMMUFD: &str = "{iommufd}";
const DEVICE: &str = "{vfio:";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::tests::config;

    fn parsed(text: &str) -> Result<Word, UsageError> {
        let config =
            config("--fd=3 --endpoint=1 --endpoint=00:03.0,vfio=65:00.0 --endpoint=0x20,vfio=/dev/x");
        Word::parse(OsStr::new(text), &config)
    }

    fn number_of(file: File) -> String {
        match file {
            File::Iommufd => "10".to_owned(),
            File::Device(at) => format!("2{at}"),
            File::Listener | File::Pipe => "?".to_owned(),
        }
    }

    #[test]
    fn names_become_numbers_wherever_and_however_often_they_stand() {
        for (text, filled) in [
            ("", ""),
            ("iommufd,id=i,fd={iommufd}", "iommufd,id=i,fd=10"),
            ("{vfio:00:03.0}", "21"),
            ("{vfio:0x20}{iommufd}-{vfio:0x20}", "2210-22"),
            (
                r#"{"driver":"vfio-pci","iommufd":"i","fd":"{vfio:00:03.0}"}"#,
                r#"{"driver":"vfio-pci","iommufd":"i","fd":"21"}"#,
            ),
            ("{iommu}{vfio}{ iommufd }", "{iommu}{vfio}{ iommufd }"),
        ] {
            assert_eq!(parsed(text).expect(text).fill(number_of), OsStr::new(filled), "{text}");
        }
    }

    #[test]
    fn what_is_no_text_stays_as_it_is() {
        let config = config("--fd=3 --endpoint=1,vfio=65:00.0");
        let word = OsString::from_vec(b"\xff{vfio:1}\xfe".to_vec());
        let filled = Word::parse(&word, &config).expect("valid").fill(number_of);
        assert_eq!(filled.as_bytes(), b"\xff20\xfe");
    }

    #[test]
    fn a_name_that_stands_for_nothing_is_told_with_those_that_do() {
        for (text, line) in [
            (
                "fd={vfio:0:3.0}",
                "`{vfio:0:3.0}` in the VMM's arguments stands for nothing; there are {iommufd}, {vfio:00:03.0}, {vfio:0x20}",
            ),
            ("{vfio:1}", "`{vfio:1}` in the VMM's arguments stands for nothing; "),
            ("a{vfio:00:03.0", "`{vfio:00:03.0` in the VMM's arguments does not end; "),
        ] {
            let error = parsed(text).expect_err(text).to_string();
            assert!(error.starts_with(line), "{error}");
        }
        let none = Word::parse(OsStr::new("{iommufd}"), &config("--fd=3 --endpoint=1"));
        let error = none.expect_err("no device").to_string();
        assert!(error.ends_with("; add an endpoint with vfio=DEVICE, or leave it out"), "{error}");
        let given = Word::parse(OsStr::new("{iommufd}"), &config("--fd=3 --iommufd=4"));
        assert_eq!(given.expect("given").files().collect::<Vec<_>>(), [File::Iommufd]);
    }
}
