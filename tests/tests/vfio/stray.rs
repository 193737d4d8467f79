// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that reach for memory which is not theirs.

use anyhow::Result;
use viommu_tests::l1;
use viommu_tests::l2::Guest;

use super::stage::{FIRST, Stage, WITHIN};

const EDU: &str = "edu,dma_mask=0xffffffffffff";

/// Two devices, driven by a program in the guest, which attaches both to one domain.
#[test]
fn devices_of_one_domain_reach_what_is_mapped_and_stray_dma_is_refused_and_reported_to_the_host() -> Result<()>
{
    let program = l1::build_example("viommu-nested", "edu_dma")?;
    let devices = ["06", "07"];
    let stage = Stage::with(|_, machine| {
        Ok(devices.iter().fold(machine, |machine, slot| machine.device(&format!("{EDU},addr={slot}"))))
    })?;
    let Some(mut stage) = stage else { return Ok(()) };
    let mut guest = Guest::new(stage.iommu())
        // The doorbell of the guest's interrupt controller is behind no IOMMU that would isolate it.
        .kernel_arg("iommufd.allow_unsafe_interrupts=1")
        .program("edu_dma", &program)
        .job(
            "for edu in $(pci_functions 1234:11e8); do
                set -- $* /dev/vfio/devices/$(give_to_vfio $edu)
            done
            edu_dma $*",
        );
    for slot in devices {
        stage.host.execute(&format!("give_to_vfio 0000:00:{slot}.0"))?;
        guest = guest.pass(&format!("00:{slot}.0"), &format!("0000:00:{slot}.0"));
    }
    stage.host.boot(&guest)?;
    let stray = stage.host.guest_value("stray at ", WITHIN)?;
    stage.host.guest_line("device 0 reaches what is mapped and nothing else", WITHIN)?;
    let reported = stage.refused_dma()?;
    let event = format!("F_TRANSLATION client: 0000:00:06.0 sid: 0x30 ssid: 0x0 iova: {stray} ");
    assert!(reported.iter().any(|line| line.contains(&event)), "{event:?} in {reported:#?}");
    // The kernel limits how much it says, so that there may be no event of the second one.
    stage.host.guest_line("device 1 reaches what is mapped and nothing else", WITHIN)?;
    let lines = stage.host.lines();
    let attached = |slot: &str| {
        let attached = format!("endpoint 00:{slot}.0 attached to domain ");
        lines.iter().rev().find_map(|line| Some(line.split_once(&attached)?.1.to_owned()))
    };
    assert!(attached(devices[0]).is_some());
    assert_eq!(attached(devices[0]), attached(devices[1]));
    stage.host.guest_line("job ended 0", WITHIN)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    Ok(())
}

/// That a disk is read proves something only if it is not read where nobody maps what the guest's driver maps.
#[test]
fn a_disk_that_the_daemon_does_not_have_is_not_read() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    let guest = Guest::new(stage.iommu())
        .pass("00:04.0", FIRST)
        .without_devices_for_the_daemon()
        .kernel_arg("nvme_core.admin_timeout=2")
        .job(
            "until dmesg | grep 'nvme0: Identify Controller failed'; do usleep 100000; done
            [ -e /dev/nvme0n1 ] || echo no disk",
        );
    stage.host.boot(&guest)?;
    stage.host.guest_line("no disk", WITHIN)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    let reported = stage.refused_dma()?;
    let event = format!("F_TRANSLATION client: {FIRST}");
    assert!(reported.iter().any(|line| line.contains(&event)), "{event:?} in {reported:#?}");
    Ok(())
}
