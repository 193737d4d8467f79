// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that leaves a guest and comes back while both run, through the daemon's control socket and QEMU's monitor.

use anyhow::{Result, ensure};
use viommu_tests::l2::{Guest, Iommu};

use super::stage::{FEW_MIB, FIRST, Stage, WITHIN};

/// Where the guest has the disk: behind a root port.
const ENDPOINT: &str = "01:00.0";
const CONTROL: &str = "/run/control.sock";
const QMP: &str = "/run/qmp.sock";

/// Waits for the disk, says what it reads, and waits until the disk is gone; the second time, it goes while it is read.
fn job() -> String {
    format!(
        "function=0000:{ENDPOINT}
        is_there() {{ [ -e /sys/bus/pci/devices/$function ]; }}
        nvme $function /dev/first; checksum /dev/first {FEW_MIB}
        while is_there; do usleep 50000; done; echo gone once
        until is_there; do usleep 50000; done
        nvme $function /dev/second; checksum /dev/second {FEW_MIB}
        echo reading; while dd if=/dev/second of=/dev/null bs=64k iflag=direct status=none; do echo again; done
        while is_there; do usleep 50000; done; echo gone twice
        until is_there; do usleep 50000; done
        nvme $function /dev/third; checksum /dev/third {FEW_MIB}"
    )
}

#[test]
fn a_disk_leaves_the_guest_idle_or_busy_is_free_for_others_and_comes_back() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    stage.boot()?;
    stage.guest_read("/dev/first", 0)?;
    assert!(stage.is_in_use()?, "two have the disk at once");

    stage.unplug()?;
    stage.host.guest_line("gone once", WITHIN)?;
    assert!(!stage.is_in_use()?, "somebody has the disk still");
    stage.assert_refused_by_qemu()?;
    stage.host.execute(&format!("{HOST_DRIVER}; give_to_vfio {FIRST}"))?;
    stage.plug()?;
    stage.guest_read("/dev/second", 0)?;

    stage.host.guest_line("reading", WITHIN)?;
    stage.unplug()?;
    stage.host.guest_line("gone twice", WITHIN)?;
    assert!(!stage.is_in_use()?, "somebody has the disk still");
    stage.plug()?;
    stage.guest_read("/dev/third", 0)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    assert_eq!(stage.refused_dma()?, [""; 0]);
    Ok(())
}

/// What takes the disk from vfio-pci, which waits for whoever has it open, and reads from it.
const HOST_DRIVER: &str = "disk=/sys/bus/pci/devices/0000:01:00.0
    echo ${disk##*/} >$disk/driver/unbind; echo nvme >$disk/driver_override; echo ${disk##*/} >/sys/bus/pci/drivers_probe
    until ls -d $disk/nvme/nvme*/nvme*n1; do usleep 50000; done
    dd if=/dev/$(cd $disk/nvme && ls -d nvme*/nvme*n1 | cut -d / -f 2) of=/dev/null bs=1M count=1 iflag=direct";

impl Stage {
    fn boot(&mut self) -> Result<()> {
        let mut options = vec!["--control".to_owned(), CONTROL.to_owned()];
        if let Iommu::Daemon(others) = self.iommu() {
            options.extend(others);
        }
        let guest = Guest::new(Iommu::Daemon(options)).pass(ENDPOINT, FIRST).job(&job());
        let guest = guest.argument("-qmp").argument(&format!("unix:{QMP},server=on,wait=off"));
        self.host.boot(&guest)
    }

    /// Whether a daemon of another guest finds that somebody has bound the disk.
    fn is_in_use(&mut self) -> Result<bool> {
        // What it says must not be mixed with what others say at the same time.
        let launch = format!(
            "vhost-user-iommu launch --socket-path /run/other.sock --endpoint 9,vfio={FIRST} -- \
             /bin/busybox true {{iommufd}}{{vfio:9}} >/run/other 2>&1
             while [ -e /run/other.sock ]; do usleep 20000; done; cat /run/other"
        );
        let lines = self.host.execute(&launch)?.join("\n");
        ensure!(lines.contains(&format!("endpoint 9: {FIRST}, group ")), "{lines}");
        Ok(lines.contains("not tried out, since it is in use"))
    }

    fn unplug(&mut self) -> Result<()> {
        self.ctl(&format!(
            "unplug {ENDPOINT} --qmp {QMP} --id {} --timeout 120",
            Guest::device_name(ENDPOINT)
        ))?;
        self.assert_listed(", its device is removed, ")
    }

    fn plug(&mut self) -> Result<()> {
        let refused = self.plug_with("bus=port01,addr=0")?;
        ensure!(refused.is_empty(), "{refused:?}");
        self.assert_listed(&format!(" {FIRST}, "))
    }

    /// None of it keeps the file, or the id from being used.
    fn assert_refused_by_qemu(&mut self) -> Result<()> {
        for (properties, reason) in [
            ("bus=nowhere", "Bus 'nowhere' not found"),
            ("bus=port01,addr=0,x-nothing=1", "Property 'vfio-pci.x-nothing' not found"),
            ("bus=port01,addr=0,rombar=0", "Invalid parameter type for 'rombar', expected: integer"),
            ("bus=port01,addr=99", ""),
        ] {
            let refused = self.plug_with(properties)?;
            let expected = format!("vhost-user-iommu: QEMU refuses device_add: {reason}");
            ensure!(refused.join("\n").starts_with(&expected), "{properties}: {refused:?}");
            self.assert_listed(", its device is removed, ")?;
        }
        Ok(())
    }

    /// What it says, which is nothing if it is done.
    fn plug_with(&mut self, properties: &str) -> Result<Vec<String>> {
        let name = Guest::device_name(ENDPOINT);
        self.host.execute(&format!(
            "vhost-user-iommu ctl --socket {CONTROL} plug {ENDPOINT},vfio={FIRST} --qmp {QMP} --timeout 120 \
             --device iommufd=iommufd0,id={name},{properties} 2>&1 || true"
        ))
    }

    fn assert_listed(&mut self, state: &str) -> Result<()> {
        let lines = self.ctl("list")?;
        let expected = format!("{ENDPOINT}: vfio{state}");
        ensure!(lines.iter().any(|line| line.starts_with(&expected)), "{expected:?} in {lines:?}");
        Ok(())
    }

    fn ctl(&mut self, words: &str) -> Result<Vec<String>> {
        self.host.execute(&format!("vhost-user-iommu ctl --socket {CONTROL} {words} 2>&1"))
    }
}
