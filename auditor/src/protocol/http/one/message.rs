//! One direction of HTTP/1: heads line by line, bodies by their length, nothing copied but what is kept of a head.

use super::Violation;
use super::framing::{Fields, Framing, disguised};
use super::line::{Line, TooLong};
use crate::clock::Boottime;
use crate::protocol::http::field::Field;
use crate::protocol::http::head::Head;
use crate::protocol::http::request::Version;

/// No server takes a head as long as this.
const LONGEST_HEAD: usize = 1 << 20;
/// A chunk's size has no more digits; 16 would be one too many for what a u64 can count.
const CHUNK_DIGITS: usize = 15;

/// Reads one direction.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Reader {
    of_requests: bool,
    /// Bytes of a path that are kept.
    pub(super) long: usize,
    line: Line,
    state: State,
    /// Bytes of the message so far.
    pub(super) size: u64,
    /// Bytes of its body.
    pub(super) body: u64,
    /// When its first byte passed.
    pub(super) since: Option<Boottime>,
    /// What its head says; taken by whoever is told of it.
    pub(super) message: Message,
    /// Something of the body was lost.
    pub(super) hole: bool,
}

/// A head that was read, or a part of one.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Message {
    pub(super) head: Head,
    pub(super) fields: Fields,
    pub(super) version: Option<Version>,
    last: Option<Field>,
    /// Bytes of its lines.
    bytes: usize,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum State {
    /// Before the first line.
    Start,
    /// Between the first line and the empty one.
    Head,
    /// The head was told; how its body is framed is to be said.
    Told,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Close,
}

/// What came next.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// A head is there: [`Reader::begin`] is to be called.
    Head,
    /// The message is at its end.
    End,
}

impl Reader {
    pub(super) fn new(of_requests: bool, long: usize) -> Self {
        Self {
            of_requests,
            long,
            line: Line::default(),
            state: State::Start,
            size: 0,
            body: 0,
            since: None,
            message: Message::default(),
            hole: false,
        }
    }

    /// Reads on. `None`: all bytes were taken.
    pub(super) fn step(&mut self, bytes: &mut &[u8], at: Boottime) -> Result<Option<Step>, Violation> {
        if let State::Told = self.state {
            debug_assert!(false, "a head whose body nobody has framed");
        }
        while !bytes.is_empty() {
            self.since.get_or_insert(at);
            let before = bytes.len();
            let step = self.take(bytes);
            self.size += (before - bytes.len()) as u64;
            if let Some(step) = step? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Step>, Violation> {
        match &mut self.state {
            State::Length(left) => {
                let skipped = skip(bytes, *left);
                *left -= skipped;
                self.body += skipped;
                return Ok(if *left == 0 { Some(Step::End) } else { None });
            }
            State::Chunk(left) => {
                let skipped = skip(bytes, *left);
                *left -= skipped;
                self.body += skipped;
                if *left == 0 {
                    self.state = State::ChunkEnd;
                }
                return Ok(None);
            }
            State::Close | State::Told => {
                self.body += skip(bytes, u64::MAX);
                return Ok(None);
            }
            _ => {}
        }
        let line = match self.line.read(bytes) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(None),
            Err(TooLong) => return Err("a line that is longer than any server or client takes".into()),
        };
        let chunked = matches!(self.state, State::ChunkSize | State::ChunkEnd | State::Trailers);
        if chunked && !self.line.had_return() {
            return Err("a line without a carriage return in chunked framing: receivers may disagree".into());
        }
        match self.state {
            State::Start => self.first(&line),
            State::Head => self.field(&line),
            State::ChunkSize => self.chunk_size(&line),
            State::ChunkEnd if line.is_empty() => {
                self.state = State::ChunkSize;
                Ok(None)
            }
            State::ChunkEnd => Err("a chunk that is longer than its size".into()),
            // The rest was dealt with.
            _ => self.trailer(&line),
        }
    }

    /// How the body of the head that was told is framed. What of it is there already was not taken.
    pub(super) fn begin(&mut self, framing: Framing) -> Option<Step> {
        self.state = match framing {
            Framing::None => return Some(Step::End),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::Close => State::Close,
        };
        None
    }

    /// Another message comes next. What was counted of this one is forgotten.
    pub(super) fn next(&mut self) {
        *self = Self::new(self.of_requests, self.long);
    }

    /// Whether something of a head is there, and not the whole.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.state, State::Head)
            || matches!(self.state, State::Start) && !self.line.so_far().is_empty()
    }

