// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest test bed itself, proven with QEMU's own virtio-iommu: no daemon of ours takes part.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viommu_tests::guest::{BootFrom, Disk, Guest, Initramfs, OnReset, Testbed};

const BOOT: Duration = Duration::from_secs(90);
const JOB: Duration = Duration::from_secs(120);
const DISK_DEVICE: &str = "virtio-blk-pci,drive=disk,iommu_platform=on,disable-legacy=on,addr=2";

/// A guest whose only disk is behind QEMU's own virtio-iommu.
fn guest_with_disk(testbed: &Testbed, disk: &Disk) -> Guest {
    Guest::new(testbed).device("virtio-iommu-pci,addr=1").image("disk", disk.path()).device(DISK_DEVICE)
}

fn disk_in(folder: &Path) -> Result<Disk> {
    Disk::random(&folder.join("disk.img"), 16, 7)
}

#[test]
fn a_guest_reads_its_disk_through_the_iommu_and_powers_off() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let disk = disk_in(folder.path())?;
    let begin = Instant::now();
    let mut guest =
        guest_with_disk(&testbed, &disk).job("checksum /dev/vda 16; iommu_groups; iommu_log").spawn()?;
    guest.wait_for("guest: init", BOOT)?;
    println!("launch to init: {:.1} s", begin.elapsed().as_secs_f64());
    assert_eq!(guest.value_of("checksum /dev/vda 16", JOB)?, disk.checksum(&testbed, 16)?);
    let group = guest.value_of("iommu_groups 0000:00:02.0", JOB)?;
    assert!(group.ends_with(" DMA-FQ"), "x86 guests are lazy by default: {group:?}");
    guest.wait_for("iommu_log end", JOB)?;
    assert!(guest.lines().iter().any(|line| line.contains("iommu_log") && line.contains("virtio_iommu")));
    guest.wait_for("guest: job ended 0", JOB)?;
    assert!(guest.wait_for_exit(JOB)?.success());
    println!("launch to exit: {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn the_kernel_command_line_chooses_the_policy_and_every_policy_reads() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let disk = disk_in(folder.path())?;
    for (argument, expected) in
        [("iommu.passthrough=1", "identity"), ("iommu.strict=0", "DMA-FQ"), ("iommu.strict=1", "DMA")]
    {
        let mut guest = guest_with_disk(&testbed, &disk)
            .kernel_arg(argument)
            .job("wait_for /dev/vda; iommu_groups; iops /dev/vda 4096 4")
            .spawn()?;
        assert_eq!(guest.group_type("0000:00:02.0", BOOT)?, expected, "{argument}");
        let iops: u32 = guest.value_of("iops /dev/vda 4096 4 ", JOB)?.parse()?;
        ensure!(iops > 0);
        println!("{argument}: {iops} reads of 4 KiB a second");
    }
    Ok(())
}

#[test]
fn firmware_and_boot_loader_boot_from_the_emulated_disk() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let initramfs = Initramfs::new().job("checksum /dev/vda 24");
    let disk = Disk::bootable(&testbed, &folder.path().join("boot.img"), 24, &initramfs, "iommu.strict=1")?;
    let begin = Instant::now();
    let mut guest = guest_with_disk(&testbed, &disk).boot_from(BootFrom::Disk).spawn()?;
    guest.wait_for("GRUB reads the kernel", BOOT)?;
    guest.wait_for("guest: init", BOOT)?;
    println!("launch to init through GRUB: {:.1} s", begin.elapsed().as_secs_f64());
    assert_eq!(guest.value_of("checksum /dev/vda 24", JOB)?, disk.checksum(&testbed, 24)?);
    assert!(guest.wait_for_exit(JOB)?.success());
    Ok(())
}

#[test]
fn a_guest_reboots_by_itself_and_by_the_monitor() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let disk = disk_in(folder.path())?;
    // The first boot marks the disk and resets itself; the second one waits for the monitor's reset.
    let job = "wait_for /dev/vda
        if [ $(head -c 4 /dev/vda) = back ]; then echo second boot; sleep 1000; fi
        printf back | dd of=/dev/vda conv=notrunc status=none; sync; reboot -f";
    let mut guest = guest_with_disk(&testbed, &disk).on_reset(OnReset::Reboot).job(job).spawn()?;
    guest.wait_for("guest: init", BOOT)?;
    guest.wait_for("guest: init", BOOT)?;
    guest.wait_for("second boot", BOOT)?;
    guest.monitor("system_reset")?;
    guest.wait_for("guest: init", BOOT)?;
    guest.monitor("quit")?;
    assert!(guest.wait_for_exit(JOB)?.success());
    Ok(())
}

#[test]
fn a_refused_argument_is_reported_in_qemus_own_words() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let mut guest = Guest::new(&testbed).device("no-such-device").spawn()?;
    let failure = guest.wait_for("guest: init", BOOT).unwrap_err().to_string();
    assert!(failure.contains("QEMU exited") && failure.contains("no-such-device"), "{failure}");
    Ok(())
}

#[test]
fn a_job_that_fails_says_so_and_a_passed_deadline_shows_the_console() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let mut guest = Guest::new(&testbed).job("echo about to fail; false").spawn()?;
    guest.wait_for("guest: job ended 1", BOOT)?;
    let mut silent = Guest::new(&testbed).job("echo still here; sleep 1000").spawn()?;
    silent.wait_for("still here", BOOT)?;
    let failure = silent.wait_for("never said", Duration::from_millis(10)).unwrap_err().to_string();
    assert!(failure.contains("never said") && failure.contains("still here"), "{failure}");
    Ok(())
}

#[test]
fn a_guest_dies_with_the_process_that_started_it() -> Result<()> {
    const HOLD: &str = "HOLD_A_GUEST_UNTIL_KILLED";
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    if std::env::var_os(HOLD).is_some() {
        let mut guest = Guest::new(&testbed).job("sleep 1000").spawn()?;
        guest.wait_for("guest: init", BOOT)?;
        println!("\nholding {}", guest.pid());
        loop {
            thread::park();
        }
    }
    let folder = tempfile::tempdir()?;
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_guest_dies_with_the_process_that_started_it", "--nocapture"])
        .env(HOLD, "yes")
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().context("standard output is a pipe")?).lines();
    let pid = lines.find_map(|line| line.ok()?.strip_prefix("holding ").map(str::to_owned));
    holder.kill()?;
    holder.wait()?;
    let stat = format!("/proc/{}/stat", pid.context("the holder started no guest")?);
    let deadline = Instant::now() + Duration::from_secs(10);
    // Gone, or dead and not yet reaped by its new parent.
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        ensure!(Instant::now() < deadline, "QEMU outlived its process: {stat}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
