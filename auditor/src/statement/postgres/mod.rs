//! What PostgreSQL's SQL means, by PostgreSQL's own grammar.
//!
//! [`library`] is the C library and what contains it, `tree` what it answers, `walk` what that means; `commands` and `functions`
//! are the tables that say so.

mod commands;
mod functions;
mod library;
mod tree;
mod walk;

use super::{Command, Effect};

/// Longer texts are not parsed. The slowest text of this length takes 13 ms (a list of 16,000 columns), the usual one 2 ms.
pub(super) const MAX_TEXT: usize = 32 << 10;

/// The commands of `text`; `None`: nobody knows what they are. `conforming`: see [`library::parse`].
pub(super) fn commands(text: &str, conforming: bool) -> Option<Vec<(Command, Effect)>> {
    library::parse(text, conforming, walk::commands)?
}
