//! Dates and times: days and microseconds since 2000-01-01.

use std::fmt::Write as _;

const MICROSECONDS_OF_DAY: i64 = 86_400_000_000;
/// 2000-01-01 in days since 1970-01-01.
const EPOCH_DAYS: i64 = 10_957;

/// date.
pub(super) fn date(bytes: &[u8]) -> Option<String> {
    match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MAX => Some("infinity".into()),
        i32::MIN => Some("-infinity".into()),
        days => Some(day(days.into(), "")),
    }
}

/// time without time zone.
pub(super) fn time(bytes: &[u8]) -> Option<String> {
    clock(i64::from_be_bytes(bytes.try_into().ok()?))
}

/// time with time zone: the zone comes as seconds west of UTC.
pub(super) fn time_with_zone(bytes: &[u8]) -> Option<String> {
    let (micros, west) = bytes.split_first_chunk()?;
    let mut text = clock(i64::from_be_bytes(*micros))?;
    let west = i32::from_be_bytes(west.try_into().ok()?);
    let sign = if west > 0 { '-' } else { '+' };
    let seconds = west.unsigned_abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write!(text, "{sign}{hours:02}").ok()?;
    if minutes != 0 || seconds != 0 {
        write!(text, ":{minutes:02}").ok()?;
    }
    if seconds != 0 {
        write!(text, ":{seconds:02}").ok()?;
    }
    Some(text)
}

/// timestamp without time zone.
pub(super) fn timestamp(bytes: &[u8]) -> Option<String> {
    instant(bytes, "")
}

/// timestamp with time zone, in UTC.
pub(super) fn timestamp_with_zone(bytes: &[u8]) -> Option<String> {
    instant(bytes, "+00")
}

fn instant(bytes: &[u8], zone: &str) -> Option<String> {
    match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MAX => Some("infinity".into()),
        i64::MIN => Some("-infinity".into()),
        micros => {
            let time = clock(micros.rem_euclid(MICROSECONDS_OF_DAY))?;
            Some(day(micros.div_euclid(MICROSECONDS_OF_DAY), &format!(" {time}{zone}")))
        }
    }
}

/// interval: microseconds, days, months, each with its own sign.
pub(super) fn interval(bytes: &[u8]) -> Option<String> {
    let (micros, rest) = bytes.split_first_chunk()?;
    let (days, rest) = rest.split_first_chunk()?;
    let micros = i64::from_be_bytes(*micros);
    let (days, months) = (i32::from_be_bytes(*days), i32::from_be_bytes(rest.try_into().ok()?));
    let mut text = String::new();
    // A field after a negative one shows its sign even if it is positive.
    let mut after_negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value != 0 {
            let space = if text.is_empty() { "" } else { " " };
            let plus = if after_negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            write!(text, "{space}{plus}{value} {unit}{plural}").ok()?;
            after_negative = value < 0;
        }
    }
    if micros != 0 || text.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        let sign = match (micros < 0, after_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        write!(text, "{space}{sign}{}", hours(micros.unsigned_abs())).ok()?;
    }
    Some(text)
}

/// A time of day; 24:00:00 is one.
fn clock(micros: i64) -> Option<String> {
    (0..=MICROSECONDS_OF_DAY).contains(&micros).then(|| hours(micros.unsigned_abs()))
}

fn hours(micros: u64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let fraction = format!(".{fraction:06}");
        text.push_str(fraction.trim_end_matches('0'));
    }
    text
}

/// A day of the proleptic Gregorian calendar, counted from 2000-01-01, and what follows it before `BC`.
fn day(days: i64, rest: &str) -> String {
    // Days from 0000-03-01, so that leap days end their years; 400 years have 146,097 days.
    let days = days + EPOCH_DAYS + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    // There is no year zero: the one before 1 is 1 BC.
    let (year, suffix) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!("{year:04}-{month:02}-{day:02}{rest}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        for (days, text) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (60, "2000-03-01"),
            (-1, "1999-12-31"),
            (8901, "2024-05-15"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (-746_117, "0044-03-15 BC"),
            (2_145_031_948, "5874897-12-31"),
            (i32::MAX, "infinity"),
        ] {
            assert_eq!(date(&days.to_be_bytes()).as_deref(), Some(text));
        }
    }

    #[test]
    fn times_have_only_the_fraction_they_need() {
        assert_eq!(time(&0_i64.to_be_bytes()).as_deref(), Some("00:00:00"));
        assert_eq!(time(&MICROSECONDS_OF_DAY.to_be_bytes()).as_deref(), Some("24:00:00"));
        assert_eq!(time(&3_723_004_500_i64.to_be_bytes()).as_deref(), Some("01:02:03.0045"));
        assert_eq!(time(&(-1_i64).to_be_bytes()), None);
    }

    #[test]
    fn zones_are_east_when_the_number_is_negative() {
        let encode = |west: i32| [&0_i64.to_be_bytes()[..], &west.to_be_bytes()].concat();
        assert_eq!(time_with_zone(&encode(-7200)).as_deref(), Some("00:00:00+02"));
        assert_eq!(time_with_zone(&encode(12_600)).as_deref(), Some("00:00:00-03:30"));
        assert_eq!(time_with_zone(&encode(0)).as_deref(), Some("00:00:00+00"));
    }

    #[test]
    fn instants_before_the_epoch_count_back() {
        assert_eq!(timestamp(&(-1_i64).to_be_bytes()).as_deref(), Some("1999-12-31 23:59:59.999999"));
        assert_eq!(timestamp_with_zone(&0_i64.to_be_bytes()).as_deref(), Some("2000-01-01 00:00:00+00"));
        assert_eq!(timestamp(&i64::MIN.to_be_bytes()).as_deref(), Some("-infinity"));
        let julius = -746_117 * MICROSECONDS_OF_DAY;
        assert_eq!(timestamp(&julius.to_be_bytes()).as_deref(), Some("0044-03-15 00:00:00 BC"));
    }

    #[test]
    fn intervals_have_a_sign_for_each_field() {
        let encode = |micros: i64, days: i32, months: i32| {
            [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat()
        };
        for (encoded, text) in [
            (encode(0, 0, 0), "00:00:00"),
            (encode(14_706_789_000, 3, 14), "1 year 2 mons 3 days 04:05:06.789"),
            (encode(7_200_000_000, -1, 0), "-1 days +02:00:00"),
            (encode(-1_000_000, 1, -12), "-1 years +1 day -00:00:01"),
            (encode(360_000_000_000, 0, 0), "100:00:00"),
        ] {
            assert_eq!(interval(&encoded).as_deref(), Some(text));
        }
        assert_eq!(interval(&encode(0, 0, 0)[..15]), None);
    }
}
