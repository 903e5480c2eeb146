//! Unix sockets as rules name them.
//!
//! ```text
//! unix:/run/postgresql/.s.PGSQL.5432      one path
//! unix:/run/postgresql/*                  what lies in that directory, and not deeper
//! unix:@name                              one abstract name
//! ```
//!
//! A path is compared as bytes with what the agent gives to connect(2), so it must be absolute and normal: what has another
//! spelling (`//`, `.`, `..`, a slash at the end) could never match, or would match by one spelling only, and is refused.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use auditor_common::rule::{ACTION_DENY, RuleValue};
use auditor_common::unix::{
    NAME_BYTES, NAME_KEY_BITS, NAME_KEY_PREFIX_BITS, NAME_SPACE, NameKey, decide_name,
};

use super::guarded::{self, BUILT_IN};
use super::{Action, Policy};
use crate::clock::{Boottime, Clock};

/// What the names of unix sockets begin with, in rules and records.
pub const SCHEME: &str = "unix:";

/// A unix socket, or all in a directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SocketName {
    text: String,
    /// As the kernel has it; of a directory, up to and including the slash.
    name: Vec<u8>,
    is_directory: bool,
}

impl SocketName {
    /// Whether it stands for all in a directory.
    pub const fn is_directory(&self) -> bool {
        self.is_directory
    }

    /// Whether it is a path, and not an abstract name.
    pub fn is_path(&self) -> bool {
        self.name.first() != Some(&0)
    }

    /// The name as connect(2) takes it; of a directory, its path with the slash.
    pub fn bytes(&self) -> &[u8] {
        &self.name
    }

    /// Bytes of a name that must match: with the NUL that ends a path, and of an abstract name all that a key has.
    fn prefix(&self) -> usize {
        if !self.is_path() {
            NAME_SPACE
        } else if self.is_directory {
            self.name.len()
        } else {
            self.name.len() + 1
        }
    }

    /// Whether a name that an agent gave is meant.
    fn contains(&self, name: &[u8]) -> bool {
        if !self.is_path() {
            return name == self.name;
        }
        let path = until_nul(name);
        if self.is_directory {
            path.strip_prefix(&*self.name).is_some_and(|rest| !rest.contains(&b'/'))
        } else {
            path == self.name
        }
    }
}

/// As it was written.
impl fmt::Display for SocketName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why a text does not name a unix socket, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocketNameError {
    /// No scheme.
    #[error("it does not begin with \"unix:\"")]
    Scheme,
    /// A relative path, or nothing.
    #[error(
        "write an absolute path, as in \"unix:/run/postgresql/.s.PGSQL.5432\", or an abstract name, as in \"unix:@name\""
    )]
    Relative,
    /// More than one spelling.
    #[error(
        "the path is compared as it stands: write it without \"//\", \".\", \"..\" and a slash at the end"
    )]
    NotNormal,
    /// A star in another place.
    #[error("\"*\" stands for all in a directory and is the whole last part: \"unix:/run/postgresql/*\"")]
    Star,
    /// Longer than the kernel takes.
    #[error("it is longer than the {NAME_BYTES} bytes that a unix socket's name may have")]
    TooLong,
    /// A control character.
    #[error("it holds the character {0:?}: write the name without control characters")]
    Character(char),
}

impl FromStr for SocketName {
    type Err = SocketNameError;

    fn from_str(text: &str) -> Result<Self, SocketNameError> {
        let rest = text.strip_prefix(SCHEME).ok_or(SocketNameError::Scheme)?;
        if let Some(character) = rest.chars().find(|character| character.is_control()) {
            return Err(SocketNameError::Character(character));
        }
        let (name, is_directory) = if let Some(name) = rest.strip_prefix('@') {
            if name.is_empty() {
                return Err(SocketNameError::Relative);
            }
            if name.contains('*') {
                return Err(SocketNameError::Star);
            }
            ([&[0], name.as_bytes()].concat(), false)
        } else {
            path(rest)?
        };
        // A directory needs a byte for what lies in it.
        if name.len() + usize::from(is_directory) > NAME_BYTES {
            return Err(SocketNameError::TooLong);
        }
        Ok(Self { text: text.to_owned(), name, is_directory })
    }
}

