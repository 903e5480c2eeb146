//! Secrets of TLS connections, and where a connection finds them.
//!
//! A secret is what a library derives record keys from: a traffic secret of TLS 1.3 (RFC 8446 §7.1) or a master secret of
//! TLS 1.2 (RFC 5246 §8.1). Somebody else owns all of them; a connection holds their numbers only, so that its state can be
//! written down and secrets are not. Nothing here shows their bytes, and they are overwritten when they are dropped.
//!
//! A traffic secret does not say whose it is. A connection tries those that are on offer, and the record's authentication
//! decides. So an offer is an allegation: a false one costs time and nothing else, and how much time there is for that, the keyring says.

use std::fmt;
use std::ops::RangeInclusive;

use zeroize::Zeroizing;

/// The longest secret: a traffic secret of SHA-384, or a master secret.
pub const LONGEST_SECRET: usize = 48;

/// The hash of a cipher suite.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Hash {
    /// Bytes of its output, and of a traffic secret.
    pub const fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    pub(super) fn hmac(self) -> aws_lc_rs::hmac::Algorithm {
        match self {
            Self::Sha256 => aws_lc_rs::hmac::HMAC_SHA256,
            Self::Sha384 => aws_lc_rs::hmac::HMAC_SHA384,
        }
    }
}

/// What a secret is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretKind {
    /// A traffic secret of TLS 1.3: early, handshake or application, of either direction.
    Traffic {
        /// Of the suite that it is for.
        hash: Hash,
    },
    /// A master secret of TLS 1.2.
    Master {
        /// ClientHello.random of the handshake, where it was learnt.
        client_random: Option<[u8; 32]>,
        /// ServerHello.random of the handshake, where it was learnt.
        server_random: Option<[u8; 32]>,
    },
}

/// A secret with its number.
pub struct Secret {
    id: u64,
    kind: SecretKind,
    // Boxed: a secret that is moved leaves no copy behind.
    bytes: Box<Zeroizing<[u8; LONGEST_SECRET]>>,
}

impl Secret {
    /// `None` where the length of `bytes` is not that of such a secret. `id` must be larger than that of every secret that was
    /// ever offered to the same connections: they do not look at one twice.
    pub fn new(id: u64, kind: SecretKind, bytes: &[u8]) -> Option<Self> {
        let length = match kind {
            SecretKind::Traffic { hash } => hash.length(),
            SecretKind::Master { .. } => LONGEST_SECRET,
        };
        if bytes.len() != length {
            return None;
        }
        let mut own = Box::new(Zeroizing::new([0; LONGEST_SECRET]));
        own[..length].copy_from_slice(bytes);
        Some(Self { id, kind, bytes: own })
    }

    /// Its number.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What it is for.
    pub const fn kind(&self) -> &SecretKind {
        &self.kind
    }

    /// Whether it may be what a connection wants.
    pub fn fits(&self, wanted: &Wanted<'_>) -> bool {
        match (&self.kind, wanted) {
            (SecretKind::Traffic { hash }, Wanted::Traffic(wanted)) => hash == wanted,
            (
                SecretKind::Master { client_random, server_random },
                Wanted::Master { client_random: client, server_random: server },
            ) => {
                client_random.as_ref().is_none_or(|random| random == *client)
                    && server_random.as_ref().is_none_or(|random| random == *server)
            }
            _ => false,
        }
    }

    /// Whether another one is the same, but for its number.
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.bytes() == other.bytes()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self.kind {
            SecretKind::Traffic { hash } => &self.bytes[..hash.length()],
            SecretKind::Master { .. } => &self.bytes[..],
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a connection looks for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Any traffic secret for suites of this hash.
    Traffic(Hash),
    /// The master secret of the handshake with these randoms.
    Master {
        /// ClientHello.random.
        client_random: &'a [u8; 32],
        /// ServerHello.random.
        server_random: &'a [u8; 32],
    },
}

/// Whoever keeps secrets for connections.
pub trait Keyring {
    /// Those that nobody has claimed yet and that may fit, of these numbers, from the largest to the smallest. [`Secret::fits`] tells
    /// what fits; an index may be faster.
    fn candidates<'a>(
        &'a self,
        wanted: Wanted<'a>,
        numbers: RangeInclusive<u64>,
    ) -> Box<dyn Iterator<Item = &'a Secret> + 'a>;

    /// The largest number of a secret that is there or was; larger ones come later.
    fn newest(&self) -> u64;

    /// Whether so much work may be done in the search for a secret or for a record, in bytes that are decrypted. What may not be done
    /// now may later; whoever cannot wait does without.
    fn affords(&self, work: u64) -> bool {
        let _ = work;
        true
    }

    /// A secret that a connection has claimed and not released.
    fn get(&self, id: u64) -> Option<&Secret>;
}

/// Secrets in the order in which they came: enough for tests, benchmarks and captures.
impl Keyring for Vec<Secret> {
    fn candidates<'a>(
        &'a self,
        wanted: Wanted<'a>,
        numbers: RangeInclusive<u64>,
    ) -> Box<dyn Iterator<Item = &'a Secret> + 'a> {
        let fits = move |secret: &&Secret| numbers.contains(&secret.id) && secret.fits(&wanted);
        Box::new(self.iter().rev().filter(fits))
    }

    fn newest(&self) -> u64 {
        self.iter().map(Secret::id).max().unwrap_or(0)
    }

    fn get(&self, id: u64) -> Option<&Secret> {
        self.iter().find(|secret| secret.id == id)
    }
}
