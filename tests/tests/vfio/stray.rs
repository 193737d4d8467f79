// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that reach for memory which is not theirs.

use anyhow::Result;
use viommu_tests::l1;
use viommu_tests::l2::Guest;

use super::stage::{Stage, WITHIN};

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
    stage.host.guest_line("job ended 0", WITHIN)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    Ok(())
}
