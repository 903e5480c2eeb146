//! TLS, seen from outside: who is asked for, what the two ends agree on, and, with their secrets, what they say.
//!
//! [`Connection`] is all that the rest of the program needs; [`Keyring`] is what it needs from it.

#![forbid(unsafe_code)]

mod alert;
mod certificate;
mod connection;
mod direction;
mod handshake;
pub mod hello;
mod ja4;
mod message;
mod protection;
mod record;
mod resync;
mod schedule;
mod secret;
mod suite;

pub use self::connection::{Connection, Counted, Event, LONGEST_WAIT, Output};
pub use self::hello::Hello;
pub use self::secret::{Hash, Keyring, LONGEST_SECRET, Secret, SecretKind, Wanted};
