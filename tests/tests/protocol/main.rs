// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's conversation with a VMM, over a real socket: what a good VMM and guest get, and what bad ones cannot do.
//!
//! Endpoints' back-ends are not here. To read: QEMU, `docs/interop/vhost-user.rst`; virtio 1.4, "Split Virtqueues".

mod config;
mod control;
mod device_state;
mod disk;
mod events;
mod fds;
mod fuzz;
mod hostile_rings;
mod life;
mod memory;
mod messages;
mod notifications;
mod process;
mod requests;
mod scene;
mod status;
mod under_way;
