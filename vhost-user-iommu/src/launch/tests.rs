// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a command line of `launch` comes to; nothing is opened or started.

use super::*;
use crate::config::{Command, parse};

/// `launch` of these options and a VMM that names all files.
pub(super) fn launch(options: &str) -> LaunchCommand {
    let shared: Vec<String> =
        files_to_share(&config(options)).iter().map(|file| placeholder(*file, &config(options))).collect();
    let vmm: Vec<&str> = ["vmm"].into_iter().chain(shared.iter().map(String::as_str)).collect();
    launch_of(options, &vmm)
}

/// `launch` of these options and this VMM.
pub(super) fn launch_of(options: &str, vmm: &[&str]) -> LaunchCommand {
    parsed(options, vmm).expect("valid")
}

/// The configuration that these options come to.
pub(super) fn config(options: &str) -> Config {
    use clap::{CommandFactory as _, FromArgMatches as _};
    let words = ["launch"].into_iter().chain(options.split_whitespace());
    let matches = crate::args::Args::command().get_matches_from(words);
    Config::from_options(crate::args::Args::from_arg_matches(&matches).expect("valid").options)
        .expect("valid")
}

fn parsed(options: &str, vmm: &[&str]) -> Result<LaunchCommand, UsageError> {
    let words = ["vhost-user-iommu", "launch"].into_iter().chain(options.split_whitespace()).chain(["--"]);
    match parse(words.chain(vmm.iter().copied()))? {
        Command::Launch(launch) => Ok(launch),
        other => panic!("not a launch: {other:?}"),
    }
}

#[test]
fn a_vmm_that_is_not_told_of_a_file_is_refused_with_what_to_add() {
    let options = "--fd=3 --endpoint=00:03.0,vfio=65:00.0";
    for (vmm, line) in [
        (
            &["qemu"][..],
            "`{iommufd}` is missing in the VMM's arguments, which has to share the file; for QEMU, add -object iommufd,id=iommufd0,fd={iommufd}",
        ),
        (
            &["qemu", "{iommufd}"],
            "`{vfio:00:03.0}` is missing in the VMM's arguments, which has to share the file; for QEMU, add -device vfio-pci,iommufd=iommufd0,fd={vfio:00:03.0}",
        ),
        (
            &["qemu", "{iommufd}{vfio:00:04.0}"],
            "`{vfio:00:04.0}` in the VMM's arguments stands for nothing; there are {iommufd}, {vfio:00:03.0}",
        ),
        (&[], "nothing says which VMM to start; add `--` and"),
    ] {
        let error = parsed(options, vmm).expect_err(line).to_string();
        assert!(error.starts_with(line), "{error}");
    }
    parsed("--fd=3 --endpoint=1", &["qemu"]).expect("nothing to share");
}

#[test]
fn what_the_daemon_refuses_launch_refuses_but_for_what_it_opens() {
    for (options, line) in [
        ("--endpoint=1", "nothing says where the VMM connects; "),
        ("--fd=3 --endpoint=1 --endpoint=0x1", "--endpoint 0x1: this is the same endpoint as 1; "),
        (
            "--fd=3 --exit-with=4",
            "--exit-with 4: the daemon is to end with the VMM; leave the option to launch",
        ),
        ("--fd=3 --granul=4k", "`--granul` is not an option; "),
        (
            "--fd=3 qemu",
            "`qemu` is not an option; options start with --; `launch` takes the VMM's program after `--`",
        ),
    ] {
        let error = parsed(options, &["vmm"]).expect_err(line).to_string();
        assert!(error.starts_with(line), "{error}");
    }
}

#[test]
fn options_of_the_file_are_the_daemons_as_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm.toml");
    let text = "socket-path = 'file.sock'\ngranule = '64k'\nendpoint = ['1', '2,vfio=65:00.0']\n";
    std::fs::write(&path, text).expect("written");
    let launch =
        launch_of(&format!("--config {} --granule 4k", path.display()), &["vmm", "{iommufd}{vfio:2}"]);
    let words: Vec<OsString> = launch.daemon.iter().map(|word| word.fill(|_| "N".to_owned())).collect();
    let expected = [
        "--socket-path=file.sock",
        "--granule=4k",
        "--endpoint=1",
        "--endpoint=2,vfio=fd:N",
        "--iommufd=N",
        "--exit-with=N",
    ];
    assert_eq!(words, expected);
    let error = parsed(&format!("--config {} --endpoint 0x2", path.display()), &["vmm", "{iommufd}{vfio:2}"]);
    let error = error.expect_err("twice").to_string();
    assert!(error.starts_with("--endpoint 0x2: this is the same endpoint as 2; "), "{error}");
}

#[test]
fn the_vmms_own_options_are_its_own() {
    let vmm = ["vmm", "--print-capabilities", "--help", "--", "--fd"];
    let launch = launch_of("--fd=3 --endpoint=1", &vmm);
    let words: Vec<OsString> = launch.vmm.iter().map(|word| word.fill(|_| String::new())).collect();
    assert_eq!(words, vmm);
}

#[test]
fn the_status_is_the_daemons_where_it_has_one() {
    for (wait_status, expected) in [(0, 2), (2 << 8, 2), (7 << 8, 7), (9, 137)] {
        let error = LaunchError::DaemonEnded(ExitStatus::from_raw(wait_status));
        assert_eq!(error.exit_status(), expected);
    }
    assert_eq!(LaunchError::Told(15).exit_status(), 143);
    assert_eq!(LaunchError::from(UsageError::new("p", "m")).exit_status(), 2);
}
