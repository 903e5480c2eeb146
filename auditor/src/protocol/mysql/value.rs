//! Binary values as text: numbers, dates and times as the server would write them, everything else as it is.
//!
//! A form that is not exactly what the type has stays binary: it is shown as it is rather than as something it might have meant.

use crate::protocol::Parameter;

/// A value's type as the client sends it: the type's number, and in the highest bit whether it is unsigned.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Type(pub(super) u16);

/// How many bytes a value takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Extent {
    /// So many.
    Fixed(u64),
    /// As many as the byte in front says.
    Byte,
    /// As many as the number in front says.
    Variable,
}

impl Type {
    fn number(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    fn unsigned(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// How many bytes a value of this type takes. What the server does not know, it takes for a string.
    pub(super) fn extent(self) -> Extent {
        match self.number() {
            6 => Extent::Fixed(0),
            1 => Extent::Fixed(1),
            2 | 13 => Extent::Fixed(2),
            3 | 4 | 9 => Extent::Fixed(4),
            5 | 8 => Extent::Fixed(8),
            7 | 10 | 11 | 12 => Extent::Byte,
            _ => Extent::Variable,
        }
    }

    /// The value of these bytes.
    pub(super) fn show(self, bytes: &[u8]) -> Parameter {
        let text = match self.number() {
            6 => return Parameter::Null,
            1 | 2 | 3 | 8 | 9 | 13 => integer(bytes, self.unsigned()),
            4 => bytes.try_into().ok().map(|bytes| real(f32::from_le_bytes(bytes))),
            5 => bytes.try_into().ok().map(|bytes| real(f64::from_le_bytes(bytes))),
            7 | 12 => date(bytes).and_then(|date| Some(format!("{date} {}", time_of_day(bytes.get(4..)?)?))),
            10 => date(bytes),
            11 => duration(bytes),
            _ => std::str::from_utf8(bytes).ok().map(str::to_owned),
        };
        text.map_or_else(|| Parameter::Binary(bytes.to_vec()), Parameter::Text)
    }
}

fn integer(bytes: &[u8], unsigned: bool) -> Option<String> {
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    if !unsigned && bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
        wide[bytes.len()..].fill(0xff);
    }
    Some(if unsigned { u64::from_le_bytes(wide).to_string() } else { i64::from_le_bytes(wide).to_string() })
}

/// In the shortest form that reads back the same.
fn real(value: impl Into<f64> + Copy + std::fmt::Display + std::fmt::LowerExp) -> String {
    let size = value.into().abs();
    if size != 0.0 && !(1e-5..1e15).contains(&size) { format!("{value:e}") } else { value.to_string() }
}

/// Nothing for zero, or year, month and day; a time of day may follow.
fn date(bytes: &[u8]) -> Option<String> {
    match bytes {
        [] => Some("0000-00-00".into()),
        [low, high, month, day, ..] if matches!(bytes.len(), 4 | 7 | 11) => {
            Some(format!("{:04}-{month:02}-{day:02}", u16::from_le_bytes([*low, *high])))
        }
        _ => None,
    }
}

/// Nothing, hours, minutes and seconds, or also microseconds.
fn time_of_day(bytes: &[u8]) -> Option<String> {
    let (hour, minute, second, rest) = match bytes {
        [] => (0, 0, 0, bytes),
        [hour, minute, second, rest @ ..] => (*hour, *minute, *second, rest),
        _ => return None,
    };
    Some(format!("{hour:02}:{minute:02}:{second:02}{}", fraction(rest)?))
}

fn fraction(bytes: &[u8]) -> Option<String> {
    match bytes {
        [] => Some(String::new()),
        _ => Some(format!(".{:06}", u32::from_le_bytes(bytes.try_into().ok()?))),
    }
}

/// A sign, days, and a time; nothing for zero.
fn duration(bytes: &[u8]) -> Option<String> {
    let [sign, a, b, c, d, hour, minute, second, rest @ ..] = bytes else {
        return bytes.is_empty().then(|| "00:00:00".into());
    };
    let hours = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) * 24 + u64::from(*hour);
    let sign = if *sign == 0 { "" } else { "-" };
    Some(format!("{sign}{hours:02}:{minute:02}:{second:02}{}", fraction(rest)?))
}

