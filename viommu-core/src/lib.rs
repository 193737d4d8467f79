// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-iommu device as pure logic.
#![forbid(unsafe_code)]


