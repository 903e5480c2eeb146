//! The chain: how a line is sealed, and how a seal is read back.

use std::fmt;

use sha2::{Digest, Sha256};

const PREV: &[u8] = br#","chain":{"prev":""#;
const HASH: &[u8] = br#"","hash":""#;
const END: &[u8] = b"\"}}}}\n";
const DIGITS: usize = 64;
const SEAL: usize = PREV.len() + DIGITS + HASH.len() + DIGITS + END.len();

/// A SHA-256 value; written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The `prev` of a trail's first record: bound to the trail's id, so that no other trail's beginning fits.
    pub fn genesis(trail: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"auditor trail v1\n");
        hasher.update(trail.as_bytes());
        Self(hasher.finalize().into())
    }

    pub(super) const fn new(value: [u8; 32]) -> Self {
        Self(value)
    }

    /// `None` where it is not 32 bytes.
    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 64 lower-case hexadecimal digits; anything else is `None`.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let mut value = [0; 32];
        if digits.len() != DIGITS {
            return None;
        }
        for (byte, pair) in value.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().try_fold(0, |value, digit| Some(value << 4 | nibble(*digit)?))?;
        }
        Some(Self(value))
    }

    fn write(self, out: &mut Vec<u8>) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; DIGITS];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        out.extend_from_slice(&digits);
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Only one spelling of a hash is accepted: digits that differ in case would be other bytes with the same meaning.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Makes the rendered record in `line` (which ends in `}}}`) a sealed line with its newline, and gives its hash.
pub(super) fn seal(line: &mut Vec<u8>, prev: Hash) -> Hash {
    debug_assert!(line.ends_with(b"}}}"), "auditor, unmapped and the record are the last to be closed");
    line.truncate(line.len().saturating_sub(3));
    line.extend_from_slice(PREV);
    prev.write(line);
    line.extend_from_slice(HASH);
    let hash = Hash::of(line);
    hash.write(line);
    line.extend_from_slice(END);
    hash
}

/// The seal of a line as it stands there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seal {
    pub(super) prev: Hash,
    pub(super) hash: Hash,
}

impl Seal {
    /// Reads the seal off a whole line with its newline; `None` where the line does not end as every line does.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let (_, seal) = line.split_at_checked(line.len().checked_sub(SEAL)?)?;
        let (prev, rest) = seal.strip_prefix(PREV)?.split_at_checked(DIGITS)?;
        let (hash, end) = rest.strip_prefix(HASH)?.split_at_checked(DIGITS)?;
        (end == END).then_some(())?;
        Some(Self { prev: Hash::parse(prev)?, hash: Hash::parse(hash)? })
    }

    /// Whether the hash is that of the line's bytes.
    pub(super) fn holds(&self, line: &[u8]) -> bool {
        let covered = line.len().saturating_sub(DIGITS + END.len());
        line.get(..covered).is_some_and(|bytes| Hash::of(bytes) == self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_line_reads_back_and_covers_every_byte() {
        let prev = Hash::genesis("ab");
        let mut line = br#"{"time":1,"unmapped":{"auditor":{"kind":"statement"}}}"#.to_vec();
        let hash = seal(&mut line, prev);
        serde_json::from_slice::<serde_json::Value>(&line).unwrap();
        let read = Seal::read(&line).unwrap();
        assert_eq!(read, Seal { prev, hash });
        assert!(read.holds(&line));
        for index in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[index] ^= 1 << bit;
                assert!(
                    !Seal::read(&changed).is_some_and(|seal| seal.holds(&changed)),
                    "byte {index}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn only_lower_case_digits_are_a_hash() {
        assert!(Hash::parse(&[b'a'; 64]).is_some());
        assert!(Hash::parse(&[b'A'; 64]).is_none());
        assert!(Hash::parse(&[b'a'; 63]).is_none());
    }
}
