//! Times as people write and read them: RFC 3339 in UTC, or a while ago.

use jiff::{SignedDuration, Timestamp};

/// Parses `2026-01-31T12:00:00Z`, or `15m`: so long before `now`.
pub(crate) fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(ago) = duration(text) {
        return now.checked_sub(ago).map_err(|error| error.to_string());
    }
    text.parse()
        .map_err(|_| "write a time like 2026-01-31T12:00:00Z, or 30s, 15m, 2h, 7d for so long ago".to_owned())
}

/// The same, before now; for clap.
pub(crate) fn parse_argument(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::now())
}

fn duration(text: &str) -> Option<SignedDuration> {
    let unit = text.chars().next_back()?;
    let number: i64 = text.strip_suffix(unit)?.parse().ok().filter(|number| *number >= 0)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return None,
    };
    Some(SignedDuration::from_secs(number.checked_mul(seconds)?))
}

/// Epoch milliseconds as RFC 3339 in UTC, always of the same length.
pub(crate) fn show(epoch_millis: u64) -> String {
    i64::try_from(epoch_millis)
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| epoch_millis.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood_and_others_refused() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-01-31T13:00:00+02:00", "2026-01-31T11:00:00Z"),
            ("30s", "2026-01-31T11:59:30Z"),
            ("15m", "2026-01-31T11:45:00Z"),
            ("2h", "2026-01-31T10:00:00Z"),
            ("7d", "2026-01-24T12:00:00Z"),
            ("0s", "2026-01-31T12:00:00Z"),
        ] {
            assert_eq!(parse(text, now).unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "yesterday", "-5m", "5", "5w", "é", "2026-01-31", "99999999999999999d"] {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_one_length() {
        assert_eq!(show(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(show(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
        assert_eq!(show(u64::MAX), u64::MAX.to_string());
    }
}
