// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of the specification for a device, numbered, in words of our own.
//!
//! Rules with letters are parts of one sentence. Rules without MUST, SHOULD or MAY are what the prose of the
//! specification says. Source: virtio 1.4, "IOMMU device", at the commit that `tests/spec/virtio-iommu.toml` names.
//!
//! Code and tests name the rules by these ids. Where the code meets one stands an anchor, a comment that begins with
//! `//= virtio#devicenormative:`, the section and the ids; above a test stands `//=` with the ids that it holds the
//! device to. `scripts/spec-coverage --list` shows for each rule where that is. It fails if a MUST or a SHOULD has
//! neither anchor and test nor a reason in the list, and if these tables differ from the list.
//!
//! # Feature bits
//!
//! | | | |
//! |---|---|---|
//! | A1 | SHOULD | offer MAP_UNMAP |
//! | A2 | SHOULD NOT | offer the legacy BYPASS (new devices) |
//! | A3 | SHOULD NOT | offer BYPASS and BYPASS_CONFIG together |
//!
//! # Configuration layout
//!
//! | | | |
//! |---|---|---|
//! | A4a | MUST | set a bit in `page_size_mask`: the lowest is the granule |
//! | A4b | MAY | set several |
//! | A5 | MAY | start with `bypass` 1 |
//! | A6a | SHOULD NOT | change `bypass` on a device reset |
//! | A6b | SHOULD | restore `bypass` on a system reset |
//! | A7 | MUST NOT | show anything but 0 and 1 in `bypass` |
//!
//! # Operations
//!
//! | | | |
//! |---|---|---|
//! | A8 | SHOULD | say OK on success |
//! | A9a | SHOULD NOT | write the buffer of a request whose type is not recognised |
//! | A9b | SHOULD | return such a buffer with length 0 |
//! | A10a | MUST | ignore the reserved field of the head |
//! | A10b | SHOULD | zero the reserved field of the tail |
//! | A11 | SHOULD NOT | let unattached endpoints reach guest memory unless they bypass |
//! | A12 | | A request too short to find its tail is returned with nothing written |
//! | A13 | | An endpoint is in bypass mode if BYPASS_CONFIG is offered and either `bypass` is 1 and it is unattached, whether or not the driver accepted the feature, or it is in a domain made with ATTACH_F_BYPASS |
//! | A14 | | Bypass is identity translation with every access allowed |
//!
//! # ATTACH
//!
//! | | | |
//! |---|---|---|
//! | A15 | MUST | reject a reserved field that is not 0, INVAL |
//! | A16 | MUST | reject an unknown flag, INVAL; without BYPASS_CONFIG negotiated bit 0 is unknown |
//! | A17 | MUST | reject an unknown endpoint, NOENT |
//! | A18a | MAY | attach several endpoints to one domain |
//! | A18b | MUST | reject an endpoint that cannot share the domain, UNSUPP |
//! | A19 | SHOULD | reject a bypass flag that differs from the domain's, INVAL |
//! | A20a | SHOULD | move an endpoint that is attached elsewhere |
//! | A20b | SHOULD | do on a move all that a DETACH before the ATTACH would do |
//! | A20c | MUST | reject a move that cannot be made, UNSUPP |
//! | A21a | SHOULD | attach when the endpoint's properties go with those of the endpoints there |
//! | A21b | SHOULD | reject when they do not, UNSUPP |
//! | A22 | MUST | attach what it does not reject; the domain is made by the first ATTACH that names it, an endpoint has one domain at a time, and domains are isolated |
//!
//! # DETACH
//!
//! | | | |
//! |---|---|---|
//! | A23 | MUST | ignore the reserved field |
//! | A24 | MUST | reject an unknown endpoint, NOENT |
//! | A25 | MAY | say INVAL to an unknown domain, or an endpoint that is not attached to it |
//! | A26 | MUST | keep the endpoint from every mapping of the domain afterwards; it may fall back to bypass |
//! | A27 | | The domain ends with its last endpoint: its mappings vanish and the id can be used again |
//!
//! # MAP
//!
//! | | | |
//! |---|---|---|
//! | A28 | SHOULD | reject a virt_start, phys_start or virt_end + 1 off the granule, RANGE |
//! | A29 | SHOULD | reject a range that touches a mapping, INVAL |
//! | A30 | MUST | reject an unknown flag, INVAL; without MMIO negotiated that flag is unknown |
//! | A31 | SHOULD | reject an unknown domain, NOENT |
//! | A32 | SHOULD | reject a bypass domain, INVAL |
//! | A33a | MUST NOT | allow writes to what was mapped without WRITE |
//! | A33b | MAY | allow reads of what was mapped with WRITE alone, where the hardware knows no better |
//! | A34 | | Reserved regions cannot be mapped: A51 |
//!
//! # UNMAP
//!
//! | | | |
//! |---|---|---|
//! | A35a | MAY | say INVAL to a reserved field that is not 0 |
//! | A35b | MAY | unmap all the same |
//! | A36 | SHOULD | say NOENT to an unknown domain |
//! | A37 | SHOULD | reject a bypass domain, INVAL |
//! | A38a | SHOULD | say RANGE when a mapping is only partly covered |
//! | A38b | SHOULD NOT | remove any mapping then |
//! | A39 | SHOULD | remove what is there and say OK when there are holes, even nothing but |
//!
//! # PROBE
//!
//! | | | |
//! |---|---|---|
//! | A40 | MUST | ignore the reserved field |
//! | A41 | SHOULD | reject an unknown endpoint, NOENT |
//! | A42a | SHOULD NOT | write the buffer of a PROBE that is not offered |
//! | A42b | SHOULD | return such a buffer with length 0 |
//! | A43 | SHOULD | zero the upper four bits of a property's type |
//! | A44 | MUST | give a property's length without its four header bytes |
//! | A45 | MUST | put the next property right behind |
//! | A46a | SHOULD NOT | write a property to a buffer that has less than `probe_size` |
//! | A46b | SHOULD | reject such a buffer, INVAL |
//! | A47 | SHOULD | fill the rest of the properties with zeroes |
//!
//! # RESV_MEM
//!
//! | | | |
//! |---|---|---|
//! | A48 | SHOULD | zero the reserved field |
//! | A49 | SHOULD NOT | give an endpoint more than one MSI region |
//! | A50 | SHOULD NOT | give an endpoint regions that overlap |
//! | A51 | SHOULD | reject a MAP that overlaps a region; here with INVAL |
//! | A52 | SHOULD NOT | let accesses to a region affect anything but endpoint and driver |
//!
//! # Fault events
//!
//! | | | |
//! |---|---|---|
//! | A53a | SHOULD | zero the reserved fields |
//! | A53b | SHOULD | zero undefined flags |
//! | A54 | SHOULD | give a valid endpoint id |
//! | A55 | MAY | leave the address out of any report |
//! | A56a | SHOULD NOT | spread a report over several buffers |
//! | A56b | MAY | use an older, shorter format that fits |
//! | A57 | | Without a buffer a report waits or is dropped |
//! | A58 | | Errors that no endpoint caused are a matter of DEVICE_NEEDS_RESET |
