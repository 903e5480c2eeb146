//! The small tables by which the daemon steers the kernel programs.

/// What happens to an audited connection's packet when its copy does not fit into the ring: it is dropped, and TCP sends
/// it again.
pub const OVERLOAD_BACKPRESSURE: u32 = 0;
/// The packet passes and its bytes are missing from the record, which then says so.
pub const OVERLOAD_RECORD_LOSS: u32 = 1;

/// The one entry of the control table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Control {
    /// Counts policy changes. A socket whose verdict is of another generation is decided again at its next packet.
    pub generation: u32,
    /// One of the `OVERLOAD_*` constants.
    pub overload: u32,
    /// Bytes in the payload ring from which on its reader is woken at once.
    pub wake_at: u64,
}
crate::assert_layout!(Control, size = 16, align = 8);

/// A session as the kernel knows it, keyed by the id of its cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Session {
    /// The session's number, never zero.
    pub id: u64,
    /// The compiled policy: first part of a [`crate::rule::RuleKey`].
    pub table: u32,
    /// What happens to destinations that no rule names.
    pub default_action: u32,
}
crate::assert_layout!(Session, size = 16, align = 8);

/// How deep below the root of the hierarchy a session's cgroup may lie.
pub const MAX_CGROUP_DEPTH: u32 = 16;
