// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the tables of the manual show the list.

use crate::list::{List, Rule};

/// Each row that differs: the list is right, and the row shows how it should be.
pub fn problems(list: &List, letter: char, manual: &str) -> Vec<String> {
    let expected: Vec<String> = list.rules().map(|(_, rule)| row(rule)).collect();
    let shown: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .filter(|row| is_row(row, letter))
        .collect();
    let missing = expected.iter().filter(|row| !shown.contains(&row.as_str()));
    let surplus = shown.iter().filter(|row| !expected.contains(&(**row).to_owned()));
    let mut problems: Vec<String> = missing.map(|row| format!("the manual lacks the row: {row}")).collect();
    problems.extend(surplus.map(|row| format!("the list lacks the manual's row: {row}")));
    if problems.is_empty() && shown != expected {
        problems.push("the manual's rows are in another order than the list, or there twice".to_owned());
    }
    problems
}

/// Whether its first cell is an id of this letter.
fn is_row(row: &str, letter: char) -> bool {
    let id = row.strip_prefix("| ").and_then(|rest| rest.strip_prefix(letter));
    id.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn row(rule: &Rule) -> String {
    let word = if rule.word.is_empty() { " ".to_owned() } else { format!(" {} ", rule.word) };
    format!("| {} |{word}| {} |", rule.id, rule.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::tests::TEXT;
    use crate::read_list::parse;

    const MANUAL: &str = "//! # Rules\n//! | | | |\n//! | A1 | MUST | begin |\n//! | A2 | SHOULD NOT | stop |\n\
                          //! | A3 | MAY | rest |\n//! | A4 | | It is so |\n";

    fn check(manual: &str) -> Vec<String> {
        problems(&parse(TEXT).expect("a list"), 'A', manual)
    }

    #[test]
    fn a_manual_that_shows_the_list_is_right() {
        assert!(check(MANUAL).is_empty());
    }

    #[test]
    fn a_row_with_another_strength_is_named_with_what_is_right() {
        assert_eq!(
            check(&MANUAL.replace("SHOULD NOT", "SHOULD")),
            [
                "the manual lacks the row: | A2 | SHOULD NOT | stop |",
                "the list lacks the manual's row: | A2 | SHOULD | stop |"
            ]
        );
    }

    #[test]
    fn rows_that_are_missing_or_twice_are_noticed() {
        assert_eq!(
            check(&MANUAL.replace("//! | A4 | | It is so |\n", "")),
            ["the manual lacks the row: | A4 | | It is so |"]
        );
        assert_eq!(check(&MANUAL.repeat(2)).len(), 1);
    }
}
