//! Parameter values of Bind and FunctionCall: read as they arrive, each with its own bound, so that a long value neither takes
//! memory nor hides those behind it.

use super::field::{Number, Text};
use super::request::{Bind, Function, Request};
use super::value;
use crate::protocol::{Limits, Parameter};

/// How much of one parameter value is kept.
const MAX_VALUE_BYTES: usize = 16 << 10;
/// Values of a Bind or FunctionCall, as sent.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Values {
    /// Format codes: none means text for all, one is for all, else one for each.
    formats: Vec<u16>,
    /// For each value the length as sent, the length kept, and what was kept.
    raw: Vec<u8>,
}

/// The length that stands for NULL.
const NULL: u32 = u32::MAX;

impl Values {
    /// Bytes that it takes to remember.
    pub(super) fn cost(&self) -> usize {
        self.raw.len() + self.formats.len() * 2
    }

    /// The values with the types as far as known, for a record.
    pub(super) fn parameters(&self, types: &[u32]) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        let mut raw = self.raw.as_slice();
        while let Some((length, kept, rest)) = Self::next(raw) {
            let index = parameters.len();
            let format = match self.formats.as_slice() {
                [] => 0,
                [all] => *all,
                each => each.get(index).copied().unwrap_or(0),
            };
            parameters.push(if length == NULL {
                Parameter::Null
            } else if u64::from(length) > kept.len() as u64 {
                Parameter::Cut { head: kept.to_vec(), length: length.into() }
            } else if format == 0 {
                value::text(kept)
            } else {
                value::binary(types.get(index).copied().unwrap_or(0), kept)
            });
            raw = rest;
        }
        parameters
    }

    /// Whether they may be shown once more for a portal that is executed again: a few bytes of Execute must not buy
    /// another copy of long values.
    pub(super) fn are_short(&self) -> bool {
        self.raw.len() <= 512
    }

    fn next(raw: &[u8]) -> Option<(u32, &[u8], &[u8])> {
        let (length, raw) = raw.split_first_chunk()?;
        let (kept, raw) = raw.split_first_chunk()?;
        let (value, rest) = raw.split_at_checked(usize::try_from(u32::from_be_bytes(*kept)).ok()?)?;
        Some((u32::from_be_bytes(*length), value, rest))
    }
}

