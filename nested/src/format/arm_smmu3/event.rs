// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Records of the event queue.

use viommu_core::{EndpointId, Pasid, TableAccess, TableFault, TableFaultReason};

/// Bytes of an event record.
pub(super) const EVENT_BYTES: usize = 32;
/// `SSV`: there is a SubstreamID.
const SUBSTREAM_VALID: u64 = 1 << 11;

/// What a record says, by its first three words.
pub(super) fn event([first, second, third]: [u64; 3]) -> TableFault {
    let has_substream = first & SUBSTREAM_VALID != 0;
    let is_of_stage_2 = second >> 39 & 1 != 0;
    let class = second >> 40 & 3;
    let (reason, has_address) = match first & 0xff {
        // C_BAD_STE, F_STREAM_DISABLED, C_BAD_SUBSTREAMID, C_BAD_CD.
        0x04 | 0x06 | 0x08 | 0x0a => (TableFaultReason::Table, false),
        // F_CD_FETCH, F_WALK_EABT.
        0x09 => (TableFaultReason::PteFetch, false),
        0x0b => (TableFaultReason::WalkAbort, true),
        // Of F_TRANSLATION and the like below, when guest memory itself lacks what is looked for.
        0x10..=0x13 if is_of_stage_2 => match class {
            0 => (TableFaultReason::Table, true),
            1 => (TableFaultReason::PteFetch, true),
            _ => (TableFaultReason::Unknown, true),
        },
        // F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION.
        0x10 => (TableFaultReason::Mapping, true),
        0x11 => (TableFaultReason::OutOfRange, true),
        0x12 => (TableFaultReason::Access, true),
        0x13 => (TableFaultReason::Permission, true),
        _ => (TableFaultReason::Unknown, false),
    };
    TableFault {
        endpoint: EndpointId((first >> 32) as u32),
        reason,
        pasid: has_substream.then_some(Pasid((first >> 12 & 0xf_ffff) as u32)),
        address: has_address.then_some(third),
        access: if has_address { access(second) } else { TableAccess::empty() },
    }
}

/// What was tried, by a record's second word.
fn access(word: u64) -> TableAccess {
    let bit = |number: u32| word >> number & 1 != 0;
    let mut access = if bit(35) { TableAccess::READ } else { TableAccess::WRITE };
    access.set(TableAccess::EXEC, bit(34));
    access.set(TableAccess::PRIVILEGED, bit(33));
    access
}
