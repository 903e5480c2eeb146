//! ClientHello and ServerHello (RFC 8446 §4.1, RFC 6066 §3, RFC 7301): the handshake's two messages that nobody encrypts.
//!
//! Follows both directions from the first byte that must be TLS (after a protocol's own request for encryption, or from
//! the connection's beginning) up to one hello each, and looks at nothing behind it. Sans-IO: bytes may be cut anywhere.
//! Keeps at most one message of [`LONGEST`] bytes a side, and forgets it once it was read.
//!
//! Everything is hostile. Bytes that are no TLS handshake at all are a [`Hello::violation`]: two ends that agreed on TLS and
//! speak in the clear hide from whoever stops reading there. A hello that is TLS and does not parse, or is too long, says
//! nothing. Not told apart: a HelloRetryRequest, which names the same version and cipher as the ServerHello that follows.

use crate::interned::Name;
use crate::protocol::Side;
use crate::record::Tls;

/// Longer hellos are stepped over. Post-quantum key shares make for about 2 KiB.
pub const LONGEST: usize = 8 << 10;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// The longest record in the clear, RFC 8446 §5.1.
const LONGEST_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// What the beginning of a TLS connection says.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Hello {
    client: Flight,
    server: Flight,
    tls: Tls,
    seen: bool,
    #[serde(with = "crate::interned::option")]
    violation: Option<Name>,
}

impl Hello {
    /// Begins where TLS must begin.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of one direction.
    pub fn bytes(&mut self, side: Side, bytes: &[u8]) {
        let (flight, wanted) = match side {
            Side::Client => (&mut self.client, CLIENT_HELLO),
            Side::Server => (&mut self.server, SERVER_HELLO),
        };
        match flight.read(bytes, wanted) {
            None => {}
            Some(Found::Hello(message)) => {
                let body = message.get(MESSAGE_HEADER..).unwrap_or_default();
                let read = match side {
                    Side::Client => client_hello(body, &mut self.tls),
                    Side::Server => server_hello(body, &mut self.tls),
                };
                self.seen |= read.is_some();
            }
            Some(Found::NotTls) => {
                self.violation.get_or_insert(match side {
                    Side::Client => "the client's bytes are in the clear where TLS was agreed on",
                    Side::Server => "the server's bytes are in the clear where TLS was agreed on",
                });
            }
        }
    }

    /// Bytes kept of hellos that are not whole yet.
    pub fn memory(&self) -> usize {
        self.client.message.len() + self.server.message.len()
    }

    /// Bytes of one direction were lost here: its hello, if it was not over, is not read.
    pub fn gap(&mut self, side: Side) {
        match side {
            Side::Client => self.client.over(),
            Side::Server => self.server.over(),
        }
    }

    /// What has been learnt so far, once a hello was read. The version and the cipher are the server's choice.
    pub fn seen(&self) -> Option<&Tls> {
        self.seen.then_some(&self.tls)
    }

    /// Why this is not TLS, once that is plain.
    pub fn violation(&self) -> Option<&'static str> {
        self.violation
    }
}

/// One direction up to the end of its first handshake message.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Flight {
    header: Vec<u8>,
    /// Bytes to come of the record that was begun.
    left: usize,
    message: Vec<u8>,
    over: bool,
}

enum Found {
    Hello(Vec<u8>),
    NotTls,
}

impl Flight {
    fn over(&mut self) {
        *self = Self { over: true, ..Self::default() };
    }

    fn read(&mut self, mut bytes: &[u8], wanted: u8) -> Option<Found> {
        while !self.over && !bytes.is_empty() {
            let read =
                if self.left == 0 { self.header(&mut bytes, wanted) } else { self.body(&mut bytes, wanted) };
            if read.is_some() {
                self.over();
                return read;
            }
        }
        None
    }

