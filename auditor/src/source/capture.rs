//! Captures: what the rings gave, in a file, verbatim and in order; and such a file as a [`Source`].
//!
//! ```text
//! header   magic, format version, layout of the records, boot time to UTC, boot id, what passes unread
//!                                                                                          64 bytes, little endian
//! frame    length of the body, kind of the frame, body                                    8 bytes and the body
//! frame    …
//! ```
//!
//! A body is one of: a record as the kernel wrote it, without the slack of its ring slot ([`Event::encode`]); or what the
//! daemon knows of a session (JSON), before the first record of that session. A capture has no end mark: whatever stops
//! its writer (its limit, a disk that is too slow, a crash) leaves a beginning that can be read.
//!
//! Assumed of a reader's file: nothing. Lengths are bounded before memory is taken for them, and what cannot be read is
//! told with its place. There are no checksums: a byte that was changed within a body is not noticed here.
//!
//! A capture holds what agents said, passwords included: [`create`] makes it readable for its owner only.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use auditor_common::event::{
    Closed, Decision, Established, Exec, Exit, Fork, Header as EventHeader, Moved, Packet, Skipped,
};
use auditor_common::tls::SecretTaken;
use auditor_common::unix::{UnixData, UnixDecision};
use serde::{Deserialize, Serialize};

use super::{Event, Malformed, Source};
use crate::clock::{Boottime, Clock};
use crate::config::{FailMode, Overload};
use crate::record::{Agent, Session};

/// PNG's trick: a byte that is no text, and a line ending that a transfer as text would change.
const MAGIC: [u8; 8] = *b"\x89AUDCP\r\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const BOOT_ID: std::ops::Range<usize> = 24..60;
/// Where the bits stand of [`Header::overload`] and [`Header::fail_mode`]; zero in captures that are older than these.
const PASSES: usize = 60;
const RECORD_LOSS: u8 = 1;
const FAIL_OPEN: u8 = 2;
const FRAME_BYTES: usize = 8;
const FRAME_EVENT: u32 = 1;
const FRAME_SESSION: u32 = 2;
/// The longest body: a segment of 32 KiB with its head, and a session with labels and task, are far below.
const LONGEST_BODY: usize = 1 << 20;
/// What is read at once, and with it the memory that a reader takes beside its longest body.
const READ_BYTES: usize = 1 << 20;

/// Tells apart records of different layouts, as far as sizes can (FNV-1a of them): bytes of one are no bytes of another.
const LAYOUT: u32 = layout(&[
    size_of::<EventHeader>(),
    size_of::<Packet>(),
    size_of::<Skipped>(),
    size_of::<Decision>(),
    size_of::<Established>(),
    size_of::<Closed>(),
    size_of::<Exec>(),
    size_of::<Fork>(),
    size_of::<Exit>(),
    size_of::<Moved>(),
    size_of::<UnixDecision>(),
    size_of::<UnixData>(),
    size_of::<SecretTaken>(),
]);

const fn layout(sizes: &[usize]) -> u32 {
    let (mut hash, mut index) = (0x811c_9dc5_u32, 0);
    while index < sizes.len() {
        hash = (hash ^ (sizes[index] & 0xffff) as u32).wrapping_mul(0x0100_0193);
        index += 1;
    }
    hash
}

