// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers without a pattern, the same ones in every run. Good enough to scatter accesses, and for nothing else.

/// A xorshift generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that `seed` stands for.
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed ^ 0x2545_f491_4f6c_dd1d);
        // Small seeds begin with sequences that look alike.
        for _ in 0..8 {
            random.number();
        }
        random
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The high half is the better one.
        ((u128::from(self.number()) * u128::from(limit)) >> 64) as u64
    }

    /// One of `items`, of which there is at least one.
    pub fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// `items` in another order.
    pub fn shuffled<T: Copy>(&mut self, items: &[T]) -> Vec<T> {
        let mut items = items.to_vec();
        for place in (1..items.len()).rev() {
            items.swap(place, self.below(place as u64 + 1) as usize);
        }
        items
    }

    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_keeps_every_item_and_moves_most() {
        let items: Vec<u32> = (0..1000).collect();
        let mut shuffled = Random::new(1).shuffled(&items);
        let moved = shuffled.iter().zip(&items).filter(|(now, before)| now != before).count();
        assert!(moved > 900, "{moved} moved");
        shuffled.sort();
        assert_eq!(shuffled, items);
    }

    #[test]
    fn numbers_stay_below_the_limit_and_reach_all_of_it() {
        let mut random = Random::new(2);
        let mut seen = [0; 5];
        (0..1000).for_each(|_| seen[random.below(5) as usize] += 1);
        assert!(seen.iter().all(|times| *times > 100), "{seen:?}");
    }
}
