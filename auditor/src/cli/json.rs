//! JSON on stdout, one value a line.

use std::io::{IsTerminal, Write, stdout};

use serde::Serialize;

use super::failure::Failure;
use super::terminal::escape_json;

/// Writes one line. For a terminal, see [`super::terminal::escape_json`].
pub(crate) fn line(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::refused(format!("cannot write JSON: {error}")))?;
    raw_line(out, text.as_bytes())
}

/// Writes a line that is JSON already: its bytes unchanged, unless a terminal reads them.
pub(crate) fn raw_line(out: &mut impl Write, line: &[u8]) -> Result<(), Failure> {
    if stdout().is_terminal() {
        writeln!(out, "{}", escape_json(&String::from_utf8_lossy(line)))?;
    } else {
        out.write_all(line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
