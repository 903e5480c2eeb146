//! The server's packets, as far as they say how a command ended: OK, EOF, ERR, definitions of columns.
//!
//! Which of them a packet is depends on what it answers, see [`super::conversation`]. Only the first bytes of those that matter are
//! kept; rows are stepped over. A body that is cut short by a bound or a hole yields what was there.

use super::capability::{Capabilities, status};
use super::field;
use super::packet::Head;
use super::value;
use crate::protocol::{Column, ServerError};

pub(super) const OK: u8 = 0x00;
pub(super) const EOF: u8 = 0xfe;
pub(super) const ERR: u8 = 0xff;
/// The server asks for a file of the client's.
pub(super) const LOCAL_INFILE: u8 = 0xfb;
/// MariaDB: not an error, but how far a long command is.
const PROGRESS: u16 = 0xffff;
/// The longest EOF has five bytes; longer packets that begin so are something else.
const EOF_BYTES: u32 = 9;
/// A change of the current database, in what OK says of the session.
const TRACK_SCHEMA: u64 = 1;
/// A character set without characters.
const BINARY: u16 = 63;
const UNSIGNED: u16 = 32;

/// What is known of one server packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) head: Head,
    /// The first byte of its payload; `None` where there is none.
    pub(super) first: Option<u8>,
    /// The first bytes of its payload.
    pub(super) body: &'a [u8],
    /// A hole fell into what would have been kept.
    pub(super) hole: bool,
}

impl Answer<'_> {
    /// Whether it is an EOF in either style: the old one, or an OK in its place.
    pub(super) fn is_end(&self, capabilities: Capabilities) -> bool {
        let longest =
            if capabilities.has(Capabilities::DEPRECATE_EOF) { super::packet::FULL } else { EOF_BYTES };
        self.first == Some(EOF) && self.head.first < longest
    }
}

/// OK, and EOF.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Done {
    pub(super) affected: u64,
    pub(super) status: u16,
    pub(super) warnings: u16,
    /// The database that is current now, if it has changed.
    pub(super) database: Option<String>,
}

impl Done {
    /// Reads the whole packet: OK with either first byte, or EOF as it was before.
    pub(super) fn read(answer: Answer<'_>, capabilities: Capabilities) -> Self {
        let mut body = answer.body.get(1..).unwrap_or_default();
        if answer.first == Some(EOF) && !capabilities.has(Capabilities::DEPRECATE_EOF) {
            let warnings = u16::from_le_bytes(field::bytes(&mut body).unwrap_or_default());
            let status = u16::from_le_bytes(field::bytes(&mut body).unwrap_or_default());
            return Self { warnings, status, ..Self::default() };
        }
        let affected = field::variable(&mut body).unwrap_or_default();
        let _last_insert = field::variable(&mut body);
        let status = u16::from_le_bytes(field::bytes(&mut body).unwrap_or_default());
        let mut done = Self { affected, status, ..Self::default() };
        if capabilities.has(Capabilities::PROTOCOL_41) {
            done.warnings = u16::from_le_bytes(field::bytes(&mut body).unwrap_or_default());
        }
        if capabilities.has(Capabilities::SESSION_TRACK) && status & status::SESSION_STATE_CHANGED != 0 {
            let _text = field::string(&mut body);
            done.database = field::string(&mut body).and_then(schema);
        }
        done
    }

    /// As records have it.
    pub(super) fn transaction(&self) -> char {
        let within = status::IN_TRANSACTION | status::IN_READ_ONLY_TRANSACTION;
        if self.status & within == 0 { 'I' } else { 'T' }
    }

    /// Whether another result of the same command follows.
    pub(super) fn goes_on(&self) -> bool {
        self.status & status::MORE_RESULTS != 0
    }
}

/// The last current database in a list of changes.
fn schema(mut changes: &[u8]) -> Option<String> {
    let mut found = None;
    while let (Some(kind), Some(mut change)) = (field::variable(&mut changes), field::string(&mut changes)) {
        if kind == TRACK_SCHEMA
            && let Some(name) = field::string(&mut change)
        {
            found = Some(field::text(name));
        }
    }
    found
}

/// ERR: its number, SQLSTATE and message. `None`: how far a long command is.
pub(super) fn error(body: &[u8]) -> Option<ServerError> {
    let mut body = body.get(1..).unwrap_or_default();
    let number = u16::from_le_bytes(field::bytes(&mut body).unwrap_or_default());
    if number == PROGRESS {
        return None;
    }
    let mut code = number.to_string();
    if let [b'#', a, b, c, d, e, rest @ ..] = body {
        code = field::text(&[*a, *b, *c, *d, *e]);
        body = rest;
    }
    Some(ServerError { code, severity: format!("ERROR {number}"), message: field::text(body) })
}

/// How many columns a result has, and whether their definitions follow.
pub(super) fn column_count(mut body: &[u8], capabilities: Capabilities) -> (u64, bool) {
    let count = field::variable(&mut body).unwrap_or_default();
    let follow = !capabilities.optional_metadata() || body.first().is_none_or(|follow| *follow != 0);
    (count, follow)
}

