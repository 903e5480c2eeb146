//! Numbers as the server's output functions write them.

use std::fmt::Write as _;

/// Zeros that a numeric may add to the digits that it sends. With more it stays binary: ten bytes can name a number of
/// 130,000 digits.
const MAX_PADDING: usize = 256;

const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_NAN: u16 = 0xc000;
const NUMERIC_INFINITY: u16 = 0xd000;
const NUMERIC_NEGATIVE_INFINITY: u16 = 0xf000;

/// The shortest digits that read back as the same number, with an exponent from ten to the sixth on.
pub(super) fn float4(value: f32) -> String {
    if value.is_finite() { float(&format!("{value:e}"), 6) } else { special(value.is_nan(), value > 0.0) }
}

/// The same for double precision, with an exponent from ten to the fifteenth on.
pub(super) fn float8(value: f64) -> String {
    if value.is_finite() { float(&format!("{value:e}"), 15) } else { special(value.is_nan(), value > 0.0) }
}

fn special(nan: bool, positive: bool) -> String {
    match (nan, positive) {
        (true, _) => "NaN".into(),
        (false, true) => "Infinity".into(),
        (false, false) => "-Infinity".into(),
    }
}

/// Turns Rust's `-1.25e7` into the server's form.
fn float(scientific: &str, exponent_from: i32) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    if !(-4..exponent_from).contains(&exponent) {
        let sign_of_exponent = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{sign_of_exponent}{:02}", exponent.unsigned_abs());
    }
    let shift = usize::try_from(exponent.unsigned_abs()).unwrap_or(0);
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat(shift - 1));
    }
    match digits.split_at_checked(shift + 1) {
        Some((whole, "")) => format!("{sign}{whole}"),
        Some((whole, fraction)) => format!("{sign}{whole}.{fraction}"),
        None => format!("{sign}{digits}{}", "0".repeat(shift + 1 - digits.len())),
    }
}

/// Count of base-10000 digits, weight of the first, sign, digits after the point to be shown; then the digits.
pub(super) fn numeric(bytes: &[u8]) -> Option<String> {
    let (head, body) = bytes.split_first_chunk::<8>()?;
    let count = usize::from(u16::from_be_bytes([head[0], head[1]]));
    let weight = i32::from(i16::from_be_bytes([head[2], head[3]]));
    let scale = usize::from(u16::from_be_bytes([head[6], head[7]]));
    if body.len() != 2 * count {
        return None;
    }
    let sign = match u16::from_be_bytes([head[4], head[5]]) {
        0 => "",
        NUMERIC_NEGATIVE => "-",
        NUMERIC_NAN => return Some("NaN".into()),
        NUMERIC_INFINITY => return Some("Infinity".into()),
        NUMERIC_NEGATIVE_INFINITY => return Some("-Infinity".into()),
        _ => return None,
    };
    let whole_digits = usize::try_from(weight + 1).unwrap_or(0) * 4;
    if whole_digits + scale > 4 * count + MAX_PADDING {
        return None;
    }
    // The digit that stands for ten thousand to the power of `power`.
    let digit = |power: i32| {
        let at = usize::try_from(weight - power).ok()?;
        body.get(2 * at..2 * at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    };
    if (0..count).any(|at| u16::from_be_bytes([body[2 * at], body[2 * at + 1]]) > 9999) {
        return None;
    }
    let mut whole = String::with_capacity(whole_digits + scale + 2);
    for power in (0..=weight).rev() {
        write!(whole, "{:04}", digit(power).unwrap_or(0)).ok()?;
    }
    let whole = whole.trim_start_matches('0');
    let mut text = format!("{sign}{}", if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let mut fraction = String::with_capacity(scale + 4);
        let mut power = -1;
        while fraction.len() < scale {
            write!(fraction, "{:04}", digit(power).unwrap_or(0)).ok()?;
            power -= 1;
        }
        fraction.truncate(scale);
        text.push('.');
        text.push_str(&fraction);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_the_server_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (-1234.5, "-1234.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.25e300, "1.25e+300"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float8(value), text);
        }
        assert_eq!(float4(0.1), "0.1");
        assert_eq!(float4(100_000.0), "100000");
        assert_eq!(float4(1_000_000.0), "1e+06");
    }

    fn bytes(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let words = [digits.len() as u16, weight.cast_unsigned(), sign, scale];
        words.into_iter().chain(digits.iter().copied()).flat_map(u16::to_be_bytes).collect()
    }

    #[test]
    fn numerics_have_their_digits_and_scale() {
        for (encoded, text) in [
            (bytes(0, 0, 0, &[]), "0"),
            (bytes(0, 0, 2, &[]), "0.00"),
            (bytes(0, 0, 2, &[12, 3400]), "12.34"),
            (bytes(1, NUMERIC_NEGATIVE, 0, &[1, 2]), "-10002"),
            (bytes(2, 0, 0, &[5]), "500000000"),
            (bytes(-1, 0, 5, &[1, 2000]), "0.00012"),
            (bytes(-2, 0, 8, &[7]), "0.00000007"),
            (bytes(0, NUMERIC_NAN, 0, &[]), "NaN"),
            (bytes(0, NUMERIC_NEGATIVE_INFINITY, 0, &[]), "-Infinity"),
        ] {
            assert_eq!(numeric(&encoded).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_numeric_that_is_none_stays_binary() {
        assert_eq!(numeric(&bytes(i16::MAX, 0, 0, &[1])), None, "too many digits to show");
        assert_eq!(numeric(&bytes(0, 0, 0, &[10_000])), None);
        assert_eq!(numeric(&bytes(0, 1, 0, &[1])), None);
        assert_eq!(numeric(&bytes(0, 0, 0, &[1])[..9]), None);
    }
}
