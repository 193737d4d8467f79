// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket of a daemon, through `vhost-user-iommu ctl`. No physical device is behind it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use tempfile::TempDir;
use viommu_core::{DomainId, wire::ATTACH_F_BYPASS};

use crate::process::run;
use crate::scene::*;

/// A daemon with a control socket.
struct Controlled {
    served: Served,
    control: PathBuf,
    _folder: TempDir,
}

impl Controlled {
    fn new() -> Controlled {
        let folder = tempfile::tempdir().expect("a folder");
        let control = folder.path().join("control.sock");
        let served = Served::with(&["--control", control.to_str().expect("UTF-8"), "--endpoint", "9"]);
        Controlled { served, control, _folder: folder }
    }

    fn ctl(&self, words: &[&str]) -> Output {
        run(&[&["ctl", "--socket", self.control.to_str().expect("UTF-8")], words].concat())
    }

    fn list(&self) -> Vec<String> {
        let output = self.ctl(&["list"]);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_socket_is_for_its_user_alone_and_gone_at_the_end() {
    let controlled = Controlled::new();
    let mode = fs::metadata(&controlled.control).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = fs::metadata(&controlled.served.socket).expect("it is there").permissions().mode();
    assert_ne!(mode & 0o777, 0o600, "the VMM's socket is as the user's umask has it");
    controlled.served.daemon.end().expect("it ends");
    assert!(!controlled.control.exists());
}

#[test]
fn a_list_says_what_each_endpoint_reaches() {
    let controlled = Controlled::new();
    let blocked = |endpoint| format!("{endpoint}: listed, blocked: there is no VMM");
    assert_eq!(controlled.list(), ["9", "00:02.0", "00:03.0"].map(blocked));
    let mut vmm = controlled.served.vmm();
    vmm.attach();
    assert_ok(&vmm.driver.attach(DomainId(8), OTHER_ENDPOINT, ATTACH_F_BYPASS).expect("a reply"));
    let expected =
        ["9: listed, bypass", "00:02.0: listed, translated (domain 7)", "00:03.0: listed, bypass (domain 8)"];
    assert_eq!(controlled.list(), expected);
    let json = controlled.ctl(&["--json", "list"]).stdout;
    let json = String::from_utf8(json).expect("UTF-8");
    let first = r#"{"result":{"endpoints":[{"endpoint":"9","kind":"listed","state":"bypass"},"#;
    assert!(json.starts_with(first) && json.lines().count() == 1, "{json}");
}

#[test]
fn what_cannot_be_done_to_an_endpoint_is_refused_with_the_reason() {
    let controlled = Controlled::new();
    for (words, error) in [
        (&["remove", "00:02.0"][..], "vhost-user-iommu: the endpoint has no device\n"),
        (&["remove", "77"], "vhost-user-iommu: the daemon was given no such endpoint\n"),
        (&["--json", "remove", "77"], "vhost-user-iommu: unknown-endpoint\n"),
        (
            &["block", "00:02.0"],
            "vhost-user-iommu: 00:02.0 is merely listed: nothing of it passes through the daemon\n",
        ),
        (&["--json", "block", "9"], "vhost-user-iommu: nothing-behind\n"),
        (&["block", "77"], "vhost-user-iommu: the daemon was given no such endpoint\n"),
        (&["unblock", "77"], "vhost-user-iommu: the daemon was given no such endpoint\n"),
    ] {
        let output = controlled.ctl(words);
        assert_eq!(
            (String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()),
            (error, Some(1))
        );
        assert_eq!(output.stdout.is_empty(), words[0] != "--json");
    }
    controlled.served.assert_serves();
}
