// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program from outside: what it prints, where, and the status it exits with.
//!
//! Serves nothing. To read: QEMU, `docs/interop/vhost-user.rst`, back-end program conventions.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const RELAYED: &str = "1,vhost-user=f,backend=b";
const PLUGGED: &str = "--device=id=d,iommufd=i";

fn run<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-iommu"));
    command.args(words).stdin(Stdio::null());
    command.output().expect("the program runs")
}

/// Runs the program, which must refuse in one line that starts with `line` after its name.
fn assert_refused<S: AsRef<OsStr>>(words: &[S], line: &str) {
    let output = run(words);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    assert!(error.starts_with(&format!("vhost-user-iommu: {line}")), "{words:?}: {error}");
    assert!(
        error.ends_with('\n') && error.lines().count() == 1 && error.contains("; "),
        "{words:?}: {error}"
    );
    assert_eq!(output.status.code(), Some(2), "{words:?}");
    assert!(output.stdout.is_empty(), "{words:?}");
}

fn config_file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm.toml");
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8").to_owned();
    (directory, path)
}

#[test]
fn a_usage_error_is_one_line_with_the_mend_and_status_2() {
    for (words, line) in [
        (&[][..], "nothing says where the VMM connects; add --socket-path PATH"),
        (&["--gran", "4k"], "`--gran` is not an option; did you mean --granule?"),
        (&["serve"], "unrecognized subcommand 'serve'; "),
        (&["--granule"], "`--granule` has no value; "),
        (&["--socket-path="], "`--socket-path` has no value; "),
        (&["--granule", "4k", "--granule", "4k"], "`--granule` is given twice; "),
        (
            &["--granule", "3k"],
            "--granule 3k: a granule is a power of two from 4k to 1G; write the guest's page size or less, such as 4k",
        ),
        (&["--granule", "2k"], "--granule 2k: a granule is a power of two"),
        (&["--granule", "4\nk"], r"--granule 4\nk: `4\nk` is not a number"),
        (
            &["--boot-bypass", "maybe"],
            "--boot-bypass maybe: the option does not take this value; give one of on, off",
        ),
        (
            &["--log-level", "loud"],
            "--log-level loud: the option does not take this value; give one of error, warn, info, debug, trace",
        ),
        (&["--max-domains", "0"], "--max-domains 0: `0` is not a whole number from 1"),
        (&["--poll", "10001"], "--poll 10001: `10001` is not a whole number from 0 to 10000"),
        (&["--max-faults", "1e9"], "--max-faults 1e9: `1e9` is not a whole number from 1"),
        (&["--fd", "x"], "--fd x: `x` is not the number of a file descriptor; "),
        (&["--fd=-1"], "--fd -1: `-1` is not the number of a file descriptor; "),
        (&["--socket-path", "a", "--fd", "3"], "`--socket-path` and `--fd` exclude each other; "),
        (
            &["--aperture", "0-0xfff", "--guest-memory", "1G"],
            "`--aperture` and `--guest-memory` exclude each other; ",
        ),
        (&["--aperture", "2M-1M"], "--aperture 2M-1M: the last byte lies before the first; "),
        (
            &["--fd=3", "--aperture", "1M-2M"],
            "--aperture 0x100000-0x200000: the range does not consist of whole granules of 0x1000 bytes; the last byte is part of the range: the next larger one is 0x100000-0x200fff",
        ),
        (&["--fd=3", "--guest-memory", "512"], "--guest-memory 512,machine=q35: so little or so much memory"),
        (&["--guest-memory", "1G,machine=x"], "--guest-memory 1G,machine=x: `machine=x` is not a machine"),
        (&["--msi-region", "all"], "--msi-region all: `all` is not a range of addresses; "),
        (&["--endpoint", "00:20.0"], "--endpoint 00:20.0: `00:20.0` is not the address of a PCI function; "),
        (
            &["--fd=3", "--endpoint", "00:02.0", "--endpoint", "0x10"],
            "--endpoint 0x10: this is the same endpoint as 00:02.0; ",
        ),
        (
            &["--fd=3", "--endpoint", RELAYED],
            "--endpoint 1: the aperture has to lie inside guest memory, because the VMM takes",
        ),
        (
            &["--socket-path", "./f", "--guest-memory=1G", "--endpoint", RELAYED],
            "--endpoint 1: the socket f is taken already by socket-path; ",
        ),
        (
            &["--fd=3", "--endpoint=1,vfio=65:00.0"],
            "--endpoint 1: a VMM has to share the file descriptors of 0000:65:00.0 and of /dev/iommu; use `vhost-user-iommu launch`",
        ),
        (
            &["--fd=3", "--iommufd=4", "--endpoint=1,vfio=/dev/vfio/devices/vfio0"],
            "--endpoint 1: a VMM has to share the file descriptors of /dev/vfio/devices/vfio0 and",
        ),
        (
            &["--fd=3", "--endpoint=1,vfio=fd:4"],
            "--endpoint 1: nothing says on which /dev/iommu the VMM has this device; ",
        ),
        (
            &["--fd=3", "--iommufd=3"],
            "--iommufd 3: the file descriptor 3 is given as --fd already; give each",
        ),
        (
            &["--fd=3", "--iommufd=4", "--endpoint=1,vfio=fd:4"],
            "--endpoint 1: the file descriptor 4 is given as --iommufd already; ",
        ),
        (&["--iommufd", "x"], "--iommufd x: `x` is not the number of a file descriptor; "),
        (
            &["--fd=3", "--iommufd=4", "--endpoint=1,vfio=fd:5", "--endpoint=2,vfio=fd:5"],
            "--endpoint 2: the device fd:5 is that of 1 already; ",
        ),
        (
            &["--config", "/nonexistent/vm.toml"],
            "--config /nonexistent/vm.toml: the configuration file cannot be read: ",
        ),
        (&["--fd", "3", "viot", "--iommu", "0:1.0"], "`--fd` is an option of the daemon; "),
        (&["--fd", "3", "launch", "--", "vmm"], "`--fd` is an option of the daemon; "),
        (
            &["launch", "--fd=3", "--endpoint=1,vfio=fd:4", "--", "vmm"],
            "`{iommufd}` is missing in the VMM's arguments",
        ),
        (
            &["launch", "--fd=999", "--", "vmm"],
            "--fd 999: no such file descriptor was passed to this process; ",
        ),
        (
            &["launch", "--socket-path=x", "--endpoint=1,vfio=ff:1f.7", "--", "vmm", "{iommufd}", "{vfio:1}"],
            "--endpoint 1: this machine has no PCI function 0000:ff:1f.7; lspci -D",
        ),
        (&["--socket-path=a", "--control=./a"], "--control ./a: this is --socket-path; "),
        (
            &["--socket-path=a", "--control=f", "--guest-memory=1G", "--endpoint", RELAYED],
            "--endpoint 1: the socket f is taken already by control; ",
        ),
        (
            &["ctl"],
            "nothing says what is to be done; `ctl` takes list, block, unblock, plug, unplug, remove or add",
        ),
        (&["ctl", "--socket=x"], "nothing says what is to be done; "),
        (&["ctl", "--socket=x", "add"], "`<SPEC>` is missing; "),
        (&["ctl", "list"], "`--socket` is missing; "),
        (&["ctl", "--socket=/nonexistent", "list"], "--socket /nonexistent: no daemon can be asked there: "),
        (&["ctl", "--socket=x", "remove", "eth0"], "`eth0` is not an endpoint id; "),
        (&["ctl", "--socket=x", "add", "1"], "1: nothing says which device is added; write ID,vhost-user="),
        (
            &["ctl", "--socket=x", "add", "1,vfio=fd:9,pasid=on"],
            "1: whether the guest sees a PASID capability is said when the daemon starts; leave pasid out here, ",
        ),
        (
            &["ctl", "--socket=x", "plug", "1,vfio=fd:9,pasid=on", "--qmp=y", "--device=id=z,iommufd=i"],
            "1: whether the guest sees a PASID capability is said when the daemon starts; leave pasid out here, ",
        ),
        (
            &["ctl", "--socket=x", "add", "1,vfio=65:00.0"],
            "1: a VMM has to share the file descriptor of 0000:65:00.0; use `ctl plug`, which opens it for both",
        ),
        (&["ctl", "--socket=x", "add", "1,vfio=fd:99"], "vfio=fd:99: no such file descriptor was passed"),
        (&["ctl", "--socket=x", "plug", "1,vfio=65:00.0", "--qmp=q"], "`--device` is missing; "),
        (
            &["ctl", "--socket=x", "plug", "1", "--qmp=q", PLUGGED],
            "1: `plug` is for physical devices; write ID,vfio=DEVICE",
        ),
        (
            &["ctl", "--socket=x", "plug", "1,vfio=ff:1f.7", "--qmp=q", PLUGGED],
            "vfio=0000:ff:1f.7: this machine has no PCI function 0000:ff:1f.7; lspci -D",
        ),
        (
            &["ctl", "--socket=x", "plug", "1,vfio=65:00.0", "--qmp=q", "--device=id=d"],
            "--device id=d: QEMU has to be told which of its iommufd objects is the daemon's; ",
        ),
        (
            &["ctl", "--socket=/nonexistent", "unplug", "1", "--qmp=q", "--id=d"],
            "--socket /nonexistent: no daemon can be asked there: ",
        ),
        (
            &["ctl", "--socket=x", "unplug", "1", "--qmp=q", "--id=d", "--timeout=0"],
            "--timeout 0: `0` is not a whole number from 1 to 4294967295; ",
        ),
        (&["viot"], "`--iommu` is missing; "),
        (&["viot", "--iommu", "1"], "--iommu 1: `1` is not the address of a PCI function; "),
        (&["viot", "--iommu", "0:1.0"], "no endpoint is named; "),
        (
            &["viot", "--iommu", "0:1.0", "--endpoint", "16"],
            "--endpoint 16: VIOT cannot describe an endpoint that is given by number; write the PCI address, 00:02.0",
        ),
        (&["viot", "--iommu", "0:1.0", "--endpoint", "0:1.0"], "--endpoint 0:1.0: this is the IOMMU itself"),
        (
            &["viot", "--iommu", "0:1.0", "--endpoint", "0:2.0", "-o", "/nonexistent/viot.dat"],
            "--output /nonexistent/viot.dat: the table cannot be written there: ",
        ),
    ] {
        assert_refused(words, line);
    }
}

