// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The main job, shown: a stock Linux guest whose disk is behind the daemon. Started by `scripts/demo`.
//!
//! Exits with status 0 only when all of it was seen: the guest attached the disk to a domain, read it through
//! translated DMA with the right checksum, and was told of a stray DMA that was refused.

mod account;
mod interrupt;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viommu_tests::guest::{Accelerator, Disk, RunningGuest, Testbed};
use viommu_tests::iotlb_disk::{Outcome, StrayDma};
use viommu_tests::scene::{Behind, DISK, Scene};

use account::{Account, served};
use interrupt::Interrupt;

const MEMORY_MIB: u32 = 512;
const DISK_MIB: usize = 16;
/// In the aperture, and mapped by nobody: Linux gives out IOVAs from the other end.
const STRAY_IOVA: u64 = 0x20_0000;
const BOOT: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_secs(60);

/// What the guest does: say what is behind the IOMMU, read the disk, wait for the kernel to report the stray DMA.
const JOB: &str = "
uname -r | sed 's/^/kernel /'
wait_for /dev/vda
iommu_groups
checksum /dev/vda 16
echo 'ready for a stray DMA'
tries=0
until dmesg | grep 'fault from EP' | head -n 1 | grep . ; do
  tries=$((tries + 1)); [ $tries -le 300 ] || break; usleep 100000
done
";

fn main() -> ExitCode {
    let interrupt = Interrupt::watch();
    match interrupt.as_ref().map_err(|error| anyhow::anyhow!("{error}")).and_then(show) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt.is_ok_and(|interrupt| interrupt.came()) => {
            eprintln!("\ninterrupted; nothing is left running");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(interrupt: &Interrupt) -> Result<()> {
    let account = Account::begin();
    let testbed = Testbed::find()?;
    let folder = tempfile::tempdir()?;
    let image = Disk::random(&folder.path().join("disk.img"), DISK_MIB, 1)?;
    let image_sum = image.checksum(&testbed, DISK_MIB)?;

    account.step("starting vhost-user-iommu, with a disk behind it");
    let scene = Scene::new(Behind::Daemon, image.path(), MEMORY_MIB, &[])?;
    let daemon = scene.daemon.as_ref().context("no daemon")?;
    interrupt.ends(daemon.pid());
    account.step(match Accelerator::of_this_machine() {
        Accelerator::Kvm => "booting a stock Debian guest in QEMU, with KVM",
        Accelerator::Tcg => {
            "booting a stock Debian guest in QEMU; without hardware virtualisation, so it takes a moment"
        }
    });
    let mut guest = scene.guest(&testbed, MEMORY_MIB).job(JOB).spawn()?;
    interrupt.ends(guest.pid());

    let kernel = guest.value_of("kernel ", BOOT)?;
    account.step(&format!("Linux {kernel} is up"));
    show_attachment(&account, &mut guest, &scene)?;
    show_reading(&account, &mut guest, &scene, &image_sum)?;
    show_stray_dma(&account, &mut guest, &scene)?;
    drop(guest);
    show_end(&account, scene)
}

fn show_attachment(account: &Account, guest: &mut RunningGuest, scene: &Scene) -> Result<()> {
    let policy = match &*guest.group_type(&format!("0000:{DISK}"), STEP)? {
        "DMA-FQ" => "lazy",
        "DMA" => "strict",
        other => anyhow::bail!("the guest does not translate the disk's DMA: its group has type {other:?}"),
    };
    let daemon = scene.daemon.as_ref().context("no daemon")?;
    let attached = daemon.wait_for(" attached to ", STEP)?;
    let attached = attached.split_once("endpoint ").map_or(attached.as_str(), |(_, line)| line);
    account.seen(&format!("endpoint {attached}; the guest unmaps in {policy} mode"));
    Ok(())
}

fn show_reading(account: &Account, guest: &mut RunningGuest, scene: &Scene, image_sum: &str) -> Result<()> {
    let sum = guest.value_of(&format!("checksum /dev/vda {DISK_MIB} "), STEP)?;
    let stats = scene.disk.stats();
    ensure!(sum == image_sum, "the guest read {sum}, the image has {image_sum}");
    ensure!(stats.updates > 0, "the disk read without a translation");
    let mib = stats.bytes >> 20;
    account.seen(&format!("the disk moved {mib} MiB by DMA through {} translations", stats.updates));
    account.seen(&format!("the guest's checksum is the image's: md5 {sum}"));
    Ok(())
}

fn show_stray_dma(account: &Account, guest: &mut RunningGuest, scene: &Scene) -> Result<()> {
    guest.wait_for("ready for a stray DMA", STEP)?;
    account.step(&format!("now the disk reads memory that nobody mapped for it, at IOVA {STRAY_IOVA:#x}"));
    match scene.disk.stray_dma(STRAY_IOVA, StrayDma::Read(512)) {
        Outcome::Refused(_) => account.seen("refused"),
        other => anyhow::bail!("a stray DMA was not refused: {other:?}"),
    }
    let line = guest.wait_for("fault from EP", STEP)?;
    ensure!(line.contains(&format!("{STRAY_IOVA:#x}")), "the guest reports another fault: {line}");
    account.seen(&format!("the guest's kernel says: {}", line.trim()));
    Ok(())
}

fn show_end(account: &Account, mut scene: Scene) -> Result<()> {
    let daemon = scene.daemon.take().context("no daemon")?;
    let (status, log) = daemon.end()?;
    ensure!(status.success(), "the daemon ended with {status}\n{}", log.join("\n"));
    let (maps, unmaps) = served(&log).context("the daemon does not say what it served")?;
    ensure!(maps > 0 && unmaps > 0, "the daemon served {maps} MAPs and {unmaps} UNMAPs");
    account.seen(&format!("the daemon served {maps} MAPs and {unmaps} UNMAPs, and ended cleanly"));
    account.end();
    Ok(())
}
