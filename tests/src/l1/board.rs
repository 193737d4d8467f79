// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machines of QEMU's that the hosts are, and how their kernels find the IOMMU.
//!
//! To read first: QEMU's `docs/system/arm/virt.rst` and `docs/system/i386/pc.rst`; `-device intel-iommu,help`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{acpi, iort, qtest::Qtest};

/// A machine of QEMU's.
#[derive(Clone, Debug)]
pub(super) enum Board {
    /// arm64: `virt` with an SMMUv3, a GICv3 and a processor with EL2.
    Virt {
        /// UEFI.
        firmware: PathBuf,
    },
    /// x86-64: `q35` with VT-d in scalable mode.
    Q35,
}

impl Board {
    /// Where its kernel writes what init says. The kernel itself only when it dies, since its lines would end up within
    /// those of the job.
    pub(super) fn kernel_arguments(&self) -> &'static str {
        match self {
            Board::Virt { .. } => "console=ttyAMA0 loglevel=1 panic=-1",
            Board::Q35 => "console=ttyS0 loglevel=1 panic=-1",
        }
    }

    /// Without the processors and the memory.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let own: &[&str] = match self {
            Board::Virt { .. } => {
                &["-machine", "virt,gic-version=3,iommu=smmuv3,virtualization=on", "-cpu", "cortex-a57"]
            }
            Board::Q35 => &["-machine", "q35", "-cpu", "qemu64", "-device", INTEL_IOMMU],
        };
        let mut arguments: Vec<OsString> = own.iter().map(OsString::from).collect();
        arguments.extend(["-accel".into(), "tcg,thread=multi".into()]);
        if let Board::Virt { firmware } = self {
            arguments.extend(["-bios".into(), firmware.into()]);
        }
        arguments
    }

    /// What has to stand before the initramfs; the devices make no difference to it.
    pub(super) fn table_override(&self, qemu: &Path, arguments: &[OsString]) -> Result<Vec<u8>> {
        match self {
            Board::Virt { .. } => {
                let mut qtest = Qtest::start(qemu, arguments)?;
                iort::override_archive(&acpi::table(&mut qtest, *b"IORT")?)
            }
            Board::Q35 => Ok(Vec::new()),
        }
    }
}

/// It has to come before the devices that are behind it.
const INTEL_IOMMU: &str = "intel-iommu,intremap=on,scalable-mode=on,device-iotlb=on,pasid-bits=20";
