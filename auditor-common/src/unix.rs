//! Unix sockets: how the kernel programs look a name up, and what is decided of it.
//!
//! A name is what the caller gave to connect(2) or sendto(2): a path, or an abstract name, which begins with NUL (unix(7)).
//! Rules stand in one longest-prefix table over the bytes of names. A rule for one path has the path and its terminating NUL as
//! prefix, so that it matches that path alone; a rule for a directory (`/run/postgresql/*`) has the path up to and including
//! the last slash. What follows the NUL in the caller's buffer is nothing that the kernel reads, and no prefix reaches it.
//!
//! A path is a name, not the socket: it means something in one root directory only, and only to those who may not change the
//! directories on it. So an allow by path holds for callers in the host's own root directory and user namespace, see
//! [`decide_name`].

use crate::event::{Decision, Header};
use crate::rule::{REASON_OTHER_ROOT, REASON_RULE, RuleValue, Verdict, decide};

/// Bytes of a name at most (`sun_path` of struct sockaddr_un).
pub const NAME_BYTES: usize = 108;
/// Bytes that a key has for it: room for the NUL after the longest path, and a power of two, by which a verifier can see that a masked
/// length fits.
pub const NAME_SPACE: usize = 128;

/// A path.
pub const PATHNAME: u8 = 1;
/// A name in the abstract namespace.
pub const ABSTRACT: u8 = 2;

/// Bits of [`NameKey`] that precede the name.
pub const NAME_KEY_PREFIX_BITS: u32 = 64;
/// Bits of a whole key: what a look-up asks for.
pub const NAME_KEY_BITS: u32 = NAME_KEY_PREFIX_BITS + 8 * NAME_SPACE as u32;

/// Key of the table of names, without the prefix length.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct NameKey {
    /// The compiled policy, big-endian.
    pub table: [u8; 4],
    /// [`PATHNAME`] or [`ABSTRACT`].
    pub kind: u8,
    /// Bytes of an abstract name, its leading NUL included; 0 for a path, which ends at its first NUL.
    pub length: u8,
    /// Padding.
    pub _padding: [u8; 2],
    /// The name, then NUL; behind a path's terminating NUL, whatever the caller had there.
    pub name: [u8; NAME_SPACE],
}
crate::assert_layout!(NameKey, size = 136, align = 1);

impl NameKey {
    /// A path, cut at [`NAME_BYTES`]; or an abstract name, which begins with NUL.
    pub fn new(table: u32, name: &[u8]) -> Self {
        let bytes = name.iter().take(NAME_BYTES);
        let mut key = Self {
            table: table.to_be_bytes(),
            kind: if name.first() == Some(&0) { ABSTRACT } else { PATHNAME },
            length: 0,
            _padding: [0; 2],
            name: [0; NAME_SPACE],
        };
        let mut length = 0;
        for (place, byte) in key.name.iter_mut().zip(bytes) {
            *place = *byte;
            length += 1;
        }
        if key.kind == ABSTRACT {
            key.length = length;
        }
        key
    }

    /// The compiled policy.
    pub fn table(&self) -> u32 {
        u32::from_be_bytes(self.table)
    }
}

/// A key as the table wants it for a look-up.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NameLookup {
    /// [`NAME_KEY_BITS`].
    pub prefix: u32,
    /// The rest.
    pub key: NameKey,
}
crate::assert_layout!(NameLookup, size = 140, align = 4);

/// A unix socket's destination was decided.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnixDecision {
    /// Its header's kind is [`KIND_UNIX`](crate::event::KIND_UNIX); without a remote endpoint.
    pub decision: Decision,
    /// Bytes of [`Self::name`] that the caller gave, 1 to [`NAME_BYTES`].
    pub length: u32,
    /// One of the `STREAM_*` constants.
    pub stream: u32,
    /// The name, see [`NameKey::name`].
    pub name: [u8; NAME_SPACE],
}
crate::assert_layout!(UnixDecision, size = 128 + 8 + NAME_SPACE, align = 8);

/// Nothing of it is followed: a datagram socket, or refused.
pub const STREAM_NONE: u32 = 0;
/// From here on what is said on it is recorded.
pub const STREAM_FOLLOWED: u32 = 1;
/// There was no room to follow it.
pub const STREAM_NOT_FOLLOWED: u32 = 2;
/// It is connected already: this call fails, and what was connected before goes on.
pub const STREAM_CONNECTED: u32 = 3;

/// Stands in [`Closed::protocol`](crate::event::Closed::protocol) for a stream between unix sockets: above all numbers of IP
/// protocols. `old_state` is 1 where it was connected.
pub const STREAM_PROTOCOL: u32 = 0x1_0000;

/// A stream between two unix sockets, keyed by the cookie of the agent's end.
///
/// All counts are of what the calls answered, on whichever end and by whatever call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UnixStream {
    /// Session's number.
    pub session: u64,
    /// The agent's end: its struct sock. A number, to be compared and never trusted.
    pub socket: u64,
    /// The same of the other end; 0: not seen yet.
    pub other: u64,
    /// Bytes that went in at the agent's end.
    pub sent: u64,
    /// Bytes that came out at the other end: where in the stream its next call takes from.
    pub taken: u64,
    /// Bytes that went in at the other end.
    pub received: u64,
    /// When the agent's end was first found gone, CLOCK_BOOTTIME in nanoseconds; 0: it was not.
    pub ended: u64,
    /// The session's share of the rings.
    pub share: u32,
    /// 1: it was found connected.
    pub connected: u32,
}
crate::assert_layout!(UnixStream, size = 64, align = 8);

