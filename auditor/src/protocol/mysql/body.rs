//! Reads the payloads of commands as they arrive, each field with its own bound, so that a long text or value neither takes memory
//! nor hides what is behind it.
//!
//! Values of an execution can be read only where it is certain what its number stands for. Where an earlier command is still to
//! be answered they wait, up to a bound, in the form in which they came. What proves a client's identity is stepped over.

use std::sync::Arc;

use super::STATEMENT_IN_NEED;
use super::capability::Capabilities;
use super::field::{Number, Text, Variable};
use super::login::{LoginReader, Said};
use super::request::{self, Execute, Given, LongData, Query, Request};
use super::statements::Prepared;
use super::values::{MAX_VALUE_BYTES, Shape, Values, ValuesReader};
use crate::protocol::Limits;

/// Bytes that are kept of the arguments of a command that is not SQL.
const ARGUMENT_BYTES: usize = 1 << 10;
/// More values than any statement has.
const MAX_VALUES: usize = 0xffff;
/// COM_STMT_EXECUTE: how many values there are is in the packet.
const COUNT_AVAILABLE: u64 = 8;
/// COM_STMT_BULK_EXECUTE: types are in the packet.
const TYPES_FOLLOW: u64 = 128;

/// What a number stands for, if nothing that may change it is under way.
pub(super) type Known<'a> = &'a dyn Fn(u32) -> Option<Arc<Prepared>>;

/// Reads one command after the other.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct RequestReader {
    limits: Limits,
    capabilities: Capabilities,
    body: Body,
    hole: bool,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Body {
    /// Not even the command's byte was there.
    Command,
    Query(Box<QueryBody>),
    Execute(Box<ExecuteBody>),
    LongData(Box<LongDataBody>),
    ChangeUser(Box<LoginReader>),
    /// The beginning of the arguments.
    Arguments(u8, Text),
}

impl RequestReader {
    /// For one connection.
    pub(super) fn new(limits: Limits, capabilities: Capabilities) -> Self {
        Self { limits, capabilities, body: Body::Command, hole: false }
    }

    /// Begins a command.
    pub(super) fn start(&mut self) {
        (self.body, self.hole) = (Body::Command, false);
    }

    /// The next piece of its payload, never empty.
    pub(super) fn piece(&mut self, mut input: &[u8], known: Known<'_>) {
        if self.hole {
            return;
        }
        if let (Body::Command, [command, rest @ ..]) = (&self.body, input) {
            self.body = self.body_of(*command);
            input = rest;
        }
        match &mut self.body {
            Body::Command => {}
            Body::Query(query) => query.read(input, self.limits),
            Body::Execute(execute) => execute.read(input, known),
            Body::LongData(data) => data.read(input),
            Body::ChangeUser(login) => login.read(&mut input),
            Body::Arguments(_, text) => text.add(input),
        }
    }

    fn body_of(&self, command: u8) -> Body {
        let limits = self.limits;
        match command {
            request::QUERY => {
                let attributes = self.capabilities.has(Capabilities::QUERY_ATTRIBUTES);
                Body::Query(Box::new(QueryBody::new(false, attributes)))
            }
            request::STMT_PREPARE => Body::Query(Box::new(QueryBody::new(true, false))),
            request::STMT_EXECUTE | request::STMT_BULK_EXECUTE => {
                let bulk = command == request::STMT_BULK_EXECUTE;
                Body::Execute(Box::new(ExecuteBody::new(bulk, self.capabilities, limits)))
            }
            request::STMT_SEND_LONG_DATA => Body::LongData(Box::default()),
            request::CHANGE_USER => Body::ChangeUser(Box::new(LoginReader::change_user(self.capabilities))),
            // Behind its number there are a user and a password.
            request::REGISTER_SLAVE => Body::Arguments(command, Text::new(4)),
            _ => Body::Arguments(command, Text::new(ARGUMENT_BYTES)),
        }
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        match &self.body {
            Body::Command => 0,
            Body::Query(query) => size_of::<QueryBody>() + query.memory(),
            Body::Execute(execute) => size_of::<ExecuteBody>() + execute.memory(),
            Body::LongData(data) => size_of::<LongDataBody>() + data.head.kept.len(),
            Body::ChangeUser(login) => size_of::<LoginReader>() + login.memory(),
            Body::Arguments(_, text) => text.kept.len(),
        }
    }

