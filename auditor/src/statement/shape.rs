//! A statement's shape: its tokens with literals left out.
//!
//! Two uses. The fingerprint groups statements that differ in their literals alone. And the shape is what meanings are kept by
//! ([`super::cache`]), so it must not be the same for two texts that the server would read differently. A lexer that is wrong about the
//! end of one string would give an attacker just that. So this one does not try to know all that a server's knows: wherever there is more
//! to a literal than its two quotes (escapes, dollar quoting, prefixes, nested comments, digits that run into letters), it
//! goes on as well as it can for the fingerprint's sake, and says that the shape is not [`Shape::sure`]. Then the text itself is
//! parsed, and its meaning kept by it. A shape that is sure is parsed in the text's place: what does not get to the parser cannot
//! make two meanings of one shape, and of a thousand rows to insert there is one left.

#![forbid(unsafe_code)]

use super::Dialect;

/// Names on which the meaning of later statements hangs, with a value that may be a literal.
const TELLING: [&[u8]; 10] = [
    b"search_path",
    b"set_config",
    b"standard_conforming_strings",
    b"sql_mode",
    b"role",
    b"authorization",
    b"session_authorization",
    b"names",
    b"client_encoding",
    b"character_set_client",
];

/// What a literal is in a shape, so that a parser takes it for one.
const TEXT: &[u8] = b"'?'";
const NUMBER: &[u8] = b"1";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Tokens with one space between them.
    pub(super) tokens: Vec<u8>,
    /// Texts with these tokens mean the same.
    pub(super) sure: bool,
    /// A string without prefix has a backslash in it, so its end depends on the server's settings.
    pub(super) backslash: bool,
    /// Comments that servers of this dialect execute, or what looks like one.
    pub(super) executable_comment: bool,
    /// Operators, signs of numbers aside: what left-deep trees are made of.
    pub(super) operators: usize,
    /// Beginning of the innermost list in parentheses, as long as it holds literals only.
    list: Option<usize>,
    /// The last such list that was closed.
    closed: Option<(usize, usize)>,
}

impl Shape {
    /// Reads `text`, instead of any before.
    pub(super) fn read(&mut self, dialect: Dialect, text: &[u8]) {
        self.tokens.clear();
        (self.sure, self.backslash, self.executable_comment, self.operators) = (true, false, false, 0);
        (self.list, self.closed) = (None, None);
        if dialect == Dialect::MySql {
            // Anywhere: who is wrong about where a comment or a string ends must not miss one.
            let find = |mark: &[u8]| memchr::memmem::find(text, mark).is_some();
            self.executable_comment = find(b"/*!") || find(b"/*M!") || find(b"/*+");
            self.sure = !self.executable_comment;
        }
        let mut lexer = Lexer { text, at: 0, dialect, shape: self };
        while lexer.token() {}
    }

    fn push(&mut self, token: &[u8]) {
        if !self.tokens.is_empty() {
            self.tokens.push(b' ');
        }
        self.tokens.extend_from_slice(token);
    }

    /// A literal. In a list, one more of the same kind adds nothing.
    fn literal(&mut self, kind: &[u8]) {
        if let Some(before) = self.tokens.strip_suffix(b" ,")
            && before.ends_with(kind)
            && before.len() > kind.len()
            && before[before.len() - kind.len() - 1] == b' '
        {
            let length = before.len();
            self.tokens.truncate(length);
        } else {
            self.push(kind);
        }
    }

    fn other(&mut self, token: &[u8]) {
        self.list = None;
        self.push(token);
    }

    fn open(&mut self) {
        let start = self.tokens.len();
        self.push(b"(");
        self.list = Some(start);
    }

