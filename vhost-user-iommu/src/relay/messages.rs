// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages of a VMM that a relay carries, one row each. A message without a row ends the conversation: it
//! could hold addresses that the relay does not know of.
//!
//! Read beside it: "Front-end message types" in QEMU's `docs/interop/vhost-user.rst`.

use crate::message::FrontendRequest as Request;
use crate::message::features::protocol;

/// When a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Always.
    Always,
    /// If its flags ask for it.
    OnDemand,
}

/// What a relay does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Carries it.
    Pass,
    /// Carries it and takes note: a ring's first position.
    RingBase,
    /// Carries it with its addresses changed.
    RingAddress,
    /// Carries it and takes note: a ring starts.
    RingStart,
    /// Carries it and takes note: no ring runs any more.
    Reset,
    /// Carries it with what the relay itself needs.
    Features,
    /// The same.
    ProtocolFeatures,
    /// Carries it and takes note: the memory table.
    MemoryTable,
    /// Carries it and takes note: a part of the memory table.
    AddRegion,
    /// The same.
    RemoveRegion,
    /// Keeps it: the back-end's requests come to the relay.
    BackendChannel,
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub request: Request,
    /// When it is answered.
    pub answered: Answered,
    /// What is done with it.
    pub treatment: Treatment,
}

const fn row(request: Request, answered: Answered, treatment: Treatment) -> Row {
    Row { request, answered, treatment }
}

/// The messages that are carried.
#[rustfmt::skip]
pub static TABLE: [Row; 27] = [
    row(Request::GET_FEATURES,          Answered::Always,   Treatment::Pass),
    row(Request::SET_FEATURES,          Answered::OnDemand, Treatment::Features),
    row(Request::SET_OWNER,             Answered::OnDemand, Treatment::Pass),
    row(Request::RESET_OWNER,           Answered::OnDemand, Treatment::Reset),
    row(Request::SET_MEM_TABLE,         Answered::OnDemand, Treatment::MemoryTable),
    row(Request::SET_VRING_NUM,         Answered::OnDemand, Treatment::Pass),
    row(Request::SET_VRING_ADDR,        Answered::OnDemand, Treatment::RingAddress),
    row(Request::SET_VRING_BASE,        Answered::OnDemand, Treatment::RingBase),
    row(Request::GET_VRING_BASE,        Answered::Always,   Treatment::Pass),
    row(Request::SET_VRING_KICK,        Answered::OnDemand, Treatment::RingStart),
    row(Request::SET_VRING_CALL,        Answered::OnDemand, Treatment::Pass),
    row(Request::SET_VRING_ERR,         Answered::OnDemand, Treatment::Pass),
    row(Request::GET_PROTOCOL_FEATURES, Answered::Always,   Treatment::Pass),
    row(Request::SET_PROTOCOL_FEATURES, Answered::OnDemand, Treatment::ProtocolFeatures),
    row(Request::GET_QUEUE_NUM,         Answered::Always,   Treatment::Pass),
    row(Request::SET_VRING_ENABLE,      Answered::OnDemand, Treatment::Pass),
    row(Request::SEND_RARP,             Answered::OnDemand, Treatment::Pass),
    row(Request::NET_SET_MTU,           Answered::OnDemand, Treatment::Pass),
    row(Request::SET_BACKEND_REQ_FD,    Answered::OnDemand, Treatment::BackendChannel),
    row(Request::GET_CONFIG,            Answered::Always,   Treatment::Pass),
    row(Request::SET_CONFIG,            Answered::OnDemand, Treatment::Pass),
    row(Request::GET_INFLIGHT_FD,       Answered::Always,   Treatment::Pass),
    row(Request::SET_INFLIGHT_FD,       Answered::OnDemand, Treatment::Pass),
    row(Request::RESET_DEVICE,          Answered::OnDemand, Treatment::Reset),
    row(Request::GET_MAX_MEM_SLOTS,     Answered::Always,   Treatment::Pass),
    row(Request::ADD_MEM_REG,           Answered::OnDemand, Treatment::AddRegion),
    row(Request::REM_MEM_REG,           Answered::OnDemand, Treatment::RemoveRegion),
];

/// The row of a message, if it is carried.
pub fn row_of(request: Request) -> Option<Row> {
    TABLE.iter().copied().find(|row| row.request == request)
}

/// The protocol features whose messages are in the table. The others stay hidden from the VMM: what they add
/// moves addresses, memory or file descriptors past the IOMMU.
pub const PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS;
