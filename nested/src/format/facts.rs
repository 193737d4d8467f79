// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest is told of a device's hardware, by what the host tells.

use iommufd_bindings::{
    iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
    iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC, iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV,
};
use viommu_core::{PageRequestSupport, PasidSupport, TableHardware, TableSupport};

use super::{FORMATS, Format, Nesting, vtd};
use crate::device::{Cdev, HwInfo};
use crate::error::Result;

/// What the host knows of a device besides its IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether it can ask for translations (the PCI capability ATS).
    pub ats: bool,
    /// Whether it can ask for pages (the PCI capability PRI).
    pub pri: bool,
    /// Whether the answers have to have the PASID of their requests (PRG Response PASID Required).
    pub answers_have_pasid: bool,
    /// Whether it is a virtual function, whose requests come in the name of another device.
    pub is_virtual_function: bool,
    /// Whether the host can tell it from all other devices.
    pub is_alone: bool,
}

/// What a guest can do with tables of its own for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Who walks them, as far as the guest may know.
    pub hardware: TableHardware,
    /// Whether it can ask for translations.
    pub ats: bool,
    /// What PASIDs it can use, if any.
    pub pasids: Option<PasidSupport>,
    /// Whether it can ask for pages.
    pub page_requests: bool,
    /// Whether the tables translate where it writes interrupts, so that the guest has to map that.
    pub translates_interrupts: bool,
}

/// PCI's numbers of extended capabilities.
const CAPABILITY_ATS: u16 = 0x0f;
const CAPABILITY_PRI: u16 = 0x13;
/// `PRG Response PASID Required` in the status of PRI.
const PRI_STATUS: u16 = 6;
const PRI_ANSWERS_HAVE_PASID: u16 = 1 << 15;

impl HostFacts {
    /// Of a device that is bound, by its configuration space.
    ///
    /// # Errors
    /// As for [`Cdev::config_space`] and reading there.
    pub fn of(device: &Cdev, is_virtual_function: bool, is_alone: bool) -> Result<HostFacts> {
        let config = device.config_space()?;
        let pri = config.extended_capability(CAPABILITY_PRI)?;
        let status = pri.map_or(Ok(0), |pri| config.read_u16(pri + PRI_STATUS))?;
        Ok(HostFacts {
            ats: config.extended_capability(CAPABILITY_ATS)?.is_some(),
            pri: pri.is_some(),
            answers_have_pasid: status & PRI_ANSWERS_HAVE_PASID != 0,
            is_virtual_function,
            is_alone,
        })
    }
}

impl TableFacts {
    /// Of a device behind this IOMMU; nothing if no table of a guest can be used there.
    pub fn of(info: &HwInfo, host: &HostFacts) -> Option<TableFacts> {
        let format = *FORMATS.iter().find(|format| format.hardware() == info.data_type)?;
        let is_refused =
            info.capabilities & u64::from(iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED) != 0;
        let ats = host.ats && !is_refused;
        Some(TableFacts {
            hardware: format.told(info, ats),
            ats,
            pasids: pasids(format, info, host),
            page_requests: ats && page_requests(format, info, host),
            translates_interrupts: format.translates_interrupts(),
        })
    }

    /// The same for a guest that sees no PASID capability of the device, and so cannot turn it on: nor can it have pages
    /// asked for, which devices do with PASIDs alone.
    pub fn without_pasids(self) -> TableFacts {
        let hardware = vtd::without_pasids(self.hardware);
        TableFacts { hardware, pasids: None, page_requests: false, ..self }
    }

    /// What the device of the guest is told; it waits so long for so many requests.
    pub fn support(&self, requests: PageRequestSupport) -> TableSupport {
        let &TableFacts { hardware, ats, pasids, page_requests, .. } = self;
        TableSupport { hardware, ats, pasids, page_requests: page_requests.then_some(requests) }
    }
}

/// PASIDs that the guest names one by one are a matter of one device alone.
fn pasids(format: &dyn Format, info: &HwInfo, host: &HostFacts) -> Option<PasidSupport> {
    let is_named = format.nesting() == Nesting::Parent;
    let bits = if is_named && !host.is_alone { 0 } else { format.pasid_bits(info) };
    let has = |capability: u32| info.capabilities & u64::from(capability) != 0;
    (bits > 0).then(|| PasidSupport {
        bits: bits.min(20),
        exec: has(iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC),
        privileged: has(iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV),
    })
}

