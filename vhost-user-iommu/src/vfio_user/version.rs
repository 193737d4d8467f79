// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The version message: what the relay proposes to the server in the VMM's stead, and what the VMM is told.
//!
//! A capability that is not in the table here is not proposed. `twin_socket` is one of those: it would move the server's
//! commands to a connection of their own. `migration` is another, since dirty pages would be those of IOVAs.
//!
//! Read first: "VFIO_USER_VERSION" in `vfio-user.rst`.

use serde_json::{Map, Value};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::message::FDS_MAX;

use super::message::{DATA_LEN_MAX, Message, Version};
use super::regions::REGIONS_MAX;

/// What cannot be negotiated.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadVersion {
    /// No version, or no JSON after it.
    #[error("a version message of the wrong form")]
    Form,
    /// A capability of the wrong kind.
    #[error("the capability {0} has no such value")]
    Capability(&'static str),
}

/// What one side says of itself, with the protocol's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// File descriptors that it takes with a message.
    pub max_msg_fds: u64,
    /// Bytes of data that may be asked of it at once.
    pub max_data_xfer_size: u64,
    /// Mappings that it holds.
    pub max_dma_maps: u64,
    /// Page sizes of mappings, or'ed together.
    pub pgsizes: u64,
    /// Whether it knows REGION_WRITE_MULTI.
    pub write_multiple: bool,
}

impl Capabilities {
    const DEFAULT: Capabilities = Capabilities {
        max_msg_fds: 1,
        max_data_xfer_size: 1 << 20,
        max_dma_maps: MAPS_MAX,
        pgsizes: 0x1000,
        write_multiple: false,
    };

    /// The relay's own, towards the server of a VMM with these: it serves the server's DMA itself.
    pub fn towards_server(self, pgsizes: u64) -> Capabilities {
        Capabilities {
            max_msg_fds: self.max_msg_fds.min(FDS_MAX as u64),
            max_data_xfer_size: DATA_LEN_MAX as u64,
            max_dma_maps: MAPS_MAX,
            pgsizes,
            write_multiple: self.write_multiple,
        }
    }

    /// What the VMM is told of a server with these: the mappings that it makes are the relay's.
    pub fn towards_vmm(self) -> Capabilities {
        Capabilities {
            max_msg_fds: self.max_msg_fds.min(FDS_MAX as u64),
            max_data_xfer_size: self.max_data_xfer_size.min(DATA_LEN_MAX as u64),
            max_dma_maps: REGIONS_MAX as u64,
            pgsizes: 0x1000,
            write_multiple: self.write_multiple,
        }
    }

    fn of(object: &Map<String, Value>) -> Result<Capabilities, BadVersion> {
        let number = |name, default| match object.get(name) {
            None => Ok(default),
            Some(value) => value.as_u64().ok_or(BadVersion::Capability(name)),
        };
        let default = Capabilities::DEFAULT;
        let write_multiple = object.get(WRITE_MULTIPLE).map_or(Some(false), Value::as_bool);
        Ok(Capabilities {
            max_msg_fds: number(MAX_MSG_FDS, default.max_msg_fds)?,
            max_data_xfer_size: number(MAX_DATA_XFER_SIZE, default.max_data_xfer_size)?,
            max_dma_maps: number(MAX_DMA_MAPS, default.max_dma_maps)?,
            pgsizes: number(PGSIZES, default.pgsizes)?,
            write_multiple: write_multiple.ok_or(BadVersion::Capability(WRITE_MULTIPLE))?,
        })
    }

    fn value(&self, name: &str) -> Option<Value> {
        match name {
            MAX_MSG_FDS => Some(self.max_msg_fds.into()),
            MAX_DATA_XFER_SIZE => Some(self.max_data_xfer_size.into()),
            MAX_DMA_MAPS => Some(self.max_dma_maps.into()),
            PGSIZES => Some(self.pgsizes.into()),
            WRITE_MULTIPLE => Some(self.write_multiple.into()),
            _ => None,
        }
    }
}

/// A version message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Which version.
    pub version: Version,
    /// The capabilities, with defaults.
    pub capabilities: Capabilities,
    /// Those that were named.
    pub named: Vec<&'static str>,
}

impl Proposal {
    /// What `message` proposes, or answers.
    ///
    /// # Errors
    /// It is no version message.
    pub fn of(message: &Message) -> Result<Proposal, BadVersion> {
        let (version, data) = message.body_with_data::<Version>().ok_or(BadVersion::Form)?;
        let object = match data.split_last() {
            None => Map::new(),
            Some((0, json)) if json.len() <= JSON_LEN_MAX => capabilities_in(json)?,
            Some(_) => return Err(BadVersion::Form),
        };
        let named = NAMES.into_iter().filter(|name| object.contains_key(*name)).collect();
        Ok(Proposal { version, capabilities: Capabilities::of(&object)?, named })
    }

