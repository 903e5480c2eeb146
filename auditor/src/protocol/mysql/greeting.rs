//! The server's first packet: the greeting, or an error instead of one; and telling MySQL by it.

use super::capability::Capabilities;
use super::field;
use crate::protocol::{Detection, First};

/// A greeting's protocol version.
const VERSION: u8 = 10;
/// An error instead of a greeting.
const ERROR: u8 = 0xff;
/// No server says more of its version.
const MAX_SERVER_VERSION: usize = 128;
/// Server errors, which are the only ones that come before a login: too many connections, host blocked, not allowed, shutting down.
const ERRORS: std::ops::RangeInclusive<u16> = 1000..=4999;

/// What a server says of itself.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Greeting {
    pub(super) offered: Capabilities,
}

/// Whether a server's first bytes are those of MySQL or MariaDB: a short packet with number zero that holds protocol version 10, a
/// printable version of the server and zeros where they must be, or an error of the server's. A client that speaks before the
/// server does is the same if the server then says this; until then it must look as if it answered a greeting.
pub fn detect(first: First<'_>) -> Detection {
    let server = first.server;
    if server.is_empty() {
        return early_client(first.client);
    }
    let [low, middle, high, sequence, kind, rest @ ..] = server else {
        let expected: [&dyn Fn(u8) -> bool; 4] =
            [&|_| true, &|byte| byte < 4, &|byte| byte == 0, &|byte| byte == 0];
        let fits = server.iter().zip(expected).all(|(byte, expected)| expected(*byte));
        return if fits { Detection::Incomplete } else { Detection::No };
    };
    let length = usize::from(u16::from_le_bytes([*low, *middle]));
    if *high != 0 || *sequence != 0 || !(5..=super::GREETING_BYTES).contains(&length) {
        return Detection::No;
    }
    match *kind {
        VERSION => version(rest, length),
        ERROR => error(rest),
        _ => Detection::No,
    }
}

/// The version's text, the connection's number, eight bytes to sign, and a zero.
fn version(rest: &[u8], length: usize) -> Detection {
    let text = &rest[..rest.len().min(MAX_SERVER_VERSION)];
    let end = memchr::memchr(0, text);
    let text = &text[..end.unwrap_or(text.len())];
    if !text.iter().all(|byte| matches!(byte, b' '..=b'~')) || text.len() == MAX_SERVER_VERSION {
        return Detection::No;
    }
    match end.map(|end| (end, rest.get(end + 13))) {
        None | Some((_, None)) => Detection::Incomplete,
        Some((end @ 1.., Some(0))) if length >= end + 15 => Detection::Yes(()),
        Some(_) => Detection::No,
    }
}

/// The error's number, then a SQLSTATE behind '#', or the message at once.
fn error(rest: &[u8]) -> Detection {
    match rest {
        [low, high, text @ ..] if ERRORS.contains(&u16::from_le_bytes([*low, *high])) => match text {
            [] => Detection::Incomplete,
            [b'#' | b'A'..=b'Z' | b'\'', ..] => Detection::Yes(()),
            _ => Detection::No,
        },
        [_, _, ..] => Detection::No,
        _ => Detection::Incomplete,
    }
}

/// An answer to a greeting has number one, and flags for the protocol of this century.
fn early_client(client: &[u8]) -> Detection {
    let fits = |at: usize, fits: &dyn Fn(u8) -> bool| client.get(at).is_none_or(|byte| fits(*byte));
    let flags = |byte: u8| u64::from(byte) & (Capabilities::PROTOCOL_41 >> 8) != 0;
    let plausible = fits(1, &|byte| byte < 4)
        && fits(2, &|byte| byte == 0)
        && fits(3, &|byte| byte == 1)
        && fits(5, &flags);
    if plausible { Detection::Incomplete } else { Detection::No }
}

impl Greeting {
    /// Reads the payload behind its first byte, the protocol version. `None`: it is too short.
    pub(super) fn read(mut payload: &[u8]) -> Option<Self> {
        let end = memchr::memchr(0, payload)?;
        payload = &payload[end + 1..];
        let [_, _, _, _, _, _, _, _, _, _, _, _, _] = field::bytes(&mut payload)?;
        let low: [u8; 2] = field::bytes(&mut payload)?;
        // Character set and state.
        let [_, _, _] = field::bytes(&mut payload).unwrap_or_default();
        let high: [u8; 2] = field::bytes(&mut payload).unwrap_or_default();
        let mut flags = u64::from(u32::from_le_bytes([low[0], low[1], high[0], high[1]]));
        if flags & Capabilities::MYSQL == 0 {
            // A length, six zeros, and MariaDB's flags.
            let [_, _, _, _, _, _, _] = field::bytes(&mut payload).unwrap_or_default();
            flags |= u64::from(u32::from_le_bytes(field::bytes(&mut payload).unwrap_or_default())) << 32;
        }
        Some(Self { offered: Capabilities(flags) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MariaDB 10.11, the bytes to sign made up.
    const GREETING: &[u8] =
        b"\x5e\0\0\0\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\0\x04\0\0\0aaaaaaaa\0\xfe\xf7\x2d\x02\0\xff\x81\
        \x15\0\0\0\0\0\0\x1d\0\0\0bbbbbbbbbbbb\0mysql_native_password\0";

    fn server(server: &[u8]) -> Detection {
        detect(First { client: b"", server })
    }

    #[test]
    fn a_greeting_tells_the_protocol() {
        assert_eq!(server(GREETING), Detection::Yes(()));
        for end in 0..GREETING.len() {
            assert_ne!(server(&GREETING[..end]), Detection::No, "{end} bytes");
        }
        let greeting = Greeting::read(&GREETING[5..]).unwrap();
        assert!(
            greeting.offered.has(Capabilities::DEPRECATE_EOF)
                && greeting.offered.has(Capabilities::CACHE_METADATA)
        );
        assert!(!greeting.offered.has(Capabilities::QUERY_ATTRIBUTES));
        assert_eq!(Greeting::read(&GREETING[5..50]), None);
    }

    #[test]
    fn so_does_an_error_instead_of_it() {
        assert_eq!(server(b"\x17\0\0\0\xff\x10\x04Too many connections"), Detection::Yes(()));
        assert_eq!(server(b"\x1d\0\0\0\xff\x10\x04#08004Too many connections"), Detection::Yes(()));
        assert_eq!(server(b"\x17\0\0\0\xff\x00\x00Too many connections"), Detection::No);
    }

    #[test]
    fn other_servers_that_speak_first_are_not_it() {
        for other in [
            &b"220 mail.example.com ESMTP\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"+OK ready\r\n",
            b"\x0a\0\0\0\x09old",
            b"\x5e\0\0\0\x0a\x01\x02",
            b"\x5e\0\0\x01\x0a5",
        ] {
            assert_eq!(server(other), Detection::No, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_client_that_cannot_wait_is_waited_for() {
        let early = |client: &[u8]| detect(First { client, server: b"" });
        assert_eq!(early(b"\x20\0\0\x01\x85\xa6\xff\x19"), Detection::Incomplete);
        assert_eq!(early(b"GET / HTTP/1.1\r\n"), Detection::No);
        assert_eq!(early(b"\0\0\0\x08\x04\xd2\x16\x2f"), Detection::No);
        assert_eq!(detect(First { client: b"x", server: GREETING }), Detection::Yes(()));
    }
}