/// One definition of a column.
pub(super) fn column(mut body: &[u8], capabilities: Capabilities) -> Option<Column> {
    if !capabilities.has(Capabilities::PROTOCOL_41) {
        let _table = field::string(&mut body)?;
        let name = field::text(field::string(&mut body)?);
        let [_, _, _, _] = field::bytes(&mut body)?;
        let [_, number] = field::bytes(&mut body)?;
        return Some(Column { name, type_name: value::type_name(number, false, false) });
    }
    // Catalog, schema, and the table by two names.
    for _ in 0..4 {
        field::string(&mut body)?;
    }
    let name = field::text(field::string(&mut body)?);
    let _original = field::string(&mut body)?;
    if capabilities.has(Capabilities::EXTENDED_METADATA) {
        field::string(&mut body)?;
    }
    let [_, a, b, _, _, _, _, number, c, d] = field::bytes(&mut body)?;
    let (characters, flags) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    Some(Column { name, type_name: value::type_name(number, flags & UNSIGNED != 0, characters == BINARY) })
}

/// COM_STMT_PREPARE is done: the statement's number, its columns, its parameters, warnings, and whether definitions follow.
pub(super) fn prepared(body: &[u8], capabilities: Capabilities) -> Option<(u32, u16, u16, u16, bool)> {
    let mut body = body.get(1..)?;
    let number = u32::from_le_bytes(field::bytes(&mut body)?);
    let columns = u16::from_le_bytes(field::bytes(&mut body)?);
    let parameters = u16::from_le_bytes(field::bytes(&mut body)?);
    let [_, low, high] = field::bytes(&mut body).unwrap_or_default();
    let follow =
        !capabilities.has(Capabilities::OPTIONAL_METADATA) || body.first().is_none_or(|follow| *follow != 0);
    Some((number, columns, parameters, u16::from_le_bytes([low, high]), follow))
}

/// Reads one packet after the other.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct AnswerReader {
    first: Option<u8>,
    keep: usize,
    prefix: Vec<u8>,
    hole: bool,
}

impl AnswerReader {
    /// Begins a packet.
    pub(super) fn start(&mut self) {
        (self.first, self.keep, self.hole) = (None, 0, false);
        self.prefix.clear();
        self.prefix.shrink_to(4 << 10);
    }

    /// The next piece of its payload, never empty. `keep`: how much matters of a packet that begins with this byte.
    #[inline]
    pub(super) fn piece(&mut self, piece: &[u8], keep: impl FnOnce(u8) -> usize) {
        if self.first.is_none() && !self.hole {
            self.first = piece.first().copied();
            self.keep = self.first.map_or(0, keep);
        }
        let room = self.keep.saturating_sub(self.prefix.len()).min(piece.len());
        if room > 0 && !self.hole {
            self.prefix.extend_from_slice(&piece[..room]);
        }
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        self.prefix.len()
    }

    /// Bytes of the payload were lost. `true`: among them the first, so that it is not known what the packet is.
    pub(super) fn hole(&mut self) -> bool {
        self.hole |= self.first.is_none() || self.prefix.len() < self.keep;
        self.first.is_none()
    }

    /// Ends the packet.
    pub(super) fn end(&self, head: Head) -> Answer<'_> {
        Answer { head, first: self.first, body: &self.prefix, hole: self.hole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Boottime;

    const NEW: Capabilities =
        Capabilities(Capabilities::PROTOCOL_41 | Capabilities::DEPRECATE_EOF | Capabilities::SESSION_TRACK);
    const OLD: Capabilities = Capabilities(Capabilities::PROTOCOL_41);

    fn answer(body: &[u8]) -> Answer<'_> {
        let first = u32::try_from(body.len()).unwrap();
        let head = Head { sequence: 1, first, started: Boottime(0), size: u64::from(first) + 4 };
        Answer { head, first: body.first().copied(), body, hole: false }
    }

    #[test]
    fn both_styles_of_the_end_are_read() {
        let old = Done::read(answer(b"\xfe\x02\0\x01\0"), OLD);
        assert_eq!((old.warnings, old.status, old.affected), (2, 1, 0));
        let new = Done::read(answer(b"\xfe\x03\0\x08\0\x02\0"), NEW);
        assert_eq!((new.affected, new.status, new.warnings), (3, 8, 2));
        assert!(new.goes_on() && new.transaction() == 'I' && old.transaction() == 'T');
        let long = answer(b"\xfe\x01\x02\x03\x04\x05\x06\x07\x08");
        assert!(!long.is_end(OLD) && long.is_end(NEW));
    }

    #[test]
    fn the_session_tells_of_its_database() {
        let changes = b"\0\0\0\x02\x40\0\0\0\x0b\x01\x05\x04shop\x02\0";
        assert_eq!(Done::read(answer(changes), NEW).database.as_deref(), None, "a list that is cut");
        let changes = b"\0\0\0\x02\x40\0\0\0\x0a\x01\x05\x04shop\x02\x01\x30";
        assert_eq!(Done::read(answer(changes), NEW).database.as_deref(), Some("shop"));
    }

    #[test]
    fn errors_have_a_sqlstate_or_a_number() {
        let found = error(b"\xff\x7a\x04#42S02Table 'x' doesn't exist").unwrap();
        assert_eq!((found.code.as_str(), found.message.as_str()), ("42S02", "Table 'x' doesn't exist"));
        assert_eq!(found.severity, "ERROR 1146");
        assert_eq!(error(b"\xff\x10\x04Too many connections").unwrap().code, "1040");
        assert_eq!(error(b"\xff\xff\xff\x01\x02\x03"), None);
    }

    #[test]
    fn columns_have_names_and_types() {
        let body = b"\x03def\x01d\x01t\x01t\x02id\x02id\x0c\x3f\0\x0b\0\0\0\x03\x21\0\0\0\0";
        let found = column(body, OLD).unwrap();
        assert_eq!((found.name.as_str(), found.type_name.as_str()), ("id", "int unsigned"));
        assert_eq!(column(&body[..12], OLD), None);
    }
}
