//! Typed access to a section of the document. Whatever does not fit is reported with its place.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Report, quoted};

/// A value and where it stands.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// What one word of a choice means.
pub(super) enum Word<T> {
    /// This.
    Means(T),
    /// Known, but refused: the message says why and what to do.
    Refused(&'static str),
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    name: &'static str,
    table: &'a DeTable<'a>,
    /// Its header, or the brace of an inline table.
    pub(super) span: Range<usize>,
}

impl<'a> Section<'a> {
    pub(super) fn new(name: &'static str, table: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Self { name, table, span }
    }

    /// Reports every key that is neither in `known` nor, with its message, in `refused`.
    pub(super) fn check_keys(&self, known: &[&str], refused: &[(&str, &str)], report: &mut Report<'_>) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            if let Some((_, message)) = refused.iter().find(|(refused, _)| *refused == name) {
                report.error(key.span(), *message);
                continue;
            }
            let place = if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            let hint = match nearest(name, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known are {}", known.join(", ")),
            };
            report.error(key.span(), format!("unknown key {}{place}: {hint}", quoted(name)));
        }
    }

    /// The section `key`; `None` where it is absent or, reported, not a table.
    pub(super) fn section(&self, key: &str, name: &'static str, report: &mut Report<'_>) -> Option<Self> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(name, table, value.span())),
            other => {
                let found = found(other);
                report.error(value.span(), format!("`{key}` is {found}: write it as a section, {name}"));
                None
            }
        }
    }

    /// The sections of the array of tables `key`, without those that are, reported, not tables.
    pub(super) fn sections(&self, key: &str, name: &'static str, report: &mut Report<'_>) -> Vec<Self> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            let found = found(value.get_ref());
            report.error(value.span(), format!("`{key}` is {found}: write each as a section, {name}"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(name, table, item.span())),
                other => {
                    let found = found(other);
                    report.error(
                        item.span(),
                        format!("`{key}` holds {found}: write each as a section, {name}"),
                    );
                }
            }
        }
        sections
    }

    /// The string `key`.
    pub(super) fn string(&self, key: &str, report: &mut Report<'_>) -> Option<At<&'a str>> {
        let value = self.table.get(key)?;
        string(value, key, report)
    }

    /// The string `key`, which must be there; `example` is a value to write.
    pub(super) fn required(&self, key: &str, example: &str, report: &mut Report<'_>) -> Option<At<&'a str>> {
        if !self.table.contains_key(key) {
            let name = self.name;
            report.error(self.span.clone(), format!("{name} has no `{key}`: add `{key} = {example}`"));
            return None;
        }
        self.string(key, report)
    }

    /// The strings of the array `key`; `None` where it is absent or, reported, not an array of strings.
    pub(super) fn strings(&self, key: &str, report: &mut Report<'_>) -> Option<At<Vec<At<&'a str>>>> {
        let value = self.table.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            let found = found(value.get_ref());
            report.error(value.span(), format!("`{key}` is {found}: write a list of strings, [\"…\"]"));
            return None;
        };
        let strings: Vec<_> = array.iter().filter_map(|item| string(item, key, report)).collect();
        // A list of other things was reported; it is not an empty list.
        (array.is_empty() || !strings.is_empty()).then(|| At { value: strings, span: value.span() })
    }

    /// The boolean `key`.
    pub(super) fn boolean(&self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        let value = self.table.get(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            let found = found(value.get_ref());
            report.error(value.span(), format!("`{key}` is {found}: write true or false"));
        }
        boolean
    }

    /// The integer `key`, within bounds.
    pub(super) fn integer(
        &self,
        key: &str,
        bounds: std::ops::RangeInclusive<usize>,
        report: &mut Report<'_>,
    ) -> Option<usize> {
        let value = self.table.get(key)?;
        let integer = match value.get_ref() {
            DeValue::Integer(integer) => usize::from_str_radix(integer.as_str(), integer.radix()).ok(),
            other => {
                let found = found(other);
                report.error(value.span(), format!("`{key}` is {found}: write a number"));
                return None;
            }
        };
        let within = integer.filter(|integer| bounds.contains(integer));
        if within.is_none() {
            let (least, most) = bounds.into_inner();
            report.error(value.span(), format!("`{key}` must be from {least} to {most}"));
        }
        within
    }

    /// The value of `key` as it stands.
    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// One of some words; `None` where `key` is absent or, reported, none of them.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, Word<T>)],
        report: &mut Report<'_>,
    ) -> Option<T> {
        let At { value, span } = self.string(key, report)?;
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, Word::Means(meaning))) => Some(*meaning),
            Some((_, Word::Refused(message))) => {
                report.error(span, format!("`{key}` = {}: {message}", quoted(value)));
                None
            }
            None => {
                let usable: Vec<String> = words
                    .iter()
                    .filter(|(_, word)| matches!(word, Word::Means(_)))
                    .map(|(word, _)| format!("\"{word}\""))
                    .collect();
                let usable = usable.join(" or ");
                report.error(span, format!("`{key}` = {} is not known: write {usable}", quoted(value)));
                None
            }
        }
    }
}

fn string<'a>(value: &'a Spanned<DeValue<'a>>, key: &str, report: &mut Report<'_>) -> Option<At<&'a str>> {
    let string = value.get_ref().as_str();
    if string.is_none() {
        let found = found(value.get_ref());
        report.error(value.span(), format!("`{key}` holds {found}: write a string in quotation marks"));
    }
    string.map(|string| At { value: string, span: value.span() })
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The word that was probably meant: the nearest, at most two edits away and nearer than half of its length.
pub(super) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let distances = known.iter().map(|word| (edits(given, word), *word));
    distances.filter(|(edits, word)| *edits <= 2 && edits * 2 < word.len()).min().map(|(_, word)| word)
}

/// Levenshtein's distance, with long strings taken as far from everything.
fn edits(one: &str, other: &str) -> usize {
    if one.len() > 64 || other.len() > 64 {
        return usize::MAX / 2;
    }
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (index, left) in one.chars().enumerate() {
        let mut diagonal = index;
        row[0] = index + 1;
        for (column, right) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
