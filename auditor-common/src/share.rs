//! How much of a ring, or of the table of TLS secrets, a session may fill, so that a flood of one is nobody else's loss.
//!
//! Dynamic thresholds (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM
//! Transactions on Networking 6(2), 1998): whoever writes may have as much of the ring as is still free, times a weight. At a weight of
//! one, a session that floods alone gets half of it, k of them share k/(k+1), and whatever they do there is room left for one
//! that is quiet. Nothing is divided in advance, so a session that is alone is not held to a fraction of an empty ring.

/// What a session has written on the rings and what was read of that. One entry of a table that both sides have mapped; the
/// difference of the counts is what it occupies.
///
/// A cache line of the kernel's and one of the daemon's, so that a read record does not take the line from a processor that
/// writes. Counts never go back: an entry that is given to another session goes on, and what the first one left on the rings
/// leaves the entry when it is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Share {
    /// Bytes written on the payload ring, by [`occupied_by`].
    pub payload_written: u64,
    /// The same for the lifecycle ring.
    pub lifecycle_written: u64,
    /// Parts of packets that were not copied: held back, or lost with `overload = "record-loss"`.
    pub packets: u64,
    /// Attempts that policy allows and that could not be recorded: refused, or unknown with `overload = "record-loss"`.
    pub attempts: u64,
    /// Beginnings and ends of connections that were not recorded.
    pub connections: u64,
    /// Executions, births and ends of processes that were not recorded.
    pub processes: u64,
    /// Changes of a process's session that were not recorded.
    pub moves: u64,
    /// TLS secrets put into their table.
    pub secrets_kept: u64,
    /// Bytes read from the payload ring. Written by the daemon only, as all that follows.
    pub payload_read: u64,
    /// The same for the lifecycle ring.
    pub lifecycle_read: u64,
    /// TLS secrets removed from their table.
    pub secrets_removed: u64,
    /// Padding to the end of the line.
    pub _daemon: [u64; 5],
}
crate::assert_layout!(Share, size = 128, align = 8);

/// Entries of the table of shares. The first is for what belongs to no session; for TLS secrets it has the sum of all.
pub const SHARES: u32 = 16384;

/// Bytes that a record of this length occupies on a ring: with its header of eight bytes, in steps of eight
/// (kernel/bpf/ringbuf.c, BPF_RINGBUF_HDR_SZ).
pub const fn occupied_by(length: u64) -> u64 {
    (length + 8).next_multiple_of(8)
}

/// How much a session may have of what is free, in halves. What cannot be refused goes further than what can: each connection
/// that was let through has an end that is to be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Weight(u64);

impl Weight {
    /// What can be refused, because somebody asks for it: a third of the ring for one that is alone.
    pub const DECISION: Self = Self(1);
    /// Processes: half of the ring.
    pub const RECORD: Self = Self(2);
    /// Segments: two thirds of the ring. More than half, so that a burst of one that is alone is seldom held.
    pub const SEGMENT: Self = Self(4);
    /// Beginnings and ends of connections: two thirds of the ring.
    pub const CONNECTION: Self = Self(4);
    /// TLS secrets, of their table: half of it.
    pub const SECRET: Self = Self(2);
}

/// Whether a session that occupies `occupied` bytes of a ring with `free` bytes left may write `length` bytes more.
///
/// One that occupies nothing always may, whatever the size of its record: it would wait for ever otherwise.
#[inline(always)]
pub const fn admits(weight: Weight, occupied: u64, length: u64, free: u64) -> bool {
    occupied == 0 || (occupied + length) * 2 <= free * weight.0
}

/// Bytes between two counts of a [`Share`]. They are read one after the other, so that the second may have overtaken the first.
#[inline(always)]
pub const fn between(written: u64, read: u64) -> u64 {
    let bytes = written.wrapping_sub(read);
    if bytes >> 63 == 0 { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 1 << 20;
    const RECORD: u64 = 136;

    /// Lets sessions write in turn until none of them may.
    fn flood(weights: &[Weight]) -> ([u64; 8], u64) {
        let mut occupied = [0; 8];
        let mut free = RING;
        loop {
            let before = free;
            for (session, weight) in weights.iter().enumerate() {
                if RECORD <= free && admits(*weight, occupied[session], RECORD, free) {
                    occupied[session] += RECORD;
                    free -= RECORD;
                }
            }
            if free == before {
                return (occupied, free);
            }
        }
    }

    #[test]
    fn floods_get_equal_parts_and_leave_one() {
        for floods in 1..=8_u64 {
            let (occupied, free) = flood(&[Weight::RECORD; 8][..floods as usize]);
            let part = RING / (floods + 1);
            assert!(free.abs_diff(part) <= 2 * floods * RECORD, "{floods}: {free} free, not {part}");
            for one in &occupied[..floods as usize] {
                assert!(one.abs_diff(part) <= 2 * floods * RECORD, "{floods}: {one}, not {part}");
            }
            assert!(admits(Weight::DECISION, 0, RECORD, free));
            assert!(admits(Weight::DECISION, RECORD, RECORD, free));
        }
    }

    #[test]
    fn the_end_of_what_was_let_through_finds_room_where_more_is_refused() {
        let (occupied, free) = flood(&[Weight::DECISION]);
        assert!(occupied[0].abs_diff(RING / 3) <= 2 * RECORD);
        assert!(!admits(Weight::DECISION, occupied[0], RECORD, free));
        assert!(admits(Weight::CONNECTION, occupied[0] * 2 - 2 * RECORD, RECORD, RING - occupied[0] * 2));
    }

    #[test]
    fn a_record_larger_than_the_share_passes_when_it_is_alone() {
        assert!(admits(Weight::RECORD, 0, RING, RING));
        assert!(!admits(Weight::RECORD, 8, RING, RING));
    }

    #[test]
    fn a_reader_that_is_ahead_leaves_nothing() {
        assert_eq!((between(8, 16), between(16, 8), between(4, u64::MAX - 3)), (0, 8, 8));
    }

    #[test]
    fn a_record_takes_its_header_and_whole_steps() {
        assert_eq!([0, 1, 8, 128].map(occupied_by), [8, 16, 16, 136]);
    }
}
