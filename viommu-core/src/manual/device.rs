// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device offers, and how it answers where the specification leaves a choice.
//!
//! The device is virtio-iommu of virtio 1.4, all of it. In table mode it is another one: what differs then is in
//! [`tables`](super::tables).
//!
//! | feature | offered | |
//! |---|---|---|
//! | INPUT_RANGE | yes | the aperture |
//! | DOMAIN_RANGE | yes | every 32-bit id; how many may exist at once is a limit of its own |
//! | MAP_UNMAP | yes | |
//! | BYPASS | no | the legacy form |
//! | PROBE | yes | RESV_MEM properties: the MSI doorbell, holes in guest memory |
//! | MMIO | yes | recorded; nothing is behind such a mapping for a vhost-user endpoint |
//! | BYPASS_CONFIG | yes | `bypass` is 1 at power-on unless told otherwise; a device reset leaves it alone, and so does a reset of the machine while the VMM stays connected: vhost-user does not tell the two apart |
//!
//! # Replies
//!
//! A request of a known type is answered in full length whatever its outcome, since Linux takes any other length for
//! success. A type that is not known, or not negotiated, is returned with length 0, as is a request without room for
//! a status. A PROBE whose buffer is too short for the properties gets its status at the end of the buffer.
//!
//! | refused because | status |
//! |---|---|
//! | the endpoint or the domain does not exist | NOENT |
//! | a range is reversed, unaligned, outside the aperture, or its target passes 2^64; an UNMAP would split | RANGE |
//! | a domain id is outside `domain_range` | RANGE |
//! | a flag or reserved field is wrong; a range overlaps a mapping or a reserved region; the bypass setting differs; a buffer is too short | INVAL |
//! | an endpoint's reserved region is mapped in the domain it should enter | UNSUPP |
//! | a limit is reached, or the host is out of memory or of space | NOMEM |
//! | a back-end failed | DEVERR |
//!
//! # Limits
//!
//! A guest can make the device hold so much and no more: domains, mappings, the memory that mappings take (it depends on
//! how they lie, see [`mapping`](crate::mapping)), faults that wait ([`Limits`](crate::Limits)). The limit on memory is
//! held against the most that the present mappings can come to take, so a request that removes some is never refused
//! for it. Granules are 4 KiB or more.
//!
//! # Choices
//!
//! - ATTACH of an endpoint that is in another domain moves it. A domain ends with its last endpoint.
//! - DETACH has to name the right domain, except that an endpoint in a bypass domain may be detached from domain 0: Linux says that of its identity domain.
//! - UNMAP with a set reserved field is refused and changes nothing.
//! - A write-only mapping cannot be read, but by a back-end that asks to read and to write (see [`endpoints`](super::endpoints)).
//! - A mapping may lead to addresses where there is no memory: a driver without bypass domains maps the whole space
//!   to itself. Only an access finds out, and gets a fault of reason UNKNOWN.
//! - PROBE of an endpoint without properties is OK and empty.
//! - A fault that waits for the driver already is not queued twice; events wait for the driver's first request.
