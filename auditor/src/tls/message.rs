//! Handshake messages (RFC 8446 §4, RFC 5246 §7.4): put together from records, and those that say something, read.
//!
//! Everything is hostile. A message that does not parse says nothing; one that is longer than [`LONGEST`] is stepped over.

use std::borrow::Cow;

pub(super) const HELLO_REQUEST: u8 = 0;
pub(super) const CLIENT_HELLO: u8 = 1;
pub(super) const SERVER_HELLO: u8 = 2;
pub(super) const END_OF_EARLY_DATA: u8 = 5;
pub(super) const ENCRYPTED_EXTENSIONS: u8 = 8;
pub(super) const CERTIFICATE: u8 = 11;
pub(super) const FINISHED: u8 = 20;
pub(super) const KEY_UPDATE: u8 = 24;
pub(super) const COMPRESSED_CERTIFICATE: u8 = 25;

/// Chains of certificates are a few KiB, hellos with post-quantum key shares about two.
pub(super) const LONGEST: usize = 64 << 10;
const MESSAGE_HEADER: usize = 4;
/// What is kept of a name; no host has a longer one.
const LONGEST_NAME: usize = 255;

const SERVER_NAME: u16 = 0;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const ENCRYPT_THEN_MAC: u16 = 22;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;

/// ServerHello.random of a HelloRetryRequest: SHA-256 of that name (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// One direction's messages, over as many records as each takes.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Messages {
    partial: Vec<u8>,
    /// Bytes to come of a message that is stepped over.
    skip: usize,
}

/// `struct { HandshakeType msg_type; uint24 length; … } Handshake`
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u8,
    /// Empty where it was stepped over.
    pub(super) body: Cow<'a, [u8]>,
}

impl Messages {
    /// Bytes that it has room for.
    pub(super) fn memory(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes the next message from `bytes`, or all of them where they do not end one.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Message<'a>> {
        let skipped = take(bytes, self.skip.min(bytes.len()))?;
        self.skip -= skipped.len();
        if bytes.is_empty() {
            return None;
        }
        if let Some((kind, length)) = header(bytes).filter(|_| self.partial.is_empty())
            && length <= LONGEST
            && let Some(body) = bytes.get(MESSAGE_HEADER..MESSAGE_HEADER + length)
        {
            *bytes = &bytes[MESSAGE_HEADER + length..];
            return Some(Message { kind, body: Cow::Borrowed(body) });
        }
        loop {
            let wanted = header(&self.partial).map_or(MESSAGE_HEADER, |(_, length)| MESSAGE_HEADER + length);
            let piece = take(bytes, (wanted - self.partial.len()).min(bytes.len()))?;
            self.partial.extend_from_slice(piece);
            let (kind, length) = header(&self.partial)?;
            if length > LONGEST {
                self.partial.clear();
                self.skip = length;
                return Some(Message { kind, body: Cow::Borrowed(&[]) });
            }
            if self.partial.len() == MESSAGE_HEADER + length {
                let body = self.partial.split_off(MESSAGE_HEADER);
                self.partial = Vec::new();
                return Some(Message { kind, body: Cow::Owned(body) });
            }
            if bytes.is_empty() {
                return None;
            }
        }
    }

    /// Whether nothing of a message is there yet.
    pub(super) fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.skip == 0
    }
}

fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[kind, a, b, c, ..] = bytes else { return None };
    Some((kind, usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX)))
}

/// RFC 8446 §4.1.2.
#[derive(Debug, Default)]
pub(super) struct ClientHello {
    pub(super) legacy_version: u16,
    pub(super) random: [u8; 32],
    pub(super) session: Vec<u8>,
    pub(super) ciphers: Vec<u16>,
    /// Types, in the order sent.
    pub(super) extensions: Vec<u16>,
    pub(super) versions: Vec<u16>,
    pub(super) server_name: Option<String>,
    pub(super) protocols: Vec<Vec<u8>>,
    pub(super) signature_algorithms: Vec<u16>,
    pub(super) early_data: bool,
}

