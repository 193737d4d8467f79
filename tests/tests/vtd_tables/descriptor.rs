// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is put into VT-d's invalidation queue, by its fields.
//!
//! Only what the kernel uses in scalable mode; all else is [`Descriptor::Unknown`], as is one with a bit set that has no
//! business there. To read first: "Queued Invalidation Interface" in Intel's specification of VT-d.

/// What the hardware is to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// The entry of a PASID in the PASID tables of all devices of a domain.
    PasidCache {
        domain: u16,
        pasid: u32,
    },
    /// All translations of a domain.
    Domain {
        domain: u16,
    },
    /// All first-stage and nested ones of a PASID in it.
    Pasid {
        domain: u16,
        pasid: u32,
    },
    /// Those of 2^`order` pages of 4 KiB from `address` on; of leaf entries alone.
    Pages {
        domain: u16,
        pasid: u32,
        block: Block,
        leaf: bool,
    },
    /// What a device itself holds of accesses without a PASID.
    Device {
        source: u16,
        block: Block,
    },
    /// The same of a PASID.
    DevicePasid {
        source: u16,
        pasid: u32,
        block: Block,
    },
    Unknown([u64; 4]),
}

/// 2^`order` pages of 4 KiB, from an address on that is a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub address: u64,
    pub order: u32,
}

impl Block {
    /// All that a device can know.
    pub const ALL: Block = Block { address: 0, order: 52 };

    /// The smallest one that has all pages of a range.
    pub fn around(start: u64, pages: u64) -> Block {
        let (first, last) = (start >> 12, (start >> 12) + pages - 1);
        let order = (0..=52).find(|order| first >> order == last >> order).expect("the last has all");
        Block { address: first >> order << order << 12, order }
    }

    /// Of a device's descriptor: the lowest zero of the page's number tells the size, if the size bit is set.
    fn of_device(page: u64, is_large: bool) -> Block {
        let order = if is_large { page.trailing_ones() + 1 } else { 0 };
        Block { address: page >> order << order << 12, order }
    }
}

impl Descriptor {
    pub fn of(words: [u64; 4]) -> Descriptor {
        let [first, second, third, fourth] = words;
        let mut first = Bits(first);
        let mut second = Bits(second);
        let kind = first.take(0, 4);
        let found = match kind {
            2 if first.take(4, 2) == 2 => {
                // Whether reads and writes are drained is the hardware's.
                first.take(6, 2);
                Descriptor::Domain { domain: first.take(16, 16) as u16 }
            }
            3 => {
                // How many may be under way is the device's.
                first.take(16, 5);
                let source = first.take(32, 16) as u16;
                let is_large = second.take(0, 1) == 1;
                Descriptor::Device { source, block: Block::of_device(second.take(12, 52), is_large) }
            }
            6 => {
                let granularity = first.take(4, 2);
                let (domain, pasid) = (first.take(16, 16) as u16, first.take(32, 20) as u32);
                match granularity {
                    2 => Descriptor::Pasid { domain, pasid },
                    3 => {
                        let (order, leaf) = (second.take(0, 6) as u32, second.take(6, 1) == 1);
                        let block = Block { address: second.take(12, 52) << 12, order };
                        Descriptor::Pages { domain, pasid, block, leaf }
                    }
                    _ => Descriptor::Unknown(words),
                }
            }
            7 if first.take(4, 2) == 1 => {
                Descriptor::PasidCache { domain: first.take(16, 16) as u16, pasid: first.take(32, 20) as u32 }
            }
            8 => {
                first.take(4, 5);
                let (source, pasid) = (first.take(16, 16) as u16, first.take(32, 20) as u32);
                let is_large = second.take(11, 1) == 1;
                let block = Block::of_device(second.take(12, 52), is_large);
                Descriptor::DevicePasid { source, pasid, block }
            }
            _ => Descriptor::Unknown(words),
        };
        let is_over = [first.0, second.0, third, fourth] == [0; 4];
        if is_over { found } else { Descriptor::Unknown(words) }
    }
}

/// What is left of a word.
struct Bits(u64);

impl Bits {
    /// Takes this many bits from `low` on.
    fn take(&mut self, low: u32, count: u32) -> u64 {
        let mask = u64::MAX >> (u64::BITS - count) << low;
        let field = (self.0 & mask) >> low;
        self.0 &= !mask;
        field
    }
}

#[test]
fn the_fields_are_where_the_specification_has_them() {
    for (words, expected) in [
        ([0x0005_0003_0017, 0], Descriptor::PasidCache { domain: 3, pasid: 5 }),
        ([0x0000_0003_0012, 0], Descriptor::Unknown([0x3_0012, 0, 0, 0])),
        ([0x0000_0003_00e2, 0], Descriptor::Domain { domain: 3 }),
        ([0x0005_0003_0026, 0], Descriptor::Pasid { domain: 3, pasid: 5 }),
        (
            [0x0005_0003_0036, 0x7f00_0000_2041],
            Descriptor::Pages {
                domain: 3,
                pasid: 5,
                block: Block { address: 0x7f00_0000_2000, order: 1 },
                leaf: true,
            },
        ),
        (
            [0x0100_0000_0003, 0x5_7001],
            Descriptor::Device { source: 0x100, block: Block { address: 0x5_0000, order: 4 } },
        ),
        (
            [0x0005_0100_0008, 0x7fff_ffff_ffff_f800],
            Descriptor::DevicePasid { source: 0x100, pasid: 5, block: Block::ALL },
        ),
    ] {
        let words = [words[0], words[1], 0, 0];
        assert_eq!(Descriptor::of(words), expected, "{words:x?}");
        assert!(matches!(Descriptor::of([words[0], words[1], 1, 0]), Descriptor::Unknown(_)));
    }
    assert!(matches!(Descriptor::of([0x17 | 1 << 63, 0, 0, 0]), Descriptor::Unknown(_)));
    assert_eq!(Block::around(0x5000, 3), Block { address: 0x4000, order: 2 });
    assert_eq!(Block::around(0, 1 << 52), Block::ALL);
}