    /// `struct { ContentType type; ProtocolVersion legacy_record_version; uint16 length; } TLSPlaintext`
    fn header(&mut self, bytes: &mut &[u8], wanted: u8) -> Option<Found> {
        let byte = byte(bytes)?;
        let fits = match self.header.len() {
            // A server that wants none of it answers with an alert.
            0 => byte == HANDSHAKE || byte == ALERT && wanted == SERVER_HELLO,
            1 => byte == 3,
            _ => true,
        };
        if !fits {
            return Some(Found::NotTls);
        }
        self.header.push(byte);
        let &[kind, _, _, high, low] = self.header.as_slice() else { return None };
        debug_assert_eq!(self.header.len(), RECORD_HEADER);
        self.left = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=LONGEST_RECORD).contains(&self.left) {
            return Some(Found::NotTls);
        }
        self.header.clear();
        if kind == ALERT {
            self.over();
        }
        None
    }

    /// `struct { HandshakeType msg_type; uint24 length; … } Handshake`, over as many records as it takes.
    fn body(&mut self, bytes: &mut &[u8], wanted: u8) -> Option<Found> {
        let length = match *self.message {
            [_, a, b, c, ..] => {
                MESSAGE_HEADER + usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX)
            }
            _ => MESSAGE_HEADER,
        };
        let piece = take(bytes, self.left.min(length - self.message.len()).min(bytes.len()))?;
        self.message.extend_from_slice(piece);
        self.left -= piece.len();
        match *self.message {
            [kind, ..] if kind != wanted => Some(Found::NotTls),
            [_, a, b, c, ref body @ ..] => {
                let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
                if length > LONGEST {
                    self.over();
                    return None;
                }
                (body.len() == length).then(|| Found::Hello(std::mem::take(&mut self.message)))
            }
            _ => None,
        }
    }
}

/// RFC 8446 §4.1.2.
fn client_hello(mut body: &[u8], tls: &mut Tls) -> Option<()> {
    let legacy = number(&mut body)?;
    let _random = take(&mut body, 32)?;
    let _session = short(&mut body)?;
    let _ciphers = long(&mut body)?;
    let _compression = short(&mut body)?;
    // Without extensions, or where they do not say, the old field is what is offered.
    let mut offered = Some(legacy);
    extensions(body, |kind, mut data| {
        match kind {
            SERVER_NAME => tls.sni = server_name(data),
            ALPN => tls.alpn = protocols(data)?,
            SUPPORTED_VERSIONS => {
                let versions = short(&mut data)?;
                let versions = versions.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                offered = versions.filter(|version| known_version(*version).is_some()).max();
            }
            _ => {}
        }
        Some(())
    })?;
    tls.offered = offered.map(version_name);
    Some(())
}

/// RFC 8446 §4.1.3.
fn server_hello(mut body: &[u8], tls: &mut Tls) -> Option<()> {
    let mut version = number(&mut body)?;
    let _random = take(&mut body, 32)?;
    let _session = short(&mut body)?;
    let cipher = number(&mut body)?;
    let _compression = byte(&mut body)?;
    extensions(body, |kind, mut data| {
        if kind == SUPPORTED_VERSIONS {
            version = number(&mut data)?;
        }
        Some(())
    })?;
    tls.version = Some(version_name(version));
    tls.cipher = Some(cipher_name(cipher));
    Some(())
}

/// Gives each extension to `visit`; a message may end without any.
fn extensions(mut rest: &[u8], mut visit: impl FnMut(u16, &[u8]) -> Option<()>) -> Option<()> {
    if rest.is_empty() {
        return Some(());
    }
    let mut list = long(&mut rest)?;
    while !list.is_empty() {
        let kind = number(&mut list)?;
        visit(kind, long(&mut list)?)?;
    }
    Some(())
}

/// RFC 6066 §3: a list of names by type, of which only host names exist.
fn server_name(mut data: &[u8]) -> Option<String> {
    let mut list = long(&mut data)?;
    let kind = byte(&mut list)?;
    let name = long(&mut list)?;
    (kind == 0).then(|| text(name))
}

