//! Message framing: one type byte, a four-byte length that counts itself, a body.
//!
//! Incremental: whatever the cuts, the same messages come out. A body is handed on in the pieces in which it arrived and
//! never gathered here, so skipping one costs its header. Assumes nothing about the bytes; refuses lengths that no server
//! would read. A hole inside a body leaves the framing intact, because its length is known; any other hole loses it.

use crate::clock::Boottime;
use crate::protocol::Within;
use crate::stream::Skip;

/// The longest message that PostgreSQL accepts or sends: its allocator's limit of one gibibyte.
const MAX_LENGTH: u32 = 0x3fff_ffff;

/// The type and the size of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    /// The message's type byte.
    pub(super) kind: u8,
    /// Length of the body in bytes.
    pub(super) body: u32,
    /// When its first byte passed.
    pub(super) started: Boottime,
}

impl Head {
    /// Bytes of the whole message, header included.
    pub(super) fn size(self) -> u64 {
        u64::from(self.body) + 5
    }
}

/// A step through the stream of messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step<'a> {
    /// A header is complete.
    Start(Head),
    /// The next piece of the body, never empty.
    Body(&'a [u8]),
    /// The message is complete.
    End(Head),
    /// The length field cannot be: the stream is not what it should be.
    Malformed {
        /// The type byte in front of it.
        kind: u8,
        /// The length as sent.
        length: u32,
    },
}

/// What a hole did to the framing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Hole {
    /// It lies within one body; the next message's place is still known.
    InBody,
    /// The next message may begin anywhere.
    Lost,
}

/// Messages of one kind that came to their end without being looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ended {
    /// Their type byte.
    pub(super) kind: u8,
    /// How many.
    pub(super) messages: u64,
    /// Their bytes, headers included.
    pub(super) bytes: u64,
}

/// The framing of one direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Framer {
    header: [u8; 5],
    filled: usize,
    started: Boottime,
    body: Option<Body>,
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Body {
    head: Head,
    remaining: u32,
}

