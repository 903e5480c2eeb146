//! What a client sends before messages have type bytes: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
//!
//! Keeps at most one packet of the size that PostgreSQL itself accepts. The secret key of a CancelRequest is counted and
//! never stored. Refuses protocol 2, packets that the server would refuse, and nothing else: an unknown minor version is the
//! server's to negotiate.

use crate::clock::Boottime;
use crate::protocol::{Detection, Login};

/// The longest start-up packet that a PostgreSQL server reads.
pub(super) const MAX_PACKET: u32 = 10_000;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
/// CancelRequest: length, code and process; then 4 to 256 bytes of secret key.
const CANCEL_HEAD: u32 = 12;
/// Start-up parameters whose names say that the value is nobody's business.
const SECRET_WORDS: [&str; 4] = ["password", "passwd", "secret", "token"];

/// A start-up packet.
#[derive(Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Packet {
    /// StartupMessage.
    Startup {
        /// Who the client says it is.
        login: Login,
        /// Whether it asks for the replication sub-protocol.
        replication: Replication,
    },
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    GssEnc,
    /// CancelRequest for a server process.
    Cancel {
        /// Process id as BackendKeyData had it.
        process: u32,
        /// Bytes of the whole packet.
        size: u64,
        /// When its first byte passed.
        started: Boottime,
    },
    /// Not a packet that a server would read.
    Invalid(String),
}

/// The start-up parameter `replication`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Replication {
    /// An ordinary session.
    #[default]
    None,
    /// `replication=true`: replication commands only.
    Physical,
    /// `replication=database`: replication commands and SQL.
    Logical,
}

/// Gathers one start-up packet.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct StartupReader {
    kept: Vec<u8>,
    skip: u32,
    started: Boottime,
}

/// Whether these are the first bytes of a PostgreSQL client. Eight bytes decide: a length that fits and a known code.
pub fn detect(first: &[u8]) -> Detection {
    let fits = |at: usize, range: std::ops::RangeInclusive<u8>| {
        first.get(at).is_none_or(|byte| range.contains(byte))
    };
    // No packet is longer than MAX_PACKET, so the length begins with two zeros; codes begin with 3.x or 1234.
    if !(fits(0, 0..=0) && fits(1, 0..=0)) {
        return Detection::No;
    }
    let [a, b, c, d, e, f, g, h, ..] = *first else {
        let possible = match first.get(4..6) {
            Some(&[high, low]) => matches!((high, low), (0, 3) | (0x04, 0xd2)),
            _ => true,
        };
        return if possible { Detection::Incomplete } else { Detection::No };
    };
    let (length, code) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    if plausible(length, code).is_ok() { Detection::Yes(()) } else { Detection::No }
}

/// Whether a server would read on after these eight bytes.
fn plausible(length: u32, code: u32) -> Result<(), String> {
    let lengths = match code {
        SSL_REQUEST | GSSENC_REQUEST => 8..=8,
        CANCEL_REQUEST => CANCEL_HEAD + 4..=CANCEL_HEAD + 256,
        _ if code >> 16 == 3 => 9..=MAX_PACKET,
        _ => {
            return Err(format!("unknown protocol version or request code {}.{}", code >> 16, code & 0xffff));
        }
    };
    if lengths.contains(&length) { Ok(()) } else { Err(format!("start-up packet of {length} bytes")) }
}

impl StartupReader {
    /// Reads on; consumes from `input` up to the end of the packet and no further.
    pub(super) fn read(&mut self, input: &mut &[u8], at: Boottime) -> Option<Packet> {
        if self.kept.is_empty() {
            self.started = at;
        }
        self.gather(8, input)?;
        let &[a, b, c, d, e, f, g, h, ..] = self.kept.as_slice() else { return None };
        let (length, code) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        if let Err(reason) = plausible(length, code) {
            return Some(Packet::Invalid(reason));
        }
        let packet = match code {
            SSL_REQUEST => Packet::Ssl,
            GSSENC_REQUEST => Packet::GssEnc,
            CANCEL_REQUEST => self.cancel(length, input)?,
            _ => {
                self.gather(usize::try_from(length).unwrap_or(usize::MAX), input)?;
                startup(&self.kept[8..])
            }
        };
        *self = Self::default();
        Some(packet)
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        self.kept.len()
    }

