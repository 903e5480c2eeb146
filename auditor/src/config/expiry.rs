//! Points in time as the configuration writes them: RFC 3339, with an offset.

use toml::value::{Date, Datetime, Offset, Time};

use crate::clock::Utc;

/// The point in time, or what is wrong with it.
pub(super) fn utc(time: &Datetime) -> Result<Utc, &'static str> {
    const INCOMPLETE: &str =
        "not a full point in time: write date, time and offset, as in \"2026-12-01T00:00:00Z\"";
    let (Some(date), Some(Time { hour, minute, second: Some(second), nanosecond }), Some(offset)) =
        (time.date, time.time, time.offset)
    else {
        return Err(INCOMPLETE);
    };
    let offset_minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let minutes = i64::from(hour) * 60 + i64::from(minute) - offset_minutes;
    let seconds = days_since_epoch(date) * 86_400 + minutes * 60 + i64::from(second);
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000_000))
        .and_then(|nanoseconds| nanoseconds.checked_add(u64::from(nanosecond.unwrap_or(0))))
        .map(Utc)
        .ok_or("out of range: write a year from 1970 to 2500")
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Counts years from March, so that the leap day is the last.
fn days_since_epoch(date: Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let (year, month) =
        if month > 2 { (i64::from(date.year), month - 3) } else { (i64::from(date.year) - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 0000-03-01 lies 719,468 days before the epoch.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2000-03-01T00:00:00+02:00", 951_861_600),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(utc(&text.parse().unwrap()), Ok(Utc(seconds * 1_000_000_000)), "{text}");
        }
        assert_eq!(utc(&"1970-01-01T00:00:00.25Z".parse().unwrap()), Ok(Utc(250_000_000)));
    }

    #[test]
    fn what_is_not_one_point_in_time() {
        for text in ["2026-12-01", "2026-12-01T00:00:00", "00:00:00"] {
            assert!(utc(&text.parse().unwrap()).unwrap_err().starts_with("not a full point"), "{text}");
        }
        for text in ["1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z"] {
            assert!(utc(&text.parse().unwrap()).unwrap_err().starts_with("out of range"), "{text}");
        }
    }
}
