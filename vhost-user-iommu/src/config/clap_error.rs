// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reduces clap's errors, which take several lines, to one [`UsageError`].
//!
//! Not for `--help` and `--version`, which clap reports as errors too: the caller lets clap print those.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::usage_error::UsageError;

/// The same error in one line.
pub(super) fn to_usage_error(error: &clap::Error) -> UsageError {
    let option = without_value(&text(error, ContextKind::InvalidArg));
    let value = text(error, ContextKind::InvalidValue);
    let name = option.trim_start_matches('-');
    let prior = without_value(&text(error, ContextKind::PriorArg));
    match error.kind() {
        ErrorKind::UnknownArgument if !option.starts_with('-') => UsageError::new(
            format!("`{option}` is not an option"),
            "options start with --; `launch` takes the VMM's program after `--`",
        ),
        ErrorKind::UnknownArgument => {
            UsageError::new(format!("`{option}` is not an option"), suggestion(error))
        }
        ErrorKind::InvalidValue | ErrorKind::InvalidUtf8 | ErrorKind::NoEquals if value.is_empty() => {
            UsageError::new(format!("`{option}` has no value"), "add the value, or leave the option out")
        }
        ErrorKind::InvalidValue => {
            let values = text(error, ContextKind::ValidValue);
            UsageError::new("the option does not take this value", format!("give one of {values}"))
                .about(name, value)
        }
        // What is no option has no name that the user knows.
        ErrorKind::ValueValidation if option.starts_with('<') => refusal(error),
        ErrorKind::ValueValidation => refusal(error).about(name, value),
        ErrorKind::ArgumentConflict if option == prior => {
            UsageError::new(format!("`{option}` is given twice"), "give it once")
        }
        ErrorKind::ArgumentConflict if option.is_empty() => UsageError::new(
            format!("`{prior}` is an option of the daemon"),
            "give options after the subcommand",
        ),
        ErrorKind::ArgumentConflict => {
            UsageError::new(format!("`{option}` and `{prior}` exclude each other"), "keep one of the two")
        }
        ErrorKind::MissingRequiredArgument if option.starts_with("<VMM>") => UsageError::new(
            "nothing says which VMM to start",
            "add `--` and the VMM's program with its arguments",
        ),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            UsageError::new(
                "nothing says what is to be done",
                "`ctl` takes list, block, unblock, plug, unplug, remove or add; see ctl --help",
            )
        }
        ErrorKind::MissingRequiredArgument => UsageError::new(format!("`{option}` is missing"), "add it"),
        _ => UsageError::new(first_line(error), SEE_HELP),
    }
}

/// What the option's own parser said of the value.
fn refusal(error: &clap::Error) -> UsageError {
    match error.source() {
        Some(source) => match source.downcast_ref::<UsageError>() {
            Some(refusal) => refusal.clone(),
            None => UsageError::new(source.to_string(), "give a value that --help names"),
        },
        None => UsageError::new("the option does not take this value", SEE_HELP),
    }
}

fn suggestion(error: &clap::Error) -> String {
    match text(error, ContextKind::SuggestedArg) {
        similar if similar.is_empty() => SEE_HELP.to_owned(),
        similar => format!("did you mean {similar}? --help lists the options"),
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

/// `--granule` of `--granule <SIZE>`.
fn without_value(option: &str) -> String {
    option.split(' ').next().unwrap_or_default().to_owned()
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

const SEE_HELP: &str = "--help lists the options";
