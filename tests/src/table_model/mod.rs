// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, naive device of tables, and what it takes to run it beside the real one.
//!
//! `Reference` is written from the manual's page on tables, in code that is slow and obvious; [`Bench`] gives both
//! devices the same steps and compares all that can be seen of them; [`plan`] makes up the steps. For mappings there is
//! [`model`](crate::model).

mod bench;
mod decide;
pub mod plan;
mod reference;

pub use bench::Bench;
pub use plan::{Op, Plan};
