//! The client's messages: Query, Parse, Bind, Describe, Execute, Close, FunctionCall, Sync, COPY data.
//!
//! Bodies are read as they arrive, each field with its own bound, so that a long text or value neither takes memory nor
//! hides the fields behind it. Passwords and SASL messages ('p') and COPY data are stepped over without being looked at.
//! A body that ends early, runs on, or has a hole gives a request that says so (`whole`); the server decides what becomes
//! of it.

use bytes::Bytes;

use super::frame::Head;
use super::names::Name;
use super::value;
use crate::protocol::{Limits, Parameter};

/// How much of one parameter value is kept.
const MAX_VALUE_BYTES: usize = 16 << 10;
/// Enough of Describe, Execute and Close to tell any name that is looked up.
const NAME_PREFIX: usize = 80;

/// What Describe and Close are about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

/// A client message, as far as it matters.
#[derive(Debug)]
pub(super) enum Request {
    /// Query: text to be executed now.
    Query { text: Bytes, text_length: u64, whole: bool },
    /// Parse: text for a name.
    Parse { name: Name, text: Bytes, text_length: u64, types: Vec<u32>, whole: bool },
    /// Bind: values for a statement, and a portal's name for both.
    Bind { portal: Name, statement: Name, values: Values, whole: bool },
    /// Describe.
    Describe(Target, Name),
    /// Execute a portal.
    Execute { portal: Name },
    /// Close.
    Close(Target, Name),
    /// FunctionCall.
    Function { oid: u32, values: Values, whole: bool },
    /// Sync.
    Sync,
    /// Flush.
    Flush,
    /// CopyData.
    CopyData,
    /// CopyDone or CopyFail.
    CopyEnd,
    /// PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse.
    Credentials,
    /// Terminate.
    Terminate,
}

impl Request {
    /// Bytes that it takes to remember.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Query { text, .. } => text.len(),
            Self::Parse { name, text, types, .. } => name.cost() + text.len() + types.len() * 4,
            Self::Bind { portal, statement, values, .. } => portal.cost() + statement.cost() + values.cost(),
            Self::Function { values, .. } => values.cost(),
            _ => 0,
        }
    }

    /// Lets go of texts and values, and says so.
    pub(super) fn strip(&mut self) {
        match self {
            Self::Query { text, whole, .. } => (*text, *whole) = (Bytes::new(), false),
            Self::Parse { text, types, whole, .. } => {
                (*text, *whole) = (Bytes::new(), false);
                *types = Vec::new();
            }
            Self::Bind { values, whole, .. } | Self::Function { values, whole, .. } => {
                (*values, *whole) = (Values::default(), false);
            }
            _ => {}
        }
    }
}

/// Values of a Bind or FunctionCall, as sent.
#[derive(Clone, Debug, Default)]
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
        self.raw.len() <= 4 << 10
    }

    fn next(raw: &[u8]) -> Option<(u32, &[u8], &[u8])> {
        let (length, raw) = raw.split_first_chunk()?;
        let (kept, raw) = raw.split_first_chunk()?;
        let (value, rest) = raw.split_at_checked(usize::try_from(u32::from_be_bytes(*kept)).ok()?)?;
        Some((u32::from_be_bytes(*length), value, rest))
    }
}

/// Reads one client message after the other.
#[derive(Debug)]
pub(super) struct RequestReader {
    limits: Limits,
    body: Body,
    /// The first bytes of the bodies that are kept whole.
    prefix: Vec<u8>,
    hole: bool,
}

#[derive(Debug)]
enum Body {
    Skip,
    Prefix(usize),
    Parse(Box<ParseBody>),
    Values(Box<ValuesBody>),
}

impl RequestReader {
    /// For one connection.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, body: Body::Skip, prefix: Vec::new(), hole: false }
    }

    /// Begins a message; `false` if there is no such message.
    pub(super) fn start(&mut self, head: Head) -> bool {
        self.hole = false;
        self.prefix.clear();
        self.body = match head.kind {
            b'Q' => Body::Prefix(self.limits.max_statement_bytes.saturating_add(1)),
            b'D' | b'E' | b'C' => Body::Prefix(NAME_PREFIX),
            b'P' => Body::Parse(Box::new(ParseBody::new(self.limits))),
            b'B' => Body::Values(Box::new(ValuesBody::bind(self.limits))),
            b'F' => Body::Values(Box::new(ValuesBody::function(self.limits))),
            b'S' | b'H' | b'd' | b'c' | b'f' | b'p' | b'X' => Body::Skip,
            _ => return false,
        };
        true
    }

    /// The next piece of its body.
    pub(super) fn piece(&mut self, mut piece: &[u8]) {
        if self.hole {
            return;
        }
        match &mut self.body {
            Body::Skip => {}
            Body::Prefix(keep) => {
                let room = keep.saturating_sub(self.prefix.len()).min(piece.len());
                self.prefix.extend_from_slice(&piece[..room]);
            }
            Body::Parse(body) => body.read(&mut piece),
            Body::Values(body) => body.read(&mut piece),
        }
    }

    /// Bytes of the body were lost. What comes behind them is not put together with what came before.
    pub(super) fn hole(&mut self) {
        self.hole = true;
    }

    /// Ends the message.
    pub(super) fn end(&mut self, head: Head) -> Request {
        let whole = !self.hole;
        match (head.kind, std::mem::replace(&mut self.body, Body::Skip)) {
            (b'Q', _) => self.query(head, whole),
            (_, Body::Parse(body)) => body.end(whole),
            (_, Body::Values(body)) => body.end(whole),
            (b'E', _) => Request::Execute { portal: self.name(0) },
            (b'D' | b'C', _) => {
                let target = match self.prefix.first() {
                    Some(b'P') => Target::Portal,
                    _ => Target::Statement,
                };
                let name = self.name(1);
                if head.kind == b'D' { Request::Describe(target, name) } else { Request::Close(target, name) }
            }
            (b'S', _) => Request::Sync,
            (b'd', _) => Request::CopyData,
            (b'c' | b'f', _) => Request::CopyEnd,
            (b'X', _) => Request::Terminate,
            (b'p', _) => Request::Credentials,
            _ => Request::Flush,
        }
    }

    fn query(&mut self, head: Head, whole: bool) -> Request {
        let mut text = std::mem::take(&mut self.prefix);
        let mut text_length = u64::from(head.body);
        // The text ends with a zero byte. Were there more of them, the server would refuse it; they are kept to be seen.
        if text.len() as u64 == text_length && text.last() == Some(&0) {
            text.pop();
            text_length -= 1;
        } else if text_length > text.len() as u64 {
            text_length -= 1;
        }
        text.truncate(self.limits.max_statement_bytes);
        Request::Query { text: text.into(), text_length, whole }
    }

    /// The name that begins at `from` in a short body.
    fn name(&self, from: usize) -> Name {
        let bytes = self.prefix.get(from..).unwrap_or_default();
        match bytes.iter().position(|&byte| byte == 0) {
            Some(end) => Name::new(&bytes[..end], end as u64),
            None if self.hole || bytes.len() + from < NAME_PREFIX => Name::Unknown,
            None => Name::new(bytes, bytes.len() as u64),
        }
    }
}

