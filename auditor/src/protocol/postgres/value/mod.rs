//! Parameter values as text: what was sent as text, and binary forms of the built-in types.
//!
//! The text is what the server's own output function writes (with `DateStyle` ISO, `TimeZone` UTC and `IntervalStyle`
//! postgres, which are not part of the value). A binary form that is not exactly what the type sends stays binary: it is
//! shown as it is rather than as something it might have meant.

mod array;
mod network;
mod number;
mod time;
mod types;

pub(super) use types::type_name;

use types::Type;

use crate::protocol::Parameter;

/// A value in text format.
pub(super) fn text(bytes: &[u8]) -> Parameter {
    std::str::from_utf8(bytes)
        .map_or_else(|_| Parameter::Binary(bytes.to_vec()), |text| Parameter::Text(text.to_owned()))
}

/// A value in binary format, of the type with this OID (zero where unknown).
pub(super) fn binary(oid: u32, bytes: &[u8]) -> Parameter {
    let text = match types::of(oid) {
        Some(Type::Scalar(scalar)) => decode(scalar, bytes),
        Some(Type::Array(element)) => array::decode(element, bytes),
        None => None,
    };
    text.map_or_else(|| Parameter::Binary(bytes.to_vec()), Parameter::Text)
}

/// Built-in types with a binary form that is decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scalar {
    Bool,
    Bytea,
    Char,
    Int2,
    Int4,
    Int8,
    Oid,
    Text,
    Jsonb,
    Float4,
    Float8,
    Numeric,
    Money,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Inet,
    Cidr,
    MacAddress,
}

/// The text of one value, or `None` if these bytes are not that type's binary form.
fn decode(scalar: Scalar, bytes: &[u8]) -> Option<String> {
    match scalar {
        Scalar::Bool => match bytes {
            [0] => Some("f".into()),
            [_] => Some("t".into()),
            _ => None,
        },
        Scalar::Bytea => Some(hexadecimal(bytes)),
        Scalar::Char => match bytes {
            [byte] if byte.is_ascii() => Some(char::from(*byte).into()),
            _ => None,
        },
        Scalar::Int2 => Some(i16::from_be_bytes(bytes.try_into().ok()?).to_string()),
        Scalar::Int4 => Some(i32::from_be_bytes(bytes.try_into().ok()?).to_string()),
        // Money is a count of the smallest unit; how many of them make a unit is the server's locale's.
        Scalar::Int8 | Scalar::Money => Some(i64::from_be_bytes(bytes.try_into().ok()?).to_string()),
        Scalar::Oid => Some(u32::from_be_bytes(bytes.try_into().ok()?).to_string()),
        Scalar::Text => Some(std::str::from_utf8(bytes).ok()?.to_owned()),
        Scalar::Jsonb => match bytes {
            [1, text @ ..] => Some(std::str::from_utf8(text).ok()?.to_owned()),
            _ => None,
        },
        Scalar::Float4 => Some(number::float4(f32::from_be_bytes(bytes.try_into().ok()?))),
        Scalar::Float8 => Some(number::float8(f64::from_be_bytes(bytes.try_into().ok()?))),
        Scalar::Numeric => number::numeric(bytes),
        Scalar::Date => time::date(bytes),
        Scalar::Time => time::time(bytes),
        Scalar::TimeTz => time::time_with_zone(bytes),
        Scalar::Timestamp => time::timestamp(bytes),
        Scalar::TimestampTz => time::timestamp_with_zone(bytes),
        Scalar::Interval => time::interval(bytes),
        Scalar::Uuid => uuid(bytes),
        Scalar::Inet => network::address(bytes, false),
        Scalar::Cidr => network::address(bytes, true),
        Scalar::MacAddress => network::mac(bytes),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    push_hex(&mut text, bytes);
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let mut text = String::with_capacity(36);
    for (index, group) in
        [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].into_iter().enumerate()
    {
        if index > 0 {
            text.push('-');
        }
        push_hex(&mut text, group);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(oid: u32, bytes: &[u8]) -> String {
        match binary(oid, bytes) {
            Parameter::Text(text) => text,
            other => panic!("{oid}: {other:?}"),
        }
    }

    #[test]
    fn simple_types_are_shown_as_the_server_writes_them() {
        assert_eq!(shown(16, b"\x01"), "t");
        assert_eq!(shown(21, &(-5_i16).to_be_bytes()), "-5");
        assert_eq!(shown(23, &i32::MIN.to_be_bytes()), "-2147483648");
        assert_eq!(shown(20, &i64::MAX.to_be_bytes()), "9223372036854775807");
        assert_eq!(shown(26, &u32::MAX.to_be_bytes()), "4294967295");
        assert_eq!(shown(17, b"\x00\xffa"), "\\x00ff61");
        assert_eq!(shown(25, "grün".as_bytes()), "grün");
        assert_eq!(shown(3802, b"\x01{\"a\": 1}"), "{\"a\": 1}");
        assert_eq!(
            shown(
                2950,
                &[
                    0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40,
                    0
                ]
            ),
            "123e4567-e89b-12d3-a456-426614174000"
        );
        assert_eq!(shown(790, &1234_i64.to_be_bytes()), "1234");
    }

    #[test]
    fn what_does_not_fit_its_type_stays_binary() {
        for (oid, bytes) in [
            (23, &b"\0\0\0"[..]),
            (16, b""),
            (25, b"\xff"),
            (3802, b"\x02{}"),
            (2950, b"1"),
            (600, b"x"),
            (0, b"x"),
        ] {
            assert_eq!(binary(oid, bytes), Parameter::Binary(bytes.to_vec()), "{oid}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(oid in 0_u32..4000, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            binary(oid, &bytes);
        }

        #[test]
        fn no_scalar_panics(index in 0..types::SCALARS.len(), bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..24)) {
            binary(types::SCALARS[index].0, &bytes);
            binary(types::SCALARS[index].2, &bytes);
        }
    }
}