/// [`Header::kind`] of a [`UnixData`].
pub const KIND_UNIX_DATA: u32 = 21;

/// The bytes follow the record.
pub const CONTENT_COPIED: u8 = 0;
/// They passed by a call whose memory is not to be had: io_uring, splice, several messages at once, a 32-bit program's.
pub const CONTENT_OTHER_CALL: u8 = 1;
/// The memory was not there to be read.
pub const CONTENT_UNREADABLE: u8 = 2;
/// One call moved more than is copied of one.
pub const CONTENT_TOO_LONG: u8 = 3;

/// Bytes that the other end of an agent's stream took or gave, on the payload ring.
///
/// One call may become several. Nothing is told where there was no room: the next record's place says so.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnixData {
    /// `kind` is [`KIND_UNIX_DATA`].
    pub header: Header,
    /// Cookie of the agent's end.
    pub cookie: u64,
    /// Place of the first byte in its direction.
    pub offset: u64,
    /// Bytes that have passed in the other direction: all of these were told before, or never will be.
    pub passed: u64,
    /// Bytes that passed.
    pub length: u32,
    /// Bytes that follow this record; the rest of the ring slot is undefined.
    pub captured: u32,
    /// [`EGRESS`](crate::event::EGRESS): the agent's own; [`INGRESS`](crate::event::INGRESS): what it is told.
    pub direction: u8,
    /// One of the `CONTENT_*` constants.
    pub content: u8,
    /// Padding.
    pub _padding: [u8; 6],
}
crate::assert_layout!(UnixData, size = 64, align = 8);

/// Weighs the longest match for a name. [`RuleValue::prefix`] is the number of the name's bytes that the rule names.
///
/// A rule for a directory is for what lies in it and not deeper, so that no `..` can lead out of it. `at_home`: whether the
/// caller resolves paths as the host does; asked only if a rule allows a path.
#[inline(always)]
pub fn decide_name(
    found: Option<&RuleValue>,
    key: &NameKey,
    default_action: u32,
    now: u64,
    at_home: impl FnOnce() -> bool,
) -> Verdict {
    let found = match found {
        Some(rule) if names(rule, key) => Some(rule),
        _ => None,
    };
    let verdict = decide(found, None, default_action, now);
    if verdict.allows() && verdict.reason == REASON_RULE && key.kind != ABSTRACT && !at_home() {
        return Verdict { rule: verdict.rule, ..Verdict::refuse(REASON_OTHER_ROOT) };
    }
    verdict
}

/// Whether what follows a rule's prefix has no slash.
#[inline(always)]
fn names(rule: &RuleValue, key: &NameKey) -> bool {
    if key.kind == ABSTRACT {
        return true;
    }
    let mut index = 0;
    while index < NAME_BYTES {
        let byte = key.name[index];
        if byte == 0 {
            break;
        }
        if byte == b'/' && index as u32 >= rule.prefix {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{ACTION_ALLOW, ACTION_DENY, REASON_DEFAULT};

    fn verdict(path: &[u8], prefix: u32, at_home: bool) -> Verdict {
        let rule = RuleValue { action: ACTION_ALLOW, rule: 3, prefix, _padding: 0, expires: 0 };
        decide_name(Some(&rule), &NameKey::new(1, path), ACTION_DENY, 0, || at_home)
    }

    #[test]
    fn a_directory_is_what_lies_in_it_and_not_deeper() {
        assert!(verdict(b"/run/pg/.s.PGSQL.5432", 8, true).allows());
        for outside in [&b"/run/pg/../docker.sock"[..], b"/run/pg/deeper/socket", b"/run/pg//socket"] {
            let verdict = verdict(outside, 8, true);
            assert_eq!((verdict.action, verdict.reason), (ACTION_DENY, REASON_DEFAULT), "{outside:?}");
        }
    }

    #[test]
    fn what_follows_the_terminating_nul_is_nobodys_business() {
        assert!(verdict(b"/run/x\0/../etc", 7, true).allows());
    }

    #[test]
    fn a_path_holds_at_home_only_and_an_abstract_name_everywhere() {
        let away = verdict(b"/run/x", 7, false);
        assert_eq!((away.action, away.reason, away.rule), (ACTION_DENY, REASON_OTHER_ROOT, 3));
        assert!(verdict(b"\0name", 5, false).allows());
    }

    #[test]
    fn keys_of_different_names_differ() {
        assert_ne!(NameKey::new(1, b"\0a"), NameKey::new(1, b"\0a\0"));
        assert_ne!(NameKey::new(1, b"a"), NameKey::new(1, b"\0a"));
        // The kernel reads no more of a path.
        assert_eq!(NameKey::new(1, &[b'x'; 108]), NameKey::new(1, &[b'x'; 200]));
    }
}
