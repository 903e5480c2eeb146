//! Fields of payloads: read at once from what was kept, or as they arrive over any number of pieces.

/// A string up to its zero byte, its length counted and its first bytes kept.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Text {
    pub(super) kept: Vec<u8>,
    keep: usize,
}

impl Text {
    /// With room for `keep` bytes.
    pub(super) fn new(keep: usize) -> Self {
        Self { kept: Vec::new(), keep }
    }

    /// Consumes up to and including the zero byte; `true` once that was there.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> bool {
        let end = memchr::memchr(0, input);
        self.add(&input[..end.unwrap_or(input.len())]);
        *input = &input[end.map_or(input.len(), |end| end + 1)..];
        end.is_some()
    }

    /// Adds bytes.
    pub(super) fn add(&mut self, piece: &[u8]) {
        let room = self.keep.saturating_sub(self.kept.len()).min(piece.len());
        self.kept.extend_from_slice(&piece[..room]);
    }
}

/// A little-endian number of `N` bytes, at most eight.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Number<const N: usize> {
    value: u64,
    seen: u32,
}

impl<const N: usize> Number<N> {
    /// Consumes its bytes; the value once they were all there, after which the next number may begin.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> Option<u64> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.value |= u64::from(byte) << (8 * self.seen);
            self.seen += 1;
            if self.seen as usize == N {
                return Some(std::mem::take(self).value);
            }
        }
        None
    }
}

/// A number of as many bytes as it needs: up to 250 in one, otherwise two, three or eight behind a byte that says so.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Variable {
    value: u64,
    seen: u32,
    /// Bytes that it has; zero before the first.
    bytes: u32,
}

impl Variable {
    /// As [`Number::read`]. 251, which stands for NULL in rows, and 255, which is no number, count as zero.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> Option<u64> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            if self.bytes == 0 {
                self.bytes = match byte {
                    0xfc => 2,
                    0xfd => 3,
                    0xfe => 8,
                    0xfb | 0xff => return Some(0),
                    _ => return Some(byte.into()),
                };
                continue;
            }
            self.value |= u64::from(byte) << (8 * self.seen);
            self.seen += 1;
            if self.seen == self.bytes {
                return Some(std::mem::take(self).value);
            }
        }
        None
    }
}

/// So many bytes that are stepped over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Skip(pub(super) u64);

impl Skip {
    /// `true` once they are behind.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> bool {
        let length = usize::try_from(self.0).unwrap_or(usize::MAX).min(input.len());
        *input = &input[length..];
        self.0 -= length as u64;
        self.0 == 0
    }
}

/// Takes `N` bytes.
pub(super) fn bytes<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*taken)
}

/// Takes a number of as many bytes as it needs.
pub(super) fn variable(input: &mut &[u8]) -> Option<u64> {
    Variable::default().read(input)
}

/// Takes a string with its length in front.
pub(super) fn string<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(variable(input)?).ok()?;
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

/// As text, whatever is in it.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_bytes_that_they_need() {
        for (bytes, value) in [
            (&b"\x00"[..], 0),
            (b"\xfa", 250),
            (b"\xfc\xfb\x00", 251),
            (b"\xfd\x01\x02\x03", 0x0003_0201),
            (b"\xfe\x01\x00\x00\x00\x00\x00\x00\x80", 0x8000_0000_0000_0001),
        ] {
            assert_eq!(variable(&mut &bytes[..]), Some(value));
            assert_eq!(variable(&mut &bytes[..bytes.len() - 1]), None);
            let mut number = Variable::default();
            let read = bytes.iter().find_map(|byte| number.read(&mut std::slice::from_ref(byte)));
            assert_eq!(read, Some(value), "cut into bytes");
        }
        let mut number = Number::<4>::default();
        assert_eq!(number.read(&mut &b"\x01\x02"[..]), None);
        assert_eq!(number.read(&mut &b"\x03\x04x"[..]), Some(0x0403_0201));
    }

    #[test]
    fn strings_are_taken_whole_or_not() {
        let mut input = &b"\x02ab\x03c"[..];
        assert_eq!(string(&mut input), Some(&b"ab"[..]));
        assert_eq!(string(&mut input), None);
    }
}
