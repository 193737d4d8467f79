// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds static programs of this workspace, for the hosts that the tests boot: for arm64, if nothing else is said.
//!
//! It installs nothing. To read first: the Rust platform support page of the target.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The target of what is built for arm64; its programs need no files beside themselves.
pub const TARGET: &str = "aarch64-unknown-linux-musl";
/// The same for x86-64.
pub const TARGET_X86_64: &str = "x86_64-unknown-linux-musl";

/// Builds this program, a little optimised, and says where it is.
///
/// # Errors
/// The toolchain has no standard library for the target, or the program does not build: with what the compiler said.
pub fn build(package: &str, program: &str) -> Result<PathBuf> {
    cargo(TARGET, &["build", "--package", package, "--bin", program], program)
}

/// Builds an example of this package.
///
/// # Errors
/// As [`build`].
pub fn build_example(package: &str, example: &str) -> Result<PathBuf> {
    cargo(TARGET, &["build", "--package", package, "--example", example], example)
}

/// Builds this program as users have it, with optimisation.
///
/// # Errors
/// As [`build`].
pub fn build_release(package: &str, program: &str) -> Result<PathBuf> {
    cargo(TARGET, &["build", "--release", "--package", package, "--bin", program], program)
}

/// The same with these features, be they of another package as in `package/feature`.
///
/// # Errors
/// As [`build`].
pub fn build_release_with(package: &str, program: &str, features: &str) -> Result<PathBuf> {
    let arguments = ["build", "--release", "--package", package, "--bin", program, "--features", features];
    cargo(TARGET, &arguments, program)
}

/// Builds the program of a benchmark of this package, with optimisation, which has to have these features.
///
/// # Errors
/// As [`build`].
pub fn build_bench(package: &str, bench: &str, features: &str) -> Result<PathBuf> {
    cargo(
        TARGET,
        &["bench", "--no-run", "--package", package, "--bench", bench, "--features", features],
        bench,
    )
}

/// Builds the program of an integration test of this package, which has to have these features.
///
/// # Errors
/// As [`build`].
pub fn build_test(package: &str, test: &str, features: &str) -> Result<PathBuf> {
    cargo(TARGET, &["test", "--no-run", "--package", package, "--test", test, "--features", features], test)
}

/// [`build`] for x86-64.
///
/// # Errors
/// As [`build`].
pub fn build_for_x86_64(package: &str, program: &str) -> Result<PathBuf> {
    cargo(TARGET_X86_64, &["build", "--package", package, "--bin", program], program)
}

/// [`build_test`] for x86-64.
///
/// # Errors
/// As [`build`].
pub fn build_test_for_x86_64(package: &str, test: &str, features: &str) -> Result<PathBuf> {
    let arguments = ["test", "--no-run", "--package", package, "--test", test, "--features", features];
    cargo(TARGET_X86_64, &arguments, test)
}

/// Where the program of this name is, which these arguments have cargo build.
fn cargo(target: &str, arguments: &[&str], name: &str) -> Result<PathBuf> {
    ensure_target(target)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Not where the tests' own programs are: cargo makes one build of a folder wait for the other.
    let folder = root.join("target/l1");
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(arguments)
        .args(["--locked", "--quiet", "--target", target, "--message-format", "json-render-diagnostics"])
        // The linker of the toolchain itself: none for arm64 has to be installed.
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_DIR", &folder)
        // It is unpacked into the host's memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
        // Its processor is emulated, and what is asserted in a debug build takes the longer the more is mapped.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false")
        .env("CARGO_PROFILE_DEV_OVERFLOW_CHECKS", "true")
        // What the tests themselves are built with, sanitizers for example, is not meant for it.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .context("starting cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {arguments:?} does not build for {target}:\n{said}");
    let built = String::from_utf8(output.stdout)?;
    // A package's programs are built for its tests, too.
    let mut lines = built.lines().filter(|line| line.contains(&format!("\"name\":\"{name}\"")));
    let rest = lines.find_map(|line| Some(line.split_once("\"executable\":\"")?.1));
    let rest = rest.with_context(|| format!("cargo built no program {name}"))?;
    let (program, _) = rest.split_once('"').context("cargo's message ends")?;
    Ok(program.into())
}

/// A toolchain names a folder for each target that it knows; it is there for those whose standard library it has.
fn ensure_target(target: &str) -> Result<()> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--print", "target-libdir", "--target", target])
        .stderr(Stdio::inherit())
        .output()
        .context("starting rustc")?;
    let folder = String::from_utf8(output.stdout)?;
    ensure!(
        Path::new(folder.trim()).is_dir(),
        "this Rust toolchain cannot build for {target}: run `rustup target add {target}`"
    );
    Ok(())
}