    /// Makes `kept` hold the packet's first `wanted` bytes.
    fn gather(&mut self, wanted: usize, input: &mut &[u8]) -> Option<()> {
        let missing = wanted.saturating_sub(self.kept.len()).min(input.len());
        let (piece, rest) = input.split_at(missing);
        self.kept.extend_from_slice(piece);
        *input = rest;
        (self.kept.len() >= wanted).then_some(())
    }

    fn cancel(&mut self, length: u32, input: &mut &[u8]) -> Option<Packet> {
        self.gather(12, input)?;
        // The secret key lets anybody cancel this session's statements: it is stepped over.
        let missing =
            usize::try_from(length - CANCEL_HEAD - self.skip).unwrap_or(usize::MAX).min(input.len());
        *input = &input[missing..];
        self.skip += u32::try_from(missing).unwrap_or(0);
        if self.skip < length - CANCEL_HEAD {
            return None;
        }
        let &[.., a, b, c, d] = self.kept.as_slice() else { return None };
        let process = u32::from_be_bytes([a, b, c, d]);
        Some(Packet::Cancel { process, size: u64::from(length), started: self.started })
    }
}

/// The parameters of a StartupMessage: pairs of strings, then a zero byte. Where a name comes twice the last one counts, as
/// it does for the server.
fn startup(mut body: &[u8]) -> Packet {
    let mut login = Login::default();
    let mut replication = Replication::None;
    loop {
        let Some(name) = string(&mut body) else {
            return Packet::Invalid("start-up parameters without end".into());
        };
        if name.is_empty() {
            break;
        }
        let Some(value) = string(&mut body) else {
            return Packet::Invalid("start-up parameter without value".into());
        };
        match name.as_str() {
            "user" => login.user = Some(value),
            "database" => login.database = Some(value),
            "application_name" => login.application = Some(value),
            _ => {
                if name == "replication" {
                    replication = Replication::of(&value);
                }
                let lower = name.to_ascii_lowercase();
                let secret = SECRET_WORDS.iter().any(|word| lower.contains(word));
                login.parameters.push((name, if secret { "(not kept)".into() } else { value }));
            }
        }
    }
    if !body.is_empty() {
        return Packet::Invalid(format!("{} bytes after the start-up parameters", body.len()));
    }
    // The protocol's own rule, not a guess: the database defaults to the user's name.
    if login.database.as_ref().is_none_or(String::is_empty) && replication != Replication::Physical {
        login.database = login.user.clone();
    }
    Packet::Startup { login, replication }
}

impl Replication {
    /// Reads the value as the server does: `database`, or a boolean in any of its spellings and their prefixes.
    fn of(value: &str) -> Self {
        let value = value.trim().to_ascii_lowercase();
        let prefix_of = |word: &str| !value.is_empty() && word.starts_with(&value);
        if value == "database" {
            Self::Logical
        } else if prefix_of("true") || prefix_of("yes") || value == "on" || value == "1" {
            Self::Physical
        } else {
            Self::None
        }
    }
}