    /// Rows of literals that follow one like them add nothing.
    fn close(&mut self) {
        self.push(b")");
        let Some(start) = self.list.take() else { return };
        let end = self.tokens.len();
        match self.closed {
            Some((first, last))
                if self.tokens[last..start] == *b" ,"
                    && self.tokens[first..last] == self.tokens[start..end] =>
            {
                self.tokens.truncate(last);
            }
            _ => self.closed = Some((start, end)),
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    dialect: Dialect,
    shape: &'a mut Shape,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// The next token or what is none. `false`: there is nothing more.
    fn token(&mut self) -> bool {
        let Some(&byte) = self.text.get(self.at) else { return false };
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
            b'-' if self.peek(1) == b'-' => self.line_comment(),
            b'#' if self.dialect == Dialect::MySql => self.line_comment(),
            b'/' if self.peek(1) == b'*' => self.block_comment(),
            b'\'' => self.string(b'\'', false),
            b'"' if self.dialect == Dialect::MySql => {
                // With ANSI_QUOTES it is a name.
                self.shape.sure = false;
                self.string(b'"', false);
            }
            b'"' | b'`' => self.quoted(byte),
            b'$' if self.dialect == Dialect::Postgres => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => self.word(),
            b'(' => {
                self.at += 1;
                self.shape.open();
            }
            b')' => {
                self.at += 1;
                self.shape.close();
            }
            b',' => {
                self.at += 1;
                self.shape.push(b",");
            }
            b'-' | b'+' if self.is_sign() => self.at += 1,
            b'[' | b']' | b';' | b'{' | b'}' => {
                self.at += 1;
                self.shape.other(&[byte]);
            }
            _ => self.punctuation(),
        }
        true
    }

    /// A sign at the beginning of a list's element belongs to the number that follows.
    fn is_sign(&self) -> bool {
        self.peek(1).is_ascii_digit() && matches!(self.shape.tokens.last(), Some(b'(' | b','))
    }

    fn line_comment(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        // MySQL wants white space after the two dashes; without it they are two signs.
        self.shape.sure &= self.dialect == Dialect::Postgres;
    }

    fn block_comment(&mut self) {
        let nests = self.dialect == Dialect::Postgres;
        let mut depth = 0_usize;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') if nests || depth == 0 => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                (byte, next) => {
                    // Some take it for a second one.
                    self.shape.sure &= (byte, next) != (b'/', b'*');
                    self.at += 1;
                }
            }
            self.shape.sure &= depth <= 1;
        }
        self.shape.sure = false;
    }

    /// A string; `escapes`: a backslash takes the next byte with it.
    fn string(&mut self, quote: u8, escapes: bool) {
        self.at += 1;
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                self.shape.sure = false;
                break;
            };
            self.at += 1;
            if byte == b'\\' {
                self.shape.sure = false;
                self.shape.backslash |= !escapes;
                if escapes || self.dialect == Dialect::MySql {
                    self.at += 1;
                }
            } else if byte == quote {
                if self.peek(0) != quote {
                    break;
                }
                self.at += 1;
            }
        }
        self.at = self.at.min(self.text.len());
        self.shape.literal(TEXT);
    }

    /// A name in quotes stays what it is.
    fn quoted(&mut self, quote: u8) {
        let start = self.at;
        self.at += 1;
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                self.shape.sure = false;
                break;
            };
            self.at += 1;
            if byte == quote {
                if self.peek(0) != quote {
                    break;
                }
                self.at += 1;
            }
        }
        let name = &self.text[start..self.at];
        let inside = name.get(1..name.len().saturating_sub(1)).unwrap_or_default();
        self.shape.sure &= !is_telling(inside);
        self.shape.other(name);
    }

    /// A parameter, or a string in dollar quotes.
    fn dollar(&mut self) {
        let start = self.at;
        let rest = &self.text[start + 1..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            self.at += 1 + rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            self.shape.sure &= !is_word(self.peek(0));
            return self.shape.other(&self.text[start..self.at]);
        }
        self.shape.sure = false;
        let tag = rest.iter().take_while(|byte| is_word(**byte) && **byte != b'$').count();
        if rest.get(tag) != Some(&b'$') {
            return self.punctuation();
        }
        let delimiter = &self.text[start..start + tag + 2];
        let body = start + delimiter.len();
        let end = memchr::memmem::find(&self.text[body..], delimiter);
        self.at = end.map_or(self.text.len(), |end| body + end + delimiter.len());
        self.shape.literal(TEXT);
    }

    fn number(&mut self) {
        let digits = |lexer: &mut Self| {
            while lexer.peek(0).is_ascii_digit() {
                lexer.at += 1;
            }
        };
        digits(self);
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            digits(self);
        }
        while is_word(self.peek(0)) || self.peek(0) == b'.' {
            self.shape.sure = false;
            self.at += 1;
        }
        self.shape.literal(NUMBER);
    }

    fn word(&mut self) {
        let start = self.at;
        while is_word(self.peek(0)) {
            self.at += 1;
        }
        let word = &self.text[start..self.at];
        match (word, self.peek(0)) {
            ([b'e' | b'E'], b'\'') if self.dialect == Dialect::Postgres => {
                return self.string(b'\'', true);
            }
            ([b'u' | b'U'], b'&') => self.shape.sure = false,
            (_, b'\'') => {
                // Bits, bytes, national characters, a character set, or a name that ends at the quote.
                self.shape.sure = false;
            }
            _ => {}
        }
        self.shape.sure &= !is_telling(word);
        self.shape.list = None;
        self.shape.push(word);
        if self.dialect == Dialect::Postgres {
            let length = self.shape.tokens.len();
            self.shape.tokens[length - word.len()..].make_ascii_lowercase();
        }
    }

    /// Everything else, as long as it stands together: operators, dots, colons.
    fn punctuation(&mut self) {
        let start = self.at;
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            let comment = matches!((byte, self.peek(1)), (b'-', b'-') | (b'/', b'*'));
            if comment || byte <= b' ' || is_word(byte) || b"'\"`()[]{},;".contains(&byte) {
                break;
            }
            self.at += 1;
        }
        self.shape.operators += usize::from(self.text[start..self.at] != *b".");
        self.shape.other(&self.text[start..self.at]);
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

