// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Test doubles and the guest test bed.

<<<<<<< HEAD
pub mod iotlb_disk;
=======
pub mod guest;
>>>>>>> testbed
