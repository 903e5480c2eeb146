//! TLS, seen from outside: who is asked for, what the two ends agree on, and, with their secrets, what they say.
//!
//! [`Connection`] is all that the rest of the program needs; [`Keyring`] is what it needs from it.

#![forbid(unsafe_code)]

mod alert;
mod certificate;
mod connection;
mod direction;
mod handshake;
mod ja4;
mod message;
mod protection;
mod record;
mod resync;
mod schedule;
mod secret;
mod stack;
mod suite;

use crate::protocol::Detection;

pub use self::connection::{Connection, Counted, Event, LONGEST_WAIT, Output};
pub use self::secret::{Hash, Keyring, LONGEST_SECRET, Secret, SecretKind, Wanted};

/// Whether these are the first bytes of a TLS client: the header of a record with a handshake, and a ClientHello's type in it
/// (RFC 8446 §5.1, §4). The bias is towards yes, as for protocols: what goes on as something else is told.
pub fn detect(first: &[u8]) -> Detection {
    const CLIENT_HELLO: [std::ops::RangeInclusive<u8>; 6] = [22..=22, 3..=3, 0..=4, 0..=64, 0..=255, 1..=1];
    if first.iter().zip(&CLIENT_HELLO).any(|(byte, range)| !range.contains(byte)) {
        return Detection::No;
    }
    if first.len() < CLIENT_HELLO.len() { Detection::Incomplete } else { Detection::Yes(()) }
}
