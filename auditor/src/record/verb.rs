//! The first keyword of a statement, until there is a parser that knows what the statement does.
//!
//! A keyword is a label, not a classification: `WITH` may delete, `SELECT` may call a function that does. Nothing may be
//! allowed on the strength of it.

/// Longer words than this are no keyword of any dialect.
const LONGEST: usize = 32;

/// The first keyword of `text`, as it stands there: after white space, comments (`--` to the end of the line, `/* */`
/// nested as in PostgreSQL), empty statements and opening parentheses. `None` where no word of ASCII letters and
/// underscores follows, or the text ends within a comment.
pub fn first_keyword(text: &[u8]) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = match rest {
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | b';' | b'(', after @ ..] => after,
            [b'-', b'-', after @ ..] => after_line(after)?,
            [b'/', b'*', after @ ..] => after_block(after)?,
            _ => break,
        };
    }
    let length = rest.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'_').count();
    let word = rest.get(..length).filter(|word| (1..=LONGEST).contains(&word.len()))?;
    std::str::from_utf8(word).ok()
}

fn after_line(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    text.get(end..)
}

fn after_block(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    let mut depth = 1_usize;
    while depth > 0 {
        rest = match rest {
            [b'*', b'/', after @ ..] => {
                depth -= 1;
                after
            }
            [b'/', b'*', after @ ..] => {
                depth += 1;
                after
            }
            [_, after @ ..] => after,
            [] => return None,
        };
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_what_is_no_keyword() {
        for (text, keyword) in [
            ("select 1", Some("select")),
            ("  \t\r\nDROP TABLE t", Some("DROP")),
            ("-- delete\nUPDATE t", Some("UPDATE")),
            ("-- delete\rUPDATE t", Some("UPDATE")),
            ("/* a /* b */ delete */insert into t", Some("insert")),
            ("((select 1))", Some("select")),
            (";; /**/ truncate", Some("truncate")),
            ("IDENTIFY_SYSTEM", Some("IDENTIFY_SYSTEM")),
            ("/* never closed", None),
            ("-- only a comment", None),
            ("", None),
            ("42", None),
            ("\u{e9}lan", None),
        ] {
            assert_eq!(first_keyword(text.as_bytes()), keyword, "{text:?}");
        }
        assert_eq!(first_keyword(&[b'x'; 4000]), None);
        assert_eq!(first_keyword(b"\xff\xfeselect"), None);
    }
}
