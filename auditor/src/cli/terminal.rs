//! Text for people: tables, colours, and the rule that nothing reaches a terminal as it came.
//!
//! Names, tasks, command lines, statements and server messages are written by agents and by whoever they talk to. Printed raw,
//! they could move the cursor, overwrite the line that convicts them, change the window's title, or type into the
//! terminal's answer-back. So a [`Cell`] cannot be made from text without escaping it.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};

use unicode_width::UnicodeWidthStr;

/// Escapes what a terminal would act upon or what would misplace text: control characters (C0, DEL, C1), line and
/// paragraph separators, and the characters that reorder or hide text. A backslash is doubled, so that what is printed has
/// one reading.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

fn is_escaped(character: char) -> bool {
    character == '\\' || is_active(character)
}

/// Whether a terminal does something else with it than showing it.
fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Line and paragraph separator; marks and controls of bidirectional text; invisible operators and tags.
            '\u{2028}' | '\u{2029}'
                | '\u{061c}' | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// JSON for a terminal: what JSON leaves as it is and a terminal acts upon becomes an escape of JSON, so that the value
/// stays the same. Anything but a terminal gets the bytes unchanged.
pub(crate) fn escape_json(line: &str) -> Cow<'_, str> {
    if !line.chars().any(is_active) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for character in line.chars() {
        if is_active(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// How a cell is to be read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Ink {
    #[default]
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
}

impl Ink {
    /// Select Graphic Rendition parameters, ECMA-48.
    fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

/// A piece of text that is safe to show.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cell {
    text: String,
    ink: Ink,
}

impl Cell {
    pub(crate) fn new(text: impl Display) -> Self {
        Self { text: escape(&text.to_string()).into_owned(), ink: Ink::Plain }
    }

    /// As much of the text as fits into so many columns; if that is not all, `rest` says so.
    pub(crate) fn cut(text: &str, columns: usize, rest: impl FnOnce() -> String) -> Self {
        let mut shown = String::new();
        let mut width = 0;
        for character in text.chars() {
            let escaped = Self::new(character);
            width += escaped.width();
            if width > columns {
                return Self { text: format!("{shown}… {}", escape(&rest())), ink: Ink::Plain };
            }
            shown.push_str(&escaped.text);
        }
        Self { text: shown, ink: Ink::Plain }
    }

    /// The text, or a dash where there is none.
    pub(crate) fn or_dash(text: Option<impl Display>) -> Self {
        text.map_or_else(|| Self::new("-"), Self::new)
    }

    pub(crate) fn with(self, ink: Ink) -> Self {
        Self { ink, ..self }
    }

    fn width(&self) -> usize {
        self.text.width()
    }
}

/// Whether stdout gets colours: it is a terminal that has them, and NO_COLOR does not object.
pub(crate) fn colours_wanted() -> bool {
    let objects = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && !objects && !is_dumb
}

/// Columns of a width that grows with what they hold. The last column is not padded.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    header: Option<[&'static str; COLUMNS]>,
    widths: [usize; COLUMNS],
    colours: bool,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(header: [&'static str; COLUMNS], colours: bool) -> Self {
        Self { header: Some(header), widths: header.map(str::len), colours }
    }

    /// First guesses of widths, for tables whose rows come one by one.
    pub(crate) fn at_least(mut self, widths: [usize; COLUMNS]) -> Self {
        for (width, least) in self.widths.iter_mut().zip(widths) {
            *width = (*width).max(least);
        }
        self
    }

    /// Writes rows, below the header if they are the first.
    pub(crate) fn write(&mut self, out: &mut impl Write, rows: &[[Cell; COLUMNS]]) -> io::Result<()> {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if let Some(header) = self.header.take() {
            self.line(out, &header.map(|title| Cell::new(title).with(Ink::Heading)))?;
        }
        rows.iter().try_for_each(|row| self.line(out, row))
    }

    fn line(&self, out: &mut impl Write, row: &[Cell; COLUMNS]) -> io::Result<()> {
        for (index, (cell, width)) in row.iter().zip(self.widths).enumerate() {
            let is_last = index + 1 == COLUMNS;
            match cell.ink.parameters().filter(|_| self.colours) {
                Some(parameters) => write!(out, "\x1b[{parameters}m{}\x1b[0m", cell.text)?,
                None => out.write_all(cell.text.as_bytes())?,
            }
            if !is_last {
                let padding = width.saturating_sub(cell.width()) + 2;
                write!(out, "{:padding$}", "")?;
            }
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_upon_passes() {
        for (text, shown) in [
            ("select 1", "select 1"),
            ("grüße 漢字", "grüße 漢字"),
            ("\x1b[2J\x1b]0;owned\x07", "\\u{1b}[2J\\u{1b}]0;owned\\u{7}"),
            ("a\nb\tc\rd\0", "a\\nb\\tc\\rd\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("ok\u{202e}drawrof", "ok\\u{202e}drawrof"),
            ("\\n", "\\\\n"),
            ("\u{2028}\u{feff}\u{e0041}", "\\u{2028}\\u{feff}\\u{e0041}"),
        ] {
            assert_eq!(escape(text), shown);
        }
        for code in 0..=0x10_ffff_u32 {
            let Some(character) = char::from_u32(code) else { continue };
            assert!(!escape(&character.to_string()).chars().any(char::is_control), "{code:x}");
        }
    }

    #[test]
    fn json_on_a_terminal_keeps_its_value() {
        let line = serde_json::json!({ "q": "a\u{9b}31m\u{7f}\u{202e}\u{e0041}\x1b" }).to_string();
        let shown = escape_json(&line);
        assert!(!shown.chars().any(is_active));
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&line).unwrap(), serde_json::from_str(&shown).unwrap());
        assert_eq!(before, after);
        assert!(matches!(escape_json(r#"{"q":"a\\b"}"#), Cow::Borrowed(_)));
    }

    #[test]
    fn long_text_is_cut_where_a_reader_sees_it() {
        let rest = || "(more)".to_owned();
        assert_eq!(Cell::cut("select 1", 8, rest), Cell::new("select 1"));
        for (text, shown) in [
            ("select 1;", "select 1… (more)"),
            ("漢字漢字漢", "漢字漢字… (more)"),
            // An escape is shown whole or not at all.
            ("abcd\x1b[2J", "abcd… (more)"),
            ("abcdef\n\n", "abcdef\\n… (more)"),
        ] {
            assert_eq!(Cell::cut(text, 8, rest).text, shown, "{text:?}");
        }
    }

    fn rendered(table: &mut Table<3>, rows: &[[Cell; 3]]) -> String {
        let mut out = Vec::new();
        table.write(&mut out, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up_by_what_is_seen() {
        let mut table = Table::new(["A", "LONG", "LAST"], false);
        let rows = [
            [Cell::new("漢字"), Cell::new("x"), Cell::new("one")],
            [Cell::new("y\x1b"), Cell::or_dash(None::<u64>), Cell::new("two").with(Ink::Bad)],
        ];
        let expected = "A        LONG  LAST\n漢字     x     one\ny\\u{1b}  -     two\n";
        assert_eq!(rendered(&mut table, &rows), expected);
        assert_eq!(rendered(&mut table, &rows[..1]), "漢字     x     one\n", "the header comes once");
    }

    #[test]
    fn colours_surround_the_text_only() {
        let mut table = Table::new(["A", "B", "C"], true);
        let row = [Cell::new("1").with(Ink::Good), Cell::new("2"), Cell::new("3").with(Ink::Bad)];
        let text = rendered(&mut table, &[row]);
        assert!(text.ends_with("\x1b[32m1\x1b[0m  2  \x1b[31m3\x1b[0m\n"), "{text:?}");
    }
}
