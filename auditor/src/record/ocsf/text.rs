//! Bytes as JSON strings, reversibly.

use std::fmt;

use serde::{Serialize, Serializer};

/// Text that is meant to be UTF-8 and may not be.
///
/// Valid UTF-8 is written as it is. Anything else is written with each offending byte as `\xNN` (two lower-case
/// hexadecimal digits) and each backslash doubled, and the record says `escaped`: so the bytes can be restored from
/// the mark and the text, and text without the mark needs no looking at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verbatim<'a> {
    bytes: &'a [u8],
    text: Option<&'a str>,
}

impl<'a> Verbatim<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, text: std::str::from_utf8(bytes).ok() }
    }

    /// The text, where it is what it is meant to be: nothing has to be escaped.
    pub(super) fn plain(self) -> Option<&'a str> {
        self.text
    }
}

impl Serialize for Verbatim<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.text {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(&Escaped(self.bytes)),
        }
    }
}

struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for (index, part) in chunk.valid().split('\\').enumerate() {
                if index > 0 {
                    f.write_str("\\\\")?;
                }
                f.write_str(part)?;
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Bytes as lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The inverse that the documentation promises.
    fn restore(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            (bytes, rest) = match (first, after) {
                (b'\\', [b'\\', after @ ..]) => ([bytes, vec![b'\\']].concat(), after),
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digits = [*high, *low];
                    let byte = u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap();
                    ([bytes, vec![byte]].concat(), after)
                }
                _ => ([bytes, vec![*first]].concat(), after),
            };
        }
        bytes
    }

    #[test]
    fn valid_text_is_untouched() {
        let text = Verbatim::new(br"select '\x41\\'");
        assert!(text.plain().is_some());
        assert_eq!(serde_json::to_string(&text).unwrap(), r#""select '\\x41\\\\'""#);
    }

    proptest! {
        #[test]
        fn escaping_is_reversible(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\\'), Just(b'x')], 0..64)) {
            let verbatim = Verbatim::new(&bytes);
            let written: String = serde_json::from_slice(&serde_json::to_vec(&verbatim).unwrap()).unwrap();
            if verbatim.plain().is_none() {
                prop_assert_eq!(restore(&written), bytes);
            } else {
                prop_assert_eq!(written.into_bytes(), bytes);
            }
        }
    }
}
