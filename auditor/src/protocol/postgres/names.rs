//! What the names of prepared statements and portals mean on the server, now.
//!
//! Kept in the order in which the server confirmed it (ParseComplete, BindComplete, CloseComplete), never in the order in
//! which the client hoped for it: a Parse that the server refuses leaves the old meaning in force, and a record that showed
//! the new one would let a client execute one text under the record of another.
//!
//! PostgreSQL cuts names to 63 bytes, other servers may not. A longer name is therefore never looked up, and touching
//! one forgets the name that it would be cut to. The cut happens in the server's encoding, so of a name beyond ASCII that
//! might grow past 63 bytes there nothing is known. The tables ([`super::table`]) are bounded: the oldest name is forgotten first, and a
//! forgotten name is unknown, never guessed.
//!
//! A limit: SQL inside functions (`DO`, PL/pgSQL `EXECUTE`) can DEALLOCATE and PREPARE without the protocol showing it. The
//! call itself is on record, the command tag of what was executed comes from the server, and where that contradicts the
//! text, as when a DELETE hides behind the name of a SELECT, the record says that it is incomplete.

use std::sync::Arc;

use bytes::Bytes;

use super::record::Subject;
use super::table::{Kept, Table};
use super::values::Values;
use crate::protocol::Column;

/// Bytes of a name that PostgreSQL tells apart (NAMEDATALEN - 1).
const NAME_BYTES: usize = 63;
/// Bytes of a name in the client's encoding that stay within [`NAME_BYTES`] in any encoding of the server.
const SAFE_BYTES: u64 = 20;

/// The name of a prepared statement or portal; empty for the unnamed one.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Name {
    /// All of it.
    Exact(Box<[u8]>),
    /// Longer than what PostgreSQL tells apart: what it would cut it to.
    Long(Box<[u8]>),
    /// Lost in a hole of the stream, or not to be told apart from others.
    Unknown,
}

impl Name {
    /// The name whose first bytes are `kept`, of `length` bytes on the wire.
    pub(super) fn new(kept: &[u8], length: u64) -> Self {
        if length > SAFE_BYTES && !kept.is_ascii() {
            return Self::Unknown;
        }
        match kept.get(..NAME_BYTES) {
            Some(cut) if length > NAME_BYTES as u64 => Self::Long(cut.into()),
            _ => Self::Exact(kept.into()),
        }
    }

    /// As records have it.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Exact(bytes) | Self::Long(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Self::Unknown => None,
        }
    }

    /// What it costs to keep.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Exact(bytes) | Self::Long(bytes) => bytes.len(),
            Self::Unknown => 0,
        }
    }
}

/// What a Parse gave a name to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Prepared {
    /// The statement's name.
    pub(super) name: Name,
    /// The text, up to the limit.
    pub(super) text: Bytes,
    /// Length of the whole text.
    pub(super) text_length: u64,
    /// Parameter types by OID; zero where the server is to find out.
    pub(super) types: Vec<u32>,
    /// Columns of its result, where described.
    pub(super) columns: Vec<Column>,
    /// A hole fell into it, or what the name means is not known.
    pub(super) incomplete: bool,
}

impl Prepared {
    /// A name whose text is not known.
    pub(super) fn unknown(name: Name) -> Self {
        Self {
            name,
            text: Bytes::new(),
            text_length: 0,
            types: Vec::new(),
            columns: Vec::new(),
            incomplete: true,
        }
    }
}

impl Kept for Prepared {
    fn cost(&self) -> usize {
        self.text.len() + self.types.len() * 4 + self.name.cost() + columns_cost(&self.columns)
    }
}

/// Bytes that columns take.
pub(super) fn columns_cost(columns: &[Column]) -> usize {
    columns.iter().map(|column| size_of::<Column>() + column.name.len() + column.type_name.len()).sum()
}

/// What a Bind made of a prepared statement.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Portal {
    /// The statement as its name was understood at the Bind.
    #[serde(with = "crate::shared")]
    pub(super) prepared: Arc<Prepared>,
    /// Parameter values as sent.
    pub(super) values: Values,
    /// Columns of its result, where the portal itself was described.
    pub(super) columns: Vec<Column>,
    /// A hole fell into the Bind.
    pub(super) incomplete: bool,
    /// Whether an Execute has shown the values already.
    pub(super) executed: bool,
}

impl Portal {
    /// A portal of which nothing is known.
    pub(super) fn unknown() -> Self {
        let prepared = Arc::new(Prepared::unknown(Name::Unknown));
        Self { prepared, values: Values::default(), columns: Vec::new(), incomplete: true, executed: false }
    }
}

impl Kept for Portal {
    fn cost(&self) -> usize {
        // The statement is shared, but the portal may be all that keeps it.
        self.prepared.cost() + self.values.cost() + columns_cost(&self.columns)
    }
}

/// Prepared statements and portals of one session.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Names {
    /// Prepared statements.
    pub(super) statements: Table<Prepared>,
    /// Portals.
    pub(super) portals: Table<Portal>,
}

