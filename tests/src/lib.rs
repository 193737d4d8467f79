// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Test doubles and the guest test bed.

pub mod model;
