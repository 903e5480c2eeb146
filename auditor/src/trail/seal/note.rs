//! Signed notes and their Ed25519 keys, by C2SP signed-note.
//!
//! A note is text, an empty line, and signature lines: `— <key name> <base64 of key id and signature>`. A key as text is
//! `<name>+<key id in hexadecimal>+<base64 of the algorithm and the key>`: whoever verifies has it from a place that he trusts.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::BASE64;
use sha2::{Digest, Sha256};

/// Signature type of Ed25519.
const ED25519_TYPE: u8 = 1;
/// As the specification asks for at least.
const MOST_SIGNATURES: usize = 16;

/// A public key and whose it is.
#[derive(Clone, Eq, PartialEq)]
pub struct VerifierKey {
    name: String,
    public: [u8; 32],
}

/// The text is not a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this is not a public key of a trail: it looks like auditor/<trail id>+<8 digits>+<base64>, and `auditor key` prints it"
)]
pub struct NotAKey;

impl VerifierKey {
    pub(super) fn new(name: String, public: [u8; 32]) -> Self {
        Self { name, public }
    }

    /// Whose key it is; of a trail the origin in its checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key id, which tells keys of the same name apart.
    pub(super) fn id(&self) -> [u8; 4] {
        let mut hasher = Sha256::new();
        hasher.update(self.name.as_bytes());
        hasher.update([b'\n', ED25519_TYPE]);
        hasher.update(self.public);
        let digest: [u8; 32] = hasher.finalize().into();
        [digest[0], digest[1], digest[2], digest[3]]
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public).verify(text, signature).is_ok()
    }

    /// A signature line for `signature`.
    pub(super) fn line(&self, signature: &[u8; 64]) -> String {
        let bytes = [self.id().as_slice(), signature].concat();
        format!("— {} {}\n", self.name, BASE64.encode(&bytes))
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ED25519_TYPE], self.public.as_slice()].concat();
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), BASE64.encode(&key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NotAKey);
        };
        let key = BASE64.decode(key.as_bytes()).map_err(|_| NotAKey)?;
        let [ED25519_TYPE, public @ ..] = key.as_slice() else { return Err(NotAKey) };
        let public = public.try_into().map_err(|_| NotAKey)?;
        let key = Self { name: name.to_owned(), public };
        // Also refuses a key id of another key.
        if is_name(name) && key.to_string() == text { Ok(key) } else { Err(NotAKey) }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|character: char| character.is_whitespace() || character == '+')
}

/// A note whose signatures are yet to be verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::trail) struct Note<'a> {
    text: &'a str,
    signatures: Vec<(&'a str, Vec<u8>)>,
}

impl<'a> Note<'a> {
    /// Takes a note apart; `None` where it is not one.
    pub(in crate::trail) fn parse(note: &'a str) -> Option<Self> {
        let control = |character: char| character < ' ' && character != '\n';
        if note.contains(control) {
            return None;
        }
        let end = note.rfind("\n\n")? + 1;
        let (text, signatures) = (&note[..end], &note[end + 1..]);
        let lines = signatures.strip_suffix('\n')?.split('\n');
        let signatures = lines.map(signature).collect::<Option<Vec<_>>>()?;
        (signatures.len() <= MOST_SIGNATURES).then_some(Self { text, signatures })
    }

    /// The text, with its last newline.
    pub(in crate::trail) fn text(&self) -> &'a str {
        self.text
    }

    /// Whether there is a signature by this key, and none in its name that does not hold.
    pub(in crate::trail) fn is_signed_by(&self, key: &VerifierKey) -> bool {
        let mut by_key = self
            .signatures
            .iter()
            .filter(|(name, bytes)| *name == key.name && bytes.starts_with(&key.id()))
            .map(|(_, bytes)| key.verifies(self.text.as_bytes(), &bytes[4..]))
            .peekable();
        by_key.peek().is_some() && by_key.all(|holds| holds)
    }
}

fn signature(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
    let bytes = BASE64.decode(signature.as_bytes()).ok()?;
    (is_name(name) && bytes.len() > 4).then_some((name, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the documentation of Go's golang.org/x/mod/sumdb/note.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
                        then you don't know what your problem is.\n\n\
                        — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_note_of_another_implementation_verifies() {
        let key: VerifierKey = KEY.parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        assert!(Note::parse(NOTE).unwrap().is_signed_by(&key));
        for byte in 0..NOTE.len() {
            let mut changed = NOTE.as_bytes().to_vec();
            changed[byte] ^= 1;
            let verifies = |note: &str| Note::parse(note).is_some_and(|note| note.is_signed_by(&key));
            assert!(!String::from_utf8(changed).is_ok_and(|note| verifies(&note)), "byte {byte}");
        }
    }

    #[test]
    fn only_keys_are_keys() {
        for text in [
            "",
            "a+b",
            "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10T",
        ] {
            assert_eq!(text.parse::<VerifierKey>(), Err(NotAKey), "{text}");
        }
    }
}
