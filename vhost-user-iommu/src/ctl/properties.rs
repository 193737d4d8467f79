// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The properties of a device for QEMU, as a user writes them: where it is to be, and under which name.
//!
//! Which of them QEMU knows is QEMU's matter. What makes it the device that is plugged in is added in
//! [`hotplug`](super::hotplug).

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::usage_error::UsageError;

/// `KEY=VALUE,...`, whose values are text, or a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties(Map<String, Value>);

impl Properties {
    /// All of them, with these.
    pub fn with<const N: usize>(&self, more: [(&str, &str); N]) -> Map<String, Value> {
        let more = more.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        self.0.clone().into_iter().chain(more).collect()
    }
}

impl FromStr for Properties {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Properties, UsageError> {
        let properties = if text.starts_with('{') { of_json(text) } else { of_words(text) }?;
        for (key, why) in NEEDED {
            if !properties.contains_key(key) {
                let problem = format!("QEMU has to be told {why}");
                return Err(UsageError::new(problem, format!("add {key}=NAME")));
            }
        }
        match GIVEN.iter().find(|key| properties.contains_key(**key)) {
            Some(key) => Err(UsageError::new(
                format!("`{key}` follows from the device that is plugged in"),
                "leave it out",
            )),
            None => Ok(Properties(properties)),
        }
    }
}

fn of_words(text: &str) -> Result<Map<String, Value>, UsageError> {
    let mut properties = Map::new();
    for word in text.split(',') {
        let Some((key, value)) = word.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let problem = format!("`{word}` is not a property with its value");
            return Err(UsageError::new(problem, SHAPE));
        };
        if properties.insert(key.to_owned(), value.into()).is_some() {
            return Err(UsageError::new(format!("`{key}` is given twice"), "give it once"));
        }
    }
    Ok(properties)
}

fn of_json(text: &str) -> Result<Map<String, Value>, UsageError> {
    serde_json::from_str(text)
        .map_err(|error| UsageError::new(format!("this is not a JSON object: {error}"), SHAPE))
}

/// What QEMU cannot do without, and what for.
const NEEDED: [(&str, &str); 2] = [
    ("id", "how the device is called when it is unplugged"),
    ("iommufd", "which of its iommufd objects is the daemon's"),
];
/// What is not the user's to give.
const GIVEN: [&str; 4] = ["driver", "fd", "host", "sysfsdev"];
const SHAPE: &str = "write KEY=VALUE,... as for -device of QEMU, or, where a value is no text, a JSON object";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_text_and_json_is_what_it_says() {
        for (text, expected) in [
            ("id=d,iommufd=i,addr=5", json!({"id": "d", "iommufd": "i", "addr": "5", "fd": "f"})),
            ("id=,iommufd=a=b", json!({"id": "", "iommufd": "a=b", "fd": "f"})),
            (
                r#"{"id":"d","iommufd":"i","rombar":0}"#,
                json!({"id": "d", "iommufd": "i", "rombar": 0, "fd": "f"}),
            ),
        ] {
            let properties: Properties = text.parse().expect(text);
            assert_eq!(Value::Object(properties.with([("fd", "f")])), expected, "{text}");
        }
    }

    #[test]
    fn what_qemu_would_misunderstand_is_refused() {
        for (text, line) in [
            ("", "`` is not a property with its value; write KEY=VALUE,..."),
            ("vfio-pci,id=d", "`vfio-pci` is not a property with its value; "),
            ("=1", "`=1` is not a property with its value; "),
            ("id=d,id=d", "`id` is given twice; "),
            ("iommufd=i", "QEMU has to be told how the device is called when it is unplugged; add id=NAME"),
            ("id=d", "QEMU has to be told which of its iommufd objects is the daemon's; add iommufd=NAME"),
            ("id=d,iommufd=i,fd=3", "`fd` follows from the device that is plugged in; leave it out"),
            ("{", "this is not a JSON object: "),
            ("{}[]", "this is not a JSON object: "),
            (r#"{"id":"d","iommufd":"i","driver":"e1000"}"#, "`driver` follows from the device"),
        ] {
            let error = text.parse::<Properties>().expect_err(text).to_string();
            assert!(error.starts_with(line), "{text}: {error}");
        }
    }
}
