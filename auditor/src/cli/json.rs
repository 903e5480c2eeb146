//! JSON on stdout, one value a line.

use std::io::Write;

use serde::Serialize;

use super::failure::Failure;

/// Writes one line. For a terminal, see [`super::terminal::escape_json`].
pub(crate) fn line(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::refused(format!("cannot write JSON: {error}")))?;
    text_line(out, &text)
}

/// Writes a line that is JSON already: unchanged, unless a terminal reads it.
pub(crate) fn text_line(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        writeln!(out, "{}", super::terminal::escape_json(text))?;
    } else {
        writeln!(out, "{text}")?;
    }
    Ok(())
}
