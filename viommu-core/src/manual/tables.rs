// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stage-1 tables of the guest: our extension of virtio-iommu, complete enough to write a driver from.
//!
//! A driver of virtio 1.4 tells the device of each mapping. With this extension it writes page tables of the hardware's
//! own format into its memory, tells the device where they are, and says what it changed. Hardware walks them, under a
//! second stage that is the host's. No specification has this yet: what follows is ours, and borrows what it can.
//!
//! # At a glance
//!
//! | | |
//! |---|---|
//! | feature bit | `ATTACH_TABLE`, number 7 unless the device is told another (7 to 23): other drafts use 8 |
//! | offered beside it | INPUT_RANGE, DOMAIN_RANGE, PROBE, BYPASS_CONFIG; neither MAP_UNMAP nor MMIO |
//! | requests | ATTACH_TABLE (6), INVALIDATE (7), PAGE_RESP (8) |
//! | events | 48 bytes, of which the 24 of virtio 1.4 are the first |
//! | properties | HW_ARM_SMMU3 (2), HW_INTEL_VTD (3), PASID (0x10), PAGE_REQUESTS (0x11); RESV_MEM of subtype IDENTITY (2) |
//! | table formats | NONE (0), ARM_SMMU3 (1), INTEL_PT (2) |
//!
//! A device is one of mappings or one of tables ([`Mode`](crate::Mode)): upstream Linux refuses a device without
//! MAP_UNMAP, and the driver for tables that is in use refuses one with it.
//!
//! Integers are little-endian. A request begins with `le8 type, le8 reserved[3]` and ends with the part that the device
//! writes, `le8 status, le8 reserved[3]`, as in virtio 1.4; both are counted in the sizes below. *rsv* is zero: the
//! driver writes it so, and the device rejects anything else, except in the head.
//!
//! # What a driver does
//!
//! 1. It negotiates the feature, reads `input_range` and `domain_range`, fills the event queue with buffers of 48 bytes.
//! 2. It PROBEs each endpoint. The hardware property says which format its tables have and what the hardware can do; one
//!    without such a property is to be left alone, or attached to a bypass domain. Different endpoints may have different
//!    hardware.
//! 3. It maps each IDENTITY region to itself in the tables, for devices and not as memory that is cached: on Arm the
//!    doorbell for interrupts lies there, and the host translates what comes out of stage 1 to the real one.
//! 4. It sends ATTACH_TABLE. Everything that the table needs must be in memory before.
//! 5. When it has changed an entry that hardware could have cached, valid before, it sends INVALIDATE and may use the
//!    memory anew when that is answered. An entry that was not valid needs none, unless the hardware's registers say
//!    that it caches those too (caching mode of VT-d). Many can be in the queue at once,
//!    and one kick is enough: those right behind each other are done together, which takes hardly longer than one of
//!    them, and answered in their order, each with a status of its own.
//! 6. It answers page requests with PAGE_RESP.
//! 7. DETACH ends it. Then the memory of the tables is its own again. A reset of the device ends it, too; but an endpoint
//!    that is at work then, and was not detached before, goes on with its old tables until it stops (bus mastering off) or
//!    is attached anew: only then may their memory be used for something else.
//!
//! `input_range` says nothing of tables: what a table can translate, the hardware's registers tell.
//!
//! # Domains and attachments
//!
//! A table belongs to an *attachment*: an endpoint, which stands for its accesses without a PASID, or one PASID of an
//! endpoint. A domain is what an INVALIDATE names: attachments whose tables know the same address spaces by the same
//! numbers (ASIDs). Tables of a domain need not be the same: on Arm each endpoint has its own table of context
//! descriptors, and they share what these name. But all are of one format, and no attachment with a table shares a
//! domain with one without. An endpoint and its PASIDs can be in different domains.
//!
//! On Arm the numbers are those of the hardware, which domains do not have each for themselves: two address spaces have two
//! numbers, whatever their domains, and one gets a number that another had when that is invalidated. An endpoint that had
//! no table begins with no cache that knows of what was before.
//!
//! Endpoints of a domain may be behind different units of hardware: the device has each of them do the INVALIDATE.
//!
//! Endpoints that the host cannot isolate from each other must be in one domain, as with mappings, and use the same table
//! too. They have no PASIDs.
//!
//! # ATTACH_TABLE, 128 bytes
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 0 | head | | type 6 |
//! | 4 | le32 | domain | comes to be with its first attachment |
//! | 8 | le32 | endpoint | |
//! | 12 | u8 | format | |
//! | 13 | u8\[111\] | descriptor | as the format says |
//! | 124 | tail | | |
//!
//! What is attached already is replaced, in one step: no access finds neither the old table nor the new one, on hardware
//! that can do so. Accesses with other PASIDs go on.
//!
//! ## ARM_SMMU3
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 13 | u8\[3\] | rsv | |
//! | 16 | le64 | ste0 | V, Config, S1Fmt, S1ContextPtr, S1CDMax of a stream table entry |
//! | 24 | le64 | ste1 | S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS |
//! | 32 | u8\[92\] | rsv | |
//!
//! All other bits of the two words are reserved. V is 1. Config is 0 (abort), 4 (bypass) or 5 (stage 1); with the first two
//! the other fields but EATS mean nothing. S1ContextPtr and the tables in the context descriptors are GPAs. The table of
//! context descriptors is the guest's: a PASID (substream) of the endpoint is an entry in it, S1DSS says what accesses
//! without one do, and no ATTACH_TABLE is needed for a PASID; INVALIDATE with the cache PASID is.
//!
//! Bypass by Config 4 is not the bypass of a bypass domain: it still is of tables, so that it can be replaced by stage 1
//! in one step.
//!
//! ## INTEL_PT
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 13 | u8\[3\] | rsv | |
//! | 16 | le64 | flags | 1 SRE, 2 EAFE, 4 WPE of a PASID table entry |
//! | 24 | le64 | pgd | GPA of the root, on a page of 4 KiB |
//! | 32 | le32 | addr_width | 48 (four levels) or 57 (five) |
//! | 36 | le32 | pasid | if attach_flags says so; otherwise 0 |
//! | 40 | le32 | attach_flags | 1 PASID: for this PASID; otherwise for accesses without one |
//! | 44 | u8\[80\] | rsv | |
//!
//! There is no table of PASIDs in the guest: each PASID is attached by itself. The endpoint has to be in a domain before,
//! of tables or of bypass.
//!
//! ## NONE
//!
//! As INTEL_PT, with zeroes in all fields but pasid and attach_flags, whose PASID bit is set: this PASID has no table any
//! more. domain is the one that it is in. The endpoint itself is detached by DETACH, which takes its PASIDs out, too.
//!
//! ## EATS and ATS
//!
//! EATS is 0 or 1. With 1 the endpoint may ask for translations and keep them (ATS); only an endpoint whose hardware has
//! it is accepted so. The driver enables ATS in the endpoint after the ATTACH_TABLE that sets EATS and disables it before
//! the one that clears it. It sends no invalidation to the endpoint: an INVALIDATE of the TLB is one of the endpoint's,
//! too, wherever EATS is set. On VT-d the host knows which endpoints have ATS enabled, and does the same.
//!
//! # INVALIDATE, 64 bytes
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 0 | head | | type 7 |
//! | 4 | u8 | scope | 1 DOMAIN, 2 PASID, 3 ADDRESS |
//! | 5 | u8 | caches | 1 PASID: entries that name tables (context descriptors); 2 TLB: translations, also in endpoints |
//! | 6 | le16 | flags | 1 LEAF, 2 PASID, 4 ID, 8 GLOBAL |
//! | 8 | le32 | domain | |
//! | 12 | le32 | pasid | with the flag PASID |
//! | 16 | le64 | id | with the flag ID: the ASID |
//! | 24 | le64 | address | scope ADDRESS |
//! | 32 | le64 | nr_pages | scope ADDRESS; at least 1 |
//! | 40 | u8 | page_size | scope ADDRESS; logarithm to base 2 |
//! | 41 | u8\[19\] | rsv | |
//! | 60 | tail | | |
//!
//! When it is answered OK, no cache holds what it names; an access that used it is done. A field whose flag is not set, or
//! that the scope does not use, is not looked at.
//!
//! | scope | caches | means |
//! |---|---|---|
//! | DOMAIN | PASID | all entries of all tables of PASIDs in the domain |
//! | DOMAIN | TLB | with ID the translations of one address space, otherwise of all |
//! | DOMAIN with the flag PASID, or PASID | either | the same for one PASID |
//! | ADDRESS | TLB | translations of addresses, of one PASID or all, of one ID or all |
//!
//! On Arm the TLB knows ASIDs and no PASIDs: a driver that means the translations of one PASID names its ASID; without ID
//! all of them go. On VT-d there are no such numbers, and ID is rejected. LEAF says that no entry that leads to a table was
//! changed, and PASID without LEAF that an entry was made invalid or moved; GLOBAL that entries for all address spaces are
//! meant, too. The device may always forget more than it is told to.
//!
//! page_size is one of the hardware's: on Arm a page or block of a granule in `IDR5` (4 KiB, 2 MiB, 1 GiB; 16 KiB, 32 MiB;
//! 64 KiB, 512 MiB), on VT-d 4 KiB, 2 MiB and with `FS1GP` 1 GiB; address lies on it, and the last page ends within 64
//! bits. A driver that does not know the size of what it removed names the smallest. There is no limit to nr_pages: what
//! is too much to do page by page is done for the address space.
//!
//! # PAGE_RESP, 36 bytes
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 0 | head | | type 8 |
//! | 4 | le32 | endpoint | |
//! | 8 | le32 | flags | 1 PASID: pasid is valid |
//! | 12 | le32 | pasid | as in the event; without the flag 0 |
//! | 16 | le32 | group_id | as in the event |
//! | 20 | le16 | code | 0 SUCCESS, 1 INVALID, 2 FAILURE |
//! | 22 | u8\[10\] | rsv | |
//! | 32 | tail | | |
//!
//! One response answers a group: all requests of one endpoint, PASID and group_id up to the one with LAST. PASID and flag
//! are those of the event. With SUCCESS the endpoint tries again, with the others its accesses fail; FAILURE is for
//! a driver that can serve no further requests, and today's hosts make INVALID of it.
//!
//! A group that has no response within the time that the property names is answered INVALID by the device, so that no
//! endpoint waits for ever; the driver's response then comes too late and is rejected with NOENT, which is no mistake
//! of the driver's. The same happens when the endpoint is detached or moved, when the table that the request came through
//! is replaced, when the device is reset, when the endpoint is unplugged, when more groups wait than the property
//! allows, when too many pages are asked for in all, and when the event does not fit into the driver's buffer. A
//! driver that gets a response rejected for another reason than NOENT may send it again until the time is over.
//!
//! # Events, 48 bytes
//!
//! | offset | | field | |
//! |---|---|---|---|
//! | 0 | u8 | reason | |
//! | 1 | u8\[3\] | rsv | |
//! | 4 | le32 | flags | |
//! | 8 | le32 | endpoint | |
//! | 12 | le32 | pasid | with the flag PASID |
//! | 16 | le64 | address | with the flag ADDRESS |
//! | 24 | le32 | group_id | with the flag GROUP_ID |
//! | 28 | u8\[4\] | rsv | |
//! | 32 | u8\[16\] | rsv | |
//!
//! | flag | | |
//! |---|---|---|
//! | 1 | READ | the access was a read |
//! | 2 | WRITE | a write |
//! | 4 | EXEC | an execution |
//! | 8 | PRIVILEGED | with privilege |
//! | 0x10 | LAST | of a page request: the last of its group |
//! | 0x20 | PAGE_REQ | a page request, which waits for a PAGE_RESP; without it a fault, which waits for nothing |
//! | 0x100 | ADDRESS | address is valid |
//! | 0x200 | PASID | pasid is valid |
//! | 0x400 | GROUP_ID | group_id is valid |
//! | 0x1000 | LOST | faults were lost before this event; alone, without reason and address, it says nothing else |
//!
//! | reason | | of an Arm SMMUv3, among others | of VT-d |
//! |---|---|---|---|
//! | 0 | UNKNOWN | what has no place below | |
//! | 1 | DOMAIN | the endpoint is in no domain, or the PASID has no table | |
//! | 2 | MAPPING | F_TRANSLATION | no entry |
//! | 3 | WALK_EABT | F_WALK_EABT | |
//! | 4 | PTE_FETCH | F_CD_FETCH, or a table outside of the guest's memory | |
//! | 5 | PERMISSION | F_PERMISSION | the entry forbids it |
//! | 6 | ACCESS | F_ACCESS | |
//! | 7 | OOR_ADDRESS | F_ADDR_SIZE | the address is not canonical |
//! | 8 | TABLE | C_BAD_CD, C_BAD_SUBSTREAMID, C_BAD_STE, or context descriptors outside of the guest's memory | |
//!
//! Faults at tables come when they happen, and no request fails for them: a table that lies outside of the guest's memory
//! or makes no sense is accepted if the device cannot know, and the first access that needs it ends with an event. VT-d
//! hosts report no such faults to a VMM, so a guest there gets none.
//!
//! A page request has reason MAPPING. It is no fault yet: it is reported with the address of the page and what is wanted.
//! A fault that waits for a buffer already is not queued again. When there are more than the device keeps, the ones
//! that come are dropped, and LOST says so. Page requests are never dropped: they are answered.
//!
//! A buffer of 24 to 47 bytes gets the first 24 of a fault, as virtio 1.4 allows.
//!
//! # Properties
//!
//! In the reply to a PROBE, beside RESV_MEM and in the same form: `le16 type, le16 length` without these four bytes.
//!
//! | type | size | |
//! |---|---|---|
//! | 2 HW_ARM_SMMU3 | 56 | 4 rsv\[4\], 8 le64 idr0, 16 le64 idr1, 24 rsv\[8\], 32 le64 idr3, 40 rsv\[8\], 48 le64 idr5: identification registers |
//! | 3 HW_INTEL_VTD | 24 | 4 le32 flags (as `struct iommu_hw_info_vtd` of Linux has them), 8 le64 cap, 16 le64 ecap: capability registers |
//! | 0x10 PASID | 12 | 4 u8 bits: PASIDs are 1 to 2^bits - 1, 5 rsv, 6 le16 flags: 1 EXEC, 2 PRIVILEGED, 8 rsv\[4\] |
//! | 0x11 PAGE_REQUESTS | 16 | 4 le32 flags: 1 the response names the PASID that the request had, 8 le32 requests_max: groups that may wait, 12 le32 timeout_ms |
//! | 1 RESV_MEM | 24 | subtype 2 IDENTITY: start to last is mapped to itself in every table, and to nothing else |
//!
//! An endpoint without PASID or PAGE_REQUESTS cannot use them, be it for its own sake, for the hardware's, or since
//! what it needs in its configuration space is hidden from the guest. Flag 1 of PAGE_REQUESTS is always set.
//!
//! # Rules for a device
//!
//! Numbered as those of virtio 1.4 are in [`rules`](super::rules), and held to code and tests in the same way, with anchors
//! that begin with `//= tables#`; the list is `tests/spec/tables.toml`.
//!
//! ## Feature bit
//!
//! | | | |
//! |---|---|---|
//! | T1 | MUST | give the feature bit the number that was asked for, 7 to 23, and take no other bit for it |
//! | T2 | MUST NOT | offer MAP_UNMAP or MMIO beside it |
//! | T3 | MUST | reject an ATTACH without the BYPASS flag, UNSUPP |
//! | T4 | MUST | return a request of these types with length 0 when the feature was not negotiated |
//!
//! ## Domains
//!
//! | | | |
//! |---|---|---|
//! | T5 | MUST | make a domain with the first endpoint or PASID attached to it, and end it with the last |
//! | T6 | MUST | leave an endpoint's PASIDs without tables on DETACH, and on an ATTACH that moves it |
//! | T7 | MUST | refuse what an endpoint does whose accesses no hardware translates |
//! | T8 | MUST | drop all tables on a device reset |
//! | T9 | MUST | hold nothing in a cache of what tables led to before when an endpoint that had no table gets one |
//!
//! ## ATTACH_TABLE
//!
//! | | | |
//! |---|---|---|
//! | T10 | MUST | reject an unknown endpoint, NOENT, and a domain id outside `domain_range`, RANGE |
//! | T11 | MUST | reject a reserved field or bit that is not 0 and an unknown flag, INVAL |
//! | T12 | MUST | reject format NONE without a PASID, or with another field that is not 0, INVAL |
//! | T13a | MUST | reject a format that the endpoint's hardware does not walk, UNSUPP |
//! | T14a | MUST | reject a PASID of an endpoint that has no PASID property, UNSUPP |
//! | T14b | MUST | reject PASID 0 and one beyond the property's bits, RANGE |
//! | T14c | MUST | reject a PASID of an endpoint that is in no domain itself, INVAL |
//! | T15a | MUST | reject an ARM_SMMU3 entry without V, with another Config than abort, bypass and stage 1, or a reserved S1Fmt, S1DSS or EATS, INVAL |
//! | T15b | MUST | reject EATS of an endpoint without ATS, UNSUPP |
//! | T15c | MUST | reject an S1CDMax beyond `IDR1.SSIDSIZE`, RANGE |
//! | T15d | MUST | reject a two-level S1Fmt without `IDR0.CD2L`, UNSUPP |
//! | T16a | MUST | reject an INTEL_PT root off the page, another width than 48 and 57, or a PASID without its flag, INVAL |
//! | T16b | MUST | reject SRE, EAFE and 57 bits that the capability registers do not have, UNSUPP |
//! | T17a | MUST | reject a domain that is a bypass domain or has tables of another format, INVAL |
//! | T17b | MUST | accept another table than the domain's other endpoints have |
//! | T18 | MUST | reject another domain, or another table, than an endpoint of the same host group has, UNSUPP |
//! | T19 | MUST | reject format NONE for a PASID that is not attached to the domain named, INVAL |
//! | T20 | MUST | replace the table of what is attached in one step, also within its domain |
//! | T21 | MUST NOT | change any other PASID, or the endpoint itself when a PASID is named |
//! | T22 | MUST | reject a table outside of the guest's memory where that shows at once, FAULT |
//! | T23 | MUST | reject what would pass the limits on domains or PASIDs, NOMEM |
//! | T24 | MUST NOT | change anything when it rejects, this request or another |
//! | T25 | MUST | reject what the host fails with DEVERR, or NOMEM where it lacks memory or space, this request or another |
//!
//! ## INVALIDATE
//!
//! | | | |
//! |---|---|---|
//! | T30 | MUST | reject a domain that does not exist, NOENT, and a bypass domain, INVAL |
//! | T31 | MUST | reject an unknown flag, scope or cache, no cache at all, and a reserved field that is not 0, INVAL |
//! | T32a | MUST | take scope DOMAIN with the PASID flag for scope PASID |
//! | T32b | MUST | reject scope PASID without the PASID flag, and scope ADDRESS without the TLB, INVAL |
//! | T33a | MUST | reject a PASID that is not in the domain, NOENT, where PASIDs are attached by themselves |
//! | T33b | MUST | reject a PASID that no endpoint of the domain can have, RANGE, where the guest's table has them |
//! | T34 | MUST | reject a page size that hardware of the domain does not have, RANGE |
//! | T35 | MUST | reject an address off the page, no pages, and pages beyond the 64-bit space, RANGE |
//! | T36 | MUST | reject an id of more than 16 bits, and any where the format has none, RANGE |
//! | T37 | MUST NOT | reject a range for its size |
//!
//! ## Events
//!
//! | | | |
//! |---|---|---|
//! | T40a | MUST | write events of 48 bytes when the feature was negotiated, and of 24 otherwise |
//! | T40b | MUST | zero reserved fields, undefined flags, and fields whose flag is not set |
//! | T41 | MUST | tell of a group's requests in their order, with LAST on the last alone |
//! | T42 | MUST | set LOST in the first event after others were lost, and send an event of nothing else if none follows |
//! | T43a | MUST | write the first 24 bytes of a fault to a buffer that is too short for 48 |
//! | T43b | MUST | answer a page request INVALID when a buffer is too short for it |
//!
//! ## PAGE_RESP
//!
//! | | | |
//! |---|---|---|
//! | T50 | MUST | reject a reserved field that is not 0, an unknown flag or code, and a PASID without its flag, INVAL |
//! | T51 | MUST | reject an unknown endpoint, and a group that waits for no response, NOENT |
//! | T52 | MUST | go on waiting when the host did not take the response |
//! | T53 | MUST | answer a group INVALID when its time is over |
//! | T54 | MUST | answer a group INVALID when its table goes, on a reset, and when the endpoint is gone |
//! | T55a | MUST | answer a request INVALID that comes from an endpoint, or a PASID, without a table |
//! | T55b | MUST | answer a request INVALID that would pass the limits |
//! | T56 | MUST NOT | answer a group twice |
//!
//! ## Properties
//!
//! | | | |
//! |---|---|---|
//! | T60 | MUST NOT | give an endpoint properties of tables, PASIDs or page requests that it cannot use |
//! | T61 | MUST | give one that can use tables the property of its hardware, and no other |
//!
//! # Where it comes from
//!
//! | | from |
//! |---|---|
//! | requests 6 and 7, their layouts and numbers, formats 1 and 2 by number, HW properties 2 and 3 by number, the layouts of ARM_SMMU3 and HW_ARM_SMMU3, event flags PASID and EXEC | the page-table proposal of October 2023 on virtio-comment, as the Gunyah hypervisor and its guest driver have it |
//! | PAGE_RESP, page requests as events, their flags and their place | the review, of September 2021, of the vSVA series for virtio-iommu of that year; here group_id has 32 bits, as hosts do |
//! | fault reasons 3 to 7 | the nested-stage series of January 2021 |
//! | what is in INTEL_PT and HW_INTEL_VTD | Tina Zhang's series for VT-d of November 2023, and Linux's `iommufd.h` |
//! | RESV_MEM IDENTITY | a development version of 2018, without its two more fields |
//! | format NONE, the PASID in INTEL_PT, PASID, PAGE_REQUESTS, LOST, reason TABLE, timeout and answers of the device's own | ours |
//!
//! What the drafts leave open is answered above: PASIDs that come and go on VT-d (ATTACH_TABLE with a PASID, NONE), how many
//! PASIDs there are (PASID), who may ask for pages and how many wait (PAGE_REQUESTS), EATS, interrupts on Arm (IDENTITY), what
//! a domain is and what shares it, faults that come later (reasons and TABLE), lost events (LOST), and a driver that does
//! not answer (the timeout).
