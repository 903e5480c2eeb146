//! The client's messages: Query, Parse, Bind, Describe, Execute, Close, FunctionCall, Sync, COPY data.
//!
//! Bodies are read as they arrive, each field with its own bound, so that a long text or value neither takes memory nor
//! hides the fields behind it. Passwords and SASL messages ('p') and COPY data are stepped over without being looked at.
//! A body that ends early, runs on, or has a hole gives a request that says so (`whole`); the server decides what becomes
//! of it.

use bytes::Bytes;

use super::STATEMENT_IN_NEED;
use super::field::{NAME_PREFIX, Number, Text};
use super::frame::Head;
use super::names::Name;
use super::values::{Values, ValuesBody};
use crate::protocol::Limits;

/// What Describe and Close are about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Target {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

/// A client message, as far as it matters. Small, because many of them may wait for an answer.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Request {
    /// Query.
    Query(Box<Query>),
    /// Parse.
    Parse(Box<Parse>),
    /// Bind.
    Bind(Box<Bind>),
    /// Describe.
    Describe(Target, Name),
    /// Execute a portal.
    Execute(Name),
    /// Close.
    Close(Target, Name),
    /// FunctionCall.
    Function(Box<Function>),
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

/// Text to be executed now.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Query {
    pub(super) text: Bytes,
    pub(super) text_length: u64,
    /// Nothing of the message is missing or too much.
    pub(super) whole: bool,
}

/// Text for a name.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Parse {
    pub(super) name: Name,
    pub(super) text: Bytes,
    pub(super) text_length: u64,
    /// Parameter types by OID.
    pub(super) types: Vec<u32>,
    /// Nothing of the message is missing or too much.
    pub(super) whole: bool,
}

/// Values for a statement, and a portal's name for both.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Bind {
    pub(super) portal: Name,
    pub(super) statement: Name,
    pub(super) values: Values,
    /// Nothing of the message is missing or too much.
    pub(super) whole: bool,
}

/// A call by number.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Function {
    pub(super) oid: u32,
    pub(super) values: Values,
    /// Nothing of the message is missing or too much.
    pub(super) whole: bool,
}

impl Request {
    /// Bytes that it takes to remember, roughly.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Query(query) => size_of::<Query>() + query.text.len(),
            Self::Parse(parse) => {
                size_of::<Parse>() + parse.name.cost() + parse.text.len() + parse.types.len() * 4
            }
            Self::Bind(bind) => {
                size_of::<Bind>() + bind.portal.cost() + bind.statement.cost() + bind.values.cost()
            }
            Self::Function(function) => size_of::<Function>() + function.values.cost(),
            Self::Describe(_, name) | Self::Execute(name) | Self::Close(_, name) => name.cost(),
            _ => 0,
        }
    }

    /// Lets go of texts, values and names, and says so.
    pub(super) fn strip(&mut self) {
        match self {
            Self::Query(query) => (query.text, query.whole) = (Bytes::new(), false),
            Self::Parse(parse) => {
                (parse.text, parse.types, parse.whole) = (Bytes::new(), Vec::new(), false);
            }
            Self::Bind(bind) => (bind.values, bind.whole) = (Values::default(), false),
            Self::Function(function) => (function.values, function.whole) = (Values::default(), false),
            Self::Describe(_, name) | Self::Execute(name) | Self::Close(_, name) => *name = Name::Unknown,
            _ => {}
        }
    }
}

/// Reads one client message after the other.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct RequestReader {
    limits: Limits,
    body: Body,
    /// The first bytes of the bodies that are kept whole.
    prefix: Vec<u8>,
    hole: bool,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
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

    /// Bytes kept of the message under way.
    pub(super) fn memory(&self) -> usize {
        self.prefix.len()
            + match &self.body {
                Body::Skip | Body::Prefix(_) => 0,
                Body::Parse(body) => body.text.kept.len() + body.types.len() * 4,
                Body::Values(body) => body.memory(),
            }
    }

    /// Memory is short: of the message under way the beginning is kept, and no more than that of later ones.
    pub(super) fn spare(&mut self) {
        let limits = &mut self.limits;
        limits.max_statement_bytes = limits.max_statement_bytes.min(STATEMENT_IN_NEED);
        self.prefix.truncate(STATEMENT_IN_NEED);
        self.prefix.shrink_to_fit();
        match &mut self.body {
            Body::Skip | Body::Prefix(_) => {}
            Body::Parse(body) => {
                body.text.kept.truncate(STATEMENT_IN_NEED);
                body.text.kept.shrink_to_fit();
                body.types = Vec::new();
            }
            Body::Values(body) => body.spare(),
        }
        self.hole();
    }

    /// Ends the message.
    pub(super) fn end(&mut self, head: Head) -> Request {
        let whole = !self.hole;
        match (head.kind, std::mem::replace(&mut self.body, Body::Skip)) {
            (b'Q', _) => self.query(head, whole),
            (_, Body::Parse(body)) => body.end(whole),
            (_, Body::Values(body)) => body.end(whole),
            (b'E', _) => Request::Execute(self.name(0)),
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
        Request::Query(Box::new(Query { text: text.into(), text_length, whole }))
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

/// The body of Parse: name, text, count and OIDs of parameter types.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct ParseBody {
    field: ParseField,
    name: Text,
    text: Text,
    count: Number<2>,
    oid: Number<4>,
    types: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
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
        Request::Parse(Box::new(Parse {
            name: self.name.to_name(self.field != ParseField::Name),
            text: self.text.kept.into(),
            text_length: self.text.length,
            types: self.types,
            whole: whole && self.field == ParseField::Types(0),
        }))
    }
}
