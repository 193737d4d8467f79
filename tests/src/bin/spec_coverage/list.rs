// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of what the specification demands, and whether it is sound by itself. Knows nothing of code.

use std::collections::BTreeSet;
use std::fmt;

/// How strongly something is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    Must,
    Should,
    May,
}

/// One statement, or a rule of the prose.
#[derive(Debug)]
pub struct Rule {
    pub id: String,
    /// The word of the specification, such as "SHOULD NOT"; empty for prose.
    pub word: String,
    /// What a device is to do.
    pub text: String,
    /// What was chosen, or where the device stops short.
    pub reason: Option<String>,
}

/// A normative section.
#[derive(Debug)]
pub struct Section {
    pub label: String,
    /// How many statements of each strength its text has.
    pub counts: [usize; 3],
    pub rules: Vec<Rule>,
}

/// The whole list.
#[derive(Debug)]
pub struct List {
    /// The text that it was made from.
    pub source: String,
    pub sections: Vec<Section>,
    /// Ids that have a reason and are no rule.
    pub strays: Vec<String>,
}

impl Strength {
    pub const ALL: [Strength; 3] = [Strength::Must, Strength::Should, Strength::May];
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Strength::Must => "MUST",
            Strength::Should => "SHOULD",
            Strength::May => "MAY",
        })
    }
}

impl Rule {
    /// `None` for prose.
    pub fn strength(&self) -> Option<Strength> {
        match self.word.as_str() {
            "MUST" | "MUST NOT" => Some(Strength::Must),
            "SHOULD" | "SHOULD NOT" => Some(Strength::Should),
            "MAY" => Some(Strength::May),
            _ => None,
        }
    }
}

impl Section {
    /// What it is called here: the last part of its label.
    pub fn name(&self) -> &str {
        self.label.rsplit(" / ").next().unwrap_or_default()
    }

    pub fn statements(&self, strength: Strength) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.strength() == Some(strength))
    }
}

impl List {
    /// Every rule with its section.
    pub fn rules(&self) -> impl Iterator<Item = (&Section, &Rule)> {
        self.sections.iter().flat_map(|section| section.rules.iter().map(move |rule| (section, rule)))
    }

    /// What is wrong with the list by itself.
    pub fn problems(&self) -> Vec<String> {
        let strays = self.strays.iter().map(|id| format!("{id} has a reason and is no rule"));
        let mut problems: Vec<String> = strays.collect();
        for section in &self.sections {
            for (strength, count) in Strength::ALL.into_iter().zip(section.counts) {
                let found = section.statements(strength).count();
                if found != count {
                    problems.push(format!("{}: {found} {strength} instead of {count}", section.name()));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for (_, rule) in self.rules() {
            if !seen.insert(&rule.id) {
                problems.push(format!("{} is listed twice", rule.id));
            }
            if rule.strength() == Some(Strength::May) && rule.reason.is_none() {
                problems.push(format!("{}: a MAY needs a reason that says what was chosen", rule.id));
            }
        }
        problems
    }
}

#[cfg(test)]
pub mod tests {
    use crate::read_list::parse;

    /// Two sections with a statement of each strength and a rule of the prose.
    pub const TEXT: &str = r#"
        specification = { title = "A device", commit = "c0ffee" }
        reasons = { A3 = "never" }
        [[section]]
        label = "Types / One"
        counts = { MUST = 1, SHOULD = 1, MAY = 0 }
        rules = [["A1", "MUST", "begin"], ["A2", "SHOULD NOT", "stop"]]
        [[section]]
        label = "Types / Two"
        counts = { MUST = 0, SHOULD = 0, MAY = 1 }
        rules = [["A3", "MAY", "rest"], ["A4", "", "It is so"]]
    "#;

    fn problems(text: &str) -> Vec<String> {
        parse(text).expect("a list").problems()
    }

    #[test]
    fn a_sound_list_has_no_problems() {
        assert!(problems(TEXT).is_empty());
    }

    #[test]
    fn a_count_that_is_off_is_named() {
        assert_eq!(problems(&TEXT.replace("MUST = 1", "MUST = 2")), ["One: 1 MUST instead of 2"]);
        let stronger = TEXT.replace("SHOULD NOT", "MUST NOT");
        assert_eq!(problems(&stronger), ["One: 2 MUST instead of 1", "One: 0 SHOULD instead of 1"]);
    }

    #[test]
    fn ids_that_are_listed_twice_or_only_have_a_reason_are_named() {
        assert_eq!(problems(&TEXT.replace("[\"A4\"", "[\"A1\"")), ["A1 is listed twice"]);
        let stray = TEXT.replace("A3 = \"never\"", "A3 = \"never\", A9 = \"why\"");
        assert_eq!(problems(&stray), ["A9 has a reason and is no rule"]);
    }

    #[test]
    fn a_may_without_a_reason_is_named() {
        let silent = TEXT.replace("A3 = \"never\"", "");
        assert_eq!(problems(&silent), ["A3: a MAY needs a reason that says what was chosen"]);
    }
}
