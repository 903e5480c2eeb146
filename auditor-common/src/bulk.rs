//! Rows of a long transfer, which are counted instead of copied: where the daemon's reading of a stream has come to, so that the
//! kernel programs can go on from there.

/// A segment of fewer bytes is copied, and so are fewer bytes of rows than this: a record of them would be no shorter.
pub const LEAST: u32 = 512;

/// Bytes that pass in one direction without one in the other, from which on a transfer is long. So many are copied in any case.
pub const LONG: u32 = 64 << 10;

/// How long after the daemon has told a place the programs may take it for the one where a segment begins, in nanoseconds. Its number
/// comes again after four gibibytes.
pub const PLACE_HOLDS: u64 = 100_000_000;

/// A direction of a socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    /// Socket cookie.
    pub cookie: u64,
    /// [`crate::event::EGRESS`] or [`crate::event::INGRESS`].
    pub direction: u32,
    /// Padding.
    pub _padding: u32,
}
crate::assert_layout!(Way, size = 16, align = 8);

/// Where the messages of a direction are: that it is in the table says that rows need not be copied.
///
/// A sequence number comes again after four gibibytes, so a place is known for a short while only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    /// Until when that is so, CLOCK_BOOTTIME in nanoseconds; 0: the place is not known.
    pub until: u64,
    /// Sequence number of the next byte.
    pub sequence: u32,
    /// Body bytes of the message under way that come from there on; 0: there a message begins.
    pub remaining: u32,
    /// Type byte of the message under way.
    pub kind: u32,
    /// [`Self::check`].
    pub check: u32,
}
crate::assert_layout!(Place, size = 24, align = 8);

impl Place {
    /// Not known.
    pub const UNKNOWN: Self = Self { until: 0, sequence: 0, remaining: 0, kind: 0, check: 0 };

    /// What has to stand in the member of that name. The kernel may write a new value to where a program still reads an old one, be
    /// it of the same key or of another (elements of hash tables are used again at once, Linux 6.1): what does not belong
    /// together is told by this.
    #[inline(always)]
    pub const fn check(&self, way: &Way) -> u32 {
        const ODD: u32 = 0x9e37_79b1;
        let mut sum = (way.cookie as u32) ^ ((way.cookie >> 32) as u32).rotate_left(16) ^ way.direction;
        sum = sum.wrapping_mul(ODD) ^ self.sequence;
        sum = sum.wrapping_mul(ODD) ^ self.remaining;
        sum = sum.wrapping_mul(ODD) ^ (self.until as u32) ^ ((self.until >> 32) as u32).rotate_left(16);
        sum.wrapping_mul(ODD) ^ self.kind
    }
}
