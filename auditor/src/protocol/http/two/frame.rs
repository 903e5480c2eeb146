//! Frames of HTTP/2 (RFC 9113, section 4): headers of nine bytes, and as much of the payload as is of use.

use crate::clock::Boottime;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// Bytes of a frame's header.
const HEAD: usize = 9;
/// A header block that is longer is nobody's: most servers take 16 KiB to 64 KiB.
pub(super) const LONGEST_BLOCK: usize = 128 << 10;

/// A frame's header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Frame {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// When its first byte passed.
    pub(super) since: Boottime,
}

impl Frame {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes with its header.
    pub(super) fn size(&self) -> u64 {
        HEAD as u64 + u64::from(self.length)
    }

    /// How much of the payload is of use.
    fn wanted(&self) -> usize {
        let most = match self.kind {
            DATA if self.has(PADDED) => 1,
            HEADERS | PUSH_PROMISE | CONTINUATION => LONGEST_BLOCK,
            RST_STREAM => 4,
            GOAWAY => 8,
            _ => 0,
        };
        most.min(self.length as usize)
    }
}

/// Finds frames in one direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Framer {
    head: Vec<u8>,
    since: Boottime,
    frame: Option<Frame>,
    /// What is of use of the payload.
    body: Vec<u8>,
    /// Bytes of the payload that are still to come.
    left: u32,
    /// Some of the payload was lost.
    hole: bool,
}

/// A frame that is at its end.
pub(super) struct Whole {
    pub(super) frame: Frame,
    pub(super) body: Vec<u8>,
    pub(super) hole: bool,
}

impl Framer {
    /// Takes bytes up to the end of a frame.
    pub(super) fn step(&mut self, bytes: &mut &[u8], at: Boottime) -> Option<Whole> {
        while !bytes.is_empty() {
            let Some(frame) = self.frame else {
                self.read_head(bytes, at);
                if self.frame.is_some_and(|frame| frame.length == 0) {
                    return self.end();
                }
                continue;
            };
            let wanted = frame.wanted() - self.body.len();
            let taken = bytes.len().min(self.left as usize);
            self.body.extend_from_slice(&bytes[..taken.min(wanted)]);
            *bytes = &bytes[taken..];
            // No more than what is left, which fits.
            self.left -= u32::try_from(taken).unwrap_or(self.left);
            if self.left == 0 {
                return self.end();
            }
        }
        None
    }

    /// Bytes were lost here. An error: they may be any frame's.
    pub(super) fn gap(&mut self, length: u64) -> Result<Option<Whole>, ()> {
        let frame = self.frame.ok_or(())?;
        let length = u32::try_from(length).map_err(|_| ())?;
        if frame.wanted() > self.body.len() || length > self.left {
            return Err(());
        }
        self.hole = true;
        self.left -= length;
        Ok(if self.left == 0 { self.end() } else { None })
    }

    /// Whether nothing of a frame is there.
    pub(super) fn is_at_start(&self) -> bool {
        self.frame.is_none() && self.head.is_empty()
    }

    /// A frame whose end has not come, and how many bytes of its payload have.
    pub(super) fn unfinished(&self) -> Option<(Frame, u32)> {
        self.frame.map(|frame| (frame, frame.length - self.left))
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.body.len()
    }

    fn read_head(&mut self, bytes: &mut &[u8], at: Boottime) {
        if self.head.is_empty() {
            self.since = at;
        }
        let taken = bytes.len().min(HEAD - self.head.len());
        self.head.extend_from_slice(&bytes[..taken]);
        *bytes = &bytes[taken..];
        if let [high, middle, low, kind, flags, stream @ ..] = &*self.head
            && let Ok(stream) = <[u8; 4]>::try_from(stream)
        {
            let frame = Frame {
                length: u32::from_be_bytes([0, *high, *middle, *low]),
                kind: *kind,
                flags: *flags,
                stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
                since: self.since,
            };
            self.head.clear();
            self.left = frame.length;
            self.frame = Some(frame);
        }
    }

    fn end(&mut self) -> Option<Whole> {
        let frame = self.frame.take()?;
        Some(Whole { frame, body: std::mem::take(&mut self.body), hole: std::mem::take(&mut self.hole) })
    }
}