/// RFC 7301 §3.1.
fn protocols(mut data: &[u8]) -> Option<Vec<String>> {
    let mut list = long(&mut data)?;
    let mut names = Vec::new();
    while !list.is_empty() {
        names.push(text(short(&mut list)?));
    }
    Some(names)
}

/// Both kinds of names are ASCII where they are meant well.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn known_version(version: u16) -> Option<&'static str> {
    Some(match version {
        0x0300 => "SSL 3.0",
        0x0301 => "1.0",
        0x0302 => "1.1",
        0x0303 => "1.2",
        0x0304 => "1.3",
        _ => return None,
    })
}

fn version_name(version: u16) -> String {
    known_version(version).map_or_else(|| format!("0x{version:04x}"), str::to_owned)
}

/// IANA's names of what is in use today; any other by its number.
fn cipher_name(cipher: u16) -> String {
    let name = match cipher {
        0x1301 => "TLS_AES_128_GCM_SHA256",
        0x1302 => "TLS_AES_256_GCM_SHA384",
        0x1303 => "TLS_CHACHA20_POLY1305_SHA256",
        0x1304 => "TLS_AES_128_CCM_SHA256",
        0x1305 => "TLS_AES_128_CCM_8_SHA256",
        0x009c => "TLS_RSA_WITH_AES_128_GCM_SHA256",
        0x009d => "TLS_RSA_WITH_AES_256_GCM_SHA384",
        0xc02b => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        0xc02c => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        0xc02f => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        0xc030 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        0xcca8 => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca9 => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        other => return format!("0x{other:04x}"),
    };
    name.to_owned()
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    take(bytes, 1)?.first().copied()
}