#[test]
fn an_error_of_the_configuration_file_names_file_and_line() {
    for (text, line) in [
        ("\ngranul = '4k'\n", "2: `granul` is not an option; "),
        ("granule = '3k'\n", "1: granule 3k: a granule is a power of two"),
        ("fd = 3\n\naperture = '1M-2M'\n", "3: aperture 0x100000-0x200000: the range does not consist"),
        ("fd = 3\nsocket-path = 'a'\n", "2: socket-path a: fd is given as well; "),
        ("fd = 3\nendpoint = [\n '1',\n '0x1',\n]\n", "4: endpoint 0x1: this is the same endpoint as 1; "),
        ("fd = 3\nendpoint = [\n '1,vfio=fd:4',\n]\n", "3: endpoint 1: nothing says on which /dev/iommu"),
        ("fd = 3\niommufd = 3\n", "2: iommufd 3: the file descriptor 3 is given as --fd already; "),
        ("fd = \n", "1: "),
    ] {
        let (_directory, path) = config_file(text);
        assert_refused(&["--config", &path], &format!("{path}:{line}"));
    }
}

#[test]
fn an_option_on_the_command_line_is_not_blamed_on_the_file() {
    let (_directory, path) = config_file("fd = 3\ngranule = '4k'\n");
    assert_refused(
        &["--config", &path, "--granule", "2M", "--aperture", "1M-2M"],
        "--aperture 0x100000-0x200000: the range does not consist of whole granules of 0x200000 bytes",
    );
}

