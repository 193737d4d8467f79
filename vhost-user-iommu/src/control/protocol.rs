// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lines of the control socket: JSON, a request and its reply in one line each.
//!
//! ```text
//! {"command":"list"}                           {"result":{"endpoints":[{"endpoint":"00:03.0","kind":"vfio", ...}]}}
//! {"command":"block","endpoint":"00:03.0"}     {"result":{}}
//! {"command":"unblock","endpoint":"00:03.0"}   {"result":{}}
//! {"command":"remove","endpoint":"00:03.0"}    {"result":{}}
//! {"command":"add","endpoint":"00:03.0"}       {"error":{"code":"no-descriptor","message":"..."}}
//! ```
//!
//! `add` of a physical device comes with one file descriptor (`SCM_RIGHTS`); other devices are written behind the id as in
//! `--endpoint`, with paths as the daemon sees them. Clients ignore keys of a reply that they do not know, and tell
//! errors by their codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What there is.
    List {},
    /// Cut an endpoint off from the guest's memory.
    Block {
        /// Its id, however written.
        endpoint: String,
    },
    /// End that.
    Unblock {
        /// Its id, however written.
        endpoint: String,
    },
    /// Let go of the device of an endpoint.
    Remove {
        /// Its id, however written.
        endpoint: String,
    },
    /// Take a device for an endpoint that has none.
    Add {
        /// Its id, however written, and the device of another process.
        endpoint: String,
    },
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Result(Done),
    /// It is not.
    Error(Refusal),
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Done {
    /// All endpoints, in the order of their ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<EndpointStatus>>,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Refusal {
    /// The reason in one word.
    pub code: Code,
    /// The same for people.
    pub message: String,
}

/// Reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is not a request.
    InvalidRequest,
    /// There is no such endpoint.
    UnknownEndpoint,
    /// The endpoint is not one of a physical device.
    NotVfio,
    /// It has none.
    NoDevice,
    /// It has one.
    HasDevice,
    /// The request has to come with one file descriptor.
    NoDescriptor,
    /// The device is not suited.
    NotSuited,
    /// The daemon does not stand between the endpoint and memory.
    NothingBehind,
    /// The endpoint's back-end does not do, or say in time, what it has to.
    BackEnd,
    /// The host's kernel refuses.
    Host,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndpointStatus {
    /// Its id, as it was given to the daemon.
    pub endpoint: String,
    /// What stands behind it: `listed`, `vhost-user`, `vfio-user` or `vfio`.
    pub kind: String,
    /// The physical device that stands behind it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What it reaches: `translated`, `bypass` or `blocked`.
    pub state: String,
    /// The domain it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<u32>,
    /// Why it is blocked, where that is not by the guest's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Why an endpoint is blocked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Reason {
    /// In one word.
    pub code: Cause,
    /// The same for people.
    pub message: String,
}

/// What blocks endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The command `block`.
    Operator,
    /// What became of its back-end, or of the connection to its own VMM.
    BackEnd,
    /// No VMM is connected.
    NoVmm,
    /// Nobody knows what its addresses mean, until it restarts or is attached.
    Restart,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// For this reason.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

impl From<Result<Done, Refusal>> for Reply {
    fn from(result: Result<Done, Refusal>) -> Reply {
        result.map_or_else(Reply::Error, Reply::Result)
    }
}

impl fmt::Display for EndpointStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EndpointStatus { endpoint, kind, device, state, domain, reason } = self;
        write!(f, "{endpoint}: {kind}")?;
        match device {
            Some(device) => write!(f, " {device}")?,
            None if kind == VFIO => f.write_str(", its device is removed")?,
            None => {}
        }
        write!(f, ", {state}")?;
        domain.map_or(Ok(()), |domain| write!(f, " (domain {domain})"))?;
        reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {}", reason.message))
    }
}

/// The kind of endpoints that are physical devices.
pub const VFIO: &str = "vfio";
/// The kind of endpoints that the guest's driver alone knows.
pub const LISTED: &str = "listed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_these_lines() {
        let remove = Request::Remove { endpoint: "00:03.0".to_owned() };
        let add = Request::Add { endpoint: "9".to_owned() };
        let block = Request::Block { endpoint: "00:03.0".to_owned() };
        let unblock = Request::Unblock { endpoint: "9".to_owned() };
        for (request, line) in [
            (Request::List {}, r#"{"command":"list"}"#),
            (remove, r#"{"command":"remove","endpoint":"00:03.0"}"#),
            (add, r#"{"command":"add","endpoint":"9"}"#),
            (block, r#"{"command":"block","endpoint":"00:03.0"}"#),
            (unblock, r#"{"command":"unblock","endpoint":"9"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).expect("no error"), line);
            assert_eq!(serde_json::from_str::<Request>(line).expect(line), request);
        }
        for line in [
            "",
            "list",
            "{}",
            r#"{"command":"stop"}"#,
            r#"{"command":"list","all":true}"#,
            r#"{"command":"remove"}"#,
            r#"{"command":"remove","endpoint":3}"#,
            r#"{"command":"list"} {"command":"list"}"#,
        ] {
            serde_json::from_str::<Request>(line).expect_err(line);
        }
    }

    #[test]
    fn replies_are_these_lines() {
        let endpoint = EndpointStatus {
            endpoint: "00:03.0".to_owned(),
            kind: VFIO.to_owned(),
            device: Some("0000:65:00.0".to_owned()),
            state: "translated".to_owned(),
            domain: Some(7),
            reason: None,
        };
        let reason = Reason { code: Cause::BackEnd, message: "it left".to_owned() };
        let blocked =
            EndpointStatus { state: "blocked".to_owned(), reason: Some(reason), ..endpoint.clone() };
        let removed =
            EndpointStatus { device: None, state: "blocked".to_owned(), domain: None, ..endpoint.clone() };
        assert_eq!(endpoint.to_string(), "00:03.0: vfio 0000:65:00.0, translated (domain 7)");
        assert_eq!(removed.to_string(), "00:03.0: vfio, its device is removed, blocked");
        assert_eq!(blocked.to_string(), "00:03.0: vfio 0000:65:00.0, blocked (domain 7): it left");
        let list = Done { endpoints: Some(vec![endpoint, removed]) };
        let one = Done { endpoints: Some(vec![blocked]) };
        for (reply, line) in [
            (Reply::Result(Done::default()), r#"{"result":{}}"#),
            (
                Reply::Result(list),
                r#"{"result":{"endpoints":[{"endpoint":"00:03.0","kind":"vfio","device":"0000:65:00.0","state":"translated","domain":7},{"endpoint":"00:03.0","kind":"vfio","state":"blocked"}]}}"#,
            ),
            (
                Reply::Result(one),
                r#"{"result":{"endpoints":[{"endpoint":"00:03.0","kind":"vfio","device":"0000:65:00.0","state":"blocked","domain":7,"reason":{"code":"back-end","message":"it left"}}]}}"#,
            ),
            (
                Reply::Error(Refusal::new(Code::UnknownEndpoint, "a \"b\"\n")),
                r#"{"error":{"code":"unknown-endpoint","message":"a \"b\"\n"}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&reply).expect("no error"), line);
            assert_eq!(serde_json::from_str::<Reply>(line).expect(line), reply);
        }
    }

    #[test]
    fn a_reply_of_a_newer_daemon_is_read_as_far_as_it_is_known() {
        let line = r#"{"error":{"code":"tired","message":"m","since":3}}"#;
        let expected = Reply::Error(Refusal::new(Code::Other, "m"));
        assert_eq!(serde_json::from_str::<Reply>(line).expect(line), expected);
    }
}
