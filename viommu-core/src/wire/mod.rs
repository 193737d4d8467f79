// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The structures of the virtio-iommu device as they lie in guest memory: types only, any bytes are valid.
//!
//! Nothing here decides anything. Read beside it: virtio 1.4, "IOMMU device", and `linux/virtio_iommu.h`,
//! whose names are given as aliases. All integers are little-endian.

mod config;
mod fault;
mod probe;
mod request;
mod table;

pub use config::{BYPASS_OFFSET, Config};
pub use fault::{
    FAULT_F_ADDRESS, FAULT_F_READ, FAULT_F_WRITE, FAULT_R_ACCESS, FAULT_R_DOMAIN, FAULT_R_MAPPING,
    FAULT_R_OOR_ADDRESS, FAULT_R_PERMISSION, FAULT_R_PTE_FETCH, FAULT_R_TABLE, FAULT_R_UNKNOWN,
    FAULT_R_WALK_EABT, Fault,
};
pub use probe::{
    PROPERTY_HEADER_SIZE, PROPERTY_T_RESV_MEM, RESV_MEM_T_IDENTITY, RESV_MEM_T_MSI, RESV_MEM_T_RESERVED,
    ResvMem,
};
pub use request::{
    ATTACH_F_BYPASS, Head, MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE, ReqAttach, ReqDetach, ReqMap, ReqProbe,
    ReqUnmap, RequestType, Tail,
};
pub use table::{
    ATTACH_TABLE_F_PASID, DESCRIPTOR_SIZE, DescriptorArmSmmu3, DescriptorIntelPt, FAULT_F_EXEC,
    FAULT_F_GROUP_ID, FAULT_F_LAST, FAULT_F_LOST, FAULT_F_PAGE_REQ, FAULT_F_PASID, FAULT_F_PRIVILEGED,
    FORMAT_ARM_SMMU3, FORMAT_INTEL_PT, FORMAT_NONE, HwArmSmmu3, HwIntelVtd, INVALIDATE_F_GLOBAL,
    INVALIDATE_F_ID, INVALIDATE_F_LEAF, INVALIDATE_F_PASID, INVALIDATE_S_ADDRESS, INVALIDATE_S_DOMAIN,
    INVALIDATE_S_PASID, PAGE_REQUESTS_F_PASID, PAGE_RESP_F_PASID, PAGE_RESP_FAILURE, PAGE_RESP_INVALID,
    PAGE_RESP_SUCCESS, PASID_F_EXEC, PASID_F_PRIVILEGED, PROPERTY_T_HW_ARM_SMMU3, PROPERTY_T_HW_INTEL_VTD,
    PROPERTY_T_PAGE_REQUESTS, PROPERTY_T_PASID, PropertyPageRequests, PropertyPasid, ReqAttachTable,
    ReqInvalidate, ReqPageResp, TableEvent,
};
