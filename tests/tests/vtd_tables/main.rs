// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with tables of the guest's own behind VT-d: what the kernel tells the hardware when a driver asks for
//! something.
//!
//! Runs as root on a host with QEMU's VT-d, one test at a time: `tests/nested_vtd.rs` boots that. Its kernel is made to believe
//! that the hardware nests. It does not, so what devices reach through tables is not seen here: see `tests/vfio_tables`. What is
//! seen are the entries of PASID tables, and each descriptor that is put into the invalidation queue.

mod attach;
mod descriptor;
mod entry;
mod invalidate;
mod limits;
mod pasids;
mod properties;
mod scene;
mod trace;
