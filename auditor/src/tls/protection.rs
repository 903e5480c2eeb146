//! Opening one protected record: AEADs (RFC 8446 §5.2, RFC 5246 §6.2.3.3, RFC 7905, RFC 6655) and CBC with HMAC, in both
//! orders (RFC 5246 §6.2.3.2, RFC 7366).
//!
//! A record is opened where it lies, and only as a whole: what this gives out was authenticated with the record's number in
//! its direction. Opening needs no state beside that number, so a record can be tried under several keys and numbers, on a copy.

use std::fmt;
use std::ops::Range;

use aes::cipher::array::Array;
use aes::cipher::{BlockCipherDecrypt, BlockModeDecrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes128Dec, Aes256, Aes256Dec};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use aws_lc_rs::hmac;
use ccm::Ccm;
use ccm::aead::AeadInOut;
use ccm::consts::{U8, U12, U16};
use zeroize::Zeroizing;

use super::record::{HEADER, Header};
use super::schedule;
use super::stack;
use super::suite::{Cipher, Mac, Suite};
use crate::protocol::Side;

/// A nonce of every AEAD.
const NONCE: usize = 12;
/// The part of a nonce that a TLS 1.2 record brings along.
const EXPLICIT: usize = 8;
const BLOCK: usize = 16;
/// Two MAC keys, two keys and two IVs of the largest suite (AES-256-CBC with SHA-384) need 160.
const KEY_BLOCK: usize = 2 * (48 + 32 + 16);

/// The record did not authenticate, or is too short to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unopened;

/// A record's plaintext: its real type, and where in the body it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Opened {
    pub(super) kind: u8,
    pub(super) plaintext: Range<usize>,
}

/// The keys of one direction in one epoch.
pub(super) struct Protection {
    key: Key,
    /// Under TLS 1.2 with explicit nonces the first four bytes only. Boxed, since a value that moves leaves itself behind.
    iv: Box<Zeroizing<[u8; NONCE]>>,
    /// Bytes of the nonce that each record brings along.
    explicit: usize,
    tls13: bool,
}

enum Key {
    Aead(LessSafeKey),
    Aes128Ccm(Box<Ccm<Aes128, U16, U12>>),
    Aes256Ccm(Box<Ccm<Aes256, U16, U12>>),
    Aes128Ccm8(Box<Ccm<Aes128, U8, U12>>),
    Aes256Ccm8(Box<Ccm<Aes256, U8, U12>>),
    Cbc(Box<Cbc>),
}

struct Cbc {
    cipher: BlockCipher,
    mac: hmac::Key,
    mac_length: usize,
    encrypt_then_mac: bool,
}

enum BlockCipher {
    Aes128(Box<Aes128Dec>),
    Aes256(Box<Aes256Dec>),
}

impl fmt::Debug for Protection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Protection").finish_non_exhaustive()
    }
}

impl Cipher {
    const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes128Ccm | Self::Aes128Ccm8 | Self::Aes128Cbc(_) => 16,
            _ => 32,
        }
    }

    /// `None` for CBC.
    fn aead(self, key: &[u8]) -> Option<Key> {
        let aws = |algorithm| {
            UnboundKey::new(algorithm, key).ok().map(|unbound| Key::Aead(LessSafeKey::new(unbound)))
        };
        match self {
            Self::Aes128Gcm => aws(&aead::AES_128_GCM),
            Self::Aes256Gcm => aws(&aead::AES_256_GCM),
            Self::ChaCha20Poly1305 => aws(&aead::CHACHA20_POLY1305),
            Self::Aes128Ccm => Ccm::new_from_slice(key).ok().map(|ccm| Key::Aes128Ccm(Box::new(ccm))),
            Self::Aes256Ccm => Ccm::new_from_slice(key).ok().map(|ccm| Key::Aes256Ccm(Box::new(ccm))),
            Self::Aes128Ccm8 => Ccm::new_from_slice(key).ok().map(|ccm| Key::Aes128Ccm8(Box::new(ccm))),
            Self::Aes256Ccm8 => Ccm::new_from_slice(key).ok().map(|ccm| Key::Aes256Ccm8(Box::new(ccm))),
            Self::Aes128Cbc(_) | Self::Aes256Cbc(_) => None,
        }
    }
}

impl Mac {
    const fn length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
        }
    }
}

impl Protection {
    /// Keys of TLS 1.3 from a traffic secret.
    pub(super) fn tls13(suite: Suite, secret: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        let key = &mut key[..suite.cipher.key_length()];
        schedule::expand_label(suite.hash, secret, "key", key);
        let mut iv = Box::new(Zeroizing::new([0; NONCE]));
        schedule::expand_label(suite.hash, secret, "iv", &mut iv[..]);
        Some(Self { key: suite.cipher.aead(key)?, iv, explicit: 0, tls13: true })
    }

