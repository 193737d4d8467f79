// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes a binary file whole or not at all, or to standard output.
//!
//! Knows nothing of what it writes.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process,
};

use crate::usage_error::UsageError;

/// Writes `bytes` to the file `output`, or to standard output without one.
///
/// # Errors
/// A place that cannot be written, which is then as it was, and standard output that is a terminal.
pub(super) fn write(output: Option<&Path>, bytes: &[u8]) -> Result<(), UsageError> {
    match output {
        Some(path) => write_file(path, bytes).map_err(|error| {
            UsageError::new(
                format!("the table cannot be written there: {error}"),
                "name a file that can be written",
            )
            .about("output", path.to_string_lossy())
        }),
        None => write_stdout(bytes),
    }
}

fn write_stdout(bytes: &[u8]) -> Result<(), UsageError> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        return Err(UsageError::new(
            "the table is binary, and standard output is a terminal",
            "add --output FILE, or redirect standard output",
        ));
    }
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
        UsageError::new(
            format!("the table cannot be written to standard output: {error}"),
            "add --output FILE, or redirect standard output",
        )
    })
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The file behind a link is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&path) {
        // A device or a pipe has nothing to keep whole, and must not be replaced by a file.
        Ok(metadata) if !metadata.is_file() => OpenOptions::new().write(true).open(&path)?.write_all(bytes),
        _ => replace(&path, bytes),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; a file left behind is only untidy.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name in the same directory, so that the rename cannot cross file systems.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", process::id()));
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("readable").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("viot.dat");
        write(Some(&path), b"a longer first table").expect("written");
        write(Some(&path), b"second").expect("written");
        assert_eq!(fs::read(&path).expect("readable"), b"second");
        assert_eq!(names(directory.path()), ["viot.dat"]);
    }

    #[test]
    fn a_link_keeps_pointing_at_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let link = directory.path().join("link");
        fs::write(directory.path().join("target"), b"old").expect("written");
        symlink("target", &link).expect("a link");
        write(Some(&link), b"new").expect("written");
        assert!(link.is_symlink());
        assert_eq!(fs::read(directory.path().join("target")).expect("readable"), b"new");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        write(Some(Path::new("/dev/null")), b"table").expect("written");
        assert!(!fs::metadata("/dev/null").expect("still there").is_file());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        for path in [directory.path().to_owned(), directory.path().join("missing/viot.dat")] {
            let error = write(Some(&path), b"table").expect_err("refused").to_string();
            assert!(error.starts_with(&format!("--output {}: the table cannot", path.display())), "{error}");
        }
        assert!(names(directory.path()).is_empty());
    }
}
