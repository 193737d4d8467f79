// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From TOML to the list: its form, not whether it makes sense.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::list::{List, Rule, Section, Strength};

/// What is still without its rule.
type Reasons = BTreeMap<String, String>;

/// Reads a list.
///
/// # Errors
/// Text of another form.
pub fn parse(text: &str) -> Result<List> {
    let root = DeValue::Table(DeTable::parse(text)?.into_inner());
    let specification = member(&root, "specification")?;
    let source = format!("{}, {}", string(specification, "title")?, string(specification, "commit")?);
    let mut reasons = reasons(member(&root, "reasons")?)?;
    let sections = items(member(&root, "section")?);
    let sections = sections.map(|value| section(value, &mut reasons)).collect::<Result<_>>()?;
    Ok(List { source, sections, strays: reasons.into_keys().collect() })
}

fn reasons(value: &DeValue<'_>) -> Result<Reasons> {
    let entries = value.as_table().context("reasons: no table")?;
    let text = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(str::to_owned);
    let entries = entries.iter().map(|(id, reason)| {
        let id = id.get_ref().to_string();
        Ok((id.clone(), text(reason).with_context(|| format!("reasons: {id} is no string"))?))
    });
    entries.collect()
}

fn section(value: &DeValue<'_>, reasons: &mut Reasons) -> Result<Section> {
    let label = string(value, "label")?;
    let counts = member(value, "counts")?;
    let counts =
        [count(counts, Strength::Must)?, count(counts, Strength::Should)?, count(counts, Strength::May)?];
    let rules = items(member(value, "rules")?).map(|row| rule(row, reasons)).collect::<Result<_>>()?;
    Ok(Section { label, counts, rules })
}

fn rule(row: &DeValue<'_>, reasons: &mut Reasons) -> Result<Rule> {
    let cells: Option<Vec<&str>> = items(row).map(DeValue::as_str).collect();
    match cells.as_deref() {
        Some([id, word @ ("" | "MUST" | "MUST NOT" | "SHOULD" | "SHOULD NOT" | "MAY"), text]) => {
            let [id, word, text] = [id, word, text].map(|cell| (*cell).to_owned());
            Ok(Rule { reason: reasons.remove(&id), id, word, text })
        }
        _ => bail!("{cells:?} is not an id, a strength and a text"),
    }
}

fn count(counts: &DeValue<'_>, strength: Strength) -> Result<usize> {
    let count = member(counts, &strength.to_string())?.as_integer();
    Ok(count.with_context(|| format!("{strength} is no number"))?.as_str().parse()?)
}

fn string(value: &DeValue<'_>, key: &str) -> Result<String> {
    Ok(member(value, key)?.as_str().with_context(|| format!("{key} is no string"))?.to_owned())
}

fn member<'a, 'i>(value: &'a DeValue<'i>, key: &str) -> Result<&'a DeValue<'i>> {
    value.get(key).map(Spanned::get_ref).with_context(|| format!("no {key}"))
}

/// Nothing when it is no array.
fn items<'a, 'i>(value: &'a DeValue<'i>) -> impl Iterator<Item = &'a DeValue<'i>> {
    value.as_array().into_iter().flat_map(|array| array.iter().map(Spanned::get_ref))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::tests::TEXT;

    #[test]
    fn a_list_is_read_with_its_sections_strengths_and_reasons() {
        let list = parse(TEXT).expect("a list");
        assert_eq!(list.source, "A device, c0ffee");
        let rules: Vec<_> =
            list.rules().map(|(section, rule)| (section.name(), rule.id.as_str(), rule.strength())).collect();
        let [must, should, may] = Strength::ALL.map(Some);
        assert_eq!(
            rules,
            [("One", "A1", must), ("One", "A2", should), ("Two", "A3", may), ("Two", "A4", None)]
        );
        assert_eq!(list.sections[1].rules[0].reason.as_deref(), Some("never"));
    }

    #[test]
    fn a_row_of_another_form_is_an_error() {
        let good = "[\"A1\", \"MUST\", \"begin\"]";
        for row in
            ["[\"A1\", \"OUGHT\", \"begin\"]", "[\"A1\", \"MUST\"]", "[1, \"MUST\", \"begin\"]", "\"A1\""]
        {
            assert!(parse(&TEXT.replace(good, row)).is_err(), "{row}");
        }
    }

    #[test]
    fn a_section_without_counts_is_an_error() {
        let error = parse(&TEXT.replace(", MAY = 0", "")).expect_err("no MAY");
        assert_eq!(error.to_string(), "no MAY");
    }
}
