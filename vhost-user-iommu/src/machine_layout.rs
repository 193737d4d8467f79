// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where QEMU's machines put a guest's memory, as far as the aperture needs it.
//!
//! Only the first and last byte of memory and the MSI doorbell: the holes between come with the
//! memory table. To read: QEMU, `hw/i386/pc_q35.c`, `hw/i386/pc_piix.c` and `hw/arm/virt.c`.

use std::{fmt, str::FromStr};

use viommu_core::{Granule, IovaRange};

use crate::{
    size::{format_size, parse_size},
    usage_error::UsageError,
};

/// The memory of a guest as the user states it: `SIZE[,machine=q35|pc|virt]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMemoryLayout {
    size: u64,
    machine: Machine,
}

/// A kind of machine, by its QEMU name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Q35,
    Pc,
    Virt,
}

impl GuestMemoryLayout {
    /// The IOVAs a guest may use when every IOVA has to be an address of its memory: from the
    /// first usable byte to the last one, trimmed to whole granules. `None` when no granule is left.
    pub fn aperture(&self, granule: Granule) -> Option<IovaRange> {
        let first = self.machine.first_iova();
        let last = self.last_byte()?;
        let mask = granule.bytes() - 1;
        let start = first.checked_add(mask)? & !mask;
        let end = last.checked_add(1)? & !mask;
        IovaRange::new(start, end.checked_sub(1)?)
    }

    /// The IOVAs at which the machine takes message-signalled interrupts without translation.
    /// None on `virt`, whose guests map the doorbell themselves.
    pub fn msi_region(&self) -> Option<IovaRange> {
        match self.machine {
            Machine::Q35 | Machine::Pc => Some(X86_MSI_REGION),
            Machine::Virt => None,
        }
    }

    fn last_byte(&self) -> Option<u64> {
        let span = self.size.checked_sub(1)?;
        let low = self.machine.low_memory(self.size);
        match self.machine {
            Machine::Virt => VIRT_RAM_START.checked_add(span),
            Machine::Q35 | Machine::Pc if self.size <= low => Some(span),
            Machine::Q35 | Machine::Pc => ABOVE_4G.checked_add(span - low),
        }
    }
}

impl Machine {
    /// The lowest address a guest can be expected to hand to a device: below 1 MiB lie the holes of the PC.
    fn first_iova(self) -> u64 {
        match self {
            Machine::Q35 | Machine::Pc => 1 << 20,
            Machine::Virt => VIRT_RAM_START,
        }
    }

    /// Bytes of memory below 4 GiB when there are `size` in all.
    fn low_memory(self, size: u64) -> u64 {
        let (threshold, low) = match self {
            Machine::Q35 => (0xb000_0000, 0x8000_0000),
            Machine::Pc => (0xe000_0000, 0xc000_0000),
            Machine::Virt => return size,
        };
        if size < threshold { size } else { low }
    }
}

impl FromStr for GuestMemoryLayout {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<GuestMemoryLayout, UsageError> {
        let (size, machine) = match text.split_once(',') {
            None => (text, Machine::Q35),
            Some((size, "machine=q35")) => (size, Machine::Q35),
            Some((size, "machine=pc")) => (size, Machine::Pc),
            Some((size, "machine=virt")) => (size, Machine::Virt),
            Some((_, other)) => {
                return Err(UsageError::new(
                    format!("`{other}` is not a machine whose memory layout is known"),
                    "write machine=q35, machine=pc or machine=virt, or give the range itself with aperture",
                ));
            }
        };
        Ok(GuestMemoryLayout { size: parse_size(size)?, machine })
    }
}

impl fmt::Display for GuestMemoryLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = match self.machine {
            Machine::Q35 => "q35",
            Machine::Pc => "pc",
            Machine::Virt => "virt",
        };
        write!(f, "{},machine={machine}", format_size(self.size))
    }
}

/// The doorbell of the x86 local APIC.
pub const X86_MSI_REGION: IovaRange = match IovaRange::new(0xfee0_0000, 0xfeef_ffff) {
    Some(region) => region,
    None => unreachable!(),
};

const ABOVE_4G: u64 = 1 << 32;
const VIRT_RAM_START: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn aperture(text: &str, granule: u64) -> Option<(u64, u64)> {
        let granule = Granule::of_mask(granule).expect("not empty");
        let layout: GuestMemoryLayout = text.parse().expect(text);
        layout.aperture(granule).map(|range| (range.start(), range.last()))
    }

    #[test]
    fn the_aperture_ends_at_the_last_byte_of_memory_of_the_machine() {
        for (text, start, last) in [
            ("512M", 0x10_0000, 0x1fff_ffff),
            ("0xaffff000,machine=q35", 0x10_0000, 0xafff_efff),
            ("0xb0000000,machine=q35", 0x10_0000, 0x1_2fff_ffff),
            ("4G", 0x10_0000, 0x1_7fff_ffff),
            ("0xb0000000,machine=pc", 0x10_0000, 0xafff_ffff),
            ("0xe0000000,machine=pc", 0x10_0000, 0x1_1fff_ffff),
            ("4G,machine=pc", 0x10_0000, 0x1_3fff_ffff),
            ("512M,machine=virt", 0x4000_0000, 0x5fff_ffff),
            ("8G,machine=virt", 0x4000_0000, 0x2_3fff_ffff),
        ] {
            assert_eq!(aperture(text, 4096), Some((start, last)), "{text}");
        }
    }

    #[test]
    fn the_aperture_holds_whole_granules_or_does_not_exist() {
        assert_eq!(aperture("513M", 2 << 20), Some((0x20_0000, 0x1fff_ffff)));
        assert_eq!(aperture("8193k", 4096), Some((0x10_0000, 0x7f_ffff)));
        assert_eq!(aperture("512M", 1 << 30), None);
        assert_eq!(aperture("1M", 4096), None);
        assert_eq!(aperture("1M", 1 << 30), None);
        assert_eq!(aperture("0", 4096), None);
        assert_eq!(aperture("0xffffffffffffffff", 4096), None);
    }

    #[test]
    fn only_x86_machines_have_an_untranslated_doorbell() {
        let region = |text: &str| text.parse::<GuestMemoryLayout>().expect(text).msi_region();
        assert_eq!(region("1G"), Some(X86_MSI_REGION));
        assert_eq!(region("1G,machine=pc"), Some(X86_MSI_REGION));
        assert_eq!(region("1G,machine=virt"), None);
    }

    #[test]
    fn an_unknown_machine_is_refused() {
        let error = "1G,machine=microvm".parse::<GuestMemoryLayout>().expect_err("unknown");
        assert!(error.to_string().starts_with("`machine=microvm` is not a machine"), "{error}");
    }
}
