// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What there is, for people.

use std::fmt::Write;

use crate::coverage::Coverage;
use crate::list::{Rule, Section, Strength};

/// One line for each section: how many statements there are, have an anchor, have a test, have a reason.
pub fn table(coverage: &Coverage<'_>) -> String {
    let mut text = format!("{}\n\n{:28}", coverage.list.source, "");
    Strength::ALL.iter().for_each(|strength| text += &format!("  {strength:20}"));
    end(&mut text);
    text += &format!("{:28}", "section");
    Strength::ALL.iter().for_each(|_| text += "  all code test  why  ");
    end(&mut text);
    let mut sums = [[0; 4]; 3];
    for section in &coverage.list.sections {
        let counts = Strength::ALL.map(|strength| counts(coverage, section, strength));
        for (sum, count) in sums.iter_mut().flatten().zip(counts.iter().flatten()) {
            *sum += count;
        }
        line(&mut text, section.name(), counts);
    }
    line(&mut text, "together", sums);
    text
}

fn counts(coverage: &Coverage<'_>, section: &Section, strength: Strength) -> [usize; 4] {
    let count = |has: &dyn Fn(&Rule) -> bool| section.statements(strength).filter(|rule| has(rule)).count();
    [
        count(&|_| true),
        count(&|rule| coverage.anchors(rule).next().is_some()),
        count(&|rule| coverage.tests(rule).next().is_some()),
        count(&|rule| rule.reason.is_some()),
    ]
}

fn line(text: &mut String, name: &str, counts: [[usize; 4]; 3]) {
    let _ = write!(text, "{name:28}");
    for count in counts {
        let [all, code, test, why] = count;
        let _ = write!(text, "{all:5}{code:5}{test:5}{why:5}  ");
    }
    end(text);
}

/// Ends a line, without blanks.
fn end(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

/// Every rule with its reason, its anchors and its tests.
pub fn statements(coverage: &Coverage<'_>) -> String {
    let mut text = String::new();
    for section in &coverage.list.sections {
        let _ = writeln!(text, "== {}", section.label);
        for rule in &section.rules {
            statement(&mut text, coverage, rule);
        }
        text.push('\n');
    }
    text
}

fn statement(text: &mut String, coverage: &Coverage<'_>, rule: &Rule) {
    let word = if rule.word.is_empty() { "-" } else { &rule.word };
    let _ = writeln!(text, "{:5}{word} {}", rule.id, rule.text);
    for anchor in coverage.anchors(rule) {
        let _ = writeln!(text, "     code  {}", anchor.place);
    }
    for test in coverage.tests(rule) {
        let _ = writeln!(text, "     test  {} {}", test.place, test.name);
    }
    if let Some(reason) = &rule.reason {
        let _ = writeln!(text, "     why   {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::tests::TEXT;
    use crate::read_list::parse;
    use crate::source::tests::read;

    #[test]
    fn the_report_counts_and_lists_anchors_tests_and_reasons() {
        let list = parse(TEXT).expect("a list");
        let lines = [
            "//= virtio#devicenormative:IOMMU/One A1",
            "// So it is.",
            "//= A1 A2",
            "#[test]",
            "fn it_holds() {",
        ];
        let marks = read("a.rs", &lines);
        let coverage = Coverage { list: &list, marks: &marks };
        let table = table(&coverage);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[4], ["One", "1", "1", "1", "0", "1", "0", "1", "0", "0", "0", "0", "0"]);
        assert_eq!(rows[6], ["together", "1", "1", "1", "0", "1", "0", "1", "0", "1", "0", "0", "1"]);
        let long = statements(&coverage);
        assert!(long.contains("A1   MUST begin\n     code  a.rs:1\n     test  a.rs:3 it_holds\n"), "{long}");
        assert!(long.contains("A3   MAY rest\n     why   never\n"), "{long}");
    }
}
