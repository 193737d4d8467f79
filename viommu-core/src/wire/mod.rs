// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The structures of the virtio-iommu device as they lie in guest memory: types only, any bytes are valid.
//!
//! Nothing here decides anything. Read beside it: virtio 1.4, "IOMMU device", and `linux/virtio_iommu.h`,
//! whose names are given as aliases. All integers are little-endian.

mod config;
mod fault;
mod probe;
mod request;

pub use config::{BYPASS_OFFSET, Config};
pub use fault::{
    FAULT_F_ADDRESS, FAULT_F_READ, FAULT_F_WRITE, FAULT_R_DOMAIN, FAULT_R_MAPPING, FAULT_R_UNKNOWN, Fault,
};
pub use probe::{PROPERTY_HEADER_SIZE, PROPERTY_T_RESV_MEM, RESV_MEM_T_MSI, RESV_MEM_T_RESERVED, ResvMem};
pub use request::{
    ATTACH_F_BYPASS, Head, MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE, ReqAttach, ReqDetach, ReqMap, ReqProbe,
    ReqUnmap, RequestType, Tail,
};
