//! What a server says: replies of RESP2 and RESP3, of which types, sizes and errors are kept and nothing else.
//!
//! Incremental, and without recursion: of an aggregate that is open its missing elements are counted.

use crate::protocol::ServerError;

/// Longest line of a reply. Errors and status replies are lines; a script can make them long.
const MAX_LINE: usize = 64 << 10;
/// Aggregates within each other.
const MAX_DEPTH: usize = 128;
/// Elements of EXEC's reply that are told apart.
const MAX_ELEMENTS: usize = 64 << 10;
/// Bytes of a status reply, or of a string that tells what a message is, that are kept.
const MAX_WORD: usize = 64;
/// Bytes of an error that are kept.
const MAX_ERROR: usize = 1024;

/// The first line of a reply, or of one within it.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    /// As the server writes it, without values: `+OK`, `:`, `$5`, `*3`.
    pub(super) tag: String,
    /// Elements of an aggregate.
    pub(super) elements: Option<u64>,
    pub(super) error: Option<ServerError>,
}

/// A whole reply.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Reply {
    pub(super) head: Head,
    /// Heads of its elements, where they were asked for.
    pub(super) elements: Vec<Head>,
    /// The first element's text.
    pub(super) word: Vec<u8>,
    /// The last number in it.
    pub(super) number: i64,
    /// Bytes on the wire.
    pub(super) bytes: u64,
    /// A hole fell into it.
    pub(super) incomplete: bool,
}

impl Reply {
    /// What is sent without being asked for: RESP3's push.
    pub(super) fn is_push(&self) -> bool {
        self.head.tag.starts_with('>')
    }
}

/// An aggregate that is open.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Open {
    missing: u64,
    /// RESP3's attributes stand before what they belong to.
    attributes: bool,
}

/// The server's direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct ReplyReader {
    line: Vec<u8>,
    /// Bytes of the string under way, with the two after it.
    string: Option<u64>,
    /// The next element is the reply's first.
    first: bool,
    /// The string under way is.
    keeps_word: bool,
    open: Vec<Open>,
    reply: Reply,
    begun: bool,
    /// A whole reply has come: this is a server of Redis.
    heard: bool,
}

/// What came out of the next bytes.
#[derive(Debug)]
pub(super) enum Step {
    Reply(Reply),
    /// What comes after it cannot be read.
    Malformed,
    /// Nothing that Redis says begins like this.
    Foreign,
}

impl ReplyReader {
    /// The next reply; `None`: all bytes are taken. `elements`: whether to tell its elements apart.
    pub(super) fn step(&mut self, bytes: &mut &[u8], elements: bool) -> Option<Step> {
        while !bytes.is_empty() {
            if let Some(left) = self.string {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let (piece, rest) = bytes.split_at(taken);
                *bytes = rest;
                if self.keeps_word {
                    let content = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX).min(taken);
                    let room = MAX_WORD.saturating_sub(self.reply.word.len());
                    self.reply.word.extend_from_slice(&piece[..content.min(room)]);
                }
                self.reply.bytes += taken as u64;
                let left = left - taken as u64;
                self.string = (left > 0).then_some(left);
                if left == 0 && self.element_ended() {
                    return Some(Step::Reply(self.take()));
                }
                continue;
            }
            let end = memchr::memchr(b'\n', bytes);
            let (head, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            *bytes = rest;
            self.reply.bytes += head.len() as u64;
            let begins = self.line.first().or(head.first()).copied().unwrap_or_default();
            let malformed = if self.heard || self.begun || b"+-_#,(:$=!*~>%|".contains(&begins) {
                Step::Malformed
            } else {
                Step::Foreign
            };
            if self.line.len() + head.len() > MAX_LINE {
                return Some(malformed);
            }
            if end.is_none() {
                self.line.extend_from_slice(head);
                return None;
            }
            let ended = if self.line.is_empty() {
                self.line(head, elements)
            } else {
                self.line.extend_from_slice(head);
                let mut line = std::mem::take(&mut self.line);
                let ended = self.line(&line, elements);
                line.clear();
                self.line = line;
                ended
            };
            match ended {
                Some(true) => return Some(Step::Reply(self.take())),
                Some(false) => {}
                None => return Some(malformed),
            }
        }
        None
    }