/// The name of a column's type. `binary`: its character set is the one without characters.
pub(super) fn type_name(number: u8, unsigned: bool, binary: bool) -> String {
    let name = match number {
        0 | 246 => "decimal",
        1 => "tinyint",
        2 => "smallint",
        3 => "int",
        4 => "float",
        5 => "double",
        6 => "null",
        7 | 17 => "timestamp",
        8 => "bigint",
        9 => "mediumint",
        10 | 14 => "date",
        11 | 19 => "time",
        12 | 18 => "datetime",
        13 => return "year".into(),
        15 | 253 => return if binary { "varbinary" } else { "varchar" }.into(),
        16 => return "bit".into(),
        242 => "vector",
        245 => "json",
        247 => "enum",
        248 => "set",
        249..=252 => return if binary { "blob" } else { "text" }.into(),
        254 => return if binary { "binary" } else { "char" }.into(),
        255 => "geometry",
        _ => return number.to_string(),
    };
    let number = matches!(
        name,
        "decimal" | "tinyint" | "smallint" | "int" | "bigint" | "mediumint" | "float" | "double"
    );
    if unsigned && number { format!("{name} unsigned") } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(number: u16, bytes: &[u8]) -> String {
        match Type(number).show(bytes) {
            Parameter::Text(text) => text,
            other => panic!("{number}: {other:?}"),
        }
    }

    #[test]
    fn values_are_shown_as_the_server_writes_them() {
        assert_eq!(shown(1, b"\xff"), "-1");
        assert_eq!(shown(0x8001, b"\xff"), "255");
        assert_eq!(shown(2, b"\x00\x80"), "-32768");
        assert_eq!(shown(3, &7_i32.to_le_bytes()), "7");
        assert_eq!(shown(8, &i64::MIN.to_le_bytes()), "-9223372036854775808");
        assert_eq!(shown(0x8008, &u64::MAX.to_le_bytes()), "18446744073709551615");
        assert_eq!(shown(4, &1.5_f32.to_le_bytes()), "1.5");
        assert_eq!(shown(5, &0.1_f64.to_le_bytes()), "0.1");
        assert_eq!(shown(5, &1e300_f64.to_le_bytes()), "1e300");
        assert_eq!(shown(253, "grün".as_bytes()), "grün");
        assert_eq!(shown(246, b"-12.50"), "-12.50");
        assert_eq!(shown(10, b"\xea\x07\x0b\x15"), "2026-11-21");
        assert_eq!(shown(12, b"\xea\x07\x0b\x15"), "2026-11-21 00:00:00");
        assert_eq!(shown(7, b"\xea\x07\x0b\x15\x01\x02\x03"), "2026-11-21 01:02:03");
        assert_eq!(shown(12, b"\xea\x07\x0b\x15\x01\x02\x03\x40\xe2\x01\x00"), "2026-11-21 01:02:03.123456");
        assert_eq!(shown(11, b"\x01\x02\0\0\0\x03\x04\x05"), "-51:04:05");
        assert_eq!(shown(11, b""), "00:00:00");
        assert_eq!(shown(10, b""), "0000-00-00");
        assert_eq!(Type(6).show(b""), Parameter::Null);
    }

    #[test]
    fn what_does_not_fit_its_type_stays_binary() {
        for (number, bytes) in
            [(5, &b"\0"[..]), (10, b"\x01"), (12, b"\x01\x02\x03"), (11, b"\x01"), (252, b"\xff")]
        {
            assert_eq!(Type(number).show(bytes), Parameter::Binary(bytes.to_vec()), "{number}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(number: u16, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..24)) {
            Type(number).show(&bytes);
        }
    }
}