    /// Keys of TLS 1.2 from a master secret, for what `side` sends.
    pub(super) fn tls12(
        suite: Suite,
        master: &[u8],
        client_random: &[u8; 32],
        server_random: &[u8; 32],
        side: Side,
        encrypt_then_mac: bool,
    ) -> Option<Self> {
        let key_length = suite.cipher.key_length();
        let (mac, iv_length) = match suite.cipher {
            Cipher::Aes128Cbc(mac) | Cipher::Aes256Cbc(mac) => (Some(mac), 0),
            Cipher::ChaCha20Poly1305 => (None, NONCE),
            _ => (None, NONCE - EXPLICIT),
        };
        let mac_length = mac.map_or(0, Mac::length);
        let mut block = Zeroizing::new([0; KEY_BLOCK]);
        let block = &mut block[..2 * (mac_length + key_length + iv_length)];
        schedule::prf(suite.hash, master, "key expansion", [server_random, client_random], block);
        // client_write_MAC_key, server_write_MAC_key, client_write_key, server_write_key, the same of IVs
        let mut rest = &*block;
        let mut next = |length: usize| {
            let (client, after) = rest.split_at(length);
            let (server, after) = after.split_at(length);
            rest = after;
            if side == Side::Client { client } else { server }
        };
        let (mac_key, key, salt) = (next(mac_length), next(key_length), next(iv_length));
        let mut iv = Box::new(Zeroizing::new([0; NONCE]));
        iv[..iv_length].copy_from_slice(salt);
        let key = match (mac, suite.cipher) {
            (Some(mac), cipher) => Key::Cbc(Box::new(Cbc {
                cipher: match cipher {
                    Cipher::Aes128Cbc(_) => {
                        BlockCipher::Aes128(Box::new(Aes128Dec::new_from_slice(key).ok()?))
                    }
                    _ => BlockCipher::Aes256(Box::new(Aes256Dec::new_from_slice(key).ok()?)),
                },
                mac: hmac::Key::new(mac.algorithm(), mac_key),
                mac_length,
                encrypt_then_mac,
            })),
            (None, cipher) => cipher.aead(key)?,
        };
        Some(Self { key, iv, explicit: NONCE - iv_length, tls13: false })
    }

    /// Opens the record `sequence` in place; where it does not authenticate, `body` is of no use any more.
    pub(super) fn open(&self, sequence: u64, header: Header, body: &mut [u8]) -> Result<Opened, Unopened> {
        match &self.key {
            Key::Cbc(cbc) => cbc.open(sequence, header, body),
            _ if self.tls13 => {
                let sealed = self.open_counted(sequence, &header.bytes(), body)?;
                let inner = body.get(..sealed).ok_or(Unopened)?;
                // struct { opaque content[]; ContentType type; uint8 zeros[]; } TLSInnerPlaintext
                let length = inner.iter().rposition(|byte| *byte != 0).ok_or(Unopened)?;
                Ok(Opened { kind: inner[length], plaintext: 0..length })
            }
            key => {
                let (head, sealed) = body.split_at_mut_checked(self.explicit).ok_or(Unopened)?;
                let length = sealed.len().checked_sub(key.tag_length()).ok_or(Unopened)?;
                let aad = additional(sequence, header, length)?;
                let length = if head.is_empty() {
                    self.open_counted(sequence, &aad, sealed)?
                } else {
                    let mut nonce = Zeroizing::new(**self.iv);
                    nonce[NONCE - head.len()..].copy_from_slice(head);
                    self.open_aead(&nonce, &aad, sealed)?
                };
                Ok(Opened { kind: header.kind, plaintext: self.explicit..self.explicit + length })
            }
        }
    }

    /// Opens with the nonce that the IV and the record's number make (RFC 8446 §5.3, RFC 7905 §2).
    fn open_counted(&self, sequence: u64, aad: &[u8], sealed: &mut [u8]) -> Result<usize, Unopened> {
        let mut nonce = Zeroizing::new(**self.iv);
        for (byte, count) in nonce[NONCE - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= count;
        }
        if sequence == 0 {
            // Here it is the IV itself.
            return stack::leaving_nothing(|| self.open_aead(&nonce, aad, sealed));
        }
        self.open_aead(&nonce, aad, sealed)
    }