fn path(text: &str) -> Result<(Vec<u8>, bool), SocketNameError> {
    let parts = text.strip_prefix('/').ok_or(SocketNameError::Relative)?;
    let (directory, last) = parts.rsplit_once('/').map_or((None, parts), |(head, last)| (Some(head), last));
    let is_directory = last == "*";
    let fixed = if is_directory { directory } else { Some(parts) };
    for part in fixed.into_iter().flat_map(|fixed| fixed.split('/')) {
        if matches!(part, "" | "." | "..") {
            return Err(SocketNameError::NotNormal);
        }
        if part.contains('*') {
            return Err(SocketNameError::Star);
        }
    }
    let name = if is_directory { text.trim_end_matches('*') } else { text };
    Ok((name.as_bytes().to_vec(), is_directory))
}

fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The name that an agent gave, as records show it: in the form of rules, what cannot be read in bytes (`\xff`), and a relative path
/// that could be taken for something else with `./` before it.
pub fn show(name: &[u8]) -> String {
    let mut text = SCHEME.to_owned();
    let rest = if let Some(rest) = name.strip_prefix(&[0]) {
        text.push('@');
        rest
    } else {
        let path = until_nul(name);
        if path.starts_with(b"@") {
            text.push_str("./");
        }
        path
    };
    for chunk in rest.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// One entry of the kernel's table of names: bits of the key that must match, key, value.
pub type NameEntry = (u32, NameKey, RuleValue);

/// The entries of the kernel's table of names for a policy, each key once.
pub(super) fn compile(policy: &Policy, table: u32, clock: &Clock) -> Vec<NameEntry> {
    let mut entries: Vec<NameEntry> = Vec::new();
    let mut known = std::collections::HashSet::new();
    for rule in &policy.rules {
        // Zero means without end, so what ended before boot ends at its first nanosecond.
        let expires = rule.expires.map_or(0, |expires| clock.boottime(expires).0.max(1));
        for socket in &rule.sockets {
            if rule.action == Action::Allow && Policy::guarded_around(socket).is_some() {
                continue;
            }
            let key = NameKey::new(table, &socket.name);
            let prefix = u32::try_from(socket.prefix()).unwrap_or(NAME_SPACE as u32);
            let bits = if socket.is_path() { NAME_KEY_PREFIX_BITS + 8 * prefix } else { NAME_KEY_BITS };
            // The configuration lets only equal rules share a key; the first one gives its number.
            if known.insert((bits, key)) {
                let value =
                    RuleValue { action: rule.action.code(), rule: rule.number, prefix, _padding: 0, expires };
                entries.push((bits, key, value));
            }
        }
    }
    for guarded in guarded::all() {
        let key = NameKey::new(table, guarded.path.as_bytes());
        let bits = NAME_KEY_PREFIX_BITS + 8 * u32::try_from(guarded.prefix).unwrap_or(NAME_SPACE as u32);
        // A rule for this very path has been there first.
        if known.insert((bits, key)) {
            let prefix = u32::try_from(guarded.named).unwrap_or(NAME_SPACE as u32);
            let value = RuleValue { action: ACTION_DENY, rule: BUILT_IN, prefix, _padding: 0, expires: 0 };
            entries.push((bits, key, value));
        }
    }
    entries
}

/// What happens to a connection to `name` (as connect(2) takes it) at `now`, if the caller resolves paths as the host does.
pub(super) fn decide(
    policy: &Policy,
    name: &[u8],
    clock: &Clock,
    now: Boottime,
) -> auditor_common::rule::Verdict {
    let wanted = NameKey::new(TABLE, name);
    let entries = compile(policy, TABLE, clock);
    let longest =
        entries.iter().filter(|(bits, key, _)| agree(key, &wanted, *bits)).max_by_key(|entry| entry.0);
    decide_name(longest.map(|entry| &entry.2), &wanted, policy.default.code(), now.0, || true)
}

/// A table of its own has one policy; its number is of no consequence.
const TABLE: u32 = 1;

/// Whether two keys agree in their first bits, which are whole bytes.
fn agree(one: &NameKey, other: &NameKey, bits: u32) -> bool {
    let bytes = (bits.saturating_sub(NAME_KEY_PREFIX_BITS) / 8) as usize;
    (one.table, one.kind, one.length) == (other.table, other.kind, other.length)
        && one.name.get(..bytes) == other.name.get(..bytes)
}

impl Policy {
    /// The entries of the kernel's table of unix sockets; see [`Policy::compile`].
    pub fn compile_sockets(&self, table: u32, clock: &Clock) -> Vec<NameEntry> {
        compile(self, table, clock)
    }

    /// The tree of users' sessions that a rule for a directory would open.
    pub fn guarded_around(directory: &SocketName) -> Option<String> {
        guarded::tree_of(&directory.name).filter(|_| directory.is_directory)
    }

    /// Sockets of engines and managers in a directory that a rule allows, which it does not name.
    pub fn guarded_within(&self, directory: &SocketName) -> Vec<String> {
        let named = |path: &str| {
            let mut sockets = self.rules.iter().flat_map(|rule| &rule.sockets);
            sockets.any(|socket| !socket.is_directory && socket.name == path.as_bytes())
        };
        guarded::all()
            .filter(|_| directory.is_directory)
            .filter(|guarded| guarded.named != NAME_SPACE && directory.contains(guarded.path.as_bytes()))
            .filter(|guarded| !named(&guarded.path))
            .map(|guarded| guarded.path)
            .collect()
    }

    /// The rule as the record shows it, e.g. `backfill#2: unix:/run/postgresql/* allow`.
    pub fn socket_rule_text(&self, number: u32, name: &[u8]) -> String {
        if number == BUILT_IN {
            let guarded = guarded::met_by(until_nul(name)).unwrap_or_default();
            return format!("{}#built-in: {SCHEME}{guarded} deny", self.name);
        }
        let Some(rule) = self.rule(number) else { return format!("{}#{number}", self.name) };
        let matching =
            rule.sockets.iter().filter(|socket| socket.contains(name)).max_by_key(|socket| socket.prefix());
        let socket = matching.map_or(String::new(), ToString::to_string);
        format!("{}#{number}: {socket} {}", self.name, rule.action.name())
    }
}

#[cfg(test)]
mod tests {
    use auditor_common::rule::{ACTION_ALLOW, NO_RULE};
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Action, Confinement, Place, Rule};

    fn policy(rules: &[(&str, Action)]) -> Policy {
        let rules = rules.iter().zip(1..).map(|((socket, action), number)| Rule {
            number,
            destinations: Vec::new(),
            sockets: vec![socket.parse().unwrap()],
            action: *action,
            protocol: None,
            expires: None,
            place: Place::default(),
        });
        Policy {
            name: "p".to_owned(),
            default: Action::Deny,
            rules: rules.collect(),
            confinement: Confinement::default(),
            guarantees: [].into(),
        }
    }

    fn rule_of(policy: &Policy, name: &[u8]) -> (bool, u32) {
        let verdict = decide(policy, name, &Clock::fixed(0), Boottime(0));
        (verdict.action == ACTION_ALLOW, verdict.rule)
    }

    #[test]
    fn what_has_a_second_spelling_is_refused() {
        for (text, error) in [
            ("unix:", SocketNameError::Relative),
            ("unix:run/x", SocketNameError::Relative),
            ("unix:@", SocketNameError::Relative),
            ("unix:/", SocketNameError::NotNormal),
            ("unix:/run//x", SocketNameError::NotNormal),
            ("unix:/run/./x", SocketNameError::NotNormal),
            ("unix:/run/../x", SocketNameError::NotNormal),
            ("unix:/run/x/", SocketNameError::NotNormal),
            ("unix:/run//*", SocketNameError::NotNormal),
            ("unix:/run/*/x", SocketNameError::Star),
            ("unix:/run/x*", SocketNameError::Star),
            ("unix:@x*", SocketNameError::Star),
            ("unix:/run/\n", SocketNameError::Character('\n')),
            ("/run/x", SocketNameError::Scheme),
        ] {
            assert_eq!(text.parse::<SocketName>(), Err(error), "{text}");
        }
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<SocketName>().is_ok());
        assert_eq!(format!("unix:/{}", "x".repeat(108)).parse::<SocketName>(), Err(SocketNameError::TooLong));
        for text in ["unix:/*", "unix:/run/postgresql/.s.PGSQL.5432", "unix:@/tmp/x"] {
            assert_eq!(text.parse::<SocketName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_longest_rule_decides_and_names_are_whole() {
        let policy = policy(&[
            ("unix:/run/*", Action::Allow),
            ("unix:/run/docker.sock", Action::Deny),
            ("unix:@bus", Action::Allow),
            ("unix:/run/pg/*", Action::Allow),
        ]);
        for (name, expected) in [
            (&b"/run/a"[..], (true, 1)),
            (b"/run/docker.sock", (false, 2)),
            (b"/run/docker.sock\0/x", (false, 2)),
            (b"/run/docker.sockx", (true, 1)),
            (b"/run/pg/x", (true, 4)),
            (b"/run/pg/../docker.sock", (false, NO_RULE)),
            (b"/run/pg//x", (false, NO_RULE)),
            (b"run/a", (false, NO_RULE)),
            (b"//run/a", (false, NO_RULE)),
            (b"\0bus", (true, 3)),
            (b"\0bus\0", (false, NO_RULE)),
            (b"\0bu", (false, NO_RULE)),
            (b"@bus", (false, NO_RULE)),
        ] {
            assert_eq!(rule_of(&policy, name), expected, "{}", name.escape_ascii());
        }
        assert_eq!(policy.socket_rule_text(4, b"/run/pg/x"), "p#4: unix:/run/pg/* allow");
    }

    #[test]
    fn sockets_of_engines_and_managers_are_denied_unless_a_rule_names_them() {
        let mut policy = policy(&[
            ("unix:/run/*", Action::Allow),
            ("unix:/run/podman/podman.sock", Action::Allow),
            ("unix:/run/user/1000/wayland-0", Action::Allow),
        ]);
        policy.default = Action::Allow;
        for (name, expected) in [
            (&b"/run/docker.sock"[..], (false, BUILT_IN)),
            (b"/run/docker.sock\0/x", (false, BUILT_IN)),
            (b"/var/run/docker.sock", (false, BUILT_IN)),
            (b"/run/docker.sock.old", (true, 1)),
            (b"/run/podman/podman.sock", (true, 2)),
            (b"/var/run/podman/podman.sock", (false, BUILT_IN)),
            (b"/run/user/1000/bus", (false, BUILT_IN)),
            (b"/run/user/1000/systemd/private", (false, BUILT_IN)),
            (b"/run/user/1000/wayland-0", (true, 3)),
            (b"/run/user/../docker.sock", (false, BUILT_IN)),
            (b"/run/username", (true, 1)),
            (b"/run/systemd/journal/stdout", (true, NO_RULE)),
        ] {
            assert_eq!(rule_of(&policy, name), expected, "{}", name.escape_ascii());
        }
        let text = |name: &[u8]| policy.socket_rule_text(BUILT_IN, name);
        assert_eq!(text(b"/run/docker.sock"), "p#built-in: unix:/run/docker.sock deny");
        assert_eq!(text(b"/run/user/0/bus"), "p#built-in: unix:/run/user/** deny");
    }

    #[test]
    fn no_rule_for_a_directory_opens_a_user_s_session() {
        for directory in ["unix:/run/user/*", "unix:/run/user/1000/*", "unix:/var/run/user/1000/podman/*"] {
            assert!(Policy::guarded_around(&directory.parse().unwrap()).is_some(), "{directory}");
            let mut policy = policy(&[(directory, Action::Allow)]);
            policy.default = Action::Allow;
            for name in [&b"/run/user/1000/bus"[..], b"/var/run/user/1000/podman/podman.sock"] {
                assert_eq!(rule_of(&policy, name), (false, BUILT_IN), "{directory}");
            }
        }
        for other in ["unix:/run/*", "unix:/run/users/*", "unix:/run/user/1000/bus"] {
            assert_eq!(Policy::guarded_around(&other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn a_name_is_shown_so_that_it_is_no_other() {
        assert_eq!(show(b"/run/x\0rest"), "unix:/run/x");
        assert_eq!(show(b"\0a\0b"), "unix:@a\\u{0}b");
        assert_eq!(show(b"@a"), "unix:./@a");
        assert_eq!(show(b"/\xff\\"), "unix:/\\xff\\\\");
    }

    proptest! {
        /// Whatever is given, an allow by directory is for a path that begins with it and has no slash after it.
        #[test]
        fn no_path_leads_out_of_a_directory(rest in "[./a]{0,12}") {
            let policy = policy(&[("unix:/d/*", Action::Allow)]);
            let path = format!("/d/{rest}");
            prop_assert_eq!(rule_of(&policy, path.as_bytes()).0, !rest.contains('/'));
        }
    }
}
