//! Keys from secrets: HKDF-Expand-Label (RFC 8446 §7.1, RFC 5869) and the PRF of TLS 1.2 (RFC 5246 §5).

use aws_lc_rs::hmac;
use zeroize::{Zeroize, Zeroizing};

use super::secret::{Hash, LONGEST_SECRET};

/// The output of one HMAC.
const LONGEST_BLOCK: usize = 48;

fn block(key: &hmac::Key, parts: &[&[u8]]) -> Zeroizing<[u8; LONGEST_BLOCK]> {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let tag = context.sign();
    let mut output = Zeroizing::new([0; LONGEST_BLOCK]);
    let length = tag.as_ref().len().min(LONGEST_BLOCK);
    output[..length].copy_from_slice(&tag.as_ref()[..length]);
    output
}

/// HKDF-Expand-Label with an empty context. Fills `output`, which is never longer than the hash here: one round is enough.
pub(super) fn expand_label(hash: Hash, secret: &[u8], label: &str, output: &mut [u8]) {
    let label = [b"tls13 ", label.as_bytes()].concat();
    let length = u16::try_from(output.len()).unwrap_or(u16::MAX).to_be_bytes();
    let label_length = u8::try_from(label.len()).unwrap_or(u8::MAX);
    let key = hmac::Key::new(hash.hmac(), secret);
    // struct { uint16 length; opaque label<7..255>; opaque context<0..255>; } HkdfLabel, and the round's number
    let round = block(&key, &[&length, &[label_length], &label, &[0], &[1]]);
    debug_assert!(output.len() <= hash.length());
    let count = output.len().min(hash.length());
    output[..count].copy_from_slice(&round[..count]);
}

/// The traffic secret after a key update (RFC 8446 §7.2).
pub(super) fn next_traffic_secret(hash: Hash, secret: &mut [u8; LONGEST_SECRET]) {
    let mut next = Zeroizing::new([0; LONGEST_SECRET]);
    let length = hash.length();
    expand_label(hash, &secret[..length], "traffic upd", &mut next[..length]);
    secret.zeroize();
    secret.copy_from_slice(&next[..]);
}

/// PRF(secret, label, seed) of TLS 1.2.
pub(super) fn prf(hash: Hash, secret: &[u8], label: &str, seed: [&[u8]; 2], output: &mut [u8]) {
    let key = hmac::Key::new(hash.hmac(), secret);
    let length = hash.length();
    let mut a = block(&key, &[label.as_bytes(), seed[0], seed[1]]);
    for piece in output.chunks_mut(length) {
        let round = block(&key, &[&a[..length], label.as_bytes(), seed[0], seed[1]]);
        piece.copy_from_slice(&round[..piece.len()]);
        a = block(&key, &[&a[..length]]);
    }
}
