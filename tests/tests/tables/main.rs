// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device in table mode against the rules of our extension.
//!
//! One behaviour, one test; the ids above a test are those of rules in `viommu_core::manual::tables`. Whether the rules
//! hold in any order of requests is the matter of `table_model`.

mod attach;
mod bed;
mod descriptors;
mod domains;
mod events;
mod failures;
mod invalidate;
mod layouts;
mod mode;
mod page_requests;
mod probe;
mod together;
