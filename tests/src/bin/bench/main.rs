// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The benchmarks: both sides in one run, as ratios. Started by `scripts/bench`.

mod engine;
mod guest;
mod nested;
mod spread;
mod turnround;
mod vfio;

use std::num::NonZeroUsize;
use std::process::ExitCode;

const USAGE: &str = "Usage: scripts/bench guest [ROUNDS [MODE...]]
       scripts/bench vfio [ROUNDS]
       scripts/bench nested [ROUNDS]
       scripts/bench turnround [ROUNDS]
       scripts/bench engine [quick | MAPPINGS [ROUNDS]]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["guest"] => guest::run(3, &[]),
        ["guest", rounds, ref modes @ ..] if rounds.parse::<NonZeroUsize>().is_ok() => {
            guest::run(rounds.parse().unwrap_or(1), modes)
        }
        ["vfio"] => vfio::run(3),
        ["vfio", rounds] if rounds.parse::<NonZeroUsize>().is_ok() => vfio::run(rounds.parse().unwrap_or(1)),
        ["nested"] => nested::run(5),
        ["nested", rounds] if rounds.parse::<NonZeroUsize>().is_ok() => {
            nested::run(rounds.parse().unwrap_or(1))
        }
        ["turnround"] => turnround::run(5),
        ["turnround", rounds] if rounds.parse::<NonZeroUsize>().is_ok() => {
            turnround::run(rounds.parse().unwrap_or(1))
        }
        [turnround::peer::PEER, ref what @ ..] => turnround::peer::play(what),
        ["engine", ref size @ ..] => match engine::Size::of(size) {
            Some(size) => engine::run(size),
            None => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
