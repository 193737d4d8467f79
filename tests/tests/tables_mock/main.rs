// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of a guest on their whole way: a driver's rings, the daemon's session and device, the kernel's iommufd, its mock
//! devices; and page requests on theirs, which is the other way round.
//!
//! What is real is everything between the driver and the devices. The daemon's own threads run in this program, since the
//! shipped one knows no mock. Runs as root in a kernel with `CONFIG_IOMMUFD_TEST`, kprobes and fault injection, one test at
//! a time, since what devices are answered is counted for all of the kernel: `tests/nested_mock.rs` boots that.

mod answers;
mod attach;
mod bed;
mod device;
mod ends;
mod endurance;
mod events;
mod failing;
mod failures;
#[path = "../../../nested/tests/shadow/group.rs"]
mod group;
mod guest;
mod invalidate;
mod limits;
mod page_requests;
mod pasids;
