// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `launch` tells people: how the same is done by a shell, and what a VMM lacks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::LaunchCommand;
use super::files::devices;
use super::template::{File, Piece, Word};
use crate::config::{Config, Listen, VfioDevice};

/// The two commands, for bash, with what opens the files before.
pub fn script(launch: &LaunchCommand) -> String {
    let LaunchCommand { config, daemon, vmm, .. } = launch;
    let note = note(launch).map(|note| format!("# {note}\n")).unwrap_or_default();
    let files = opened(config);
    let opening: String = files.iter().map(|(name, path)| format!("exec {{{name}}}<>{path}\n")).collect();
    let opening_comment = if files.is_empty() { "" } else { OPENING_COMMENT };
    let is_for_shell = |word: &&Word| !word.files().any(|file| file == File::Pipe);
    let program = Word::plain("vhost-user-iommu");
    let words: Vec<&Word> = [&program].into_iter().chain(daemon.iter().filter(is_for_shell)).collect();
    let daemon = command(&words, config);
    let vmm = command(&vmm.iter().collect::<Vec<_>>(), config);
    format!("{note}{opening_comment}{opening}{DAEMON_COMMENT}{daemon} &\n{VMM_COMMENT}exec {vmm}\n")
}

/// What a VMM needs that it does not have, where it is known to lack something.
pub fn note(launch: &LaunchCommand) -> Option<String> {
    let program = launch.vmm.first()?.fill(|_| String::new());
    let name = Path::new(&program).file_name()?;
    if !name.to_string_lossy().starts_with("cloud-hypervisor") {
        return None;
    }
    let socket = match &launch.config.listen {
        Listen::Path(path) => path.display().to_string(),
        Listen::Fd(_) => "PATH".to_owned(),
    };
    Some(format!(
        "{CLOUD_HYPERVISOR} --generic-vhost-user socket={socket},device_type=iommu,queue_sizes=[256,256]"
    ))
}

/// The files that launch opens itself: a variable for the number, and where it is.
fn opened(config: &Config) -> Vec<(String, String)> {
    let devices = devices(config).filter_map(|(file, _, device)| match device {
        VfioDevice::Address(address) => {
            let folder = format!("/sys/bus/pci/devices/{}/vfio-dev", address.in_full());
            Some((file, format!("\"/dev/vfio/devices/$(ls {folder})\"")))
        }
        VfioDevice::Path(path) => Some((file, quoted(path.as_os_str()))),
        VfioDevice::Fd(_) => None,
    });
    let is_open = config.iommufd.is_some() || self::devices(config).next().is_none();
    let iommufd = (!is_open).then(|| (File::Iommufd, "/dev/iommu".to_owned()));
    iommufd.into_iter().chain(devices).map(|(file, path)| (variable(file, config), path)).collect()
}

fn command(words: &[&Word], config: &Config) -> String {
    let mut command = String::new();
    for (at, word) in words.iter().enumerate() {
        let text: String = word.pieces().iter().map(|piece| shown(piece, config)).collect();
        let is_option = word.fill(|_| String::new()).as_bytes().starts_with(b"-");
        command.push_str(match at {
            0 => "",
            _ if is_option => " \\\n    ",
            _ => " ",
        });
        command.push_str(if word.pieces().is_empty() { "''" } else { &text });
    }
    command
}

fn shown(piece: &Piece, config: &Config) -> String {
    match piece {
        Piece::Text(text) => quoted(text),
        Piece::Number(file) => {
            number(*file, config).unwrap_or_else(|| format!("\"${}\"", variable(*file, config)))
        }
    }
}

/// The number of a file that the caller has opened.
fn number(file: File, config: &Config) -> Option<String> {
    let number = match file {
        File::Iommufd => config.iommufd?,
        File::Listener => match config.listen {
            Listen::Fd(number) => number,
            Listen::Path(_) => return None,
        },
        File::Device(_) => devices(config).find_map(|(other, _, device)| match device {
            VfioDevice::Fd(number) if other == file => Some(*number),
            _ => None,
        })?,
        File::Pipe => return None,
    };
    Some(number.to_string())
}

fn variable(file: File, config: &Config) -> String {
    let label = devices(config).find(|(other, ..)| *other == file).map(|(_, label, _)| label);
    match label {
        Some(label) => format!("vfio_{}", label.replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
        None => "iommufd".to_owned(),
    }
}

/// A part of a word as a shell takes it for one.
fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

const OPENING_COMMENT: &str = "# The daemon and the VMM inherit the same open files; bash numbers them.\n";
const DAEMON_COMMENT: &str = "\
# The daemon. launch also gives it --exit-with N, an end of a pipe of which only the VMM has the other, and goes on when
# the daemon is ready: it then sends READY=1 to NOTIFY_SOCKET.
";
const VMM_COMMENT: &str = "# The VMM.\n";

const CLOUD_HYPERVISOR: &str = "\
cloud-hypervisor has to be changed in two places before a guest can use this IOMMU: its generic vhost-user device offers \
the guest none of the feature bits that are the device's own (0 to 23) and has to pass them on, and it makes a VIOT for \
its own IOMMU alone and has to give the guest the one that `vhost-user-iommu viot` writes. The device is then";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::tests::{launch, launch_of};

    #[test]
    fn the_script_opens_the_files_once_and_names_them_in_both_commands() {
        let launch = launch_of(
            "--socket-path a;sock --endpoint 00:03.0,vfio=65:00.0 --endpoint 1,vfio=/dev/vfio/devices/vfio1",
            &[
                "qemu",
                "-object",
                "iommufd,id=i,fd={iommufd}",
                "-device",
                "{vfio:00:03.0},{vfio:1}",
                "-name",
                "it's",
            ],
        );
        let script = script(&launch);
        let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "exec {iommufd}<>/dev/iommu",
            r#"exec {vfio_00_03_0}<>"/dev/vfio/devices/$(ls /sys/bus/pci/devices/0000:65:00.0/vfio-dev)""#,
            "exec {vfio_1}<>/dev/vfio/devices/vfio1",
            r"vhost-user-iommu \",
            r"    '--socket-path=a;sock' \",
            r#"    --endpoint=00:03.0,vfio=fd:"$vfio_00_03_0" \"#,
            r#"    --endpoint=1,vfio=fd:"$vfio_1" \"#,
            r#"    --iommufd="$iommufd" &"#,
            r"exec qemu \",
            r#"    -object iommufd,id=i,fd="$iommufd" \"#,
            r#"    -device "$vfio_00_03_0","$vfio_1" \"#,
            r"    -name 'it'\''s'",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_the_caller_has_opened_keeps_its_number() {
        let script = script(&launch("--fd 3 --iommufd 4 --endpoint 1,vfio=fd:5"));
        assert!(
            script.contains("--fd=3 ") && script.contains("vfio=fd:5 ") && script.contains("--iommufd=4 ")
        );
        assert!(!script.contains("exec {"), "{script}");
    }

    #[test]
    fn cloud_hypervisor_is_told_what_it_lacks() {
        let options = "--socket-path a.sock --endpoint 1";
        for (program, is_told) in
            [("/usr/bin/cloud-hypervisor", true), ("qemu-system-x86_64", false), ("", false)]
        {
            let launch = launch_of(options, &[program, "--cpus", "boot=1"]);
            assert_eq!(note(&launch).is_some(), is_told, "{program}");
            let line = "--generic-vhost-user socket=a.sock,device_type=iommu,queue_sizes=[256,256]";
            assert_eq!(script(&launch).contains(line), is_told);
        }
    }
}
