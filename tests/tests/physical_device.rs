// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A physical device of the machine that this runs on, given to a guest: `scripts/test vfio --device ADDRESS`.
//!
//! Nothing is written to it. What is read from an NVMe disk without an IOMMU in the guest has to be read behind the
//! daemon too. Of other devices nothing is used: only that the guest's kernel has them behind the daemon is checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viommu_tests::daemon::Daemon;
use viommu_tests::guest::{Guest, Testbed};

const MIB: usize = 64;
const WITHIN: Duration = Duration::from_secs(300);
/// Where the guest has the IOMMU and the device.
const IOMMU: &str = "00:01.0";
const ENDPOINT: &str = "00:02.0";

struct Device {
    address: String,
    is_nvme: bool,
}

impl Device {
    /// The one that the environment variable names.
    fn chosen() -> Result<Device> {
        let address = std::env::var("VIOMMU_DEVICE").context("VIOMMU_DEVICE names no device")?;
        let folder = PathBuf::from("/sys/bus/pci/devices").join(&address);
        let class = fs::read_to_string(folder.join("class"))
            .with_context(|| format!("there is no PCI function {address}; write it as in 0000:65:00.0"))?;
        let driver = fs::read_link(folder.join("driver")).unwrap_or_default();
        let folder = folder.display();
        ensure!(
            driver.ends_with("vfio-pci"),
            "{address} is not vfio-pci's; when nobody uses it, give it to vfio-pci:\n\
             echo vfio-pci > {folder}/driver_override\n\
             echo {address} > {folder}/driver/unbind\n\
             echo {address} > /sys/bus/pci/drivers_probe"
        );
        Ok(Device { address, is_nvme: class.starts_with("0x010802") })
    }

    /// Gives it to a guest, in which this is in front of it, as `vfio-pci` with this property. The guest reads it, if
    /// it is a disk.
    fn give_to(&self, guest: Guest, context: &str, property: &str) -> Guest {
        let read = format!(
            "iommu_groups; nvme 0000:{ENDPOINT} /dev/disk
            blockdev --setro /dev/disk; checksum /dev/disk {MIB}"
        );
        // The guest's kernel has the driver of NVMe built in.
        let guest = guest.job(if self.is_nvme { &read } else { "iommu_groups" });
        guest
            .argument("-object")
            .argument(context)
            .device(&format!("vfio-pci,iommufd=iommufd0,{property},addr=2"))
    }

    fn guest_without_iommu(&self, testbed: &Testbed) -> Guest {
        self.give_to(Guest::new(testbed), "iommufd,id=iommufd0", &format!("host={}", self.address))
    }

    fn guest_behind_daemon(&self, testbed: &Testbed, folder: &Path) -> Result<Guest> {
        let (socket, viot) = (folder.join("iommu.sock"), folder.join("viot.dat"));
        Daemon::write_viot(&["--iommu", IOMMU, "--endpoint", ENDPOINT], &viot)?;
        let daemon = Daemon::program()?;
        let (daemon, address) = (daemon.to_string_lossy(), socket.to_string_lossy());
        let endpoint = format!("{ENDPOINT},vfio={}", self.address);
        let launch = [&*daemon, "launch", "--socket-path", &address, "--endpoint", &endpoint, "--"];
        let guest = Guest::new(testbed).launched_by(launch).viot(&viot).chardev("iommu", &socket).device(
            "vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=iommu,addr=1",
        );
        Ok(self.give_to(guest, "iommufd,id=iommufd0,fd={iommufd}", &format!("fd={{vfio:{ENDPOINT}}}")))
    }
}

/// What the guest read; empty if the device is no disk.
fn read(device: &Device, guest: &Guest, group_type: Option<&str>) -> Result<String> {
    let mut guest = guest.spawn()?;
    if let Some(expected) = group_type {
        let found = guest.group_type(&format!("0000:{ENDPOINT}"), WITHIN)?;
        ensure!(found == expected, "the guest has it in a group of type {found}, not {expected}");
    }
    let sum = match device.is_nvme {
        true => guest.value_of(&format!("checksum /dev/disk {MIB} "), WITHIN)?,
        false => String::new(),
    };
    guest.wait_for("guest: job ended 0", WITHIN)?;
    guest.wait_for_exit(WITHIN)?;
    Ok(sum)
}

#[test]
#[ignore = "it needs a physical device: scripts/test vfio --device ADDRESS"]
fn a_physical_device_works_behind_the_daemon_as_it_does_without_an_iommu() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else { return Ok(()) };
    let device = Device::chosen()?;
    let plain = read(&device, &device.guest_without_iommu(&testbed), None)?;
    for (kernel_arg, group_type) in [("iommu.strict=1", "DMA"), ("iommu.strict=0", "DMA-FQ")] {
        let folder = tempfile::tempdir()?;
        let guest = device.guest_behind_daemon(&testbed, folder.path())?.kernel_arg(kernel_arg);
        let behind = read(&device, &guest, Some(group_type))?;
        ensure!(behind == plain, "with {kernel_arg}, {behind} was read; without an IOMMU, {plain}");
    }
    match device.is_nvme {
        true => println!("{}: {MIB} MiB were read, strictly and lazily, as without an IOMMU", device.address),
        false => println!("{}: no NVMe disk; the guest's kernel has it behind the daemon", device.address),
    }
    Ok(())
}
