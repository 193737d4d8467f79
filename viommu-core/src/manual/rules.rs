// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of the specification for a device, numbered, in words of our own.
//!
//! A test names the rules it holds the device to by these numbers. Rules without MUST, SHOULD or MAY are what the
//! prose of the specification says. Source: virtio 1.4, "IOMMU device".
//!
//! # Feature bits
//!
//! | | |
//! |---|---|
//! | A1 | SHOULD offer MAP_UNMAP |
//! | A2 | SHOULD NOT offer the legacy BYPASS (new devices) |
//! | A3 | SHOULD NOT offer BYPASS and BYPASS_CONFIG together |
//!
//! # Configuration layout
//!
//! | | |
//! |---|---|
//! | A4 | MUST set a bit in page_size_mask; MAY set several |
//! | A5 | MAY start with `bypass` 1 |
//! | A6 | SHOULD NOT change `bypass` on a device reset; SHOULD restore it on a system reset |
//! | A7 | MUST NOT show anything but 0 and 1 in `bypass` |
//!
//! # Operations
//!
//! | | |
//! |---|---|
//! | A8 | SHOULD say OK on success |
//! | A9 | SHOULD NOT write the buffer, and SHOULD use length 0, when the request type is not recognised |
//! | A10 | MUST ignore the head's reserved field; SHOULD zero the tail's |
//! | A11 | SHOULD NOT let unattached endpoints reach guest memory unless they bypass |
//! | A12 | A request too short to find its tail is returned with nothing written |
//! | A13 | An endpoint is in bypass mode if BYPASS_CONFIG is offered and either `bypass` is 1 and it is unattached, whether or not the driver accepted the feature, or it is in a domain made with ATTACH_F_BYPASS |
//! | A14 | Bypass is identity translation with every access allowed |
//!
//! # ATTACH
//!
//! | | |
//! |---|---|
//! | A15 | MUST reject a reserved field that is not 0, INVAL |
//! | A16 | MUST reject an unknown flag, INVAL; without BYPASS_CONFIG negotiated bit 0 is unknown |
//! | A17 | MUST reject an unknown endpoint, NOENT |
//! | A18 | MAY attach several endpoints to one domain; if it cannot, MUST reject, UNSUPP |
//! | A19 | SHOULD reject a bypass flag that differs from the domain's, INVAL |
//! | A20 | SHOULD move an endpoint that is attached elsewhere; if it cannot, MUST reject, UNSUPP |
//! | A21 | SHOULD attach when the endpoint's properties go with those of the endpoints there, otherwise SHOULD reject, UNSUPP |
//! | A22 | MUST attach what it does not reject; the domain is made by the first ATTACH that names it, an endpoint has one domain at a time, and domains are isolated |
//!
//! # DETACH
//!
//! | | |
//! |---|---|
//! | A23 | MUST ignore the reserved field |
//! | A24 | MUST reject an unknown endpoint, NOENT |
//! | A25 | MAY reject an unknown domain, or an endpoint that is not attached to it, INVAL |
//! | A26 | MUST keep the endpoint from every mapping of the domain afterwards; it may fall back to bypass |
//! | A27 | The domain ends with its last endpoint: its mappings vanish and the id can be used again |
//!
//! # MAP
//!
//! | | |
//! |---|---|
//! | A28 | SHOULD reject a virt_start, phys_start or virt_end + 1 off the granule, RANGE |
//! | A29 | SHOULD reject a range that touches a mapping, INVAL |
//! | A30 | MUST reject an unknown flag, INVAL; without MMIO negotiated that flag is unknown |
//! | A31 | SHOULD reject an unknown domain, NOENT |
//! | A32 | SHOULD reject a bypass domain, INVAL |
//! | A33 | MUST NOT allow writes without WRITE; MAY allow reads of write-only mappings |
//! | A34 | SHOULD reject a MAP that overlaps a RESV_MEM region; here with INVAL |
//!
//! # UNMAP
//!
//! | | |
//! |---|---|
//! | A35 | MAY reject a reserved field that is not 0, INVAL, and MAY still unmap |
//! | A36 | SHOULD reject an unknown domain, NOENT |
//! | A37 | SHOULD reject a bypass domain, INVAL |
//! | A38 | SHOULD reject, RANGE, and remove nothing when a mapping is only partly covered |
//! | A39 | SHOULD remove what is there and say OK when there are holes, even nothing but |
//!
//! # PROBE
//!
//! | | |
//! |---|---|
//! | A40 | MUST ignore the reserved field |
//! | A41 | SHOULD reject an unknown endpoint, NOENT |
//! | A42 | SHOULD NOT write, and SHOULD use length 0, when PROBE is not offered |
//! | A43 | SHOULD zero the upper four bits of a property's type |
//! | A44 | MUST give a property's length without its four header bytes |
//! | A45 | MUST put the next property right behind |
//! | A46 | SHOULD write no property and say INVAL when the buffer has less than probe_size |
//! | A47 | SHOULD fill the rest of the properties with zeroes |
//!
//! # RESV_MEM
//!
//! | | |
//! |---|---|
//! | A48 | SHOULD zero the reserved field |
//! | A49 | SHOULD NOT give an endpoint more than one MSI region |
//! | A50 | SHOULD NOT give regions that overlap |
//! | A51 | SHOULD reject a MAP that overlaps a region |
//! | A52 | SHOULD NOT let accesses to RESV_MEM affect anything but endpoint and driver |
//!
//! # Fault events
//!
//! | | |
//! |---|---|
//! | A53 | SHOULD zero reserved fields and undefined flags |
//! | A54 | SHOULD give a valid endpoint id |
//! | A55 | MAY leave the address out of any report |
//! | A56 | SHOULD NOT spread a report over several buffers; MAY use an older, shorter format that fits |
//! | A57 | Without a buffer a report waits or is dropped |
//! | A58 | Errors that no endpoint caused are a matter of DEVICE_NEEDS_RESET |