fn is_telling(word: &[u8]) -> bool {
    TELLING.iter().any(|telling| telling.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dialect: Dialect, text: &str) -> (String, bool) {
        let mut shape = Shape::default();
        shape.read(dialect, text.as_bytes());
        (String::from_utf8_lossy(&shape.tokens).into_owned(), shape.sure)
    }

    #[test]
    fn literals_are_left_out() {
        for (text, tokens) in [
            ("SELECT * FROM T WHERE id = 12", "select * from t where id = 1"),
            ("select 'it''s', 4.5 , -1", "select '?' , 1"),
            ("select a /* x */ from \"T\" -- y\n where b=$1", "select a from \"T\" where b = $1"),
            ("select 1 where x in (1,2,3)", "select 1 where x in ( 1 )"),
            ("insert into t values (1,'a'), (2,'b'),(-3,'c')", "insert into t values ( 1 , '?' )"),
            ("select f(1), f(2)", "select f ( 1 ) , f ( 1 )"),
            ("select (a, 1), (b, 1)", "select ( a , 1 ) , ( b , 1 )"),
        ] {
            assert_eq!(shape(Dialect::Postgres, text), (tokens.to_owned(), true), "{text}");
        }
    }

    #[test]
    fn what_is_not_surely_a_literal_is_said() {
        for text in [
            r"select 'a\'b'",
            r"select E'a\'b'",
            "select $$ x $$",
            "select /* a /* b */ */ 1",
            "select U&\"d!0061\" uescape '!'",
            "select 1e5, 0x1F",
            "select 'never closed",
            "select b'101'",
            "set role 'x'",
            "set search_path = 'a'",
            "select set_config('a', 'b', false)",
        ] {
            assert!(!shape(Dialect::Postgres, text).1, "{text}");
        }
        assert!(!shape(Dialect::MySql, "select \"a\"").1);
        assert!(!shape(Dialect::MySql, "select 1 # x").1);
    }
}
