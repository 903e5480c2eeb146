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

use crate::event::Decision;
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
    /// Padding.
    pub _padding: u32,
    /// The name, see [`NameKey::name`].
    pub name: [u8; NAME_SPACE],
}
crate::assert_layout!(UnixDecision, size = 128 + 8 + NAME_SPACE, align = 8);

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
