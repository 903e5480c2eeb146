//! Time: the kernel stamps events with CLOCK_BOOTTIME; records carry UTC.

use std::time::Duration;

/// A point on CLOCK_BOOTTIME, in nanoseconds: monotonic, and it goes on in suspend.
#[derive(
    Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize,
)]
pub struct Boottime(pub u64);

impl Boottime {
    /// The time from `earlier` to here, zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// UTC, in nanoseconds since 1970-01-01.
#[derive(
    Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize,
)]
pub struct Utc(pub u64);

impl Utc {
    /// Milliseconds since the epoch, as records have it.
    pub const fn epoch_millis(self) -> u64 {
        self.0 / 1_000_000
    }
}

/// Reads the host's clocks. A value, so that a replayed capture brings its own.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Clock {
    boottime_at_epoch: i128,
}

impl Clock {
    /// Takes the offset between CLOCK_REALTIME and CLOCK_BOOTTIME now. Call again to follow a step of the wall clock.
    pub fn read() -> Self {
        Self { boottime_at_epoch: i128::from(Self::now_utc().0) - i128::from(Self::now().0) }
    }

    /// The offset in nanoseconds, for [`Self::fixed`].
    pub const fn offset(&self) -> i128 {
        self.boottime_at_epoch
    }

    /// A clock with a fixed offset in nanoseconds from boot time to UTC.
    pub const fn fixed(offset: i128) -> Self {
        Self { boottime_at_epoch: offset }
    }

    /// CLOCK_BOOTTIME now.
    pub fn now() -> Boottime {
        Boottime(read(libc::CLOCK_BOOTTIME))
    }

    /// CLOCK_REALTIME now.
    pub fn now_utc() -> Utc {
        Utc(read(libc::CLOCK_REALTIME))
    }

    /// The UTC of a kernel time stamp.
    pub fn utc(&self, time: Boottime) -> Utc {
        Utc(u64::try_from(self.boottime_at_epoch + i128::from(time.0)).unwrap_or(0))
    }

    /// The boot time of a point in UTC, as this clock's offset has it; what lies before boot is 0.
    pub fn boottime(&self, time: Utc) -> Boottime {
        let since_boot = i128::from(time.0) - self.boottime_at_epoch;
        Boottime(u64::try_from(since_boot.max(0)).unwrap_or(u64::MAX))
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the length of the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    debug_assert_eq!(result, 0, "both clocks exist on every kernel that the auditor supports");
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