    /// A line of the protocol. Whether the reply has ended with it; `None`: it is none.
    fn line(&mut self, line: &[u8], elements: bool) -> Option<bool> {
        let line = line.strip_suffix(b"\r\n")?;
        let (&kind, value) = line.split_first()?;
        let attributes = kind == b'|';
        let mut opens = None;
        match kind {
            b'+' | b'-' | b'_' | b'#' | b',' | b'(' => {}
            b':' => self.reply.number = super::command::number(value.strip_prefix(b"+").unwrap_or(value))?,
            b'$' | b'=' | b'!' => match super::command::number(value)? {
                -1 => {}
                length => self.string = Some(u64::try_from(length).ok()?.checked_add(2)?),
            },
            b'*' | b'~' | b'>' | b'%' | b'|' => match super::command::number(value)? {
                -1 => {}
                count => {
                    let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                    opens = Some(u64::try_from(count).ok()?.checked_mul(each)?);
                }
            },
            _ => return None,
        }
        let depth = self.open.len();
        let within_attributes = self.open.iter().any(|open| open.attributes);
        if !attributes && !within_attributes {
            if !std::mem::replace(&mut self.begun, true) {
                self.reply.head = head(kind, value, opens);
            } else if depth == 1 && elements && self.reply.elements.len() < MAX_ELEMENTS {
                self.reply.elements.push(head(kind, value, opens));
            }
        }
        // The first element of an aggregate says what a message is.
        self.keeps_word = self.first && kind == b'$';
        self.first = depth == 0 && opens.is_some() && !attributes;
        if let Some(missing) = opens.filter(|missing| *missing > 0) {
            if depth >= MAX_DEPTH {
                return None;
            }
            self.open.push(Open { missing, attributes });
            return Some(false);
        }
        if attributes || self.string.is_some() {
            // Attributes that are none stand before something all the same.
            return Some(false);
        }
        Some(self.element_ended())
    }

    /// Something has ended; with the last element of an aggregate, that too. Whether the reply has.
    fn element_ended(&mut self) -> bool {
        while let Some(open) = self.open.last_mut() {
            open.missing -= 1;
            if open.missing > 0 {
                return false;
            }
            let attributes = open.attributes;
            self.open.pop();
            if attributes {
                return false;
            }
        }
        true
    }

    fn take(&mut self) -> Reply {
        self.begun = false;
        self.heard = true;
        std::mem::take(&mut self.reply)
    }

    /// `length` bytes are missing. `false`: and with them the place of the next reply.
    pub(super) fn hole(&mut self, length: u64) -> bool {
        match self.string {
            // The end of a string decides what comes next, so something must be left of it.
            Some(left) if length < left => {
                self.reply.bytes += length;
                self.reply.incomplete = true;
                self.string = Some(left - length);
                true
            }
            _ => false,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.line.len()
            + self.open.len() * size_of::<Open>()
            + self.reply.elements.iter().map(Head::memory).sum::<usize>()
    }
}

impl Head {
    /// A command was put into a transaction; or a script says so.
    pub(super) fn is_queued(&self) -> bool {
        self.tag == "+QUEUED"
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.tag.len() + self.error.as_ref().map_or(0, ServerError::memory)
    }
}

fn head(kind: u8, value: &[u8], opens: Option<u64>) -> Head {
    let elements = opens.map(|count| if kind == b'%' { count / 2 } else { count });
    let mut tag = String::from(char::from(kind));
    let mut error = None;
    match kind {
        b'+' => tag.push_str(&String::from_utf8_lossy(&value[..value.len().min(MAX_WORD)])),
        b'-' => {
            let text = String::from_utf8_lossy(&value[..value.len().min(MAX_ERROR)]);
            let (code, message) = text.split_once(' ').unwrap_or((&text, ""));
            tag.push_str(code);
            let (code, message) = (code.to_owned(), message.to_owned());
            error = Some(ServerError { code, severity: "ERROR".to_owned(), message });
        }
        b'!' => {
            error = Some(ServerError { code: "ERR".into(), severity: "ERROR".into(), message: String::new() })
        }
        // Sizes; of numbers and the like the value is data.
        b'$' | b'=' | b'*' | b'~' | b'>' | b'%' => tag.push_str(&String::from_utf8_lossy(value)),
        _ => {}
    }
    Head { tag, elements, error }
}
