//! Arrays of one dimension, as the server writes them: `{1,NULL,"a b"}`. Arrays of more dimensions, or that do not begin at
//! one, stay binary.

use super::types;
use super::{Scalar, decode as decode_element};

/// The text of an array of `scalar`.
pub(super) fn decode(scalar: Scalar, bytes: &[u8]) -> Option<String> {
    let (dimensions, rest) = word(bytes)?;
    let (_has_nulls, rest) = word(rest)?;
    let (element, rest) = word(rest)?;
    if !types::is(element, scalar) {
        return None;
    }
    if dimensions == 0 {
        return rest.is_empty().then(|| "{}".into());
    }
    let (count, rest) = word(rest)?;
    let (first, mut rest) = word(rest)?;
    if dimensions != 1 || first != 1 {
        return None;
    }
    let mut text = String::from("{");
    for index in 0..count {
        if index > 0 {
            text.push(',');
        }
        let (length, after) = word(rest)?;
        if length == u32::MAX {
            text.push_str("NULL");
            rest = after;
            continue;
        }
        let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        push(&mut text, &decode_element(scalar, value)?);
        rest = after;
    }
    text.push('}');
    rest.is_empty().then_some(text)
}

/// Quotes an element where the array's own syntax would otherwise be taken for part of it.
fn push(text: &mut String, element: &str) {
    let special = |byte: u8| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\' | b' ' | b'\t'..=b'\r');
    if !element.is_empty() && !element.bytes().any(special) && !element.eq_ignore_ascii_case("null") {
        text.push_str(element);
        return;
    }
    text.push('"');
    for letter in element.chars() {
        if matches!(letter, '"' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push('"');
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(word, rest)| (u32::from_be_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(element: u32, values: &[Option<&[u8]>]) -> Vec<u8> {
        let words = [1, 0, element, u32::try_from(values.len()).unwrap(), 1];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
        for value in values {
            bytes.extend(value.map_or(u32::MAX, |value| value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value.unwrap_or_default());
        }
        bytes
    }

    #[test]
    fn elements_are_quoted_as_the_server_does() {
        let bytes = array(25, &[Some(b"a"), None, Some(b""), Some(b"b c"), Some(b"Null"), Some(b"\"\\{")]);
        assert_eq!(decode(Scalar::Text, &bytes).as_deref(), Some(r#"{a,NULL,"","b c","Null","\"\\{"}"#));
        let bytes = array(23, &[Some(&1_i32.to_be_bytes()), Some(&(-2_i32).to_be_bytes())]);
        assert_eq!(decode(Scalar::Int4, &bytes).as_deref(), Some("{1,-2}"));
        assert_eq!(decode(Scalar::Int4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]).as_deref(), Some("{}"));
    }

    #[test]
    fn a_count_that_is_not_there_or_another_element_type_stays_binary() {
        let mut bytes = array(23, &[Some(&1_i32.to_be_bytes())]);
        assert_eq!(decode(Scalar::Text, &bytes), None);
        bytes[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(Scalar::Int4, &bytes), None);
    }
}
