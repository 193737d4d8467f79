// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `vhost-user-iommu` program.

fn main() {}
