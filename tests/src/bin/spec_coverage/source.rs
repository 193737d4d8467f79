// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What Rust files say of the specification: anchors in the code, and marks above tests. Knows no rule.

use std::fmt;

/// What every mark begins with.
const MARK: &str = "//=";
/// What follows in an anchor, by the letter of the ids.
pub const ANCHORS: [(char, &str); 2] = [('A', "virtio#devicenormative:IOMMU/"), ('T', "tables#")];

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A place in the code that meets rules of one section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub place: Place,
    pub section: String,
    pub ids: Vec<String>,
}

/// A test that holds the device to rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    pub place: Place,
    pub name: String,
    pub ids: Vec<String>,
}

/// Every mark that was read.
#[derive(Debug, Default)]
pub struct Marks {
    pub anchors: Vec<Anchor>,
    pub tests: Vec<Test>,
    /// Marks that say nothing, or stand where they mean nothing.
    pub problems: Vec<String>,
}

impl Marks {
    /// Reads one file.
    pub fn read(&mut self, file: &str, text: &str) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(mark) = line.strip_prefix(MARK) else { continue };
            let place = Place { file: file.to_owned(), line: index + 1 };
            if let Err(problem) = self.take(place.clone(), mark.trim(), &lines[index + 1..]) {
                self.problems.push(format!("{place}: {problem}"));
            }
        }
    }

    /// The anchors and tests with ids of one list, without those of others.
    pub fn of(&self, letter: char) -> Marks {
        let ids = |ids: &[String]| -> Vec<String> {
            ids.iter().filter(|id| id.starts_with(letter)).cloned().collect()
        };
        let anchors = self.anchors.iter().map(|anchor| Anchor { ids: ids(&anchor.ids), ..anchor.clone() });
        let tests = self.tests.iter().map(|test| Test { ids: ids(&test.ids), ..test.clone() });
        Marks {
            anchors: anchors.filter(|anchor| !anchor.ids.is_empty()).collect(),
            tests: tests.filter(|test| !test.ids.is_empty()).collect(),
            problems: Vec::new(),
        }
    }

    /// One mark, and what follows it.
    fn take(&mut self, place: Place, mark: &str, following: &[&str]) -> Result<(), &'static str> {
        let anchor = ANCHORS.iter().find_map(|(letter, start)| Some((*letter, mark.strip_prefix(start)?)));
        if let Some((letter, rest)) = anchor {
            let (section, ids) = split_ids(rest);
            check_anchor(&place, letter, &ids, following)?;
            self.anchors.push(Anchor { place, section, ids });
        } else {
            let (rest, ids) = split_ids(mark);
            if !rest.is_empty() || ids.is_empty() {
                return Err("neither an anchor nor ids of rules");
            }
            let name = test_below(following)?;
            self.tests.push(Test { place, name, ids });
        }
        Ok(())
    }
}

/// The text before the ids at the end, and the ids.
fn split_ids(text: &str) -> (String, Vec<String>) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let first = words.iter().rposition(|word| !is_id(word)).map_or(0, |last| last + 1);
    let (rest, ids) = words.split_at(first);
    (rest.join(" "), ids.iter().map(|id| (*id).to_owned()).collect())
}

/// The letter of a list, a number, and perhaps a letter.
fn is_id(word: &str) -> bool {
    let number = word
        .strip_prefix(ANCHORS.map(|(letter, _)| letter))
        .map(|rest| rest.strip_suffix(|c: char| c.is_ascii_lowercase()).unwrap_or(rest));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn check_anchor(place: &Place, letter: char, ids: &[String], following: &[&str]) -> Result<(), &'static str> {
    if ids.iter().any(|id| !id.starts_with(letter)) {
        return Err("ids of another list than the anchor's");
    }
    if place.file.starts_with("tests/") {
        return Err("an anchor outside of the code");
    }
    if ids.is_empty() {
        return Err("an anchor without ids");
    }
    match following.first() {
        Some(line) if line.starts_with("// ") => Ok(()),
        _ => Err("an anchor without a sentence below it"),
    }
}

