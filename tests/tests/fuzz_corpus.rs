// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every input that is kept in `tests/fuzz/corpus`, through its fuzz target.
//!
//! Finds nothing new: that is what `scripts/fuzz` is for.

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use viommu_tests::fuzz::TARGETS;

/// A target's inputs, in order of their names.
fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = corpus().join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    paths
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Counts the panics of all threads: those of the daemon's own end nothing.
fn counted_panics() -> &'static AtomicUsize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        report(info);
    }));
    &PANICS
}

#[test]
fn no_input_of_the_corpus_does_harm() {
    let panics = counted_panics();
    let mut harmful = Vec::new();
    for target in &TARGETS {
        for path in inputs(target.name) {
            let data = fs::read(&path).expect("it can be read");
            let before = panics.load(Ordering::SeqCst);
            // The next input is run all the same, and all that do harm are told.
            let _ = panic::catch_unwind(|| (target.run)(&data));
            if panics.load(Ordering::SeqCst) > before {
                harmful.push(path);
            }
        }
    }
    assert!(harmful.is_empty(), "{harmful:#?}");
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let folders = fs::read_dir(corpus()).expect("a folder");
    let folders: BTreeSet<String> =
        folders.map(|entry| entry.expect("a folder").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name.to_owned()).collect());
    for target in &TARGETS {
        assert!(!inputs(target.name).is_empty(), "{} has no input", target.name);
    }
}
