//! TLS secrets: what a probe takes from a TLS library, and the word on the ring that one was taken.
//!
//! A secret itself never travels on a ring, because what stands there is journalled and may be captured. It waits in a table of
//! the kernel's, whose memory is not swapped and which outlives the daemon; the ring has its number only.

use crate::event::Header;

/// [`SecretTaken`], on the lifecycle ring.
pub const KIND_SECRET: u32 = 30;

/// A traffic secret of TLS 1.3 (RFC 8446, section 7.1): of one direction, of the handshake or of the data that follows. Which of
/// them is not known here; the record that it decrypts tells.
pub const TRAFFIC_SECRET: u8 = 1;
/// A master secret of TLS 1.2 or older (RFC 5246, section 8.1), with the two randoms of its handshake.
pub const MASTER_SECRET: u8 = 2;

/// Bytes that a secret has room for.
pub const SECRET_BYTES: usize = 64;
/// Bytes of a random of the handshake.
pub const RANDOM_BYTES: usize = 32;
/// Entries of the table of secrets.
pub const SECRETS: u32 = 32768;

/// A secret, keyed by its number in [`SecretTaken::id`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Secret {
    /// [`crate::control::Session::id`] of the process that derived keys from it.
    pub session: u64,
    /// Its number: when it was taken, CLOCK_BOOTTIME in nanoseconds.
    pub id: u64,
    /// Process id in the initial PID namespace.
    pub process: u32,
    /// The session's entry among the shares of the rings.
    pub share: u32,
    /// [`TRAFFIC_SECRET`] or [`MASTER_SECRET`].
    pub kind: u8,
    /// Bytes of [`Self::bytes`] that are used: 32 or 48.
    pub length: u8,
    /// Padding.
    pub _padding: [u8; 6],
    /// The secret, then NUL.
    pub bytes: [u8; SECRET_BYTES],
    /// The client's random for [`MASTER_SECRET`], else NUL.
    pub client_random: [u8; RANDOM_BYTES],
    /// The server's.
    pub server_random: [u8; RANDOM_BYTES],
}
crate::assert_layout!(Secret, size = 160, align = 8);

impl Secret {
    /// Nothing.
    pub const BLANK: Self = Self {
        session: 0,
        id: 0,
        process: 0,
        share: 0,
        kind: 0,
        length: 0,
        _padding: [0; 6],
        bytes: [0; SECRET_BYTES],
        client_random: [0; RANDOM_BYTES],
        server_random: [0; RANDOM_BYTES],
    };
}

/// A TLS library derived keys from a secret, which is in the table of secrets now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SecretTaken {
    /// `kind` is [`KIND_SECRET`].
    pub header: Header,
    /// Key of the [`Secret`], never 0. Numbers grow with time, and are not used again.
    pub id: u64,
    /// The file whose code did it: the number that its probe was attached with.
    pub library: u64,
    /// Process id in the initial PID namespace.
    pub process: u32,
    /// [`TRAFFIC_SECRET`] or [`MASTER_SECRET`].
    pub kind: u8,
    /// Bytes of the secret.
    pub length: u8,
    /// Padding.
    pub _padding: [u8; 2],
}
crate::assert_layout!(SecretTaken, size = 48, align = 8);
