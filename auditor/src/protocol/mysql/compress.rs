//! The compressed protocol: frames of their own, with packets in them that may begin and end anywhere.
//!
//! A frame is a three-byte length, a number, and the length of what is in it, zero where it is not compressed. Each compressed
//! frame stands alone, so it is gathered (at most 2^24 - 1 bytes, which is what both lengths can say) and unpacked in one go, in
//! pieces that are handed on; what it unpacks to is never gathered. Refused: frames that do not unpack to exactly what they say.

use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::StreamingDecoder;

/// Bytes that are handed on at a time.
const CHUNK: usize = 16 << 10;
/// What a zstd frame may ask to be remembered; no frame holds more.
const MAX_WINDOW: u64 = 1 << 24;

/// How frames are compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Method {
    Zlib,
    Zstd,
}

/// Where unpacked pieces go, with the number of the frame that they were in; the first error ends the reading.
pub(super) type Unpacked<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// One direction's frames.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Unpacker {
    method: Method,
    header: [u8; 7],
    filled: usize,
    frame: Option<Frame>,
    /// Frames that have begun.
    pub(super) frames: u64,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Frame {
    /// Bytes that are still to come.
    remaining: u32,
    /// Bytes that it unpacks to; zero where it is not compressed.
    whole: u32,
    kept: Vec<u8>,
}

impl Unpacker {
    /// Begins with a frame.
    pub(super) fn new(method: Method) -> Self {
        Self { method, header: [0; 7], filled: 0, frame: None, frames: 0 }
    }

    /// The next piece of what is in the frames, which `input` may begin and end in the middle of. What is unpacked goes to
    /// `unpacked`, and so do further calls' pieces, up to the first error.
    pub(super) fn read(&mut self, mut input: &[u8], unpacked: Unpacked<'_>) -> Result<(), String> {
        while !input.is_empty() {
            let Some(frame) = &mut self.frame else {
                self.header(&mut input);
                continue;
            };
            let length = usize::try_from(frame.remaining).unwrap_or(usize::MAX).min(input.len());
            let (piece, rest) = input.split_at(length);
            input = rest;
            frame.remaining -= u32::try_from(length).unwrap_or(frame.remaining);
            let over = frame.remaining == 0;
            if frame.whole == 0 {
                if over {
                    self.frame = None;
                }
                unpacked(self.frames, piece)?;
            } else if over && frame.kept.is_empty() {
                // Most frames come whole.
                let whole = frame.whole;
                self.frame = None;
                self.unpack(piece, whole, unpacked)?;
            } else {
                frame.kept.extend_from_slice(piece);
                if over && let Some(frame) = self.frame.take() {
                    self.unpack(&frame.kept, frame.whole, unpacked)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes that it keeps.
    pub(super) fn memory(&self) -> usize {
        self.frame.as_ref().map_or(0, |frame| frame.kept.len())
    }

    /// Lets go of what it keeps: nothing more is read.
    pub(super) fn stop(&mut self) {
        self.frame = None;
    }

    fn header(&mut self, input: &mut &[u8]) {
        let length = (self.header.len() - self.filled).min(input.len());
        let (piece, rest) = input.split_at(length);
        *input = rest;
        self.header[self.filled..self.filled + length].copy_from_slice(piece);
        self.filled += length;
        if self.filled < self.header.len() {
            return;
        }
        self.filled = 0;
        self.frames += 1;
        let [a, b, c, _, d, e, f] = self.header;
        let (remaining, whole) = (u32::from_le_bytes([a, b, c, 0]), u32::from_le_bytes([d, e, f, 0]));
        if remaining > 0 {
            self.frame = Some(Frame { remaining, whole, kept: Vec::new() });
        }
    }

    fn unpack(&self, packed: &[u8], whole: u32, unpacked: Unpacked<'_>) -> Result<(), String> {
        let whole = u64::from(whole);
        let mut hand_on = |piece: &[u8]| unpacked(self.frames, piece);
        let length = match self.method {
            Method::Zlib => inflate(packed, whole, &mut hand_on)?,
            Method::Zstd => unpack_zstd(packed, whole, &mut hand_on)?,
        };
        if length == whole {
            Ok(())
        } else {
            Err(format!("a compressed frame of {whole} bytes holds {length}"))
        }
    }
}

/// Unpacks at most a little more than `whole` bytes, and answers how many there were.
fn inflate(
    mut packed: &[u8],
    whole: u64,
    hand_on: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<u64, String> {
    let mut state = Decompress::new(true);
    let mut chunk = [0; CHUNK];
    while state.total_out() <= whole {
        let (read, written) = (state.total_in(), state.total_out());
        let status = state.decompress(packed, &mut chunk, FlushDecompress::None);
        let status = status.map_err(|_| "a frame that is not zlib".to_owned())?;
        let advanced = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let (read, written) = (advanced(state.total_in(), read), advanced(state.total_out(), written));
        packed = packed.get(read..).unwrap_or_default();
        if state.total_out() <= whole {
            hand_on(chunk.get(..written).unwrap_or_default())?;
        }
        if status == Status::StreamEnd || (read == 0 && written == 0) {
            break;
        }
    }
    Ok(state.total_out())
}

fn unpack_zstd(
    packed: &[u8],
    whole: u64,
    hand_on: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<u64, String> {
    let not_zstd = |_| "a frame that is not zstd".to_owned();
    let mut decoder = StreamingDecoder::new_with_max_window_size(packed, MAX_WINDOW)
        .map_err(|_| "a frame that is not zstd".to_owned())?;
    let mut chunk = [0; CHUNK];
    let mut length = 0;
    while length <= whole {
        let read = decoder.read(&mut chunk).map_err(|error: std::io::Error| not_zstd(error))?;
        if read == 0 {
            break;
        }
        length += read as u64;
        if length <= whole {
            hand_on(&chunk[..read])?;
        }
    }
    Ok(length)
}
