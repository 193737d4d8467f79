// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Addresses and inclusive ranges of addresses.
//!
//! A range is `start..=last`: the last byte of the 64-bit space can be part of a range, and nothing
//! here ever computes `last + 1`. Holds no mapping and no rule of the device.

use core::fmt;

/// An I/O virtual address: what an endpoint puts on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// A guest-physical address: where the guest says its memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// IOVAs `start..=last`, both inclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IovaRange {
    start: u64,
    last: u64,
}

impl IovaRange {
    /// Every IOVA there is.
    pub const ALL: IovaRange = IovaRange { start: 0, last: u64::MAX };

    /// The range `start..=last`, or `None` when `last` lies before `start`.
    pub const fn new(start: u64, last: u64) -> Option<IovaRange> {
        if start <= last { Some(IovaRange { start, last }) } else { None }
    }

    /// The range of `length` bytes from `start`, or `None` when it is empty or would run past the
    /// end of the 64-bit space.
    pub const fn from_length(start: u64, length: u64) -> Option<IovaRange> {
        match length.checked_sub(1) {
            Some(span) => match start.checked_add(span) {
                Some(last) => Some(IovaRange { start, last }),
                None => None,
            },
            None => None,
        }
    }

    /// The first byte.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The last byte.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The number of bytes less one, which always fits.
    pub const fn span(&self) -> u64 {
        // Cannot wrap: a range is only made with start <= last.
        self.last.wrapping_sub(self.start)
    }

    /// Whether `address` lies in the range.
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address <= self.last
    }

    /// Whether all of `other` lies in this range.
    pub const fn covers(&self, other: &IovaRange) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(&self, other: &IovaRange) -> bool {
        self.start <= other.last && other.start <= self.last
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last)
    }
}

/// The smallest unit of mapping: a power of two of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granule {
    lg2: u32,
}

impl Granule {
    /// Bytes of the smallest granule that a device can have.
    pub const SMALLEST: u64 = 4096;

    /// The granule of a `page_size_mask`: its lowest set bit; `None` for an empty mask.
    pub const fn of_mask(page_size_mask: u64) -> Option<Granule> {
        match page_size_mask {
            0 => None,
            mask => Some(Granule { lg2: mask.trailing_zeros() }),
        }
    }

    /// Bytes in one granule.
    pub const fn bytes(self) -> u64 {
        1u64.wrapping_shl(self.lg2)
    }

    /// Whether `address` is the first byte of a granule.
    pub const fn is_start(self, address: u64) -> bool {
        address & self.mask() == 0
    }

    /// Whether `address` is the last byte of a granule.
    pub const fn is_last(self, address: u64) -> bool {
        address & self.mask() == self.mask()
    }

    /// How many granules lie before the one of `address`.
    pub(crate) const fn number_of(self, address: u64) -> u64 {
        address.wrapping_shr(self.lg2)
    }

    /// The first byte of a granule by its number.
    pub(crate) const fn start_of(self, number: u64) -> u64 {
        number.wrapping_shl(self.lg2)
    }

    /// The last byte of a granule by its number.
    pub(crate) const fn last_of(self, number: u64) -> u64 {
        self.start_of(number) | self.mask()
    }

    /// The bits of an address within a granule.
    const fn mask(self) -> u64 {
        self.bytes().wrapping_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn a_range_reaches_the_last_byte_of_the_space() {
        let top = IovaRange::from_length(u64::MAX, 1).expect("one byte fits");
        assert_eq!((top.start(), top.last(), top.span()), (u64::MAX, u64::MAX, 0));
        assert_eq!(IovaRange::from_length(u64::MAX, 2), None);
        assert_eq!(IovaRange::ALL.span(), u64::MAX);
    }

    #[test]
    fn an_empty_or_reversed_range_cannot_be_made() {
        assert_eq!(IovaRange::from_length(5, 0), None);
        assert_eq!(IovaRange::new(6, 5), None);
    }

    #[test]
    fn ranges_overlap_by_a_byte_and_not_by_none() {
        let low = IovaRange::new(0, 9).expect("valid");
        let next = IovaRange::new(10, 19).expect("valid");
        let over = IovaRange::new(9, 10).expect("valid");
        assert!(!low.overlaps(&next) && low.overlaps(&over));
        assert!(over.overlaps(&next) && !low.covers(&over));
    }

    #[test]
    fn the_granule_is_the_lowest_bit_of_the_mask() {
        let granule = Granule::of_mask(0x4020_1000).expect("not empty");
        assert_eq!(granule.bytes(), 4096);
        assert!(granule.is_start(0x2000) && granule.is_last(0x2fff) && !granule.is_last(0x2000));
        assert_eq!(Granule::of_mask(0), None);
        assert_eq!(Granule::of_mask(1).map(Granule::bytes), Some(1));
    }

    #[test]
    fn addresses_and_ranges_are_shown_in_hexadecimal() {
        let range = IovaRange::new(0x1000, 0x1fff).expect("valid");
        let shown = format!("{} {} {range}", Iova(0x1234), Gpa(0xabc0));
        assert_eq!(shown, "0x1234 0xabc0 0x1000-0x1fff");
    }
}
