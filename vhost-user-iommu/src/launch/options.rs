// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's command line: what was given to `launch`, with file descriptors in place of what `launch` opens.

use std::ffi::OsString;

use clap::{ArgMatches, Args as _, Command, parser::ValueSource};

use super::template::{File, Word, files_to_share};
use crate::args::Options;
use crate::config::{Config, EndpointKind, Listen};

/// The daemon's options: `given` are all of `launch`, those of its configuration file among them, and `config` is
/// what they come to.
pub fn of_daemon(given: &ArgMatches, config: &Config) -> Vec<Word> {
    let mut words: Vec<Word> = unchanged(given).chain(unchanged_endpoints(given, config)).collect();
    if let Listen::Fd(_) = config.listen {
        words.push(Word::ending_with("--fd=", File::Listener));
    }
    for (at, endpoint) in config.endpoints.iter().enumerate() {
        if let EndpointKind::Vfio { pasid, .. } = endpoint.kind {
            let pasid = if pasid { ",pasid=on" } else { "" };
            let word = format!("--endpoint={}{pasid},vfio=fd:", endpoint.label);
            words.push(Word::ending_with(word, File::Device(at)));
        }
    }
    if config.iommufd.is_some() || !files_to_share(config).is_empty() {
        words.push(Word::ending_with("--iommufd=", File::Iommufd));
    }
    words.push(Word::ending_with("--exit-with=", File::Pipe));
    words
}

/// What names no file descriptor and no endpoint.
fn unchanged(given: &ArgMatches) -> impl Iterator<Item = Word> {
    let command = Options::augment_args(Command::new("options"));
    let options: Vec<(String, String)> = command
        .get_arguments()
        .filter_map(|option| Some((option.get_id().to_string(), option.get_long()?.to_owned())))
        .filter(|(_, long)| !REWRITTEN.contains(&long.as_str()))
        .filter(|(id, _)| given.value_source(id) == Some(ValueSource::CommandLine))
        .collect();
    options.into_iter().flat_map(|(id, long)| {
        let values = given.get_raw(&id).into_iter().flatten();
        values.map(|value| option(&long, value.to_owned())).collect::<Vec<_>>()
    })
}

fn unchanged_endpoints(given: &ArgMatches, config: &Config) -> impl Iterator<Item = Word> {
    let values = given.get_raw(ENDPOINTS).into_iter().flatten();
    let endpoints = values.zip(&config.endpoints);
    let unchanged = endpoints.filter(|(_, endpoint)| !matches!(endpoint.kind, EndpointKind::Vfio { .. }));
    unchanged.map(|(value, _)| option("endpoint", value.to_owned())).collect::<Vec<_>>().into_iter()
}

fn option(long: &str, value: OsString) -> Word {
    let mut word = OsString::from(format!("--{long}="));
    word.push(value);
    Word::plain(word)
}

/// The options, by their long names, that are not passed on as they were given.
const REWRITTEN: [&str; 4] = ["endpoint", "fd", "iommufd", "exit-with"];
/// How clap knows `--endpoint`.
const ENDPOINTS: &str = "endpoints";

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use crate::launch::template::{File, Word};
    use crate::launch::tests::launch;

    fn shown(word: &Word) -> String {
        let filled = word.fill(|file| match file {
            File::Iommufd => "<iommufd>".to_owned(),
            File::Device(at) => format!("<device {at}>"),
            File::Listener => "<listener>".to_owned(),
            File::Pipe => "<pipe>".to_owned(),
        });
        filled.into_string().expect("UTF-8")
    }

    #[test]
    fn what_was_given_is_passed_on_and_nothing_else() {
        let launch = launch(
            "--socket-path a.sock --granule 16k --endpoint 9 --endpoint=1,vfio=65:00.0 --boot-bypass off",
        );
        let mut words: Vec<String> = launch.daemon.iter().map(shown).collect();
        words.sort();
        assert_eq!(
            words,
            [
                "--boot-bypass=off",
                "--endpoint=1,vfio=fd:<device 1>",
                "--endpoint=9",
                "--exit-with=<pipe>",
                "--granule=16k",
                "--iommufd=<iommufd>",
                "--socket-path=a.sock",
            ]
        );
    }

    #[test]
    fn numbers_are_passed_on_under_new_ones() {
        let launch = launch("--fd 3 --iommufd 4 --endpoint 1,vfio=fd:5,pasid=on");
        let words: Vec<String> = launch.daemon.iter().map(shown).collect();
        let expected = [
            "--fd=<listener>",
            "--endpoint=1,pasid=on,vfio=fd:<device 0>",
            "--iommufd=<iommufd>",
            "--exit-with=<pipe>",
        ];
        assert_eq!(words, expected);
        assert_eq!(launch.vmm[0].fill(|_| String::new()), OsStr::new("vmm"));
    }
}
