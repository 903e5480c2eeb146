//! Lines: a head is made of them, and so is chunked framing.

use std::borrow::Cow;

/// Longer ones are no server's and no client's: 8 KiB is what most of them take, 64 KiB what few do.
pub(super) const LONGEST: usize = 64 << 10;

/// The beginning of a line whose end has not come.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Line(
    Vec<u8>,
    /// The last line ended with CR and LF.
    bool,
);

/// It is longer than [`LONGEST`].
#[derive(Debug)]
pub(super) struct TooLong;

impl Line {
    /// Takes bytes up to the line's end, and gives the line without it. The end is LF, with CR before it or without, as every server
    /// reads it. `None`: the end is still to come, and all of `bytes` was taken.
    pub(super) fn read<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, TooLong> {
        let room = LONGEST - self.0.len();
        let Some(end) = memchr::memchr(b'\n', bytes).filter(|end| *end <= room) else {
            let (taken, rest) = bytes.split_at(bytes.len().min(room));
            self.0.extend_from_slice(taken);
            *bytes = rest;
            return if rest.is_empty() { Ok(None) } else { Err(TooLong) };
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        *bytes = rest;
        self.1 = line.last().or(self.0.last()) == Some(&b'\r');
        if self.0.is_empty() {
            return Ok(Some(Cow::Borrowed(line.strip_suffix(b"\r").unwrap_or(line))));
        }
        self.0.extend_from_slice(line);
        if self.0.last() == Some(&b'\r') {
            self.0.pop();
        }
        Ok(Some(Cow::Owned(std::mem::take(&mut self.0))))
    }

    /// Whether the line that was read last ended with CR and LF, not LF alone.
    pub(super) fn had_return(&self) -> bool {
        self.1
    }

    /// What has come of it.
    pub(super) fn so_far(&self) -> &[u8] {
        &self.0
    }
}