/// Why a capture cannot be read, or not any further. What came before was given out.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// mmap(2): no memory for what a replay needs in the kernel's place.
    #[error("memory for a replay: {0}")]
    Memory(#[from] io::Error),
    /// read(2).
    #[error("read the capture at byte {at}: {error}")]
    Read {
        /// Offset in the file.
        at: u64,
        /// What the kernel said.
        error: io::Error,
    },
    /// Other bytes than a capture begins with.
    #[error("this is no capture: it does not begin as `auditor daemon --record-capture` begins one")]
    NotACapture,
    /// Written by a version with another format, or other records.
    #[error("the capture is of another version of the auditor (format {version}, layout {layout:08x})")]
    OtherVersion {
        /// Of the format.
        version: u32,
        /// Of the records.
        layout: u32,
    },
    /// It ends within a frame, as one does whose writer was killed.
    #[error("the capture ends at byte {at}, in the middle of a frame that begins at byte {begins}")]
    Truncated {
        /// Length of the file.
        at: u64,
        /// Offset of the frame.
        begins: u64,
    },
    /// A frame that is none.
    #[error("the capture is damaged at byte {at}: {what}")]
    Damaged {
        /// Offset of the frame.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// What a capture says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// Nanoseconds from boot time to UTC when it was begun.
    pub boottime_to_utc: i64,
    /// `/proc/sys/kernel/random/boot_id` of the host, at most 36 bytes.
    pub boot_id: String,
    /// What became of segments without room when it was begun: a gap means another thing where they may pass.
    pub overload: Overload,
    /// The same for segments without a daemon.
    pub fail_mode: FailMode,
}

impl Header {
    /// For a capture that begins now. A boot id that is too long is cut.
    pub fn now(boot_id: &str, overload: Overload, fail_mode: FailMode) -> Self {
        let offset = Clock::read().utc(Boottime(0)).0;
        let end = boot_id.floor_char_boundary(BOOT_ID.len());
        Self {
            boottime_to_utc: i64::try_from(offset).unwrap_or(0),
            boot_id: boot_id[..end].to_owned(),
            overload,
            fail_mode,
        }
    }

    /// The clock of its records.
    pub fn clock(&self) -> Clock {
        Clock::fixed(self.boottime_to_utc.into())
    }

    /// As it stands in the file.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&LAYOUT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.boottime_to_utc.to_le_bytes());
        for (byte, given) in bytes[BOOT_ID].iter_mut().zip(self.boot_id.bytes()) {
            *byte = given;
        }
        bytes[PASSES] |= if self.overload == Overload::RecordLoss { RECORD_LOSS } else { 0 };
        bytes[PASSES] |= if self.fail_mode == FailMode::Open { FAIL_OPEN } else { 0 };
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, CaptureError> {
        if bytes[..8] != MAGIC {
            return Err(CaptureError::NotACapture);
        }
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (version, layout) = (number(8), number(12));
        if (version, layout) != (VERSION, LAYOUT) {
            return Err(CaptureError::OtherVersion { version, layout });
        }
        let mut offset = [0; 8];
        offset.copy_from_slice(&bytes[16..24]);
        let boot_id = bytes[BOOT_ID].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            boottime_to_utc: i64::from_le_bytes(offset),
            boot_id: String::from_utf8_lossy(boot_id).into_owned(),
            overload: match bytes[PASSES] & RECORD_LOSS {
                0 => Overload::Backpressure,
                _ => Overload::RecordLoss,
            },
            fail_mode: if bytes[PASSES] & FAIL_OPEN == 0 { FailMode::Closed } else { FailMode::Open },
        })
    }
}

/// Makes the file of a capture, for its owner only. One that is there already is left alone.
///
/// # Errors
/// open(2)'s.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Appends an event's frame to `out`.
pub fn write_event(event: &Event<'_>, out: &mut Vec<u8>) {
    write_frame(FRAME_EVENT, out, |out| event.encode(out));
}

/// Appends a session's frame to `out`: its number in the kernel, and who it is. Nothing, where it is longer than a frame
/// may be.
pub fn write_session(number: u64, session: &Session, out: &mut Vec<u8>) {
    let fields = SessionFields {
        number,
        id: session.id.clone(),
        agent: session.agent.name.clone(),
        labels: session.agent.labels.clone(),
        identity: session.agent.identity.clone(),
        task: session.task.clone(),
        policy: session.policy.clone(),
    };
    if let Ok(json) = serde_json::to_vec(&fields)
        && json.len() <= LONGEST_BODY
    {
        write_frame(FRAME_SESSION, out, |out| out.extend_from_slice(&json));
    }
}

fn write_frame(kind: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let begins = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_le_bytes());
    body(out);
    // A record is a segment of 64 KiB at most, a session is bounded by its writer.
    let length = u32::try_from(out.len() - begins - FRAME_BYTES).unwrap_or(u32::MAX);
    out[begins..begins + 4].copy_from_slice(&length.to_le_bytes());
}

#[derive(Deserialize, Serialize)]
struct SessionFields {
    number: u64,
    id: String,
    agent: String,
    labels: BTreeMap<String, String>,
    identity: Option<String>,
    task: Option<String>,
    policy: String,
}

/// A capture that is read.
#[derive(Debug)]
pub struct Capture<R> {
    input: R,
    header: Header,
    buffer: Vec<u8>,
    /// What of the buffer was read and is not used yet.
    unread: std::ops::Range<usize>,
    /// Offset in the file of the first unread byte.
    at: u64,
    sessions: Vec<(u64, Session)>,
}