impl Framer {
    /// Takes one step, consuming from `input`; `None` when more bytes are needed.
    #[inline]
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8], at: Boottime) -> Option<Step<'a>> {
        let Some(body) = &mut self.body else { return self.header(input, at) };
        if body.remaining == 0 {
            let head = body.head;
            self.body = None;
            return Some(Step::End(head));
        }
        if input.is_empty() {
            return None;
        }
        let length = usize::try_from(body.remaining).unwrap_or(usize::MAX).min(input.len());
        let (piece, rest) = input.split_at(length);
        *input = rest;
        // `length` is at most `remaining`, a u32.
        body.remaining -= u32::try_from(length).unwrap_or(body.remaining);
        Some(Step::Body(piece))
    }

    /// The message whose body is under way.
    pub(super) fn under_way(&self) -> Option<Head> {
        self.body.map(|body| body.head)
    }

    /// Where the next byte belongs; `None`: within a header.
    pub(super) fn place(&self) -> Option<Within> {
        let within = |body: Body| Within { remaining: body.remaining, kind: body.head.kind };
        (self.filled == 0).then(|| self.body.map_or(Within::default(), within))
    }

    /// Accounts for `length` lost bytes. After [`Hole::Lost`] the framer must not be used any more.
    pub(super) fn hole(&mut self, length: u64) -> Hole {
        match &mut self.body {
            Some(body) if length <= u64::from(body.remaining) => {
                body.remaining -= u32::try_from(length).unwrap_or(body.remaining);
                Hole::InBody
            }
            _ => Hole::Lost,
        }
    }

    /// Accounts for messages that were counted elsewhere. `None`: the count does not continue what was read up to here; the
    /// framer must not be used any more.
    pub(super) fn skip(&mut self, skip: &Skip, at: Boottime) -> Option<Ended> {
        if self.filled != 0 {
            return None;
        }
        let mut ended = Ended { kind: skip.message, messages: 0, bytes: 0 };
        let begun = skip.length.checked_sub(skip.first)?;
        match &mut self.body {
            Some(body) => {
                let head = body.head;
                let left = body.remaining.checked_sub(skip.first)?;
                if head.kind != skip.message
                    || (begun == 0 && left != skip.remaining)
                    || (begun != 0 && left != 0)
                {
                    return None;
                }
                body.remaining = left;
                if left == 0 {
                    ended = Ended { messages: 1, bytes: head.size(), ..ended };
                    self.body = None;
                }
            }
            None if skip.first != 0 => return None,
            None => {}
        }
        if begun == 0 || skip.messages == 0 {
            return (begun == 0 && skip.messages == 0).then_some(ended);
        }
        // All headers, and what is there of the last body.
        let (begun, messages) = (u64::from(begun), u64::from(skip.messages));
        let last = u64::from(skip.body.checked_sub(skip.remaining)?);
        if skip.body > MAX_LENGTH - 4 || begun < messages * 5 + last {
            return None;
        }
        if skip.remaining == 0 {
            ended.messages += messages;
            ended.bytes += begun;
        } else {
            ended.messages += messages - 1;
            ended.bytes += begun - last - 5;
            let head = Head { kind: skip.message, body: skip.body, started: at };
            self.body = Some(Body { head, remaining: skip.remaining });
        }
        Some(ended)
    }

    fn header<'a>(&mut self, input: &mut &'a [u8], at: Boottime) -> Option<Step<'a>> {
        if input.is_empty() {
            return None;
        }
        if self.filled == 0 {
            self.started = at;
            // Most headers come whole.
            if let Some((header, rest)) = input.split_first_chunk() {
                *input = rest;
                return Some(self.begin(*header));
            }
        }
        let length = (self.header.len() - self.filled).min(input.len());
        let (piece, rest) = input.split_at(length);
        *input = rest;
        self.header[self.filled..self.filled + length].copy_from_slice(piece);
        self.filled += length;
        if self.filled < self.header.len() {
            return None;
        }
        self.filled = 0;
        Some(self.begin(self.header))
    }

    #[inline]
    fn begin<'a>(&mut self, [kind, a, b, c, d]: [u8; 5]) -> Step<'a> {
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(4..=MAX_LENGTH).contains(&length) {
            return Step::Malformed { kind, length };
        }
        let head = Head { kind, body: length - 4, started: self.started };
        self.body = Some(Body { head, remaining: head.body });
        Step::Start(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(framer: &mut Framer, mut input: &[u8], at: u64) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(step) = framer.step(&mut input, Boottime(at)) {
            seen.push(match step {
                Step::Start(head) => {
                    format!("start {} {} at {}", char::from(head.kind), head.body, head.started.0)
                }
                Step::Body(piece) => format!("body {}", piece.escape_ascii()),
                Step::End(head) => format!("end {}", char::from(head.kind)),
                Step::Malformed { kind, length } => format!("malformed {} {length}", char::from(kind)),
            });
        }
        seen
    }

    #[test]
    fn messages_come_out_whole() {
        let seen = steps(&mut Framer::default(), b"Q\0\0\0\x06x\0S\0\0\0\x04", 7);
        assert_eq!(seen, ["start Q 2 at 7", "body x\\x00", "end Q", "start S 0 at 7", "end S"]);
    }

    #[test]
    fn a_header_over_two_pieces_keeps_its_first_time() {
        let mut framer = Framer::default();
        assert!(steps(&mut framer, b"S\0\0", 1).is_empty());
        assert_eq!(steps(&mut framer, b"\0\x04", 2), ["start S 0 at 1", "end S"]);
    }

    #[test]
    fn impossible_lengths_are_told() {
        assert_eq!(steps(&mut Framer::default(), b"Q\0\0\0\x03", 0), ["malformed Q 3"]);
        assert_eq!(steps(&mut Framer::default(), b"Q\x40\0\0\0", 0), ["malformed Q 1073741824"]);
    }

    #[test]
    fn a_hole_within_a_body_keeps_the_framing() {
        let mut framer = Framer::default();
        steps(&mut framer, b"D\0\0\0\x0eab", 0);
        assert_eq!(framer.hole(8), Hole::InBody);
        assert_eq!(steps(&mut framer, b"S\0\0\0\x04", 3), ["end D", "start S 0 at 3", "end S"]);
    }

    #[test]
    fn a_hole_beyond_a_body_or_in_a_header_loses_it() {
        let mut framer = Framer::default();
        steps(&mut framer, b"D\0\0\0\x0eab", 0);
        assert_eq!(framer.hole(9), Hole::Lost);
        assert_eq!(Framer::default().hole(1), Hole::Lost);
    }
}
