//! The server's messages, as far as they say how a request ended.
//!
//! Only the first bytes of messages that matter are kept: rows, COPY data, notifications, authentication and
//! BackendKeyData (the cancel key) are stepped over. A body that is cut short by a bound or a hole yields what was there.

use super::frame::Head;
use super::value;
use crate::protocol::{Column, CommandResult, Limits, ServerError};

/// Columns kept of one result.
const MAX_COLUMNS: usize = 128;
/// The longest tag that PostgreSQL writes has 64 bytes.
const TAG_BYTES: usize = 256;
const ERROR_BYTES: usize = 8 << 10;
const NOTICE_BYTES: usize = 2 << 10;
const PARAMETER_STATUS_BYTES: usize = 1 << 10;
const COLUMN_BYTES: usize = 64 << 10;
/// A count, and as many OIDs as it can count.
const TYPES_BYTES: usize = 2 + 4 * 0xffff;

/// Reads one server message after the other.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct ResponseReader {
    limits: Limits,
    keep: usize,
    prefix: Vec<u8>,
    hole: bool,
}

/// What is known of one server message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response<'a> {
    /// Type and size.
    pub(super) head: Head,
    /// The first bytes of its body.
    pub(super) body: &'a [u8],
    /// Whether a hole fell into what would have been kept.
    pub(super) hole: bool,
}

impl ResponseReader {
    /// For one connection.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, keep: 0, prefix: Vec::new(), hole: false }
    }

    /// Begins a message; `false` if there is no such message.
    pub(super) fn start(&mut self, head: Head) -> bool {
        self.hole = false;
        self.prefix.clear();
        self.prefix.shrink_to(ERROR_BYTES);
        self.keep = match head.kind {
            b'D' | b'd' => 0,
            b'C' => TAG_BYTES,
            b'Z' => 1,
            b'R' => 4,
            b'E' => ERROR_BYTES,
            b'N' => NOTICE_BYTES,
            b'S' => PARAMETER_STATUS_BYTES,
            b'T' if self.limits.columns => COLUMN_BYTES,
            b't' if self.limits.parameters => TYPES_BYTES,
            b'1' | b'2' | b'3' | b'A' | b'G' | b'H' | b'I' | b'K' | b'T' | b'V' | b'W' => 0,
            b'c' | b'n' | b's' | b't' | b'v' => 0,
            _ => return false,
        };
        true
    }

    /// The next piece of its body.
    pub(super) fn piece(&mut self, piece: &[u8]) {
        let room = self.keep.saturating_sub(self.prefix.len()).min(piece.len());
        if room > 0 && !self.hole {
            self.prefix.extend_from_slice(&piece[..room]);
        }
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        self.prefix.len()
    }

    /// Bytes of the body were lost; `true` if they would have been kept.
    pub(super) fn hole(&mut self) {
        self.hole |= self.prefix.len() < self.keep;
    }

    /// Ends the message.
    pub(super) fn end(&self, head: Head) -> Response<'_> {
        Response { head, body: &self.prefix, hole: self.hole }
    }
}

/// ErrorResponse and NoticeResponse: severity, SQLSTATE and primary message.
pub(super) fn error(mut body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    let mut localised = String::new();
    while let Some((&field, rest)) = body.split_first() {
        if field == 0 {
            break;
        }
        let end = rest.iter().position(|&byte| byte == 0);
        let text = || String::from_utf8_lossy(&rest[..end.unwrap_or(rest.len())]).into_owned();
        match field {
            b'V' => error.severity = text(),
            b'S' => localised = text(),
            b'C' => error.code = text(),
            b'M' => error.message = text(),
            _ => {}
        }
        body = end.and_then(|end| rest.get(end + 1..)).unwrap_or_default();
    }
    if error.severity.is_empty() {
        // Servers before 9.6 send nothing else.
        error.severity = localised;
    }
    error
}

/// CommandComplete: the tag, whose last word is the number of rows where it has one.
pub(super) fn command(body: &[u8]) -> CommandResult {
    let end = body.iter().position(|&byte| byte == 0).unwrap_or(body.len());
    let tag = String::from_utf8_lossy(&body[..end]).into_owned();
    let rows = tag.rsplit_once(' ').and_then(|(_, last)| last.parse().ok());
    CommandResult { tag, rows }
}

/// RowDescription: for each column its name, 18 bytes of which the type's OID begins at the seventh.
pub(super) fn columns(body: &[u8]) -> Vec<Column> {
    let mut columns = Vec::new();
    let Some((&[high, low], mut rest)) = body.split_first_chunk() else { return columns };
    for _ in 0..usize::from(u16::from_be_bytes([high, low])).min(MAX_COLUMNS) {
        let Some(end) = rest.iter().position(|&byte| byte == 0) else { break };
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let Some((field, next)) = rest[end + 1..].split_first_chunk::<18>() else { break };
        let oid = u32::from_be_bytes([field[6], field[7], field[8], field[9]]);
        columns.push(Column { name, type_name: value::type_name(oid) });
        rest = next;
    }
    columns
}

/// ParameterDescription: the parameters' types by OID.
pub(super) fn types(body: &[u8]) -> Vec<u32> {
    let oids = body.get(2..).unwrap_or_default().chunks_exact(4);
    oids.map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]])).collect()
}

/// ParameterStatus: name and value.
pub(super) fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut strings = body.split(|&byte| byte == 0);
    let (name, value) = (strings.next()?, strings.next()?);
    // Without the last zero byte the value may have been cut.
    strings.next().map(|_| (name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_untranslated_severity() {
        let body = b"SFEHLER\0VERROR\0C42P01\0Mrelation \"x\" does not exist\0Fparse.c\0\0";
        let expected = ServerError {
            code: "42P01".into(),
            severity: "ERROR".into(),
            message: "relation \"x\" does not exist".into(),
        };
        assert_eq!(error(body), expected);
        assert_eq!(error(b"SERROR\0C42P01\0Mcut he").message, "cut he");
        assert_eq!(error(b"SPANIC\0\0").severity, "PANIC");
        assert_eq!(error(b""), ServerError::default());
    }

    #[test]
    fn tags_count_rows_where_they_do() {
        for (tag, rows) in [
            ("INSERT 0 3", Some(3)),
            ("SELECT 12", Some(12)),
            ("COPY 100000", Some(100_000)),
            ("MERGE 2", Some(2)),
            ("CREATE TABLE", None),
            ("BEGIN", None),
            ("DEALLOCATE ALL", None),
            ("", None),
        ] {
            let found = command(&[tag.as_bytes(), b"\0"].concat());
            assert_eq!((found.tag.as_str(), found.rows), (tag, rows));
        }
    }

    #[test]
    fn columns_have_names_and_types() {
        let mut body = b"\0\x03".to_vec();
        for (name, oid) in [("id", 23_u32), ("custom", 99_999)] {
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"\0\0\0\0\0\0\0");
            body.extend_from_slice(&oid.to_be_bytes());
            body.extend_from_slice(&[0; 8]);
        }
        let found = columns(&body);
        let found: Vec<_> =
            found.iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
        assert_eq!(found, [("id", "int4"), ("custom", "99999")]);
    }

    #[test]
    fn a_cut_parameter_status_is_not_believed() {
        assert_eq!(parameter_status(b"a\0b\0"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(parameter_status(b"a\0b"), None);
    }
}
