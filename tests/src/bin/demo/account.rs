// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the demo tells whoever watches.

use std::time::Instant;

/// Prints each line with the seconds since the start.
pub struct Account {
    began: Instant,
}

impl Account {
    pub fn begin() -> Account {
        Account { began: Instant::now() }
    }

    /// Something begins.
    pub fn step(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
    }

    /// Something was seen to be as it should.
    pub fn seen(&self, what: &str) {
        println!("{:6.1} s    ✓ {what}", self.began.elapsed().as_secs_f32());
    }

    pub fn end(&self) {
        println!(
            "\nAll seen, in {:.1} s. To put your own guest behind it, see README.md.",
            self.began.elapsed().as_secs_f32()
        );
    }
}

/// How many MAPs and UNMAPs the daemon's last account names.
pub fn served(log: &[String]) -> Option<(u64, u64)> {
    let line = log.iter().rev().find(|line| line.contains("served"))?;
    let count = |name: &str| {
        let words: Vec<&str> = line.split([' ', ',']).collect();
        let at = words.iter().position(|word| *word == name)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some((count("MAP")?, count("UNMAP")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_found_in_the_daemons_account() {
        let log = [
            "x served 1 ATTACH, 0 DETACH, 21 MAP, 20 UNMAP, 1 PROBE, 0 refused".to_owned(),
            "end".to_owned(),
        ];
        assert_eq!(served(&log), Some((21, 20)));
        assert_eq!(served(&["nothing".to_owned()]), None);
    }
}
