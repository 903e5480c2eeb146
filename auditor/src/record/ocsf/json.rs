//! JSON by hand, for the one kind of record that is written for each statement: what serde must find out for each field
//! again (that a name needs no escaping, that an attribute is absent) is known here when it is compiled.
//!
//! Strings and numbers come out as serde_json writes them; where a string needs escapes, it is serde_json that does.

use serde::Serialize;

/// An object under construction at the end of a buffer.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    /// Opens it.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// The middle of one: what is added follows another member.
    pub(super) fn within(out: &'a mut Vec<u8>) -> Self {
        Self { out, first: false }
    }

    /// Closes it.
    pub(super) fn close(self) {
        self.out.push(b'}');
    }

    /// Begins a member; its value is to be appended to what comes back. `key` needs no escapes.
    pub(super) fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        debug_assert!(is_plain(key.as_bytes()));
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A member whose value needs no escapes.
    pub(super) fn word(&mut self, key: &'static str, value: &str) {
        debug_assert!(is_plain(value.as_bytes()));
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    }

    pub(super) fn string(&mut self, key: &'static str, value: &str) -> Result<(), serde_json::Error> {
        string(self.key(key), value)
    }

    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        number(self.key(key), value);
    }

    pub(super) fn flag(&mut self, key: &'static str, value: bool) {
        let value: &[u8] = if value { b"true" } else { b"false" };
        self.key(key).extend_from_slice(value);
    }

    /// A member of any kind, by serde.
    pub(super) fn value(
        &mut self,
        key: &'static str,
        value: &impl Serialize,
    ) -> Result<(), serde_json::Error> {
        serde_json::to_writer(self.key(key), value)
    }

    /// The same, where there is one.
    pub(super) fn optional(
        &mut self,
        key: &'static str,
        value: Option<&impl Serialize>,
    ) -> Result<(), serde_json::Error> {
        value.map_or(Ok(()), |value| self.value(key, value))
    }
}

/// Appends a string with its quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) -> Result<(), serde_json::Error> {
    if !is_plain(text.as_bytes()) {
        return serde_json::to_writer(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

/// Whether JSON needs no escapes in it.
fn is_plain(bytes: &[u8]) -> bool {
    // Without a way out in the middle, so that it becomes vector instructions.
    !bytes.iter().fold(false, |special, byte| special | (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\'))
}

/// Appends a number.
pub(super) fn number(out: &mut Vec<u8>, mut value: u64) {
    // The longest u64 has 20 digits.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten fits.
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends the elements of an array; `write` appends one.
pub(super) fn array<T>(
    out: &mut Vec<u8>,
    elements: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), serde_json::Error>,
) -> Result<(), serde_json::Error> {
    out.push(b'[');
    for (index, element) in elements.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, element)?;
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_and_numbers_are_as_serde_writes_them(text in any::<String>(), value in any::<u64>(), shift in 0..64) {
            let mut out = Vec::new();
            string(&mut out, &text).unwrap();
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
            let (mut out, value) = (Vec::new(), value >> shift);
            number(&mut out, value);
            prop_assert_eq!(out, serde_json::to_vec(&value).unwrap());
        }
    }

    #[test]
    fn every_character_that_needs_it_is_escaped() {
        for character in (0..=0x7f_u8).map(char::from) {
            let text = format!("a{character}b");
            let mut out = Vec::new();
            string(&mut out, &text).unwrap();
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }
}
