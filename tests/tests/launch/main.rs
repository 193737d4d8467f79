// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-user-iommu launch` with shell scripts in place of a VMM: what is started when, with which open files, and
//! that nothing is left of it.
//!
//! No physical device is behind these daemons.

mod ends;
mod scene;
mod starts;
