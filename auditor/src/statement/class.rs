//! What a command may do, in a few words that policies and reviewers can use.

use std::fmt;
use std::ops::BitOr;

/// A set of classes.
#[derive(Clone, Copy, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Classes(u16);

impl Classes {
    /// None.
    pub const NONE: Self = Self(0);
    /// Reads data of tables or keys.
    pub const READS: Self = Self(1);
    /// Changes data.
    pub const WRITES: Self = Self(1 << 1);
    /// Changes what there is: tables, functions, users, …
    pub const DEFINES: Self = Self(1 << 2);
    /// Changes who may do what.
    pub const GRANTS: Self = Self(1 << 3);
    /// Goes on as somebody else.
    pub const IDENTITY: Self = Self(1 << 4);
    /// Changes how the session or the server behaves.
    pub const SETTINGS: Self = Self(1 << 5);
    /// Reads files or folders of the server's host.
    pub const READS_FILES: Self = Self(1 << 6);
    /// Writes files on the server's host.
    pub const WRITES_FILES: Self = Self(1 << 7);
    /// Runs code or programs that come with the command, or SQL in a string.
    pub const EXECUTES: Self = Self(1 << 8);
    /// Has the server connect to somewhere else.
    pub const CONNECTS: Self = Self(1 << 9);
    /// Calls functions that are not the server's own: what they do is not in the text.
    pub const CALLS: Self = Self(1 << 10);
    /// Makes others wait.
    pub const LOCKS: Self = Self(1 << 11);
    /// Ends what others do.
    pub const ENDS_SESSIONS: Self = Self(1 << 12);
    /// Waits on purpose.
    pub const SLEEPS: Self = Self(1 << 13);
    /// Nobody knows: it counts as the most dangerous thing that it could be.
    pub const UNCLASSIFIED: Self = Self(1 << 14);

    /// All, with their names in records.
    pub const NAMES: [(Self, &'static str); 15] = [
        (Self::READS, "reads"),
        (Self::WRITES, "writes"),
        (Self::DEFINES, "defines"),
        (Self::GRANTS, "grants"),
        (Self::IDENTITY, "identity"),
        (Self::SETTINGS, "settings"),
        (Self::READS_FILES, "reads-files"),
        (Self::WRITES_FILES, "writes-files"),
        (Self::EXECUTES, "executes"),
        (Self::CONNECTS, "connects"),
        (Self::CALLS, "calls"),
        (Self::LOCKS, "locks"),
        (Self::ENDS_SESSIONS, "ends-sessions"),
        (Self::SLEEPS, "sleeps"),
        (Self::UNCLASSIFIED, "unclassified"),
    ];

    /// Whether all of `classes` are in it.
    pub const fn contains(self, classes: Self) -> bool {
        self.0 & classes.0 == classes.0
    }

    /// Adds them.
    pub fn insert(&mut self, classes: Self) {
        self.0 |= classes.0;
    }

    /// Their names, in the order of [`Self::NAMES`].
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(class, _)| self.contains(*class)).map(|(_, name)| name)
    }
}

impl BitOr for Classes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Classes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.names()).finish()
    }
}