fn string(body: &mut &[u8]) -> Option<String> {
    let end = body.iter().position(|&byte| byte == 0)?;
    let text = String::from_utf8_lossy(&body[..end]).into_owned();
    *body = &body[end + 1..];
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    fn read(bytes: &[u8]) -> Option<Packet> {
        let mut whole = bytes;
        let at_once = StartupReader::default().read(&mut whole, Boottime(1));
        let mut reader = StartupReader::default();
        let piecewise =
            bytes.iter().find_map(|byte| reader.read(&mut std::slice::from_ref(byte), Boottime(1)));
        assert_eq!(at_once, piecewise, "cut into bytes");
        at_once
    }

    fn login(body: &[u8]) -> Login {
        match read(&packet(196_608, body)) {
            Some(Packet::Startup { login, .. }) => login,
            other => panic!("not a start-up: {other:?}"),
        }
    }

    #[test]
    fn the_login_is_read() {
        let login = login(b"user\0ann\0database\0shop\0application_name\0cli\0client_encoding\0UTF8\0\0");
        assert_eq!(login.user.as_deref(), Some("ann"));
        assert_eq!(login.database.as_deref(), Some("shop"));
        assert_eq!(login.application.as_deref(), Some("cli"));
        assert_eq!(login.parameters, [("client_encoding".into(), "UTF8".into())]);
    }

    #[test]
    fn the_database_defaults_to_the_user_and_the_last_of_two_counts() {
        assert_eq!(login(b"user\0good\0user\0evil\0\0").database.as_deref(), Some("evil"));
    }

    #[test]
    fn a_secret_looking_parameter_is_not_kept() {
        assert_eq!(
            login(b"user\0a\0my_Token\0abc\0\0").parameters,
            [("my_Token".into(), "(not kept)".into())]
        );
    }

    #[test]
    fn replication_is_told_as_the_server_reads_it() {
        for (value, expected) in [
            ("true", Replication::Physical),
            ("T", Replication::Physical),
            ("on", Replication::Physical),
            ("1", Replication::Physical),
            ("database", Replication::Logical),
            ("false", Replication::None),
            ("", Replication::None),
        ] {
            let body = format!("user\0a\0replication\0{value}\0\0");
            let Some(Packet::Startup { replication, .. }) = read(&packet(196_610, body.as_bytes())) else {
                panic!()
            };
            assert_eq!(replication, expected, "{value}");
        }
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(read(&packet(SSL_REQUEST, b"")), Some(Packet::Ssl));
        assert_eq!(read(&packet(GSSENC_REQUEST, b"")), Some(Packet::GssEnc));
    }

    #[test]
    fn a_cancel_request_has_keys_of_any_length() {
        for key in [4, 32, 256] {
            let bytes = packet(CANCEL_REQUEST, &[&4711_u32.to_be_bytes()[..], &vec![9; key]].concat());
            let size = bytes.len() as u64;
            assert_eq!(read(&bytes), Some(Packet::Cancel { process: 4711, size, started: Boottime(1) }));
        }
    }

    #[test]
    fn what_a_server_would_refuse_is_refused() {
        for bytes in [
            packet(131_072, b"user\0a\0\0"),
            packet(196_608, b"user\0a\0\0x"),
            packet(196_608, b"user\0a\0"),
            packet(196_608, b"user\0\0"),
            packet(SSL_REQUEST, b"x"),
            packet(CANCEL_REQUEST, b"1234"),
            packet(196_608, &[b'a'; 10_000]),
        ] {
            assert!(matches!(read(&bytes), Some(Packet::Invalid(_))), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn detection_needs_eight_bytes() {
        let bytes = packet(196_608, b"user\0a\0\0");
        for end in 0..8 {
            assert_eq!(detect(&bytes[..end]), Detection::Incomplete, "{end} bytes");
        }
        assert_eq!(detect(&bytes[..8]), Detection::Yes(()));
        assert_eq!(detect(&packet(CANCEL_REQUEST, b"12345678")), Detection::Yes(()));
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02",
            b"PRI * HTTP/2.0",
            b"\0\0\0\x09\0\x02\0\0",
            b"\0\0\0\x08\x01",
        ] {
            assert_ne!(detect(other), Detection::Yes(()), "{}", other.escape_ascii());
        }
        assert_eq!(detect(b"\0\0\0\x10\x01\x02"), Detection::No);
    }
}