/// The body of Bind (portal, statement, formats, values, result formats) and of FunctionCall (OID, formats, values,
/// result format).
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct ValuesBody {
    function: bool,
    keep_values: bool,
    field: ValuesField,
    portal: Text,
    statement: Text,
    short: Number<2>,
    long: Number<4>,
    oid: u32,
    values: Values,
    budget: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum ValuesField {
    Portal,
    Statement,
    Oid,
    FormatCount,
    Formats(u32),
    Count,
    Length(u32),
    /// So many values left after this one; so many bytes of it to keep, so many to step over.
    Value {
        left: u32,
        keep: usize,
        skip: usize,
    },
    ResultFormatCount,
    ResultFormats(u32),
    TooLong,
}

impl ValuesBody {
    /// For a Bind.
    pub(super) fn bind(limits: Limits) -> Self {
        Self::new(limits, ValuesField::Portal)
    }

    /// For a FunctionCall.
    pub(super) fn function(limits: Limits) -> Self {
        Self { function: true, ..Self::new(limits, ValuesField::Oid) }
    }

    fn new(limits: Limits, field: ValuesField) -> Self {
        Self {
            function: false,
            keep_values: limits.parameters,
            field,
            portal: Text::name(),
            statement: Text::name(),
            short: Number::default(),
            long: Number::default(),
            oid: 0,
            values: Values::default(),
            budget: limits.max_statement_bytes,
        }
    }

    /// The next piece of the body.
    pub(super) fn read(&mut self, input: &mut &[u8]) {
        use ValuesField as Field;
        while !input.is_empty() {
            let next = match self.field {
                Field::Portal => self.portal.read(input).then_some(Field::Statement),
                Field::Statement => self.statement.read(input).then_some(Field::FormatCount),
                Field::Oid => self.long.read(input).map(|oid| {
                    self.oid = oid;
                    Field::FormatCount
                }),
                Field::FormatCount => self.short.read(input).map(Field::Formats),
                Field::Formats(0) => Some(Field::Count),
                Field::Formats(left) => self.short.read(input).map(|format| {
                    if self.keep_values {
                        self.values.formats.push(u16::try_from(format).unwrap_or(u16::MAX));
                    }
                    Field::Formats(left - 1)
                }),
                Field::Count => self.short.read(input).map(Field::Length),
                Field::Length(0) => Some(Field::ResultFormatCount),
                Field::Length(left) => self.long.read(input).map(|length| self.value(left - 1, length)),
                Field::Value { left, keep, skip } => Some(self.take(input, left, keep, skip)),
                // A function call has one result and no count.
                Field::ResultFormatCount if self.function => Some(Field::ResultFormats(1)),
                Field::ResultFormatCount => self.short.read(input).map(Field::ResultFormats),
                Field::ResultFormats(left @ 1..) => {
                    self.short.read(input).map(|_| Field::ResultFormats(left - 1))
                }
                Field::ResultFormats(0) | Field::TooLong => {
                    self.field = Field::TooLong;
                    return;
                }
            };
            self.field = next.unwrap_or(self.field);
        }
    }

    /// Notes a value's length, and decides how much of it is kept.
    fn value(&mut self, left: u32, length: u32) -> ValuesField {
        // NULL has length -1; any other negative length is an error that the server will report.
        let wire = if length == NULL { 0 } else { usize::try_from(length).unwrap_or(usize::MAX) };
        let keep = if self.keep_values { wire.min(MAX_VALUE_BYTES).min(self.budget) } else { 0 };
        if self.keep_values {
            self.budget -= keep;
            if self.values.raw.is_empty() {
                // Two numbers and a short value, without growing three times over.
                self.values.raw.reserve(8 + keep.clamp(8, 64));
            }
            self.values.raw.extend_from_slice(&length.to_be_bytes());
            self.values.raw.extend_from_slice(&u32::try_from(keep).unwrap_or(0).to_be_bytes());
        }
        if wire == 0 {
            ValuesField::Length(left)
        } else {
            ValuesField::Value { left, keep, skip: wire - keep }
        }
    }

    fn take(&mut self, input: &mut &[u8], left: u32, keep: usize, skip: usize) -> ValuesField {
        let (kept, rest) = input.split_at(keep.min(input.len()));
        self.values.raw.extend_from_slice(kept);
        let skipped = if kept.len() == keep { skip.min(rest.len()) } else { 0 };
        *input = &rest[skipped..];
        match (keep - kept.len(), skip - skipped) {
            (0, 0) => ValuesField::Length(left),
            (keep, skip) => ValuesField::Value { left, keep, skip },
        }
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        self.values.cost()
    }

    /// Lets go of the values.
    pub(super) fn spare(&mut self) {
        self.values = Values::default();
    }

    /// The end of the body; `whole` unless a hole fell into it.
    pub(super) fn end(self, whole: bool) -> Request {
        use ValuesField as Field;
        let whole = whole && matches!(self.field, Field::ResultFormats(0));
        if self.function {
            return Request::Function(Box::new(Function { oid: self.oid, values: self.values, whole }));
        }
        Request::Bind(Box::new(Bind {
            portal: self.portal.to_name(self.field != Field::Portal),
            statement: self.statement.to_name(!matches!(self.field, Field::Portal | Field::Statement)),
            values: self.values,
            whole,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_statement_bytes: 100_000, parameters: true, columns: true };

    /// For a Bind.
    pub(super) fn bind(bytes: &[u8]) -> (Vec<Parameter>, bool) {
        let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut body = ValuesBody::bind(LIMITS);
            for mut piece in pieces {
                body.read(&mut piece);
            }
            let Request::Bind(bind) = body.end(true) else { panic!() };
            (bind.values.parameters(&[]), bind.whole)
        };
        let whole = read(&mut std::iter::once(bytes));
        assert_eq!(whole, read(&mut bytes.chunks(1)));
        whole
    }

    #[test]
    fn values_are_read_with_their_formats() {
        let text = |text: &str| Parameter::Text(text.into());
        let (values, whole) = bind(b"p\0s\0\0\x01\0\0\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01\0\0");
        assert_eq!((values, whole), (vec![text("a"), Parameter::Null], true));
        let (values, whole) = bind(b"\0\0\0\x01\0\x01\0\x01\0\0\0\x01a\0\0");
        assert_eq!((values, whole), (vec![Parameter::Binary(b"a".to_vec())], true));
        let (values, whole) = bind(b"\0\0\0\x02\0\x01\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0");
        assert_eq!((values, whole), (vec![Parameter::Binary(b"a".to_vec()), text("")], true));
    }

    #[test]
    fn a_body_that_ends_early_or_late_is_not_whole() {
        for bytes in [
            &b""[..],
            b"\0\0",
            b"\0\0\0\0",
            b"\0\0\0\0\0\x01",
            b"\0\0\0\0\0\x01\0\0\0\x09abc",
            b"\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\0x",
        ] {
            assert!(!bind(bytes).1, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_length_that_cannot_be_takes_no_memory() {
        assert_eq!(bind(b"\0\0\0\0\0\x01\x80\0\0\0ab").0, []);
    }

    #[test]
    fn all_values_together_are_bounded() {
        let mut body = b"\0\0\0\0\0\x0a".to_vec();
        for _ in 0..10 {
            body.extend(16_000_u32.to_be_bytes());
            body.extend([b'x'; 16_000]);
        }
        body.extend(b"\0\0");
        let kept: usize = bind(&body)
            .0
            .iter()
            .map(|value| match value {
                Parameter::Text(text) => text.len(),
                Parameter::Cut { head, length: 16_000 } => head.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(kept, 100_000);
    }
}
