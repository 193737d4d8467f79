// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The writable part of a request: where its tail lies and how long it is.
//!
//! A driver reads a reply only when its length is the one it expects, so every known type is answered in full length,
//! whatever the outcome; only without room for a tail nothing is written. A writable part that is longer than the
//! answer gets the answer at its start; a PROBE's that is too short for the properties gets its tail at its end.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use crate::request::Row;
use crate::{Reject, Status, wire};

const TAIL_SIZE: usize = size_of::<wire::Tail>();
/// A tail that says OK.
static DONE: [u8; TAIL_SIZE] = [Status::Ok as u8, 0, 0, 0];

/// The answer to one request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What goes to the start of the writable part; its length is the used length.
    pub bytes: Cow<'static, [u8]>,
    /// The request type; `None` when it was not recognised or left no room for a tail, or when there was no request.
    pub row: Option<&'static Row>,
    /// Why it was refused, if it was.
    pub rejected: Option<Reject>,
}

impl Reply {
    pub(super) fn unrecognised() -> Reply {
        Reply { bytes: Cow::default(), row: None, rejected: None }
    }
}

/// The shape of the answer to a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// `None` for a write to the configuration space, which has no answer.
    row: Option<&'static Row>,
    size: usize,
    writable: usize,
}

impl Form {
    /// For a change that no request asked for.
    pub(super) const NONE: Form = Form { row: None, size: 0, writable: 0 };

    /// `None` when there is no room for a tail.
    pub(super) fn of(row: &'static Row, writable: usize, probe_size: usize) -> Option<Form> {
        (writable >= TAIL_SIZE).then_some(Form {
            row: Some(row),
            size: row.answer.size(probe_size),
            writable,
        })
    }

    pub(super) fn check_room(self) -> Result<(), Reject> {
        if self.writable < self.size {
            //= virtio#devicenormative:IOMMU/PROBE request A46a A46b
            // Refused before anybody asks for properties.
            return Err(Reject::ReplyTooShort { got: self.writable, needed: self.size });
        }
        Ok(())
    }

    pub(super) fn done(self) -> Reply {
        self.reply(Vec::new(), Status::Ok, None)
    }

    pub(super) fn properties(self, properties: Vec<u8>) -> Reply {
        self.reply(properties, Status::Ok, None)
    }

    pub(super) fn rejected(self, reject: Reject) -> Reply {
        self.reply(Vec::new(), Status::from(&reject), Some(reject))
    }

    /// `body`, zeroes up to the tail, the tail.
    fn reply(self, body: Vec<u8>, status: Status, rejected: Option<Reject>) -> Reply {
        let size = self.size.min(self.writable);
        if size == TAIL_SIZE && body.is_empty() && status == Status::Ok {
            // What nearly all requests come to takes no memory.
            return Reply { bytes: Cow::Borrowed(&DONE), row: self.row, rejected };
        }
        let mut bytes = if body.is_empty() { vec![0; size] } else { body };
        //= virtio#devicenormative:IOMMU/Device operations A8 A10b
        // Of the tail only the status is ever set.
        //= virtio#devicenormative:IOMMU/PROBE request A47
        // What follows the last property is zero, too.
        bytes.resize(size, 0);
        if let Some(at) = size.checked_sub(TAIL_SIZE).and_then(|at| bytes.get_mut(at)) {
            *at = status as u8;
        }
        Reply { bytes: Cow::Owned(bytes), row: self.row, rejected }
    }
}
