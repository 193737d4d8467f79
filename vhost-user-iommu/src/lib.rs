// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual IOMMU outside the VMM.

pub mod message;
