// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Test doubles, the guest test bed, the demo and the benchmarks: nothing a user needs at run time.

pub mod daemon;
pub mod driver;
pub mod front_end;
pub mod fuzz;
pub mod guest;
pub mod iotlb_disk;
pub mod l1;
pub mod l2;
pub mod model;
pub mod peers;
pub mod relayed;
pub mod scene;
pub mod table_model;
pub mod testpmd;
pub mod vfio_user_disk;
pub mod vfio_user_vmm;
pub mod vfio_vmm;
