// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pieces, the life of a request, and who trusts whom.
//!
//! ```text
//!   guest's virtio-iommu driver
//!         │ request queue, event queue        in guest memory, which the VMM shares
//!         ▼
//!   vhost-user-iommu ─────────────────────────────────────────────────────────────┐
//!   │ session/   the conversation with the VMM: features, memory table, rings      │
//!   │     │ bytes in, bytes out                                                    │
//!   │ iommu/     the device as all threads share it; one change at a time          │
//!   │     │                                                                        │
//!   │ viommu-core   Device: begin, finish, lookup      no fd, thread, clock        │
//!   │     │ Change                                                                 │
//!   │ relay/     between the VMM and another device's back-end: its IOTLB          │
//!   │ vfio_user/ the same for vfio-user servers: their mappings, or each access    │
//!   │ vfio/      files of physical devices, shared with the VMM                    │
//!   │     │                                                                        │
//!   │ viommu-nested   shadow: domains as address spaces of /dev/iommu              │
//!   └──────────────────────────────────────────────────────────────────────────────┘
//!         ▲ faults travel the other way, and leave through the event queue
//! ```
//!
//! # The life of a request
//!
//! 1. The guest's driver puts a chain into the request queue and kicks. `session/request_queue` looks at what is there, at
//!    several chains in one go. Each stays the driver's until it is answered: a VMM that stops the ring finds the others
//!    in it.
//! 2. `session/chain` copies the readable part, once, into a buffer of its own. Nothing that the guest changes from
//!    here on can matter.
//! 3. `iommu` takes the *turn* and hands the bytes to [`Device::begin`](crate::Device::begin). The request table
//!    ([`request::TABLE`](crate::request::TABLE)) says what the type is; parsing turns bytes into meaning.
//! 4. The device **checks**. It refuses with a [`Reject`](crate::Reject), or it returns a [`Change`](crate::Change),
//!    having changed nothing but this: what the change will take away is refused from now on.
//! 5. `iommu/apply` has the change **applied**: every relay concerned sends its back-end an invalidation and waits,
//!    for a bounded time, for the acknowledgement. The device is not locked meanwhile, so that all relays go on
//!    answering misses, also of the back-end that is waited for. A vfio-user server that maps memory is told of mappings
//!    as well, and waited for. Then the address spaces of physical devices are
//!    changed, by one call of the kernel's.
//! 6. [`Device::finish`](crate::Device::finish) **commits**, which cannot fail, or drops the change if a back-end or the
//!    kernel failed: then everything translates as before, and the guest gets an error status.
//! 7. The status is chosen in one place, from the reject or the host's error: see [`Status`](crate::Status).
//! 8. `session/chain` writes the reply into the writable part, and the ring gets its used entry, before the next request
//!    is looked into.
//! 9. When the queue is empty, `session/polling` may look for the next request for a moment (`--poll`), while the driver
//!    is not to kick. Linux waits for each reply with interrupts off, so what a kick and a sleeping thread cost is the
//!    guest's processor time.
//!
//! INVALIDATEs that lie in the ring right behind each other go this way together, up to
//! [`Device::UNDER_WAY_MAX`](crate::Device::UNDER_WAY_MAX) and up to what one call of the kernel takes: none of them changes
//! the device, so what one is checked against does not depend on how another ends. If the call fails each is done by itself,
//! and has its own status.
//!
//! # Threads
//!
//! One thread accepts VMMs, and answers or passes on what they say (`session/filter`); the vhost-user crate adds two for
//! each session, one for messages and one for rings, and a transfer of the device's state takes one while it lasts. Each
//! relay has one, and one looks after physical devices; in table mode one waits for what the host has to tell of tables.
//! Locks are taken in the order *turn*, then the address spaces, then *state*; nobody waits for anybody with the state
//! locked, and no relay ever takes the turn.
//!
//! **Invariant:** what a server maps is told by one thread in the order of the changes, and what it was told while a change
//! was under way is looked up again when that is over.
//!
//! **Invariant:** what a back-end may cache is decided and sent by the thread that also sends it invalidations, in
//! that order. So an entry is either sent before the invalidation that takes it away, or refused.
//!
//! The device itself is one thread's at a time. What a domain maps can be read by others while it changes, without
//! the device: [`mapping::Reader`](crate::mapping::Reader) says how, and is the one place of `viommu-core` where
//! threads meet.
//!
//! # Trust
//!
//! The guest is hostile: every byte it writes. The VMM is trusted with the guest's memory, but may be wrong: a
//! malformed message ends its connection with a log line, never the process. A back-end behind a relay is trusted as
//! far as it honours its IOTLB: it maps all of guest memory, as vhost-user has it, and it is the IOTLB that keeps it
//! to what the guest allows. The same is true of a vfio-user server that maps memory. One that asks by messages
//! (`dma=message`) is hostile, too: it has no file descriptor of memory, and every access is checked.
//!
//! Whoever has a duplicate of an iommufd can destroy what is in it, and attach its devices: the VMM is trusted with the
//! devices of its own guest. The guest's requests reach the kernel only as ranges that the device has checked.
