//! Fields of message bodies that are read as they arrive, over any number of pieces.

use super::names::Name;

/// Enough of a name to tell it from any other that is looked up.
pub(super) const NAME_PREFIX: usize = 80;

/// A string up to its zero byte, its length counted and its first bytes kept.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Text {
    pub(super) kept: Vec<u8>,
    keep: usize,
    pub(super) length: u64,
}

impl Text {
    /// With room for `keep` bytes.
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Consumes up to and including the zero byte; `true` once that was there.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> bool {
        let end = input.iter().position(|&byte| byte == 0);
        let piece = &input[..end.unwrap_or(input.len())];
        self.length += piece.len() as u64;
        let room = self.keep.saturating_sub(self.kept.len()).min(piece.len());
        self.kept.extend_from_slice(&piece[..room]);
        *input = &input[end.map_or(input.len(), |end| end + 1)..];
        end.is_some()
    }

    /// A statement's or portal's name.
    pub(super) fn name() -> Self {
        Self::new(NAME_PREFIX)
    }

    /// The name; `ended` tells whether its zero byte was there.
    pub(super) fn to_name(&self, ended: bool) -> Name {
        if ended { Name::new(&self.kept, self.length) } else { Name::Unknown }
    }
}

/// A big-endian number of `N` bytes.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Number<const N: usize> {
    value: u32,
    seen: usize,
}

impl<const N: usize> Number<N> {
    /// Consumes its bytes; the value once they were all there, after which the next number may begin.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> Option<u32> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.value = self.value << 8 | u32::from(byte);
            self.seen += 1;
            if self.seen == N {
                return Some(std::mem::take(self).value);
            }
        }
        None
    }
}