/// The kernel turns them on with PASIDs only where the answers have them, and never for a virtual function.
fn page_requests(format: &dyn Format, info: &HwInfo, host: &HostFacts) -> bool {
    let has_needed = info.pasid_bits == 0 || host.answers_have_pasid;
    format.has_page_requests(info) && host.pri && !host.is_virtual_function && has_needed
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ALL: HostFacts = HostFacts {
        ats: true,
        pri: true,
        answers_have_pasid: true,
        is_virtual_function: false,
        is_alone: true,
    };

    fn vtd() -> HwInfo {
        let data = [0, 0, 0, 0, u32::MAX, u32::MAX].map(u32::to_ne_bytes).as_flattened().to_vec();
        HwInfo { data_type: 1, data, pasid_bits: 20, capabilities: 0 }
    }

    fn smmu(substream_bits: u32, pasid_bits: u8) -> HwInfo {
        let words = [0, 0, 0, substream_bits << 6, 0, 0, 0, 0, 0, 0];
        let data = words.map(u32::to_ne_bytes).as_flattened().to_vec();
        HwInfo { data_type: 2, data, pasid_bits, capabilities: 0 }
    }

    fn of(info: &HwInfo, host: HostFacts) -> TableFacts {
        TableFacts::of(info, &host).expect("there are such tables")
    }

    #[test]
    fn a_guest_without_a_capability_is_told_of_no_pasids_and_of_all_else() {
        let facts = of(&vtd(), ALL);
        let TableHardware::IntelVtd { flags, cap, ecap } = facts.hardware else { panic!("not VT-d") };
        let hardware = TableHardware::IntelVtd { flags, cap, ecap: ecap & 0xffff_fe07_dfff_ffff };
        assert_ne!(hardware, facts.hardware);
        let expected = TableFacts { hardware, pasids: None, page_requests: false, ..facts };
        assert_eq!(facts.without_pasids(), expected);
        let facts = of(&smmu(20, 20), ALL);
        assert_eq!(facts.without_pasids(), TableFacts { pasids: None, ..facts });
        assert!(facts.translates_interrupts && !expected.translates_interrupts);
    }

    #[test]
    fn a_device_asks_for_pages_only_where_the_kernel_hands_it_on() {
        assert!(of(&vtd(), ALL).page_requests);
        for without in [
            HostFacts { ats: false, ..ALL },
            HostFacts { pri: false, ..ALL },
            HostFacts { answers_have_pasid: false, ..ALL },
            HostFacts { is_virtual_function: true, ..ALL },
        ] {
            assert!(!of(&vtd(), without).page_requests, "{without:?}");
        }
        let without_pasids = HwInfo { pasid_bits: 0, ..vtd() };
        assert!(of(&without_pasids, HostFacts { answers_have_pasid: false, ..ALL }).page_requests);
        let incapable = HwInfo { data: vec![0; 24], ..vtd() };
        assert!(!of(&incapable, ALL).page_requests);
        let refused = HwInfo { capabilities: 8, ..vtd() };
        assert_eq!((of(&refused, ALL).ats, of(&refused, ALL).page_requests), (false, false));
        assert!(!of(&smmu(20, 20), ALL).page_requests, "the driver of SMMUv3 has none for PCI");
    }

    #[test]
    fn pasids_are_as_many_as_device_and_iommu_have() {
        let bits = |info: &HwInfo, host| of(info, host).pasids.map(|pasids| pasids.bits);
        assert_eq!(bits(&vtd(), ALL), Some(20));
        assert_eq!(bits(&HwInfo { pasid_bits: 0, ..vtd() }, ALL), None);
        assert_eq!(bits(&HwInfo { pasid_bits: 31, ..vtd() }, ALL), Some(20));
        assert_eq!(bits(&vtd(), HostFacts { is_alone: false, ..ALL }), None);
        assert_eq!(bits(&smmu(10, 16), HostFacts { is_alone: false, ..ALL }), Some(10));
        assert_eq!(bits(&smmu(16, 10), ALL), Some(10));
        assert_eq!(bits(&smmu(0, 16), ALL), None);
        for (capabilities, exec, privileged) in
            [(0, false, false), (2, true, false), (4, false, true), (9, false, false)]
        {
            let told = of(&HwInfo { capabilities, ..vtd() }, ALL).pasids;
            assert_eq!(told, Some(PasidSupport { bits: 20, exec, privileged }));
        }
    }

    #[test]
    fn hardware_without_nesting_has_no_tables() {
        // None, AMD's, and one that does not exist yet.
        for data_type in [0, 4, 99] {
            assert_eq!(TableFacts::of(&HwInfo { data_type, ..vtd() }, &ALL), None);
        }
    }

    #[test]
    fn how_long_is_waited_is_told_only_where_something_waits() {
        let requests = PageRequestSupport { requests_max: 8, timeout: Duration::from_secs(1) };
        assert_eq!(of(&vtd(), ALL).support(requests).page_requests, Some(requests));
        assert_eq!(of(&smmu(0, 0), ALL).support(requests).page_requests, None);
    }
}
