//! Tables by the cookies of sockets.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// What is known of sockets, by cookie. Cookies are the kernel's counter, not a number that anybody chooses, so a hash need
/// not be secret: it is asked for several times a segment.
pub(super) type ByCookie<T> = HashMap<u64, T, BuildHasherDefault<CookieHasher>>;

/// Fibonacci hashing: a multiplication spreads neighbours over the whole range, and the upper bits are the good ones.
#[derive(Default)]
pub(super) struct CookieHasher(u64);

impl Hasher for CookieHasher {
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not for cookies, which come as one number: correct for all, fast for none.
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