/// The name of the test function that these lines begin with, behind its attributes.
fn test_below(lines: &[&str]) -> Result<String, &'static str> {
    let is_attribute = |line: &&&str| line.starts_with("#[");
    let attributes: Vec<&&str> = lines.iter().take_while(is_attribute).collect();
    if !attributes.iter().any(|attribute| **attribute == "#[test]") {
        return Err("no #[test] below the ids");
    }
    if attributes.iter().any(|attribute| attribute.starts_with("#[ignore") || attribute.starts_with("#[cfg"))
    {
        return Err("a test that may not run");
    }
    let function = lines.get(attributes.len()).and_then(|line| line.strip_prefix("fn "));
    let name = function.and_then(|function| function.split_once('('));
    name.map(|(name, _)| name.to_owned()).ok_or("no function below #[test]")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn read(file: &str, lines: &[&str]) -> Marks {
        let mut marks = Marks::default();
        marks.read(file, &lines.join("\n"));
        marks
    }

    fn place(file: &str, line: usize) -> Place {
        Place { file: file.to_owned(), line }
    }

    #[test]
    fn an_anchor_has_a_section_and_ids() {
        let lines =
            ["fn a() {", "    //= virtio#devicenormative:IOMMU/MAP request A1 A20c", "    // So it is.", "}"];
        let marks = read("a.rs", &lines);
        let ids = ["A1", "A20c"].map(str::to_owned).to_vec();
        assert_eq!(
            marks.anchors,
            [Anchor { place: place("a.rs", 2), section: "MAP request".to_owned(), ids }]
        );
        assert!(marks.tests.is_empty() && marks.problems.is_empty());
    }

    #[test]
    fn an_anchor_of_the_other_list_begins_otherwise() {
        let marks = read("a.rs", &["//= tables#ATTACH_TABLE T1 T20c", "// So it is."]);
        let ids = ["T1", "T20c"].map(str::to_owned).to_vec();
        let section = "ATTACH_TABLE".to_owned();
        assert_eq!(marks.anchors, [Anchor { place: place("a.rs", 1), section, ids }]);
    }

    #[test]
    fn marks_are_told_apart_by_the_letter_of_their_list() {
        let lines = ["//= A1 T2", "#[test]", "fn it_holds() {", "}", "//= tables#One T3", "// So it is."];
        let marks = read("a.rs", &lines);
        let (of_a, of_t) = (marks.of('A'), marks.of('T'));
        assert_eq!((of_a.anchors.len(), of_t.anchors.len()), (0, 1));
        assert_eq!((of_a.tests[0].ids.concat(), of_t.tests[0].ids.concat()), ("A1".into(), "T2".into()));
    }

    #[test]
    fn ids_above_a_test_belong_to_it_whatever_its_attributes() {
        for attributes in
            [vec!["#[test]"], vec!["#[test]", "#[should_panic]"], vec!["#[expect(a)]", "#[test]"]]
        {
            let lines: Vec<&str> =
                ["//= A1 A2"].into_iter().chain(attributes).chain(["fn it_holds() {"]).collect();
            let marks = read("tests/a.rs", &lines);
            let ids = ["A1", "A2"].map(str::to_owned).to_vec();
            assert_eq!(
                marks.tests,
                [Test { place: place("tests/a.rs", 1), name: "it_holds".to_owned(), ids }]
            );
            assert!(marks.anchors.is_empty() && marks.problems.is_empty());
        }
    }

    #[test]
    fn marks_that_mean_nothing_are_named() {
        let anchor = "//= virtio#devicenormative:IOMMU/MAP request";
        let with_id = format!("{anchor} A1");
        for (file, lines, problem) in [
            ("a.rs", vec!["//= A1", "fn not_a_test() {"], "no #[test] below the ids"),
            ("a.rs", vec!["//= A1"], "no #[test] below the ids"),
            ("a.rs", vec!["//= A1", "", "#[test]", "fn it_holds() {"], "no #[test] below the ids"),
            ("a.rs", vec!["//= A1", "#[test]", "struct No;"], "no function below #[test]"),
            ("a.rs", vec!["//= A1", "#[test]", "#[ignore]", "fn it_holds() {"], "a test that may not run"),
            (
                "a.rs",
                vec!["//= A1", "#[cfg(never)]", "#[test]", "fn it_holds() {"],
                "a test that may not run",
            ),
            ("a.rs", vec!["//= a1"], "neither an anchor nor ids of rules"),
            ("a.rs", vec!["//= A1 and more"], "neither an anchor nor ids of rules"),
            ("a.rs", vec!["//= Ab"], "neither an anchor nor ids of rules"),
            ("a.rs", vec!["//="], "neither an anchor nor ids of rules"),
            ("a.rs", vec![anchor, "// So it is."], "an anchor without ids"),
            ("a.rs", vec!["//= tables#One A1", "// So it is."], "ids of another list than the anchor's"),
            ("a.rs", vec![&with_id, "fn a() {"], "an anchor without a sentence below it"),
            ("tests/a.rs", vec![&with_id, "// So it is."], "an anchor outside of the code"),
        ] {
            let marks = read(file, &lines);
            assert_eq!(marks.problems, [format!("{file}:1: {problem}")], "{lines:?}");
            assert!(marks.tests.is_empty() && marks.anchors.is_empty(), "{lines:?}");
        }
    }
}