    /// What can be said of a head whose end will not come.
    pub(super) fn unfinished(&mut self) -> Message {
        if matches!(self.state, State::Start) {
            let mut words = self.line.so_far().split(|byte| *byte == b' ');
            let method = words.next().filter(|word| is_token(word));
            let target = words.find(|word| !word.is_empty());
            self.message.head.method = method.map(<[u8]>::to_vec);
            if let Some(target) = target {
                let head = &mut self.message.head;
                if let Err(()) = take_target(head, target, self.long) {
                    head.path = None;
                }
            }
        }
        std::mem::take(&mut self.message)
    }

    /// Whether the body ends with the connection.
    pub(super) fn until_close(&self) -> bool {
        matches!(self.state, State::Close)
    }

    /// Bytes were lost here. Whether it can be proven where the stream goes on.
    pub(super) fn gap(&mut self, length: u64) -> Result<Option<Step>, ()> {
        let counted = match &mut self.state {
            State::Length(left) | State::Chunk(left) if *left >= length && length < u64::MAX => {
                *left -= length;
                length
            }
            State::Close => length,
            _ => return Err(()),
        };
        self.hole = true;
        self.size = self.size.saturating_add(counted);
        self.body = self.body.saturating_add(counted);
        match self.state {
            State::Length(0) => Ok(Some(Step::End)),
            State::Chunk(0) => {
                self.state = State::ChunkEnd;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.line.so_far().len() + self.message.head.memory()
    }

    fn first(&mut self, line: &[u8]) -> Result<Option<Step>, Violation> {
        // Receivers skip empty lines before a message (RFC 9112, section 2.2).
        if line.is_empty() {
            return Ok(None);
        }
        if has_control(line) {
            return Err("a control character in a first line: receivers may disagree what it says".into());
        }
        let done = if self.of_requests { self.request_line(line) } else { self.status_line(line) };
        done.ok_or_else(|| {
            let kind = if self.of_requests { "request" } else { "status" };
            // What it is instead may be a secret.
            format!("{} bytes that are no {kind} line", line.len())
        })?;
        self.state = State::Head;
        Ok(None)
    }

    fn request_line(&mut self, line: &[u8]) -> Option<()> {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let method = words.next().filter(|method| is_token(method) && method.len() <= 64)?;
        let target = words.next()?;
        self.message.version = Some(version(words.next()?)?);
        if words.next().is_some() {
            return None;
        }
        let head = &mut self.message.head;
        head.take(Field::Method, method, method.len());
        take_target(head, target, self.long).ok()
    }

    fn status_line(&mut self, line: &[u8]) -> Option<()> {
        let (name, rest) = line.split_at_checked(line.iter().position(|byte| *byte == b' ')?)?;
        self.message.version = Some(version(name)?);
        let rest = rest.trim_ascii_start();
        let status = rest.get(..3)?;
        let after = rest.get(3).is_none_or(|byte| *byte == b' ');
        if !after || !status.iter().all(u8::is_ascii_digit) || status[0] == b'0' {
            return None;
        }
        self.message.head.take(Field::Status, status, 3);
        Some(())
    }

    fn field(&mut self, line: &[u8]) -> Result<Option<Step>, Violation> {
        let message = &mut self.message;
        message.bytes += line.len() + 1;
        if message.bytes > LONGEST_HEAD {
            return Err("a head that is longer than any server or client takes".into());
        }
        if line.is_empty() {
            self.state = State::Told;
            return Ok(Some(Step::Head));
        }
        if has_control(line) {
            return Err("a control character in a head: receivers may disagree what it says".into());
        }
        if matches!(line, [b' ' | b'\t', ..]) {
            // A folded line belongs to the field before it.
            return match message.last {
                Some(Field::ContentLength | Field::TransferEncoding | Field::Host) | None => {
                    Err("a folded line where receivers may disagree what it says".into())
                }
                Some(_) => Ok(None),
            };
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return Err("a line without a colon in a head".into());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) && disguised(name) {
            return Err(format!(
                "a field '{}' that some receivers take for framing",
                name[..name.len().min(40)].escape_ascii()
            ));
        }
        let field = Field::of(name);
        message.fields.take(field, value)?;
        message.last = Some(field);
        let kept = field.keeps(self.long).min(value.len());
        if matches!(field, Field::Host) {
            let host = authority(value);
            if message.head.host.as_ref().is_some_and(|before| *before != host) {
                return Err("Host twice, and not the same: receivers may disagree whose request it is".into());
            }
            message.head.take(field, &host, host.len());
            return Ok(None);
        }
        message.head.take(field, &value[..kept], value.len());
        Ok(None)
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<Option<Step>, Violation> {
        let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extension) = line.split_at(end);
        let extension = extension.trim_ascii_start();
        let leading = digits.iter().take_while(|digit| **digit == b'0').count();
        let number = std::str::from_utf8(&digits[leading..]).unwrap_or_default();
        if digits.is_empty()
            || number.len() > CHUNK_DIGITS
            || !(extension.is_empty() || extension[0] == b';')
            || has_control(&line[end..])
        {
            return Err("a line that is no chunk's size".into());
        }
        self.state = match u64::from_str_radix(number, 16) {
            Ok(size) => State::Chunk(size),
            // Nothing but zeros.
            Err(_) => State::Trailers,
        };
        Ok(None)
    }

    fn trailer(&mut self, line: &[u8]) -> Result<Option<Step>, Violation> {
        if line.is_empty() {
            return Ok(Some(Step::End));
        }
        if has_control(line) {
            return Err("a control character in trailers: receivers may disagree where they end".into());
        }
        if let Some(colon) = memchr::memchr(b':', line) {
            let (field, value) = (Field::of(&line[..colon]), line[colon + 1..].trim_ascii());
            // Nothing else has a place there (RFC 9110, section 6.5.1).
            if matches!(field, Field::GrpcStatus | Field::GrpcMessage | Field::Secret(_)) {
                let kept = field.keeps(self.long).min(value.len());
                self.message.head.take(field, &value[..kept], value.len());
            }
        }
        Ok(None)
    }
}

fn version(word: &[u8]) -> Option<Version> {
    match word {
        b"HTTP/1.1" => Some(Version::Http11),
        b"HTTP/1.0" => Some(Version::Http10),
        _ => None,
    }
}

/// Origin form, absolute form, an authority or `*`.
fn take_target(head: &mut Head, target: &[u8], long: usize) -> Result<(), ()> {
    if head.method.as_deref() == Some(b"CONNECT") {
        head.authority = Some(authority(target));
        return Ok(());
    }
    let path = if target.starts_with(b"/") || target == b"*" {
        target
    } else {
        let place = memchr::memmem::find(target, b"://").ok_or(())?;
        let rest = &target[place + 3..];
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        head.scheme = Some(target[..place.min(16)].to_vec());
        head.authority = Some(authority(&rest[..end]));
        if end == rest.len() { b"/" } else { &rest[end..] }
    };
    head.take(Field::Path, &path[..path.len().min(long)], path.len());
    Ok(())
}

/// What is kept of an authority: that there was user information, none of it, and host and port up to a limit.
fn authority(whole: &[u8]) -> Vec<u8> {
    let (user, host) = match whole.iter().rposition(|byte| *byte == b'@') {
        Some(place) => (&b"***@"[..], &whole[place + 1..]),
        None => (&b""[..], whole),
    };
    [user, &host[..host.len().min(256)]].concat()
}

pub(super) fn is_token(word: &[u8]) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphanumeric() || special.contains(byte))
}

/// Anything but text: receivers take CR and NUL in the middle of a line for different things.
fn has_control(line: &[u8]) -> bool {
    line.iter().any(|byte| *byte < 0x20 && *byte != b'\t' || *byte == 0x7f)
}

fn skip(bytes: &mut &[u8], most: u64) -> u64 {
    let skipped = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    *bytes = &bytes[skipped..];
    skipped as u64
}

/// Whether this is a request's first line.
pub(in crate::protocol::http) fn is_request_line(line: &[u8]) -> bool {
    !has_control(line) && Reader::new(true, 0).request_line(line).is_some()
}
