// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the code and the tests meet every statement of the specification. Started by `scripts/spec-coverage`.
//!
//! It knows where something claims to be met and tested, not whether that is so: that is for tests that fail, and for
//! readers. To read: `tests/spec/virtio-iommu.toml`, and `tests/spec/tables.toml` for our extension.

mod coverage;
mod list;
mod manual;
mod read_list;
mod report;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use coverage::Coverage;
use source::Marks;

const USAGE: &str = "Usage: scripts/spec-coverage [--list]";
/// The letter of the ids of each list, the list, and the page of the manual that shows it.
const LISTS: [(char, &str, &str); 2] = [
    ('A', "tests/spec/virtio-iommu.toml", "viommu-core/src/manual/rules.rs"),
    ('T', "tests/spec/tables.toml", "viommu-core/src/manual/tables.rs"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_long = match arguments[..] {
        [] => false,
        ["--list"] => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(is_long) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            problems.iter().for_each(|problem| eprintln!("spec-coverage: {problem}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("spec-coverage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what there is, and returns what is wrong.
fn run(is_long: bool) -> Result<Vec<String>> {
    let mut marks = Marks::default();
    for file in sources(Path::new("."))? {
        let name = file.strip_prefix(".").unwrap_or(&file).display().to_string();
        marks.read(&name, &read(&file)?);
    }
    let mut problems = marks.problems.clone();
    for (number, (letter, list, manual)) in LISTS.into_iter().enumerate() {
        let list = read_list::parse(&read(Path::new(list))?).context(list)?;
        let marks = marks.of(letter);
        let coverage = Coverage { list: &list, marks: &marks };
        if number > 0 {
            println!();
        }
        if is_long {
            print!("{}", report::statements(&coverage));
        }
        print!("{}", report::table(&coverage));
        problems.extend(list.problems());
        problems.extend(manual::problems(&list, letter, &read(Path::new(manual))?));
        problems.extend(coverage.problems());
    }
    Ok(problems)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Every Rust file of the project below `folder`, in order.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        entries.push(entry?.path());
    }
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(sources(&entry)?);
        } else if entry.is_file() && name.ends_with(".rs") {
            files.push(entry);
        }
    }
    Ok(files)
}