impl<R: Read> Capture<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is not that of a capture, or of one that this version can read.
    pub fn open(input: R) -> Result<Self, CaptureError> {
        let header = Header {
            boottime_to_utc: 0,
            boot_id: String::new(),
            overload: Overload::Backpressure,
            fail_mode: FailMode::Closed,
        };
        let buffer = vec![0; READ_BYTES];
        let mut capture = Self { input, header, buffer, unread: 0..0, at: 0, sessions: Vec::new() };
        if !capture.fill(HEADER_BYTES)? {
            return Err(CaptureError::NotACapture);
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&capture.buffer[..HEADER_BYTES]);
        capture.header = Header::decode(&header)?;
        capture.take(HEADER_BYTES);
        Ok(capture)
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Sessions whose events come next, with their numbers. [`Source::drain`] returns before the first of them.
    pub fn take_sessions(&mut self) -> std::vec::Drain<'_, (u64, Session)> {
        self.sessions.drain(..)
    }

    /// Sees to it that so many bytes are unread. `false`: the file ends before.
    fn fill(&mut self, bytes: usize) -> Result<bool, CaptureError> {
        if self.unread.len() >= bytes {
            return Ok(true);
        }
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
        while self.unread.len() < bytes {
            match self.input.read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.unread.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(CaptureError::Read { at: self.at + self.unread.len() as u64, error });
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, bytes: usize) {
        self.unread.start += bytes;
        self.at += bytes as u64;
    }

    /// The next frame's kind and the place of its body in the buffer; `None` at the end of the file.
    fn frame(&mut self) -> Result<Option<(u32, std::ops::Range<usize>)>, CaptureError> {
        let whole = self.fill(FRAME_BYTES)?;
        if self.unread.is_empty() {
            return Ok(None);
        }
        let truncated =
            |at: u64, unread: usize| CaptureError::Truncated { at: at + unread as u64, begins: at };
        if !whole {
            return Err(truncated(self.at, self.unread.len()));
        }
        let head = &self.buffer[self.unread.start..][..FRAME_BYTES];
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length > LONGEST_BODY {
            let what = format!("a frame of {length} bytes");
            return Err(CaptureError::Damaged { at: self.at, what });
        }
        if !self.fill(FRAME_BYTES + length)? {
            return Err(truncated(self.at, self.unread.len()));
        }
        let begins = self.unread.start + FRAME_BYTES;
        Ok(Some((kind, begins..begins + length)))
    }

    fn session(&mut self, body: std::ops::Range<usize>) -> Result<(), CaptureError> {
        let fields: SessionFields = serde_json::from_slice(&self.buffer[body])
            .map_err(|error| CaptureError::Damaged { at: self.at, what: format!("a session: {error}") })?;
        let SessionFields { number, id, agent, labels, identity, task, policy } = fields;
        let agent = Agent { name: agent, labels, identity };
        self.sessions.push((number, Session { id, agent, task, policy }));
        Ok(())
    }
}

impl<R: Read> Source for Capture<R> {
    type Error = CaptureError;

    fn drain(&mut self, most: usize, on: &mut dyn FnMut(Event<'_>)) -> Result<usize, CaptureError> {
        let mut given = 0;
        while given < most {
            let Some((kind, body)) = self.frame()? else { break };
            let taken = FRAME_BYTES + body.len();
            match kind {
                FRAME_EVENT => {
                    let event = Event::decode(&self.buffer[body]).map_err(|malformed: Malformed| {
                        CaptureError::Damaged { at: self.at, what: malformed.to_string() }
                    })?;
                    on(event);
                    given += 1;
                }
                FRAME_SESSION => self.session(body)?,
                _ => {
                    let what = format!("a frame of kind {kind}");
                    return Err(CaptureError::Damaged { at: self.at, what });
                }
            }
            self.take(taken);
            if kind == FRAME_SESSION {
                break;
            }
        }
        Ok(given)
    }
}

/// Appends frames to a file, up to a limit.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    left: u64,
}

/// Whether all of it still fitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It did.
    Whole,
    /// The capture is at its limit: the first of the frames were written, as many as fitted.
    Full,
}

impl<W: Write> Writer<W> {
    /// Begins a capture of at most `limit` bytes, and of its header at least.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn begin(mut output: W, header: &Header, limit: u64) -> io::Result<Self> {
        let bytes = header.encode();
        output.write_all(&bytes)?;
        Ok(Self { output, left: limit.saturating_sub(bytes.len() as u64) })
    }

    /// Appends whole frames.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn append(&mut self, frames: &[u8]) -> io::Result<Written> {
        let fitting = fitting(frames, self.left);
        self.output.write_all(&frames[..fitting])?;
        self.left -= fitting as u64;
        Ok(if fitting == frames.len() { Written::Whole } else { Written::Full })
    }
}

/// Bytes of the first frames that together are no longer than `limit`.
fn fitting(frames: &[u8], limit: u64) -> usize {
    if frames.len() as u64 <= limit {
        return frames.len();
    }
    let mut end = 0;
    while let Some(&[a, b, c, d]) = frames[end..].first_chunk() {
        let next = end + FRAME_BYTES + u32::from_le_bytes([a, b, c, d]) as usize;
        if next as u64 > limit || next > frames.len() {
            break;
        }
        end = next;
    }
    end
}

#[cfg(test)]
mod tests;
