// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One device in one domain: MAP and UNMAP are what its DMA reaches, from the reply on.

use anyhow::Result;
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::{Edu, Function, Launch, VfioVmm};

use crate::kernel_log::KernelLog;
use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, READ, eventually, running};

const MIDDLE: u64 = VfioVmm::MIDDLE;
const HUGE: u64 = 2 << 20;

/// A device that is attached to domain 1, which maps nothing.
fn attached() -> Result<(Daemon, VfioVmm)> {
    let (daemon, mut vmm) = running(1, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    Ok((daemon, vmm))
}

#[test]
fn a_mapping_leads_to_its_target_and_all_else_is_refused_and_logged() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    assert_eq!(vmm.map(1, IOVA, LOW + PAGE, 2 * PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW + PAGE);
    vmm.assert_lands(0, IOVA + 2 * PAGE - 4, LOW + 3 * PAGE - 4);
    let mut log = KernelLog::from_now()?;
    for beside in [IOVA - 4, IOVA + 2 * PAGE, LOW, LOW + PAGE, VfioVmm::HIGH] {
        vmm.assert_refused(0, beside, LOW + PAGE);
    }
    eventually("a refused access in the kernel's log", || {
        vmm.assert_refused(0, IOVA - PAGE, LOW);
        log.says(&["F_TRANSLATION", &format!("{:#x}", IOVA - PAGE)])
    });
    Ok(())
}

#[test]
fn what_may_only_be_read_is_read_and_not_written() -> Result<()> {
    let launch = Launch::of(&Function::all(Edu::ID.0, Edu::ID.1)?)?;
    let _daemon = launch.daemon(&[])?;
    let mut vmm = VfioVmm::running(launch)?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, READ)?, OK);
    assert_eq!(vmm.map(1, IOVA + PAGE, LOW + PAGE, PAGE, BOTH)?, OK);
    let bytes: Vec<u8> = (0..=255).cycle().take(1024).collect();
    vmm.memory.write(LOW, &bytes);
    Edu(vmm.registers(0)).read(IOVA, 1024)?;
    Edu(vmm.registers(0)).write(IOVA + PAGE, 1024)?;
    assert_eq!(vmm.memory.read(LOW + PAGE, 1024), bytes);
    vmm.memory.write(LOW, &[0; 1024]);
    Edu(vmm.registers(0)).write(IOVA, 1024)?;
    assert_eq!(vmm.memory.read(LOW, 1024), [0; 1024]);
    Ok(())
}

#[test]
fn a_write_to_what_may_only_be_read_is_refused() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, READ)?, OK);
    vmm.assert_refused(0, IOVA, LOW);
    Ok(())
}

#[test]
fn what_is_unmapped_is_refused_from_the_reply_on_and_its_neighbours_are_not() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    for (at, gpa) in [(0, LOW), (2, LOW + 2 * PAGE)] {
        assert_eq!(vmm.map(1, IOVA + at * PAGE, gpa, PAGE, BOTH)?, OK);
    }
    for round in 0..50 {
        let gpa = LOW + (3 + round) * PAGE;
        assert_eq!(vmm.map(1, IOVA + PAGE, gpa, PAGE, BOTH)?, OK);
        vmm.assert_lands(0, IOVA + PAGE, gpa);
        assert_eq!(vmm.unmap(1, IOVA + PAGE, PAGE)?, OK);
        vmm.assert_refused(0, IOVA + PAGE, gpa);
    }
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_lands(0, IOVA + 2 * PAGE, LOW + 2 * PAGE);
    Ok(())
}

#[test]
fn an_iova_that_is_mapped_elsewhere_leads_there() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    for gpa in [LOW, MIDDLE, VfioVmm::HIGH + (3 << 20), LOW] {
        assert_eq!(vmm.map(1, IOVA, gpa, PAGE, BOTH)?, OK);
        vmm.assert_lands(0, IOVA, gpa);
        assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    }
    Ok(())
}

#[test]
fn many_mappings_go_in_one_unmap() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    for page in 0..64 {
        assert_eq!(vmm.map(1, IOVA + 2 * page * PAGE, LOW + page * PAGE, PAGE, BOTH)?, OK);
    }
    vmm.assert_lands(0, IOVA + 126 * PAGE, LOW + 63 * PAGE);
    assert_eq!(vmm.unmap(1, IOVA, 127 * PAGE)?, OK);
    for page in 0..64 {
        vmm.assert_refused(0, IOVA + 2 * page * PAGE, LOW + page * PAGE);
    }
    Ok(())
}

#[test]
fn a_huge_mapping_leads_to_each_of_its_pages() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    let (iova, bytes) = (0x40_0000_0000, 8 * HUGE);
    assert_eq!(vmm.map(1, iova, LOW, bytes, BOTH)?, OK);
    for at in [0, PAGE, HUGE - 4, HUGE, 5 * HUGE + 7 * PAGE, bytes - 4] {
        vmm.assert_lands(0, iova + at, LOW + at);
    }
    vmm.assert_refused(0, iova + bytes, LOW);
    assert_eq!(vmm.unmap(1, iova, bytes)?, OK);
    for at in (0..bytes).step_by(1 << 20) {
        vmm.assert_refused(0, iova + at, LOW + at);
    }
    Ok(())
}

#[test]
fn a_mapping_may_span_two_regions_of_memory_side_by_side() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    assert_eq!(vmm.map(1, IOVA, MIDDLE - 2 * PAGE, 4 * PAGE, BOTH)?, OK);
    for at in [0, 2 * PAGE - 4, 2 * PAGE, 4 * PAGE - 4] {
        vmm.assert_lands(0, IOVA + at, MIDDLE - 2 * PAGE + at);
    }
    assert_eq!(vmm.unmap(1, IOVA, 4 * PAGE)?, OK);
    for at in [0, 2 * PAGE] {
        vmm.assert_refused(0, IOVA + at, MIDDLE - 2 * PAGE + at);
    }
    Ok(())
}

#[test]
fn what_is_no_memory_is_not_mapped_and_leaves_nothing_behind() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    let end = MIDDLE + VfioVmm::REGION;
    for (gpa, bytes) in [(0x9000_0000, PAGE), (end - PAGE, 2 * PAGE), (LOW - PAGE, 2 * PAGE), (end, PAGE)] {
        assert_ne!(vmm.map(1, IOVA, gpa, bytes, BOTH)?, OK, "{gpa:#x}");
        for at in (0..bytes).step_by(PAGE as usize) {
            vmm.assert_refused(0, IOVA + at, LOW);
        }
        assert_eq!(vmm.map(1, IOVA, LOW, bytes, BOTH)?, OK);
        vmm.assert_lands(0, IOVA + bytes - 4, LOW + bytes - 4);
        assert_eq!(vmm.unmap(1, IOVA, bytes)?, OK);
    }
    Ok(())
}

#[test]
fn a_request_that_is_refused_changes_nothing_for_the_device() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    assert_eq!(vmm.map(1, IOVA, LOW, 2 * PAGE, BOTH)?, OK);
    assert_ne!(vmm.map(1, IOVA + PAGE, MIDDLE, 2 * PAGE, BOTH)?, OK, "an overlap");
    assert_ne!(vmm.unmap(1, IOVA, PAGE)?, OK, "a part of a mapping");
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_lands(0, IOVA + PAGE, LOW + PAGE);
    vmm.assert_refused(0, IOVA + 2 * PAGE, MIDDLE);
    Ok(())
}