fn number(bytes: &mut &[u8]) -> Option<u16> {
    let pair = take(bytes, 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// A vector with one byte of length.
fn short<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = byte(bytes)?;
    take(bytes, usize::from(length))
}

/// A vector with two bytes of length.
fn long<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(bytes)?;
    take(bytes, usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(data)].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|piece| [&[22, 3, 1], &with_length(piece)[..]].concat()).collect()
    }

    fn client_body(extensions: &[Vec<u8>]) -> Vec<u8> {
        let head = [&[3, 3][..], &[7; 32], &[2, 1, 1], &[0, 2, 0x13, 1], &[1, 0]].concat();
        [head, if extensions.is_empty() { Vec::new() } else { with_length(&extensions.concat()) }].concat()
    }

    fn client() -> Vec<u8> {
        let name = with_length(&[&[0], &with_length(b"db.example.com")[..]].concat());
        let alpn = with_length(b"\x0apostgresql\x02h2");
        client_body(&[
            extension(0x0a0a, &[]),
            extension(0, &name),
            extension(43, &[6, 0x7a, 0x7a, 3, 4, 3, 3]),
            extension(16, &alpn),
        ])
    }

    fn server() -> Vec<u8> {
        let head = [&[3, 3][..], &[9; 32], &[0], &[0x13, 2], &[0]].concat();
        [head, with_length(&extension(43, &[3, 4]))].concat()
    }

    fn read(side: Side, pieces: &[&[u8]]) -> Hello {
        let mut hello = Hello::new();
        pieces.iter().for_each(|piece| hello.bytes(side, piece));
        hello
    }

    #[test]
    fn both_hellos_are_told() {
        let mut hello = read(Side::Client, &[&records(&message(1, &client()), 1000)]);
        assert_eq!(
            hello.seen(),
            Some(&Tls {
                offered: Some("1.3".to_owned()),
                sni: Some("db.example.com".to_owned()),
                alpn: vec!["postgresql".to_owned(), "h2".to_owned()],
                ..Tls::default()
            })
        );
        let rest = [&[20, 3, 3, 0, 1, 1][..], b"anything"].concat();
        hello.bytes(Side::Server, &[records(&message(2, &server()), 1000), rest].concat());
        let tls = hello.seen().unwrap();
        assert_eq!(
            (tls.version.as_deref(), tls.cipher.as_deref()),
            (Some("1.3"), Some("TLS_AES_256_GCM_SHA384"))
        );
        assert_eq!(hello.violation(), None);
    }

    #[test]
    fn an_old_hello_offers_and_chooses_by_the_old_field() {
        let mut hello = read(Side::Client, &[&records(&message(1, &client_body(&[])), 1000)]);
        assert_eq!(hello.seen().unwrap().offered.as_deref(), Some("1.2"));
        let body = [&[3, 2][..], &[9; 32], &[0], &[0, 0x2f], &[0]].concat();
        hello.bytes(Side::Server, &records(&message(2, &body), 1000));
        let tls = hello.seen().unwrap();
        assert_eq!((tls.version.as_deref(), tls.cipher.as_deref()), (Some("1.1"), Some("0x002f")));
    }

    #[test]
    fn plaintext_is_a_violation_from_its_first_byte() {
        assert!(read(Side::Client, &[b"\0"]).violation().is_some_and(|text| text.contains("the client")));
        for bytes in [
            &b"Q\0\0\0\x0dselect 1\0"[..],
            b"\x16\x02",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\0\x09\x02",
            b"\x15\x03\x01\0\x02",
        ] {
            assert!(read(Side::Client, &[bytes]).violation().is_some(), "{bytes:?}");
        }
        assert!(read(Side::Server, &[b"R\0\0\0\x08"]).violation().is_some());
    }

    #[test]
    fn an_alert_a_hole_and_a_giant_say_nothing() {
        let giant = records(&message(1, &vec![0; LONGEST + 1]), LONGEST_RECORD);
        let alert = [b"\x15\x03\x01\0\x02\x02\x28", &records(&message(2, &server()), 1000)[..]].concat();
        for hello in [read(Side::Client, &[&giant]), read(Side::Server, &[&alert])] {
            assert_eq!((hello.seen(), hello.violation()), (None, None));
        }
        let whole = records(&message(1, &client()), 1000);
        let mut hello = read(Side::Client, &[&whole[..20]]);
        hello.gap(Side::Client);
        hello.bytes(Side::Client, b"Q whatever");
        assert_eq!((hello.seen(), hello.violation()), (None, None));
    }

    #[test]
    fn a_hello_that_does_not_parse_says_nothing() {
        let whole = client();
        for cut in 0..whole.len() {
            let hello = read(Side::Client, &[&records(&message(1, &whole[..cut]), 1000)]);
            assert_eq!(hello.violation(), None);
            // Extensions may be absent as a whole, else the list must be.
            assert_eq!(hello.seen().is_some(), cut == client_body(&[]).len(), "{cut}");
        }
    }

    #[test]
    fn names_of_any_bytes_are_printable() {
        let name = with_length(&[&[0], &with_length(b"a\xff\n\"")[..]].concat());
        let hello = read(Side::Client, &[&records(&message(1, &client_body(&[extension(0, &name)])), 1000)]);
        assert_eq!(hello.seen().unwrap().sni.as_deref(), Some(r#"a\xff\n\""#));
    }

    fn flight() -> impl Strategy<Value = Vec<u8>> {
        let real = (1..40_usize, any::<bool>()).prop_map(|(size, side)| {
            records(&if side { message(1, &client()) } else { message(2, &server()) }, size)
        });
        let damaged =
            (real.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut bytes, at, value)| {
                let at = at.index(bytes.len());
                bytes[at] = value;
                bytes
            });
        prop_oneof![real, damaged, prop::collection::vec(any::<u8>(), 0..64)]
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(bytes in flight(), client in any::<bool>(), size in 1..9_usize) {
            let side = if client { Side::Client } else { Side::Server };
            let whole = read(side, &[&bytes]);
            let pieces = read(side, &bytes.chunks(size).collect::<Vec<_>>());
            prop_assert_eq!(whole.seen(), pieces.seen());
            prop_assert_eq!(whole.violation(), pieces.violation());
        }
    }
}