    /// Memory is short: from here on it keeps next to nothing.
    pub(super) fn spare(&mut self) {
        self.limits.max_statement_bytes = self.limits.max_statement_bytes.min(STATEMENT_IN_NEED);
        match &mut self.body {
            Body::Query(query) => query.spare(),
            Body::Execute(execute) => execute.spare(),
            Body::Command | Body::LongData(_) | Body::ChangeUser(_) | Body::Arguments(..) => {}
        }
    }

    /// Bytes of the payload were lost.
    pub(super) fn hole(&mut self) {
        self.hole = true;
    }

    /// Whether what is under way is text to be executed.
    pub(super) fn is_query(&self) -> bool {
        matches!(&self.body, Body::Query(query) if !query.prepare)
    }

    /// Ends the command. `None`: there was not even its byte.
    pub(super) fn end(&mut self) -> Option<Request> {
        let whole = !self.hole;
        Some(match std::mem::replace(&mut self.body, Body::Command) {
            Body::Command => return None,
            Body::Query(query) => {
                let prepare = query.prepare;
                let query = Box::new(query.end(whole));
                if prepare { Request::Prepare(query) } else { Request::Query(query) }
            }
            Body::Execute(execute) => Request::Execute(Box::new(execute.end(whole))),
            Body::LongData(data) => data.end(),
            Body::ChangeUser(login) => match login.end(true) {
                Said::Login(login) => Request::ChangeUser(Box::new(login)),
                Said::Ssl | Said::Short => Request::ChangeUser(Box::default()),
            },
            Body::Arguments(request::QUIT, _) => Request::Quit,
            Body::Arguments(request::INIT_DB, text) => Request::Database(text),
            Body::Arguments(
                command @ (request::STMT_CLOSE | request::STMT_RESET | request::STMT_FETCH),
                text,
            ) => Request::Statement(command, number(&text.kept, 0).unwrap_or_default()),
            Body::Arguments(command, text) => {
                Request::Other(command, arguments(command, &text.kept).into_bytes().into())
            }
        })
    }
}

/// What is shown of a command that is not SQL.
fn arguments(command: u8, bytes: &[u8]) -> String {
    let name = request::name(command);
    let text = |from: usize| {
        let text = bytes.get(from..).unwrap_or_default();
        super::field::text(&text[..memchr::memchr(0, text).unwrap_or(text.len())])
    };
    let shown = match command {
        request::CREATE_DB | request::DROP_DB | request::FIELD_LIST | request::TABLE_DUMP => text(0),
        request::PROCESS_KILL | request::REGISTER_SLAVE => {
            number(bytes, 0).map(|number| number.to_string()).unwrap_or_default()
        }
        request::SET_OPTION => bytes.first().map(ToString::to_string).unwrap_or_default(),
        request::BINLOG_DUMP => {
            let position = number(bytes, 0).map(|position| position.to_string()).unwrap_or_default();
            format!("{} {position}", text(10))
        }
        _ => String::new(),
    };
    if shown.is_empty() { name } else { format!("{name} {shown}") }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// COM_QUERY and COM_STMT_PREPARE.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct QueryBody {
    prepare: bool,
    attributes: Attributes,
    text: Vec<u8>,
    text_length: u64,
}

/// Values in front of the text.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Attributes {
    Count(Variable),
    Sets(u64, Variable),
    Values(Box<ValuesReader>),
    /// There are more than can be, so where the text begins is not known.
    TooMany,
    /// They are read, or there are none.
    Read(Values),
}

impl QueryBody {
    fn new(prepare: bool, attributes: bool) -> Self {
        let attributes = match attributes {
            true => Attributes::Count(Variable::default()),
            false => Attributes::Read(Values::default()),
        };
        Self { prepare, attributes, text: Vec::new(), text_length: 0 }
    }

