//! What the cryptographic library leaves on the stack.
//!
//! Own copies of keys are zeroized where they are. But HMAC tags, from which keys are cut, and nonces, the first of which is the IV,
//! go through the library by value, and it has no way to wipe them. They would lie below the stack until something else grows
//! over them. So work with them goes on in a frame of its own, and what it used is overwritten afterwards.

use std::hint::black_box;

use zeroize::Zeroize;

/// 8 KiB: more than an HMAC or an AEAD uses with all that it calls.
const WORDS: usize = 1024;

/// Does `work`, then overwrites the stack that it used.
pub(super) fn leaving_nothing<T>(work: impl FnOnce() -> T) -> T {
    let done = apart(work);
    overwrite();
    done
}

/// In a frame of its own, which is below the caller's.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite() {
    let mut below = [0_u64; WORDS];
    below.zeroize();
    black_box(&below);
}
