// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots guests inside the arm64 host: "L2", with KVM and with devices of the host passed through to them.
//!
//! A host stays up for several guests, one after another; what it is told are shell commands. Guests run the host's own
//! kernel. It tests nothing by itself. To read first: [`crate::l1`], `tests/l2/host-library.sh` (what runs in the host)
//! and `tests/guest-init` (what runs in a guest, and what a guest's job can call).
//!
//! ```no_run
//! # use std::{path::Path, time::Duration};
//! # use viommu_tests::l2::{Guest, Host, Iommu, Testbed};
//! let testbed = Testbed::find()?;
//! let mut host = Host::start(&testbed, testbed.machine().image("one", Path::new("disk.img")).device("nvme,drive=one,serial=one,addr=4"))?;
//! host.execute("give_to_vfio 0000:00:04.0")?;
//! let guest = Guest::new(Iommu::Qemu).pass("00:04.0", "0000:00:04.0").job("checksum /dev/nvme0n1 16");
//! host.boot(&guest)?;
//! println!("{}", host.guest_value("checksum /dev/nvme0n1 16 ", Duration::from_secs(60))?);
//! # anyhow::Ok(())
//! ```

mod device_tree;
mod guest;
mod host;
mod streams;
mod testbed;

pub use guest::{BootFrom, Guest, Iommu};
pub use host::Host;
pub use testbed::Testbed;