/// A string up to its zero byte, its length counted and its first bytes kept.
#[derive(Debug, Default)]
struct Text {
    kept: Vec<u8>,
    keep: usize,
    length: u64,
}

impl Text {
    fn new(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Consumes up to and including the zero byte; `true` once that was there.
    fn read(&mut self, input: &mut &[u8]) -> bool {
        let end = input.iter().position(|&byte| byte == 0);
        let piece = &input[..end.unwrap_or(input.len())];
        self.length += piece.len() as u64;
        let room = self.keep.saturating_sub(self.kept.len()).min(piece.len());
        self.kept.extend_from_slice(&piece[..room]);
        *input = &input[end.map_or(input.len(), |end| end + 1)..];
        end.is_some()
    }

    fn name() -> Self {
        Self::new(NAME_PREFIX)
    }
}

/// A big-endian number of `N` bytes.
#[derive(Debug, Default)]
struct Number<const N: usize> {
    value: u32,
    seen: usize,
}

impl<const N: usize> Number<N> {
    /// Consumes its bytes; the value once they were all there, after which the next number may begin.
    fn read(&mut self, input: &mut &[u8]) -> Option<u32> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.value = self.value << 8 | u32::from(byte);
            self.seen += 1;
            if self.seen == N {
                return Some(std::mem::take(self).value);
            }
        }
        None
    }
}

/// The body of Parse: name, text, count and OIDs of parameter types.
#[derive(Debug)]
struct ParseBody {
    field: ParseField,
    name: Text,
    text: Text,
    count: Number<2>,
    oid: Number<4>,
    types: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ParseField {
    Name,
    Text,
    Count,
    Types(u32),
    TooLong,
}

impl ParseBody {
    fn new(limits: Limits) -> Self {
        Self {
            field: ParseField::Name,
            name: Text::name(),
            text: Text::new(limits.max_statement_bytes),
            count: Number::default(),
            oid: Number::default(),
            types: Vec::new(),
        }
    }

    fn read(&mut self, input: &mut &[u8]) {
        while !input.is_empty() {
            let next = match self.field {
                ParseField::Name => self.name.read(input).then_some(ParseField::Text),
                ParseField::Text => self.text.read(input).then_some(ParseField::Count),
                ParseField::Count => self.count.read(input).map(ParseField::Types),
                ParseField::Types(left @ 1..) => self.oid.read(input).map(|oid| {
                    self.types.push(oid);
                    ParseField::Types(left - 1)
                }),
                ParseField::Types(0) | ParseField::TooLong => {
                    self.field = ParseField::TooLong;
                    return;
                }
            };
            self.field = next.unwrap_or(self.field);
        }
    }

    fn end(self, whole: bool) -> Request {
        let name = match self.field {
            ParseField::Name => Name::Unknown,
            _ => Name::new(&self.name.kept, self.name.length),
        };
        Request::Parse {
            name,
            text: self.text.kept.into(),
            text_length: self.text.length,
            types: self.types,
            whole: whole && self.field == ParseField::Types(0),
        }
    }
}

/// The body of Bind (portal, statement, formats, values, result formats) and of FunctionCall (OID, formats, values,
/// result format).
#[derive(Debug)]
struct ValuesBody {
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

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    fn bind(limits: Limits) -> Self {
        Self::new(limits, ValuesField::Portal)
    }

    fn function(limits: Limits) -> Self {
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

    fn read(&mut self, input: &mut &[u8]) {
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

    fn end(self, whole: bool) -> Request {
        use ValuesField as Field;
        let name = |text: &Text, known: bool| {
            if known { Name::new(&text.kept, text.length) } else { Name::Unknown }
        };
        let whole = whole && matches!(self.field, Field::ResultFormats(0));
        if self.function {
            return Request::Function { oid: self.oid, values: self.values, whole };
        }
        Request::Bind {
            portal: name(&self.portal, self.field != Field::Portal),
            statement: name(&self.statement, !matches!(self.field, Field::Portal | Field::Statement)),
            values: self.values,
            whole,
        }
    }
}
