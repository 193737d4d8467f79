// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of a fuzzer, taken from front to back as numbers and choices.
//!
//! Where they run out, zeroes follow: every input means something, and a longer one that begins with it means the
//! same up to there.

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input { rest: data }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes, or as many as are left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian as all numbers.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A byte's lowest bit.
    pub fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// One of `choices`, by a byte.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_runs_out_goes_on_with_zeroes() {
        let mut input = Input::new(&[1, 2, 3]);
        assert_eq!((input.u8(), input.u32(), input.u64()), (1, 0x302, 0));
        assert!(input.is_empty() && input.bytes(4).is_empty());
        assert_eq!(input.pick(&[7, 8]), 7);
    }
}