    fn read(&mut self, mut input: &[u8], limits: Limits) {
        while !input.is_empty() {
            match &mut self.attributes {
                Attributes::Count(count) => {
                    if let Some(count) = count.read(&mut input) {
                        self.attributes = Attributes::Sets(count, Variable::default());
                    }
                }
                Attributes::Sets(count, sets) => {
                    if sets.read(&mut input).is_some() {
                        self.attributes = match usize::try_from(*count) {
                            Ok(0) => Attributes::Read(Values::default()),
                            Ok(count) if count <= MAX_VALUES => {
                                let shape = Shape { count, named: true, ..Shape::default() };
                                Attributes::Values(Box::new(ValuesReader::new(shape, limits)))
                            }
                            _ => Attributes::TooMany,
                        };
                    }
                }
                Attributes::Values(values) => {
                    if values.read(&mut input) {
                        let none = ValuesReader::new(Shape::default(), limits);
                        let values = std::mem::replace(&mut **values, none);
                        self.attributes = Attributes::Read(values.end(true));
                    }
                }
                Attributes::TooMany => {
                    self.text_length += input.len() as u64;
                    return;
                }
                Attributes::Read(_) => {
                    self.text_length += input.len() as u64;
                    let room = limits.max_statement_bytes.saturating_sub(self.text.len()).min(input.len());
                    self.text.extend_from_slice(&input[..room]);
                    return;
                }
            }
        }
    }

    fn memory(&self) -> usize {
        self.text.len()
            + match &self.attributes {
                Attributes::Values(values) => values.memory(),
                Attributes::Read(values) => values.cost(),
                Attributes::Count(_) | Attributes::Sets(..) | Attributes::TooMany => 0,
            }
    }

    fn spare(&mut self) {
        self.text.truncate(STATEMENT_IN_NEED);
        self.text.shrink_to_fit();
        match &mut self.attributes {
            Attributes::Values(values) => values.spare(),
            Attributes::Read(values) if values.cost() > 0 => values.strip(),
            _ => {}
        }
    }

    fn end(self, whole: bool) -> Query {
        let (attributes, whole) = match self.attributes {
            Attributes::Read(values) => (values, whole),
            Attributes::Values(values) => (values.end(false), false),
            Attributes::Count(_) | Attributes::Sets(..) | Attributes::TooMany => (Values::default(), false),
        };
        let whole = whole && !attributes.incomplete;
        Query { text: self.text.into(), text_length: self.text_length, attributes, whole }
    }
}

/// COM_STMT_EXECUTE and COM_STMT_BULK_EXECUTE.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct ExecuteBody {
    bulk: bool,
    capabilities: Capabilities,
    limits: Limits,
    number: u32,
    stage: Stage,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Stage {
    Number(Number<4>),
    /// What the number stands for is not certain.
    Raw(Vec<u8>, bool),
    Flags(Number<1>, Shape),
    BulkFlags(Number<2>, Shape),
    /// The number of times, which is one; and the flags.
    Times(Number<4>, Shape, u64),
    Count(Variable, Shape),
    Values(Box<ValuesReader>),
    /// More values than can be.
    TooMany,
}

impl ExecuteBody {
    fn new(bulk: bool, capabilities: Capabilities, limits: Limits) -> Self {
        Self { bulk, capabilities, limits, number: 0, stage: Stage::Number(Number::default()) }
    }

    /// The values of an execution that had to wait, now that it is certain what its number stands for.
    pub(super) fn values(
        raw: &[u8],
        whole: bool,
        bulk: bool,
        prepared: &Prepared,
        capabilities: Capabilities,
        limits: Limits,
    ) -> Values {
        let mut body = Self::new(bulk, capabilities, limits);
        body.stage = body.flags(prepared.shape());
        body.read(raw, &|_| None);
        match body.end(whole).values {
            Given::Read(values) => values,
            Given::Raw(..) => Values::unknown(),
        }
    }

    fn flags(&self, shape: Shape) -> Stage {
        match self.bulk {
            true => Stage::BulkFlags(Number::default(), shape),
            false => Stage::Flags(Number::default(), shape),
        }
    }

