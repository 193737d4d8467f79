// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mapping engine against a list of mappings: made-up lives of a domain, in which sizes and places
//! vary by powers of two, so that every node of its tree is made, filled, emptied and copied.
//!
//! `ENGINE_STEPS` sets how many steps each life has. Threads that read meanwhile are in `threads`, and
//! `ENGINE_CHANGES` sets how much changes meanwhile.

mod memory;
mod model;
mod removal;
mod snapshot;
mod threads;
