// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list beside the marks: which rule is met and tested where, and what is missing.

use crate::list::{List, Rule, Section, Strength};
use crate::source::{Anchor, Marks, Place, Test};

/// The list, and what code and tests say of it.
#[derive(Clone, Copy, Debug)]
pub struct Coverage<'a> {
    pub list: &'a List,
    pub marks: &'a Marks,
}

impl<'a> Coverage<'a> {
    /// The anchors of a rule.
    pub fn anchors(self, rule: &'a Rule) -> impl Iterator<Item = &'a Anchor> {
        self.marks.anchors.iter().filter(|anchor| anchor.ids.contains(&rule.id))
    }

    /// The tests of a rule.
    pub fn tests(self, rule: &'a Rule) -> impl Iterator<Item = &'a Test> {
        self.marks.tests.iter().filter(|test| test.ids.contains(&rule.id))
    }

    /// Everything that is missing or does not fit.
    pub fn problems(self) -> Vec<String> {
        let mut problems = self.marks.problems.clone();
        for anchor in &self.marks.anchors {
            problems.extend(self.misplaced(anchor));
        }
        for test in &self.marks.tests {
            problems.extend(test.ids.iter().filter_map(|id| self.find(id, &test.place).err()));
        }
        for (_, rule) in self.list.rules() {
            problems.extend(self.missing(rule));
        }
        problems
    }

    /// What is wrong with the ids of an anchor.
    fn misplaced(self, anchor: &Anchor) -> impl Iterator<Item = String> {
        anchor.ids.iter().filter_map(move |id| match self.find(id, &anchor.place) {
            Ok(section) if section.name() == anchor.section => None,
            Ok(section) => Some(format!(
                "{}: {id} is of IOMMU/{}, not of IOMMU/{}",
                anchor.place,
                section.name(),
                anchor.section
            )),
            Err(unknown) => Some(unknown),
        })
    }

    fn find(self, id: &str, place: &Place) -> Result<&'a Section, String> {
        let mut rules = self.list.rules();
        let found = rules.find(|(_, rule)| rule.id == id);
        found.map(|(section, _)| section).ok_or_else(|| format!("{place}: {id} is no rule"))
    }

    /// A MUST or SHOULD needs an anchor and a test, or a reason.
    fn missing(self, rule: &Rule) -> Option<String> {
        let is_demanded = matches!(rule.strength(), Some(Strength::Must | Strength::Should));
        if !is_demanded || rule.reason.is_some() {
            return None;
        }
        let lack = match (self.anchors(rule).next(), self.tests(rule).next()) {
            (Some(_), Some(_)) => return None,
            (None, Some(_)) => "no anchor",
            (Some(_), None) => "no test",
            (None, None) => "neither anchor nor test",
        };
        Some(format!("{} has {lack}, and no reason: {} {}", rule.id, rule.word, rule.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::tests::TEXT;
    use crate::read_list::parse;
    use crate::source::tests::read;

    const ANCHOR: [&str; 2] = ["//= virtio#devicenormative:IOMMU/One A1 A2", "// So it is."];
    const TEST: [&str; 3] = ["//= A1 A2 A4", "#[test]", "fn it_holds() {"];

    fn problems(text: &str, lines: &[&str]) -> Vec<String> {
        let list = parse(text).expect("a list");
        Coverage { list: &list, marks: &read("a.rs", lines) }.problems()
    }

    #[test]
    fn a_list_whose_musts_and_shoulds_have_anchors_and_tests_is_complete() {
        assert!(problems(TEXT, &[&ANCHOR[..], &TEST].concat()).is_empty());
    }

    #[test]
    fn a_must_or_should_without_anchor_or_test_is_named() {
        assert_eq!(
            problems(TEXT, &ANCHOR),
            ["A1 has no test, and no reason: MUST begin", "A2 has no test, and no reason: SHOULD NOT stop"]
        );
        assert_eq!(problems(TEXT, &TEST).len(), 2);
        assert_eq!(problems(TEXT, &[])[1], "A2 has neither anchor nor test, and no reason: SHOULD NOT stop");
    }

    #[test]
    fn a_reason_stands_for_what_is_missing() {
        let text = TEXT.replace("A3 = \"never\"", "A1 = \"it cannot\", A2 = \"it cannot\", A3 = \"never\"");
        assert!(problems(&text, &[]).is_empty());
    }

    #[test]
    fn an_id_that_is_no_rule_is_named_where_it_stands() {
        let anchor = ["//= virtio#devicenormative:IOMMU/One A1 A2 A7", ANCHOR[1]];
        assert_eq!(problems(TEXT, &[&anchor[..], &TEST].concat()), ["a.rs:1: A7 is no rule"]);
        let test = ["//= A1 A2 A7", TEST[1], TEST[2]];
        assert_eq!(problems(TEXT, &[&ANCHOR[..], &test].concat()), ["a.rs:3: A7 is no rule"]);
    }

    #[test]
    fn an_anchor_under_the_label_of_another_section_is_named() {
        let anchor = ["//= virtio#devicenormative:IOMMU/Two A1 A2", ANCHOR[1]];
        let lines = [&anchor[..], &TEST].concat();
        assert_eq!(problems(TEXT, &lines)[0], "a.rs:1: A1 is of IOMMU/One, not of IOMMU/Two");
    }

    #[test]
    fn a_mark_that_means_nothing_is_passed_on() {
        let lines = [&ANCHOR[..], &TEST, &["//= so"]].concat();
        assert_eq!(problems(TEXT, &lines), ["a.rs:6: neither an anchor nor ids of rules"]);
    }
}
