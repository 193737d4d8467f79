// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How endpoints are enforced, and what they reach when the IOMMU itself is reset or gone.
//!
//! # vhost-user endpoints
//!
//! A relay listens where the VMM looks for the device's back-end, and connects to the real one for each VMM that
//! comes. It passes everything on, with these exceptions:
//!
//! - The back-end is told `VIRTIO_F_ACCESS_PLATFORM`, which makes it translate every address through its IOTLB. QEMU
//!   demands that bit of the back-end when the device has `iommu_platform=on`, and then takes it away again, since it
//!   knows of no IOMMU.
//! - The back-end's misses come to the relay, which answers from the device: first the entry, then the answer to the
//!   miss, waiting for nothing. Addresses in the entries are the VMM's: keys into the memory table that the back-end has
//!   too.
//! - The ring addresses that the VMM sends are its own addresses of the GPAs that it takes the guest's IOVAs for. As
//!   long as every IOVA is also a GPA, that can be undone exactly: so the aperture has to lie inside guest memory
//!   (`--guest-memory`), and the holes of that are reserved regions.
//! - Protocol features that would move memory, addresses or file descriptors past the relay stay hidden.
//!
//! # When the IOMMU is reset
//!
//! A guest that shuts down or reboots resets its IOMMU before its disks, which may be writing still. So a reset
//! empties the device at once, but an endpoint that was attached *lingers*: it keeps its last address space until it
//! is attached again, or restarts itself (its rings are set up anew). Until then its IOVAs are never taken for GPAs. A
//! second reset that leaves others lingering ends that, too: the endpoint is blocked then. So the address spaces of one
//! reset can be held beside those that the limits allow, and no more.
//!
//! A VMM does not say whether it stops the device's rings for a reset or for a pause. The device stays as it is then.
//! If the rings go on where they were, it was a pause; if they start anew, or an endpoint comes to life, it was a
//! reset. A reset that the VMM does announce (RESET_DEVICE) counts at once.
//!
//! # When the VMM is gone
//!
//! Endpoints are blocked: nothing translates, and back-ends are told to forget what they have. A VMM that connects is
//! taken for a machine at power-on, with `bypass` as at boot. An endpoint that was running meanwhile stays blocked
//! until it restarts.
//!
//! # When a back-end misbehaves
//!
//! If an invalidation is not acknowledged in time (`--unmap-timeout`), the guest's request fails with DEVERR, the
//! mapping stays, and the log says so: Linux does not look at the status of an UNMAP, so whoever runs the guest should
//! look at the log. Until that back-end answers, further requests that need it fail at once. A back-end that
//! disconnects has nothing cached any more; the VMM loses the device.
//!
//! When the VMM leaves a device, its back-end counts as holding what it has cached until it has closed its connection
//! too. One that stays makes requests that need it fail, and no other VMM gets the device: end it.