    /// The length of the plaintext, which is at the beginning of `sealed`.
    fn open_aead(&self, nonce: &[u8; NONCE], aad: &[u8], sealed: &mut [u8]) -> Result<usize, Unopened> {
        let length = sealed.len().checked_sub(self.key.tag_length()).ok_or(Unopened)?;
        let (text, tag) = sealed.split_at_mut(length);
        let opened = match &self.key {
            Key::Aead(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(*nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, text).is_ok()
            }
            Key::Aes128Ccm(ccm) => open_ccm(&**ccm, nonce, aad, text, tag),
            Key::Aes256Ccm(ccm) => open_ccm(&**ccm, nonce, aad, text, tag),
            Key::Aes128Ccm8(ccm) => open_ccm(&**ccm, nonce, aad, text, tag),
            Key::Aes256Ccm8(ccm) => open_ccm(&**ccm, nonce, aad, text, tag),
            Key::Cbc(_) => false,
        };
        if opened { Ok(length) } else { Err(Unopened) }
    }
}

impl Key {
    const fn tag_length(&self) -> usize {
        match self {
            Self::Aes128Ccm8(_) | Self::Aes256Ccm8(_) => 8,
            _ => 16,
        }
    }
}

fn open_ccm<C: AeadInOut>(ccm: &C, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &[u8]) -> bool {
    let (Ok(nonce), Ok(tag)) = (nonce.try_into(), tag.try_into()) else { return false };
    ccm.decrypt_inout_detached(nonce, aad, text.into(), tag).is_ok()
}

/// What TLS 1.2 authenticates beside the text: `seq_num + type + version + length`.
fn additional(sequence: u64, header: Header, length: usize) -> Result<[u8; 8 + HEADER], Unopened> {
    let mut bytes = [0; 8 + HEADER];
    bytes[..8].copy_from_slice(&sequence.to_be_bytes());
    let header = Header { length: u16::try_from(length).map_err(|_| Unopened)?, ..header };
    bytes[8..].copy_from_slice(&header.bytes());
    Ok(bytes)
}

impl Cbc {
    fn open(&self, sequence: u64, header: Header, body: &mut [u8]) -> Result<Opened, Unopened> {
        let blocks = if self.encrypt_then_mac {
            let length = body.len().checked_sub(self.mac_length).ok_or(Unopened)?;
            self.verify(sequence, header, &body[..length], &body[length..])?;
            length
        } else {
            body.len()
        };
        // The IV, then at least one block.
        if blocks < 2 * BLOCK || blocks % BLOCK != 0 {
            return Err(Unopened);
        }
        self.decrypt(&mut body[..blocks])?;
        let padding = body[blocks - 1];
        let padded =
            blocks.checked_sub(usize::from(padding) + 1).filter(|end| *end >= BLOCK).ok_or(Unopened)?;
        if body[padded..blocks].iter().any(|byte| *byte != padding) {
            return Err(Unopened);
        }
        if self.encrypt_then_mac {
            return Ok(Opened { kind: header.kind, plaintext: BLOCK..padded });
        }
        let end = padded.checked_sub(self.mac_length).filter(|end| *end >= BLOCK).ok_or(Unopened)?;
        self.verify(sequence, header, &body[BLOCK..end], &body[end..padded])?;
        Ok(Opened { kind: header.kind, plaintext: BLOCK..end })
    }

    fn verify(&self, sequence: u64, header: Header, text: &[u8], mac: &[u8]) -> Result<(), Unopened> {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(&additional(sequence, header, text.len())?);
        context.update(text);
        let computed = context.sign();
        aws_lc_rs::constant_time::verify_slices_are_equal(computed.as_ref(), mac).map_err(|_| Unopened)
    }

    /// Decrypts what follows the IV in the first block.
    fn decrypt(&self, blocks: &mut [u8]) -> Result<(), Unopened> {
        let (iv, text) = blocks.split_first_chunk_mut::<BLOCK>().ok_or(Unopened)?;
        let (text, []) = Array::<u8, U16>::slice_as_chunks_mut(text) else { return Err(Unopened) };
        match &self.cipher {
            BlockCipher::Aes128(cipher) => decrypt_blocks(&**cipher, iv, text),
            BlockCipher::Aes256(cipher) => decrypt_blocks(&**cipher, iv, text),
        }
        Ok(())
    }
}

fn decrypt_blocks<C>(cipher: &C, iv: &[u8; BLOCK], blocks: &mut [Array<u8, U16>])
where
    C: BlockCipherDecrypt<BlockSize = U16> + Clone,
{
    cbc::Decryptor::inner_iv_init(cipher.clone(), &Array(*iv)).decrypt_blocks(blocks);
}