impl Default for Names {
    fn default() -> Self {
        Self { statements: Table::new(4096, 8 << 20), portals: Table::new(512, 4 << 20) }
    }
}

impl Names {
    /// For where memory is short.
    pub(super) fn in_need() -> Self {
        Self { statements: Table::new(16, 8 << 10), portals: Table::new(16, 8 << 10) }
    }

    /// Bytes that they take, roughly.
    pub(super) fn memory(&self) -> usize {
        self.statements.memory() + self.portals.memory()
    }

    /// What this portal means, which is executed now, and told with it.
    pub(super) fn execute(&mut self, name: &Name) -> Option<Arc<Portal>> {
        let portal = self.portals.look_up(name)?;
        self.portals.told_with(name, &portal);
        self.statements.told_with(&portal.prepared.name, &portal.prepared);
        Some(portal)
    }

    /// Everything that has a name, and is not told yet, is due.
    pub(super) fn tell_named(&mut self) {
        self.portals.tell_named();
        self.told_with_portals();
        self.statements.tell_named();
    }

    /// A portal goes that was never executed: this one, or all. Bind has run the input functions of its values' types all the same, which a
    /// domain's CHECK makes anything, so it is due; and so is all that has a name, which these functions may have executed.
    pub(super) fn tell_portals(&mut self, name: Option<&Name>) {
        match name {
            Some(name @ Name::Exact(_)) => self.portals.tell(name),
            _ => self.portals.tell_all(),
        }
        if !self.portals.due.is_empty() {
            self.told_with_portals();
            self.statements.tell_named();
        }
    }

    /// A prepared statement goes, which a Bind may have executed by its name.
    pub(super) fn tell_statement(&mut self, name: &Name) {
        if self.portals.has_untold() {
            self.statements.tell(name);
        }
    }

    fn told_with_portals(&mut self) {
        for (_, portal) in &self.portals.due {
            self.statements.told_with(&portal.prepared.name, &portal.prepared);
        }
    }

    /// Everything that is not told yet is due.
    pub(super) fn tell_all(&mut self) {
        self.tell_named();
        self.statements.tell_all();
        self.portals.tell_all();
    }

    /// Takes what has to be given out now.
    pub(super) fn due(&mut self) -> Vec<Subject> {
        let portals = self.portals.due.drain(..).map(|(name, portal)| {
            // Its values are told once.
            Subject { portal: name.text(), ..Subject::portal(&portal, true) }
        });
        let statements = self.statements.due.drain(..).map(|(_, prepared)| Subject::prepared(&prepared));
        portals.chain(statements).filter(|subject| !subject.text.is_empty()).collect()
    }
}

/// The name in a text that is nothing but one `DEALLOCATE name`.
///
/// Anything else (several commands, comments, Unicode escapes) is `None`: whoever asks must then assume any name.
pub(super) fn deallocated(text: &[u8]) -> Option<Name> {
    let (command, rest) = identifier(text)?;
    if command != b"deallocate" {
        return None;
    }
    let (mut name, mut rest) = identifier(rest)?;
    if name == b"prepare" && !is_end(rest) {
        (name, rest) = identifier(rest)?;
    }
    is_end(rest).then(|| Name::new(&name, name.len() as u64))
}

fn is_end(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b';'))
}

/// One identifier in SQL's syntax, plain and folded to lower case or in double quotes, and what follows it.
fn identifier(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let text = text.trim_ascii_start();
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let end = quoted.iter().position(|&byte| byte == b'"')?;
        let rest = &quoted[end + 1..];
        // A doubled quote is one within the name; no driver makes such names.
        return (!rest.starts_with(b"\"")).then(|| (quoted[..end].to_vec(), rest));
    }
    let within = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    let end = text.iter().position(|byte| !within(byte)).unwrap_or(text.len());
    let begins = text.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    begins.then(|| (text[..end].to_ascii_lowercase(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(name: &str) -> Name {
        Name::new(name.as_bytes(), name.len() as u64)
    }

    #[test]
    fn a_single_deallocate_names_its_statement() {
        for (text, name) in [
            ("DEALLOCATE s1", Some("s1")),
            (" deallocate prepare S1 ; ", Some("s1")),
            ("DEALLOCATE PREPARE", Some("prepare")),
            ("DEALLOCATE \"S 1\"", Some("S 1")),
            ("DEALLOCATE \"S\"\"1\"", None),
            ("DEALLOCATE s1; DEALLOCATE s2", None),
            ("DEALLOCATE /* s2 */ s1", None),
            ("DEALLOCATE U&\"s\"", None),
            ("DEALLOCATE s\u{fc}", None),
            ("DO 'x'", None),
            ("", None),
        ] {
            assert_eq!(deallocated(text.as_bytes()), name.map(exact), "{text}");
        }
    }

    #[test]
    fn a_name_that_may_grow_in_the_servers_encoding_is_not_told_apart() {
        assert_eq!(Name::new("\u{fc}".as_bytes(), 2), Name::Exact("\u{fc}".as_bytes().into()));
        let long = "\u{fc}".repeat(15);
        assert_eq!(Name::new(long.as_bytes(), 30), Name::Unknown);
    }
}
