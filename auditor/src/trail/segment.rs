//! Segments: their names, and reading their lines with their places.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::error::Error;

const EXTENSION: &str = ".jsonl";
const DIGITS: usize = 20;
const READ_BUFFER: usize = 256 << 10;

/// No record is longer: statement text is bounded, and JSON makes of one byte at most six. A longer line is damage, and
/// is not read into memory.
pub(super) const LONGEST_LINE: u64 = 64 << 20;

/// A segment of a trail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Sequence of its first record, as its name says.
    pub(super) first: u64,
}

impl Segment {
    pub(super) fn new(directory: &Path, first: u64) -> Self {
        Self { path: directory.join(format!("{first:020}{EXTENSION}")), first }
    }

    /// The segments in `directory` in order. Other files are not looked at.
    pub(super) fn list(directory: &Path) -> Result<Vec<Self>, Error> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(directory).map_err(Error::call("open", directory))? {
            let path = entry.map_err(Error::call("read", directory))?.path();
            if let Some(first) = first_of(&path) {
                segments.push(Self { path, first });
            }
        }
        segments.sort_by_key(|segment| segment.first);
        Ok(segments)
    }

    /// The file's name.
    pub(super) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The sequence that a segment's name gives; `None` where it is no segment's name.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?;
    (digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// One line and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    /// With its newline, if it has one. Cut at [`LONGEST_LINE`].
    pub(super) bytes: &'a [u8],
    /// From 1.
    pub(super) number: u64,
    /// Of its first byte.
    pub(super) offset: u64,
    /// In the file, whatever was kept of it.
    pub(super) length: u64,
}

impl Line<'_> {
    /// Whether it ends with a newline; only a file's last line can be without, or one that is too long.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.ends_with(b"\n")
    }

    /// Whether it is longer than any record, and so was not kept whole.
    pub(super) fn is_too_long(&self) -> bool {
        self.length > LONGEST_LINE
    }
}

/// The lines of a file, one at a time in constant memory.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    number: u64,
    offset: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::open_at(path, 0, 0)
    }

    /// Goes on after line `number`, which ends before `offset`.
    pub(super) fn open_at(path: &Path, number: u64, offset: u64) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::call("open", path))?;
        file.seek(SeekFrom::Start(offset)).map_err(Error::call("seek", path))?;
        let reader = BufReader::with_capacity(READ_BUFFER, file);
        Ok(Self { path: path.to_owned(), reader, buffer: Vec::new(), number, offset })
    }

    pub(super) fn next_line(&mut self) -> Result<Option<Line<'_>>, Error> {
        self.buffer.clear();
        let offset = self.offset;
        let mut length = self.read(LONGEST_LINE)?;
        if length == 0 {
            return Ok(None);
        }
        if length == LONGEST_LINE && !self.buffer.ends_with(b"\n") {
            length += self.skip_line()?;
        }
        self.offset += length;
        self.number += 1;
        Ok(Some(Line { bytes: &self.buffer, number: self.number, offset, length }))
    }

    fn read(&mut self, limit: u64) -> Result<u64, Error> {
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.buffer);
        read.map(|length| u64::try_from(length).unwrap_or(u64::MAX)).map_err(Error::call("read", &self.path))
    }

    /// Passes over the rest of a line that is too long to keep.
    fn skip_line(&mut self) -> Result<u64, Error> {
        let skipped = self.reader.skip_until(b'\n').map_err(Error::call("read", &self.path))?;
        Ok(u64::try_from(skipped).unwrap_or(u64::MAX))
    }
}

/// The last line of a file, with its newline if it has one; empty where the file is.
pub(super) fn last_line(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        let mut window = 64 << 10;
        loop {
            let start = length.saturating_sub(window);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            (&mut file).take(length - start).read_to_end(&mut bytes)?;
            let before_last = bytes.len().saturating_sub(1);
            match bytes[..before_last].iter().rposition(|byte| *byte == b'\n') {
                Some(newline) => return Ok(bytes.split_off(newline + 1)),
                None if start == 0 => return Ok(bytes),
                None => window = window.saturating_mul(4),
            }
        }
    };
    read().map_err(Error::call("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_are_segments() {
        assert_eq!(first_of(Path::new("t/00000000000000000042.jsonl")), Some(42));
        for name in ["42.jsonl", "00000000000000000042.jsonl.gz", "+0000000000000000042.jsonl", "HEAD"] {
            assert_eq!(first_of(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn last_line_is_found_whatever_its_length() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long = [vec![b'x'; 300_000], b"\n".to_vec()].concat();
        for (content, last) in [
            (b"".to_vec(), b"".to_vec()),
            (b"a\n".to_vec(), b"a\n".to_vec()),
            (b"a\nb\n".to_vec(), b"b\n".to_vec()),
            (b"a\nb".to_vec(), b"b".to_vec()),
            ([b"a\n".to_vec(), long.clone()].concat(), long.clone()),
            (long.clone(), long),
        ] {
            fs::write(file.path(), content).unwrap();
            assert_eq!(last_line(file.path()).unwrap(), last);
        }
    }
}