#[test]
fn capabilities_are_json_whatever_else_is_asked() {
    for words in [
        &["--print-capabilities"][..],
        &["--print-capabilities", "--nonsense"],
        &["--fd", "x", "--print-capabilities"],
    ] {
        let output = run(words);
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
        let json = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            json.starts_with(r#"{"type":"iommu","features":["#) && json.trim_end().ends_with("]}"),
            "{json}"
        );
    }
}

#[test]
fn help_and_version_go_to_standard_output_with_status_0() {
    for (words, text) in [
        (&["--help"][..], "--unmap-timeout <MS>"),
        (&["viot", "--help"], "--iommu <[SEGMENT:]BUS:DEV.FN>"),
        (&["launch", "--help"], "-- <VMM>..."),
        (&["ctl", "--help"], "--socket <PATH>"),
        (&["ctl", "block", "--help"], "<ID>"),
        (&["ctl", "plug", "--help"], "--device <KEY=VALUE,...>"),
        (&["--version"], concat!("vhost-user-iommu ", env!("CARGO_PKG_VERSION"))),
    ] {
        let output = run(words);
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}");
        assert!(String::from_utf8(output.stdout).expect("UTF-8").contains(text), "{words:?}");
    }
}

#[test]
fn viot_writes_the_same_table_to_standard_output_and_to_a_file() {
    let (directory, config) =
        config_file("socket-path = 'iommu.sock'\nendpoint = ['00:03.0,vhost-user=f,backend=b']\n");
    let file = directory.path().join("viot.dat");
    let words = ["viot", "--iommu", "00:01.0", "--endpoint", "00:02.0", "--config", &config];
    let table = run(words).stdout;
    assert_eq!(table.get(..4), Some(&b"VIOT"[..]));
    // The heads, the IOMMU's node and one range for each of the two functions.
    assert_eq!(table.len(), 48 + 16 + 2 * 24);
    let output = run(words.map(Path::new).into_iter().chain([Path::new("--output"), &file]));
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(fs::read(&file).expect("written"), table);
}

#[test]
fn a_table_is_not_written_to_a_full_device() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a Linux machine");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-iommu"));
    let output = command.args(["viot", "--iommu", "0:1.0", "--endpoint", "0:2.0"]).stdout(full).output();
    let output = output.expect("the program runs");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        error.starts_with("vhost-user-iommu: the table cannot be written to standard output: "),
        "{error}"
    );
    assert_eq!(output.status.code(), Some(2));
}
