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
    /// Bytes of the payload ring.
    pub payload_size: u64,
    /// Bytes of the lifecycle ring.
    pub lifecycle_size: u64,
    /// Bytes in the payload ring from which on its reader is woken at once.
    pub payload_wake: u64,
    /// The same for the lifecycle ring.
    pub lifecycle_wake: u64,
    /// Until when the daemon is known to be at work, CLOCK_BOOTTIME in nanoseconds. Later, nothing leaves: there is nobody to
    /// write it down.
    pub lease: u64,
    /// 1: what agents do goes on after the lease, under the same verdicts; what does not fit into the rings then is lost, and counted.
    pub fail_open: u32,
    /// Process id of the daemon in the initial PID namespace: the tasks that it moves between cgroups have not escaped.
    pub daemon: u32,
}
crate::assert_layout!(Control, size = 56, align = 8);

/// In [`Session::sockets`]: TCP.
pub const SOCKET_TCP: u32 = 1;
/// In [`Session::sockets`]: UDP.
pub const SOCKET_UDP: u32 = 2;

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
    /// Its entry in the table of [`crate::share::Share`]s.
    pub share: u32,
    /// Sockets that may be made: [`SOCKET_TCP`], [`SOCKET_UDP`].
    pub sockets: u32,
    /// What [`Self::mix`] makes of the rest and of the key.
    pub check: u64,
}
crate::assert_layout!(Session, size = 32, align = 8);

impl Session {
    /// An entry for a cgroup.
    #[must_use]
    pub const fn sealed(self, cgroup: u64) -> Self {
        Self { check: self.mix(cgroup), ..self }
    }

    /// Whether this is, whole, what was written for a cgroup.
    ///
    /// The kernel uses an entry of a hash table again at once when it was replaced or removed, and whoever found it before goes on
    /// reading there. A copy that was made meanwhile is another cgroup's, or has parts of two.
    #[inline(always)]
    pub const fn is_of(&self, cgroup: u64) -> bool {
        self.check == self.mix(cgroup)
    }

    /// All fields and the key in one number. Each step is a bijection of the whole number, so that two entries that differ in one field never
    /// have the same; in several, by accident only.
    #[inline(always)]
    const fn mix(&self, cgroup: u64) -> u64 {
        /// The odd number nearest to 2^64 divided by the golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut sum = cgroup.wrapping_mul(SPREAD);
        sum = (sum.rotate_left(31) ^ self.id).wrapping_mul(SPREAD);
        sum = (sum.rotate_left(31) ^ ((self.table as u64) << 32 | self.default_action as u64))
            .wrapping_mul(SPREAD);
        (sum.rotate_left(31) ^ ((self.share as u64) << 32 | self.sockets as u64)).wrapping_mul(SPREAD)
    }
}

/// A session's refused attempts on one processor, keyed by the session's number. A flood of them is not written down one by one, so that it
/// cannot crowd out the records of others; what was not written is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refusals {
    /// Beginning of the second that is being counted, CLOCK_BOOTTIME in nanoseconds.
    pub second: u64,
    /// Refusals in it.
    pub recorded: u64,
    /// Refusals that were counted only, since the session's beginning.
    pub folded: u64,
}
crate::assert_layout!(Refusals, size = 24, align = 8);

/// Refusals that a session may have recorded one by one within a second, on each processor.
pub const REFUSALS_A_SECOND: u64 = 200;

/// Which session a process is in, keyed by its id (thread group) in the initial PID namespace: what it is moved out of is not told when it
/// is moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Member {
    /// [`Session::id`].
    pub session: u64,
    /// Id of the session's cgroup.
    pub cgroup: u64,
}
crate::assert_layout!(Member, size = 16, align = 8);

/// How deep below the root of the hierarchy a session's cgroup may lie.
pub const MAX_CGROUP_DEPTH: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_is_another_cgroups_or_of_two_parts_is_told() {
        let one = Session { id: 7, table: 1, default_action: 2, share: 3, sockets: 1, check: 0 }.sealed(40);
        let two = Session { id: 9, table: 4, default_action: 1, share: 5, sockets: 2, check: 0 }.sealed(41);
        assert!(one.is_of(40) && two.is_of(41));
        assert!(!one.is_of(41) && !two.is_of(40));
        // Of each field, whose it is.
        for whose in 1_u32..63 {
            let of = |bit: u32| if whose >> bit & 1 == 0 { one } else { two };
            let torn = Session {
                id: of(0).id,
                table: of(1).table,
                default_action: of(2).default_action,
                share: of(3).share,
                sockets: of(4).sockets,
                check: of(5).check,
            };
            assert!(!torn.is_of(40) && !torn.is_of(41), "{torn:?}");
        }
        // The same cgroup before and after a reload.
        let later = Session { table: 8, ..one }.sealed(40);
        assert!(!Session { table: 8, ..one }.is_of(40) && !Session { table: 1, ..later }.is_of(40));
        assert!(!Session::is_of(
            &Session { id: 0, table: 0, default_action: 0, share: 0, sockets: 0, check: 0 },
            40
        ));
    }
}
