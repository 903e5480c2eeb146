//! What is wrong with a file, and where.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::policy::Place;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used; it may not do what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what to do, one line.
    pub message: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The policy that it is about; `None` where it is about the file or an agent.
    pub policy: Option<String>,
}

impl Diagnostic {
    /// As compilers do: `FILE:LINE:COL: error: …`.
    pub fn render(&self, file: &Path) -> String {
        format!("{}:{}:{}: {}: {}", file.display(), self.line, self.column, self.severity, self.message)
    }
}

/// One line for each.
pub(super) fn render_all(file: &Path, diagnostics: &[Diagnostic]) -> String {
    let lines: Vec<String> = diagnostics.iter().map(|diagnostic| diagnostic.render(file)).collect();
    lines.join("\n")
}

pub(super) fn not_utf8(bytes: &[u8], valid_up_to: usize) -> Diagnostic {
    let valid = bytes.get(..valid_up_to).unwrap_or_default();
    let text = String::from_utf8_lossy(valid);
    let Place { line, column } = Places::new(&text).at(valid_up_to);
    let message = "not UTF-8 from here on: save the file as UTF-8".to_owned();
    Diagnostic { severity: Severity::Error, message, line, column, policy: None }
}

pub(super) fn world_writable() -> Diagnostic {
    let message = "every user of this host may change this file, and with it every policy: \
                   run `chmod o-w` on it";
    Diagnostic { severity: Severity::Warning, message: message.to_owned(), line: 1, column: 1, policy: None }
}

/// Text from the file as messages show it: quoted, escaped, cut.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{:?} (cut)", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Turns byte offsets into places.
pub(super) struct Places<'a> {
    text: &'a str,
    /// Offset of each line's first byte.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let starts = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self { text, lines: std::iter::once(0).chain(starts).collect() }
    }

    pub(super) fn at(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self
            .text
            .get(start..offset)
            .map_or(offset.saturating_sub(start), |before| before.chars().count());
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Place { line: number(line), column: number(column + 1) }
    }
}

/// Collects diagnostics while the document is walked.
pub(super) struct Report<'a> {
    places: Places<'a>,
    diagnostics: Vec<Diagnostic>,
    policy: Option<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { places: Places::new(text), diagnostics: Vec::new(), policy: None }
    }

    /// What comes from here on is about this policy, or about none.
    pub(super) fn turn_to(&mut self, policy: Option<&str>) {
        self.policy = policy.map(str::to_owned);
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.add(Severity::Error, span, message.into());
    }

    pub(super) fn warning(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.add(Severity::Warning, span, message.into());
    }

    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        self.places.at(span.start)
    }

    pub(super) fn finish(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    fn add(&mut self, severity: Severity, span: Range<usize>, message: String) {
        let Place { line, column } = self.place(&span);
        let policy = self.policy.clone();
        self.diagnostics.push(Diagnostic { severity, message, line, column, policy });
    }
}
