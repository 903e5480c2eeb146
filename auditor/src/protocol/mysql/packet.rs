//! Packet framing: a three-byte length, a sequence number, a payload; a payload of 2^24 - 1 bytes goes on in the next packet.
//!
//! Incremental: whatever the cuts, the same messages come out. A payload is handed on in the pieces in which it arrived and never
//! gathered here. Every length is possible, so nothing is refused. A hole inside a payload leaves the framing intact, because its
//! length is known; any other hole loses it.

use crate::clock::Boottime;

/// A packet that is this long goes on in the next.
pub(super) const FULL: u32 = 0xff_ffff;

/// What is known of a message, which may be of several packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    /// Sequence number of its first packet.
    pub(super) sequence: u8,
    /// Length of its first packet's payload.
    pub(super) first: u32,
    /// When its first byte passed.
    pub(super) started: Boottime,
    /// Bytes up to here, headers included.
    pub(super) size: u64,
}

/// A step through the stream of messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step<'a> {
    /// A message's first header is complete.
    Start(Head),
    /// The next piece of its payload, never empty.
    Body(&'a [u8]),
    /// The message is complete.
    End(Head),
}

/// What a hole did to the framing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hole {
    /// It lies within one payload; the next packet's place is still known.
    InBody,
    /// The next packet may begin anywhere.
    Lost,
}

/// The framing of one direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Framer {
    header: [u8; 4],
    filled: usize,
    /// The message that has begun.
    head: Option<Head>,
    /// Of its packet: bytes that are still to come, and whether another packet follows. `None`: a header comes next.
    part: Option<(u32, bool)>,
    at: Boottime,
}

impl Framer {
    /// Takes one step, consuming from `input`; `None` when more bytes are needed.
    #[inline]
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8], at: Boottime) -> Option<Step<'a>> {
        loop {
            match &mut self.part {
                None => {
                    if let Some(start) = self.header(input, at)? {
                        return Some(Step::Start(start));
                    }
                }
                Some((0, goes_on)) => {
                    let over = !*goes_on;
                    self.part = None;
                    if over && let Some(head) = self.head.take() {
                        return Some(Step::End(head));
                    }
                }
                Some(_) if input.is_empty() => return None,
                Some((remaining, _)) => {
                    let length = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
                    let (piece, rest) = input.split_at(length);
                    *input = rest;
                    // `length` is at most `remaining`, a u32.
                    *remaining -= u32::try_from(length).unwrap_or(*remaining);
                    return Some(Step::Body(piece));
                }
            }
        }
    }

    /// The message that is under way.
    pub(super) fn under_way(&self) -> Option<Head> {
        self.head
    }

    /// Accounts for `length` lost bytes. After [`Hole::Lost`] the framer must not be used any more.
    pub(super) fn hole(&mut self, length: u64) -> Hole {
        match &mut self.part {
            Some((remaining, _)) if length <= u64::from(*remaining) => {
                *remaining -= u32::try_from(length).unwrap_or(*remaining);
                Hole::InBody
            }
            _ => Hole::Lost,
        }
    }

    /// Reads a header. `None`: more bytes are needed; `Some(None)`: it was that of a later packet of a message.
    #[inline]
    fn header(&mut self, input: &mut &[u8], at: Boottime) -> Option<Option<Head>> {
        if input.is_empty() {
            return None;
        }
        if self.filled == 0 {
            self.at = at;
        }
        let [low, middle, high, sequence] = match input.split_first_chunk() {
            // Most headers come whole.
            Some((header, rest)) if self.filled == 0 => {
                *input = rest;
                *header
            }
            _ => {
                let length = (self.header.len() - self.filled).min(input.len());
                let (piece, rest) = input.split_at(length);
                *input = rest;
                self.header[self.filled..self.filled + length].copy_from_slice(piece);
                self.filled += length;
                if self.filled < self.header.len() {
                    return None;
                }
                self.filled = 0;
                self.header
            }
        };
        let length = u32::from_le_bytes([low, middle, high, 0]);
        self.part = Some((length, length == FULL));
        let size = u64::from(length) + 4;
        if let Some(head) = &mut self.head {
            head.size = head.size.saturating_add(size);
            return Some(None);
        }
        self.head = Some(Head { sequence, first: length, started: self.at, size });
        Some(self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(framer: &mut Framer, mut input: &[u8], at: u64) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(step) = framer.step(&mut input, Boottime(at)) {
            seen.push(match step {
                Step::Start(head) => format!("start {} {} at {}", head.sequence, head.first, head.started.0),
                Step::Body(piece) => format!("body {}", piece.len()),
                Step::End(head) => format!("end {}", head.size),
            });
        }
        seen
    }

    #[test]
    fn packets_come_out_whole() {
        let seen = steps(&mut Framer::default(), b"\x02\0\0\x01ab\0\0\0\x02", 7);
        assert_eq!(seen, ["start 1 2 at 7", "body 2", "end 6", "start 2 0 at 7", "end 4"]);
    }

    #[test]
    fn a_header_over_two_pieces_keeps_its_first_time() {
        let mut framer = Framer::default();
        assert!(steps(&mut framer, b"\x01\0", 1).is_empty());
        assert_eq!(steps(&mut framer, b"\0\x05x", 2), ["start 5 1 at 1", "body 1", "end 5"]);
    }

    #[test]
    fn a_message_of_several_packets_is_one() {
        let mut bytes = b"\xff\xff\xff\0".to_vec();
        bytes.resize(bytes.len() + 0xff_ffff, b'x');
        bytes.extend(b"\x01\0\0\x01y\0\0\0\0");
        let seen = steps(&mut Framer::default(), &bytes, 3);
        let whole = ["start 0 16777215 at 3", "body 16777215", "body 1", "end 16777224"];
        assert_eq!(seen, [&whole[..], &["start 0 0 at 3", "end 4"]].concat());
        // One that ends where a packet ends has an empty packet behind it.
        let mut framer = Framer::default();
        steps(&mut framer, &bytes[..4 + 0xff_ffff], 3);
        assert!(framer.under_way().is_some());
        assert_eq!(steps(&mut framer, b"\0\0\0\x01", 3), ["end 16777223"]);
    }

    #[test]
    fn a_hole_within_a_payload_keeps_the_framing() {
        let mut framer = Framer::default();
        steps(&mut framer, b"\x0a\0\0\0ab", 0);
        assert_eq!(framer.hole(8), Hole::InBody);
        assert_eq!(steps(&mut framer, b"\0\0\0\0", 3), ["end 14", "start 0 0 at 3", "end 4"]);
        steps(&mut framer, b"\x0a\0\0\0ab", 0);
        assert_eq!(framer.hole(9), Hole::Lost);
        assert_eq!(Framer::default().hole(1), Hole::Lost);
    }
}