impl ClientHello {
    pub(super) fn read(mut body: &[u8]) -> Option<Self> {
        let mut hello = Self {
            legacy_version: number(&mut body)?,
            random: take(&mut body, 32)?.try_into().ok()?,
            session: short(&mut body)?.to_vec(),
            ciphers: numbers(long(&mut body)?),
            ..Self::default()
        };
        let _compression = short(&mut body)?;
        extensions(body, |kind, mut data| {
            hello.extensions.push(kind);
            match kind {
                SERVER_NAME => hello.server_name = server_name(data),
                ALPN => hello.protocols = protocols(data)?,
                SUPPORTED_VERSIONS => hello.versions = numbers(short(&mut data)?),
                SIGNATURE_ALGORITHMS => hello.signature_algorithms = numbers(long(&mut data)?),
                EARLY_DATA => hello.early_data = true,
                _ => {}
            }
            Some(())
        })?;
        Some(hello)
    }

    /// The highest version that is offered. Without the extension the old field says it.
    pub(super) fn offered(&self) -> Option<u16> {
        if self.extensions.contains(&SUPPORTED_VERSIONS) {
            self.versions.iter().copied().filter(|version| known_version(*version).is_some()).max()
        } else {
            Some(self.legacy_version)
        }
    }
}

/// RFC 8446 §4.1.3.
#[derive(Debug, Default)]
pub(super) struct ServerHello {
    pub(super) version: u16,
    pub(super) random: [u8; 32],
    pub(super) session: Vec<u8>,
    pub(super) cipher: u16,
    pub(super) compression: u8,
    pub(super) extensions: Extensions,
}

/// What a server answers to extensions, in its hello or in EncryptedExtensions.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) protocol: Option<String>,
    pub(super) encrypt_then_mac: bool,
    pub(super) pre_shared_key: bool,
    pub(super) early_data: bool,
    version: Option<u16>,
}

impl ServerHello {
    pub(super) fn read(mut body: &[u8]) -> Option<Self> {
        let mut hello = Self {
            version: number(&mut body)?,
            random: take(&mut body, 32)?.try_into().ok()?,
            session: short(&mut body)?.to_vec(),
            cipher: number(&mut body)?,
            compression: byte(&mut body)?,
            extensions: Extensions::default(),
        };
        hello.extensions = Extensions::read(body)?;
        hello.version = hello.extensions.version.unwrap_or(hello.version);
        Some(hello)
    }

    pub(super) fn is_retry(&self) -> bool {
        self.random == RETRY
    }
}

impl Extensions {
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let mut all = Self::default();
        extensions(body, |kind, mut data| {
            match kind {
                ALPN => all.protocol = protocols(data)?.first().map(|name| text(name)),
                ENCRYPT_THEN_MAC => all.encrypt_then_mac = true,
                PRE_SHARED_KEY => all.pre_shared_key = true,
                EARLY_DATA => all.early_data = true,
                SUPPORTED_VERSIONS => all.version = Some(number(&mut data)?),
                _ => {}
            }
            Some(())
        })?;
        Some(all)
    }
}

/// The end's own certificate, first of its chain; `None` in the middle where it sent none.
pub(super) fn leaf_certificate(mut body: &[u8], tls13: bool) -> Option<Option<&[u8]>> {
    if tls13 {
        let _context = short(&mut body)?;
    }
    let mut list = vector24(&mut body)?;
    if list.is_empty() {
        return Some(None);
    }
    vector24(&mut list).map(Some)
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
    (kind == 0).then(|| text(&name[..name.len().min(LONGEST_NAME)]))
}

/// RFC 7301 §3.1.
fn protocols(mut data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = long(&mut data)?;
    let mut names = Vec::new();
    while !list.is_empty() {
        names.push(short(&mut list)?.to_vec());
    }
    Some(names)
}

/// Names are ASCII where they are meant well.
pub(super) fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

pub(super) fn known_version(version: u16) -> Option<&'static str> {
    Some(match version {
        0x0300 => "SSL 3.0",
        0x0301 => "1.0",
        0x0302 => "1.1",
        0x0303 => "1.2",
        0x0304 => "1.3",
        _ => return None,
    })
}

pub(super) fn version_name(version: u16) -> String {
    known_version(version).map_or_else(|| format!("0x{version:04x}"), str::to_owned)
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

fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
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

/// A vector with three bytes of length.
fn vector24<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(bytes, 3)?;
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
    take(bytes, usize::try_from(length).ok()?)
}