    /// The payload that says this.
    pub fn payload(&self) -> Vec<u8> {
        let mut payload = self.version.as_bytes().to_vec();
        let object: Map<String, Value> = self
            .named
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.capabilities.value(name)?)))
            .collect();
        if !object.is_empty() {
            let data = Value::Object(Map::from_iter([(CAPABILITIES.to_owned(), Value::Object(object))]));
            payload.extend(data.to_string().into_bytes());
            payload.push(0);
        }
        payload
    }

    /// What is proposed to the server when the VMM proposes this.
    pub fn towards_server(&self, pgsizes: u64) -> Proposal {
        let capabilities = self.capabilities.towards_server(pgsizes);
        Proposal { version: self.version, capabilities, named: NAMES.to_vec() }
    }

    /// What the VMM is answered when the server answers this; capabilities that it did not name are unknown to it.
    pub fn towards_vmm(&self, proposed: &Proposal) -> Proposal {
        let capabilities = self.capabilities.towards_vmm();
        Proposal { version: self.version, capabilities, named: proposed.named.clone() }
    }
}

fn capabilities_in(json: &[u8]) -> Result<Map<String, Value>, BadVersion> {
    let Ok(Value::Object(mut data)) = serde_json::from_slice(json) else { return Err(BadVersion::Form) };
    match data.remove(CAPABILITIES) {
        None => Ok(Map::new()),
        Some(Value::Object(capabilities)) => Ok(capabilities),
        Some(_) => Err(BadVersion::Form),
    }
}

/// Mappings that a server holds at most, as the protocol's default has it.
pub const MAPS_MAX: u64 = 65535;
const JSON_LEN_MAX: usize = 4096;
const CAPABILITIES: &str = "capabilities";
const MAX_MSG_FDS: &str = "max_msg_fds";
const MAX_DATA_XFER_SIZE: &str = "max_data_xfer_size";
const MAX_DMA_MAPS: &str = "max_dma_maps";
const PGSIZES: &str = "pgsizes";
const WRITE_MULTIPLE: &str = "write_multiple";
const NAMES: [&str; 5] = [MAX_MSG_FDS, MAX_DATA_XFER_SIZE, MAX_DMA_MAPS, PGSIZES, WRITE_MULTIPLE];

#[cfg(test)]
mod tests {
    use super::super::message::Command;
    use super::*;

    fn message(json: &str) -> Message {
        let mut payload = vec![0, 0, 1, 0];
        payload.extend(json.as_bytes());
        if !json.is_empty() {
            payload.push(0);
        }
        Message::command(1, Command::VERSION, &payload[..])
    }

    #[test]
    fn the_server_is_proposed_what_the_relay_can_and_the_vmm_gets_what_it_named() {
        let vmm = Proposal::of(&message(
            r#"{"capabilities":{"max_msg_fds":99,"twin_socket":{"supported":true},"migration":{"pgsize":4096},
                "pgsizes":4096}}"#,
        ));
        let vmm = vmm.expect("a proposal");
        assert_eq!((vmm.version.minor, vmm.named.as_slice()), (1, &[MAX_MSG_FDS, PGSIZES][..]));
        let to_server = Message::command(1, Command::VERSION, &vmm.towards_server(0x20_1000).payload()[..]);
        let told = String::from_utf8(to_server.payload[4..].to_vec()).expect("text");
        assert!(told.contains(r#""pgsizes":2101248"#) && told.contains(r#""max_msg_fds":32"#), "{told}");
        assert!(!told.contains("twin") && !told.contains("migration") && told.ends_with('\0'), "{told}");
        let server = Proposal::of(&message(r#"{"capabilities":{"max_data_xfer_size":4294967296}}"#));
        let answer = server.expect("an answer").towards_vmm(&vmm);
        assert_eq!(answer.capabilities.max_data_xfer_size, 1 << 20);
        let text = String::from_utf8(answer.payload()[4..].to_vec()).expect("text");
        assert_eq!(text, "{\"capabilities\":{\"max_msg_fds\":1,\"pgsizes\":4096}}\0");
    }

    #[test]
    fn a_vmm_that_names_nothing_is_told_nothing() {
        let vmm = Proposal::of(&message("")).expect("a version");
        assert_eq!(vmm.capabilities, Capabilities::DEFAULT);
        assert_eq!(vmm.towards_vmm(&vmm).payload(), [0, 0, 1, 0]);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for (json, error) in [
            ("{", BadVersion::Form),
            ("[]", BadVersion::Form),
            (r#"{"capabilities":7}"#, BadVersion::Form),
            (r#"{"capabilities":{"pgsizes":"4k"}}"#, BadVersion::Capability(PGSIZES)),
            (r#"{"capabilities":{"max_msg_fds":-1}}"#, BadVersion::Capability(MAX_MSG_FDS)),
            (r#"{"capabilities":{"write_multiple":1}}"#, BadVersion::Capability(WRITE_MULTIPLE)),
        ] {
            assert_eq!(Proposal::of(&message(json)), Err(error), "{json}");
        }
        assert_eq!(Proposal::of(&message(&" ".repeat(5000))), Err(BadVersion::Form));
        let without_nul = Message::command(1, Command::VERSION, b"\0\0\0\0{}");
        assert_eq!(Proposal::of(&without_nul), Err(BadVersion::Form));
        assert_eq!(Proposal::of(&Message::command(1, Command::VERSION, &[0u8; 3])), Err(BadVersion::Form));
    }
}
