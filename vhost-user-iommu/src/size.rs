// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes, addresses and ranges of addresses as people type them.
//!
//! Knows nothing of granules, apertures or any other rule about the numbers.

use viommu_core::IovaRange;

use crate::usage_error::UsageError;

/// Parses a size or an address in bytes: decimal or `0x` hexadecimal, or decimal with one of the
/// binary suffixes `k`, `M`, `G`, `T` in either case (`4k` = 4096).
///
/// # Errors
/// Anything else, and anything of 2^64 and over.
pub fn parse_size(text: &str) -> Result<u64, UsageError> {
    parse_number(text).or_else(|| suffixed(text)).ok_or_else(|| {
        UsageError::new(
            format!("`{text}` is not a number of bytes below 2^64"),
            "write decimal, 0x and hexadecimal, or decimal with k, M, G or T, such as 512M",
        )
    })
}

/// Parses `START-LAST`, both inclusive and each as [`parse_size`] takes it.
///
/// # Errors
/// A part that is no number, a missing part, and a last byte before the first.
pub fn parse_range(text: &str) -> Result<IovaRange, UsageError> {
    let (start, last) = text.split_once('-').ok_or_else(|| {
        UsageError::new(
            format!("`{text}` is not a range of addresses"),
            "write START-LAST, both inclusive, such as 0x100000-0x1fffffff",
        )
    })?;
    IovaRange::new(parse_size(start)?, parse_size(last)?).ok_or_else(|| {
        UsageError::new(
            "the last byte lies before the first",
            format!("write the lower address first: {last}-{start}"),
        )
    })
}

/// `bytes` with the largest suffix that divides it, as [`parse_size`] takes it.
pub fn format_size(bytes: u64) -> String {
    SUFFIXES
        .iter()
        .rev()
        .find(|(_, lg2)| bytes != 0 && bytes.trailing_zeros() >= *lg2)
        .map_or_else(|| bytes.to_string(), |(suffix, lg2)| format!("{}{suffix}", bytes >> lg2))
}

/// Parses a number in decimal or in `0x` hexadecimal.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => unsigned(digits, 16),
        None => unsigned(text, 10),
    }
}

fn suffixed(text: &str) -> Option<u64> {
    SUFFIXES.iter().find_map(|(suffix, lg2)| {
        let digits =
            text.strip_suffix([*suffix, suffix.to_ascii_uppercase(), suffix.to_ascii_lowercase()])?;
        unsigned(digits, 10)?.checked_mul(1 << lg2)
    })
}

/// Unlike `from_str_radix` alone, takes no sign.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// The suffixes, and the power of two each stands for.
const SUFFIXES: [(char, u32); 4] = [('k', 10), ('M', 20), ('G', 30), ('T', 40)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_hexadecimal_or_suffixed() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("2m", 2 << 20),
            ("1G", 1 << 30),
            ("3T", 3 << 40),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_text_in_the_message() {
        for text in [
            "",
            "k",
            "0x",
            "0x4k",
            "-1",
            "+1",
            "0x+1",
            "4 k",
            "4kk",
            "4KiB",
            "18446744073709551616",
            "16777216T",
            "é",
        ] {
            let error = parse_size(text).expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn a_range_is_inclusive_and_not_reversed() {
        let range = parse_range("1M-0x1fffffff").expect("valid");
        assert_eq!((range.start(), range.last()), (1 << 20, 0x1fff_ffff));
        assert_eq!(parse_range("7-7").map(|range| range.span()), Ok(0));
        assert_eq!(
            parse_range("2M-1M").expect_err("reversed").to_string(),
            "the last byte lies before the first; write the lower address first: 1M-2M"
        );
        assert!(parse_range("2M").is_err() && parse_range("2M-").is_err() && parse_range("1-2-3").is_err());
    }

    #[test]
    fn a_size_is_shown_as_it_can_be_typed() {
        for (bytes, text) in [(0, "0"), (4096, "4k"), (3 << 20, "3M"), (1 << 30, "1G"), (1025, "1025")] {
            assert_eq!(format_size(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }
}
