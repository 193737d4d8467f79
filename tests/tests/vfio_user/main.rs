// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices behind the daemon that are served over vfio-user: what passes between a VMM and a server, and what does not.
//!
//! The daemon is the real process, which has to be built; VMM, guest and servers are doubles in this one. To read:
//! `vhost-user-iommu/src/vfio_user`.

mod bed;
mod blocked;
mod come_and_go;
mod device;
mod hostile;
mod lifecycle;
mod message;
mod shared;
mod trouble;