    fn read(&mut self, mut input: &[u8], known: Known<'_>) {
        while !input.is_empty() {
            let next = match &mut self.stage {
                Stage::Number(number) => number.read(&mut input).map(|number| {
                    // Four bytes were read.
                    self.number = u32::try_from(number).unwrap_or(u32::MAX);
                    match known(self.number) {
                        Some(prepared) => self.flags(prepared.shape()),
                        None => Stage::Raw(Vec::new(), true),
                    }
                }),
                Stage::Raw(kept, whole) => {
                    let room = self.limits.max_statement_bytes.saturating_sub(kept.len()).min(input.len());
                    // Without parameters, nothing of them.
                    let room = if self.limits.parameters { room } else { 0 };
                    kept.extend_from_slice(&input[..room]);
                    *whole &= room == input.len();
                    return;
                }
                Stage::Flags(flags, shape) => flags
                    .read(&mut input)
                    .map(|flags| Stage::Times(Number::default(), std::mem::take(shape), flags)),
                Stage::Times(times, shape, flags) => times.read(&mut input).map(|_| {
                    let (mut shape, flags) = (std::mem::take(shape), *flags);
                    let attributes = self.capabilities.has(Capabilities::QUERY_ATTRIBUTES);
                    shape.named = attributes;
                    match attributes && (shape.count > 0 || flags & COUNT_AVAILABLE != 0) {
                        true => Stage::Count(Variable::default(), shape),
                        false => Stage::Values(Box::new(ValuesReader::new(shape, self.limits))),
                    }
                }),
                Stage::Count(count, shape) => {
                    count.read(&mut input).map(|count| match usize::try_from(count) {
                        Ok(count) if count <= MAX_VALUES => {
                            let shape = Shape { count, ..std::mem::take(shape) };
                            Stage::Values(Box::new(ValuesReader::new(shape, self.limits)))
                        }
                        _ => Stage::TooMany,
                    })
                }
                Stage::BulkFlags(flags, shape) => flags.read(&mut input).map(|flags| {
                    let types = flags & TYPES_FOLLOW != 0;
                    Stage::Values(Box::new(ValuesReader::bulk(std::mem::take(shape), types, self.limits)))
                }),
                Stage::Values(values) => {
                    values.read(&mut input);
                    return;
                }
                Stage::TooMany => return,
            };
            if let Some(next) = next {
                self.stage = next;
            }
        }
    }

    fn memory(&self) -> usize {
        match &self.stage {
            Stage::Raw(kept, _) => kept.len(),
            Stage::Values(values) => values.memory(),
            _ => 0,
        }
    }

    fn spare(&mut self) {
        self.limits.max_statement_bytes = self.limits.max_statement_bytes.min(STATEMENT_IN_NEED);
        match &mut self.stage {
            Stage::Raw(kept, whole) if kept.len() > STATEMENT_IN_NEED => {
                (*kept, *whole) = (Vec::new(), false)
            }
            Stage::Values(values) => values.spare(),
            _ => {}
        }
    }

    fn end(self, whole: bool) -> Execute {
        let values = match self.stage {
            Stage::Raw(kept, all) => Given::Raw(kept.into(), all && whole),
            Stage::Values(values) => Given::Read(values.end(whole)),
            _ => Given::Read(Values::unknown()),
        };
        let whole = whole
            && match &values {
                Given::Read(values) => !values.incomplete,
                Given::Raw(_, whole) => *whole,
            };
        Execute { number: self.number, bulk: self.bulk, values, whole }
    }
}

/// COM_STMT_SEND_LONG_DATA.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct LongDataBody {
    number: Number<4>,
    place: Number<2>,
    told: (Option<u32>, Option<u16>),
    head: Text,
    length: u64,
}

impl LongDataBody {
    fn read(&mut self, mut input: &[u8]) {
        if self.told.0.is_none() {
            let number = self.number.read(&mut input);
            self.told.0 = number.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        }
        if self.told.0.is_some() && self.told.1.is_none() {
            let place = self.place.read(&mut input);
            self.told.1 = place.map(|place| u16::try_from(place).unwrap_or(u16::MAX));
            if self.told.1.is_some() {
                self.head = Text::new(MAX_VALUE_BYTES);
            }
        }
        self.length += input.len() as u64;
        self.head.add(input);
    }

    fn end(self) -> Request {
        match self.told {
            (Some(number), Some(place)) => Request::LongData(Box::new(LongData {
                number,
                place,
                head: self.head.kept,
                length: self.length,
            })),
            // The server takes no notice of it.
            _ => Request::LongData(Box::new(LongData {
                number: 0,
                place: u16::MAX,
                head: Vec::new(),
                length: 0,
            })),
        }
    }
}
