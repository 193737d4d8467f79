// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A folder stands for the machine; /dev/null, a character device that everybody may open, for its device files.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const FUNCTION: &str = "sys/bus/pci/devices/0000:65:00.0";

/// A machine with one PCI function, /dev/null being known as `name`.
fn machine(name: &str) -> (TempDir, Host) {
    let root = tempfile::tempdir().expect("a folder");
    let host = Host::at(root.path());
    make(&root, &format!("{FUNCTION}/vendor"), "0x8086\n");
    make(&root, "sys/dev/char/1:3/uevent", &format!("MAJOR=1\nMINOR=3\nDEVNAME={name}\n"));
    (root, host)
}

fn make(root: &TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, text).expect("written");
}

fn link(root: &TempDir, path: &str, to: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    symlink(to, path).expect("made");
}

fn function() -> VfioDevice {
    VfioDevice::Address("65:00.0".parse().expect("an address"))
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, UsageError>, line: &str) {
    let error = result.expect_err(line).to_string();
    assert!(error.contains(line), "{error}\n does not say {line}");
}

#[test]
fn a_function_that_is_bound_to_vfio_is_opened_by_its_address() {
    let (root, host) = machine("vfio/devices/vfio7");
    make(&root, &format!("{FUNCTION}/vfio-dev/vfio7/dev"), "1:3\n");
    assert_refused(host.open_device(&function()), "dev/vfio/devices/vfio7; VFIO device files take Linux 6.6");
    link(&root, "dev/vfio/devices/vfio7", "/dev/null");
    let opened = host.open_device(&function()).expect("a device file");
    assert!(is_same_device(&opened, fs::File::open("/dev/null").expect("a Linux machine")));
    assert!(!is_same_device(&opened, fs::File::open("/dev/zero").expect("a Linux machine")));
}

#[test]
fn a_function_that_is_not_bound_is_told_with_how_to_bind_it() {
    let (root, host) = machine("vfio/devices/vfio0");
    let no_driver = "0000:65:00.0 is bound to no driver, but has to be to vfio-pci; as root: modprobe vfio-pci && \
                     echo vfio-pci > /sys/bus/pci/devices/0000:65:00.0/driver_override && \
                     echo 0000:65:00.0 > /sys/bus/pci/drivers_probe";
    assert_refused(host.open_device(&function()), no_driver);
    let driver = format!("{FUNCTION}/driver");
    link(&root, &driver, "../../../bus/pci/drivers/nvme");
    assert_refused(
        host.open_device(&function()),
        "0000:65:00.0 is bound to the driver nvme, not to vfio-pci; ",
    );
    assert_refused(
        host.open_device(&function()),
        "driver_override && echo 0000:65:00.0 > /sys/bus/pci/drivers/nvme/unbind && ",
    );
    fs::remove_file(root.path().join(&driver)).expect("removed");
    link(&root, &driver, "../../../bus/pci/drivers/vfio-pci");
    assert_refused(host.open_device(&function()), "the kernel has no VFIO device for 0000:65:00.0; ");
}

#[test]
fn what_is_not_there_is_named() {
    let (_root, host) = machine("iommu");
    let other = VfioDevice::Address("1:66:00.0".parse().expect("an address"));
    assert_refused(host.open_device(&other), "this machine has no PCI function 0001:66:00.0; lspci -D");
    let path = VfioDevice::Path("/nonexistent/vfio0".into());
    assert_refused(host.open_device(&path), "there is no /nonexistent/vfio0; ls /dev/vfio/devices");
    assert_refused(host.open_iommu(), "dev/iommu; modprobe iommufd");
}

#[test]
fn other_files_are_told_from_a_device_file_and_from_iommu() {
    let null = VfioDevice::Path("/dev/null".into());
    let (root, host) = machine("vfio/12");
    assert_refused(host.open_device(&null), "this is not a VFIO device file but /dev/vfio/12; ");
    link(&root, "dev/iommu", "/dev/null");
    let opened = host.open_iommu().expect("opened");
    assert_refused(host.check_iommu(&opened), "this is not /dev/iommu but /dev/vfio/12; ");
    let (_root, host) = machine("iommu");
    host.check_iommu(&opened).expect("it is");
    let file = tempfile::tempfile().expect("a file");
    assert_refused(host.check_iommu(&file), "this is not /dev/iommu but another kind of file; ");
    assert_refused(host.check_device(&file), "this is not a VFIO device file but another kind of file; ");
}

#[test]
fn without_sysfs_a_device_is_taken_at_its_word() {
    let nowhere = Host::at("/nonexistent");
    nowhere.open_device(&VfioDevice::Path("/dev/null".into())).expect("opened");
}

#[test]
fn a_file_of_others_is_told_with_how_to_be_let_in() {
    for errno in [Errno::ACCESS, Errno::PERM] {
        let error = not_opened(Path::new("/dev/iommu"), errno).to_string();
        assert!(error.starts_with("/dev/iommu may not be opened by this user; "), "{error}");
        assert!(error.contains("chown USER /dev/iommu"), "{error}");
    }
    let error = not_opened(Path::new("/dev/iommu"), Errno::NFILE).to_string();
    assert!(error.starts_with("/dev/iommu cannot be opened: "), "{error}");
}
