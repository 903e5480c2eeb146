//! Application protocols, sans-IO: bytes of both directions in, observations out.
//!
//! A dissector sees what the two ends said to each other, in the order in which the kernel moved it. It never sees the
//! network: reassembly ([`crate::stream`]) happened before, and a hole is announced with [`Dissector::gap`], never papered
//! over. Everything it is given is hostile.

pub mod http;
pub mod mysql;
pub mod postgres;
pub mod redis;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::clock::Boottime;
use crate::shared;
use crate::stream::Skip;

/// How much of each end's first bytes detection looks at.
pub const DETECTION_BYTES: usize = 1024;

/// What the first bytes of a connection say about its protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Detection<T = ()> {
    /// More bytes are needed.
    Incomplete,
    /// It is this protocol.
    Yes(T),
    /// It is not.
    No,
}

/// A protocol that can be dissected. To add one: a folder beside `postgres`, a variant, its place in [`Self::ALL`] and its row in
/// `row`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// PostgreSQL frontend/backend protocol 3.
    Postgres,
    /// MySQL's and MariaDB's client/server protocol, version 10.
    Mysql,
    /// HTTP/1.0, HTTP/1.1 and HTTP/2.
    Http,
    /// Redis: RESP2, RESP3, and commands in one line.
    Redis,
}

/// What has to be known of a protocol before there is a connection that speaks it.
struct Row {
    name: &'static str,
    told: Told,
    begin: fn(Limits) -> Box<dyn Dissector>,
    restore: Restore,
}

/// Makes a state machine of what [`Dissector::save`] wrote.
type Restore = fn(&[u8]) -> Result<Box<dyn Dissector>, postcard::Error>;

/// By whose first bytes a protocol is told.
#[derive(Clone, Copy)]
enum Told {
    /// The client's, which speaks first.
    ByClient(fn(&[u8]) -> Detection),
    /// Both ends': the server speaks first.
    ByBoth(fn(First<'_>) -> Detection),
}

/// What each end has said first, up to [`DETECTION_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct First<'a> {
    /// The end that connected.
    pub client: &'a [u8],
    /// The end that accepted.
    pub server: &'a [u8],
}

impl Protocol {
    /// All of them, in the order in which detection asks for them.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Mysql, Self::Http, Self::Redis];

    /// Their names.
    pub const NAMES: [&str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].name();
            index += 1;
        }
        names
    };

    const fn row(self) -> Row {
        match self {
            Self::Postgres => {
                Row::new::<postgres::Postgres>("postgres", Told::ByClient(postgres::detect), |limits| {
                    Box::new(postgres::Postgres::new(limits))
                })
            }
            Self::Mysql => Row::new::<mysql::Mysql>("mysql", Told::ByBoth(mysql::detect), |limits| {
                Box::new(mysql::Mysql::new(limits))
            }),
            Self::Http => Row::new::<http::Http>("http", Told::ByBoth(http::detect_first), |limits| {
                Box::new(http::Http::new(limits))
            }),
            Self::Redis => Row::new::<redis::Redis>("redis", Told::ByClient(redis::detect), |limits| {
                Box::new(redis::Redis::new(limits))
            }),
        }
    }

    /// As rules and records have it.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// A state machine for one connection, to be given all bytes from the connection's first.
    pub fn dissector(self, limits: Limits) -> Box<dyn Dissector> {
        (self.row().begin)(limits)
    }
}

impl Row {
    const fn new<T: Dissector + DeserializeOwned + 'static>(
        name: &'static str,
        told: Told,
        begin: fn(Limits) -> Box<dyn Dissector>,
    ) -> Self {
        Self {
            name,
            told,
            begin,
            restore: |state| Ok(Box::new(shared::scope(|| postcard::from_bytes::<T>(state))?)),
        }
    }
}

impl Told {
    fn by(self, first: First<'_>) -> Detection {
        match self {
            // A server that does not wait for the client speaks something else.
            Self::ByClient(_) if !first.server.is_empty() => Detection::No,
            Self::ByClient(detect) => detect(first.client),
            Self::ByBoth(detect) => detect(first),
        }
    }
}

/// Tells the protocol from what both ends said first; at most [`DETECTION_BYTES`] of each are looked at.
///
/// The bias is towards `Yes`: a connection wrongly taken for a known protocol ends in a [`Observation::Violation`], which
/// everybody sees, while one wrongly let go is a database session that nobody reads. Plaintext only: TLS from the first
/// byte on is `No` here, and what it carries is detected again once it is decrypted.
pub fn detect(first: First<'_>) -> Detection<Protocol> {
    let cut = |bytes: &[u8]| bytes.len().min(DETECTION_BYTES);
    let first =
        First { client: &first.client[..cut(first.client)], server: &first.server[..cut(first.server)] };
    let mut possible = false;
    for protocol in Protocol::ALL {
        match protocol.row().told.by(first) {
            Detection::Yes(()) => return Detection::Yes(protocol),
            Detection::Incomplete => possible = true,
            Detection::No => {}
        }
    }
    let room = first.client.len() < DETECTION_BYTES && first.server.len() < DETECTION_BYTES;
    if possible && room { Detection::Incomplete } else { Detection::No }
}

/// Who sent the bytes. The client is the one that opened the connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Side {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

impl Side {
    /// Whom it talks to.
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What a dissector may keep.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Statement text beyond this many bytes is cut, and [`Statement::text_length`] tells.
    pub max_statement_bytes: usize,
    /// Whether bind parameters are kept at all.
    pub parameters: bool,
    /// Whether column names and types of results are kept.
    pub columns: bool,
}

/// Where the next byte of a side belongs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Within {
    /// Body bytes of the message under way that are still to come; 0: a message begins.
    pub remaining: u32,
    /// Its type byte.
    pub kind: u8,
}

/// One connection's state machine for one protocol.
pub trait Dissector: Send {
    /// Which protocol it is for.
    fn protocol(&self) -> Protocol;

    /// The whole state, from which the next daemon goes on.
    ///
    /// # Errors
    /// The state cannot be written, which is a defect.
    fn save(&self) -> Result<Vec<u8>, postcard::Error>;

    /// The client said this; see [`Self::bytes`].
    fn client(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>);

    /// The server said this; see [`Self::bytes`].
    fn server(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>);

    /// Bytes are missing; see [`Self::gap`].
    fn hole(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>);

    /// The next bytes of one direction, at the time at which they passed the hook.
    fn bytes(&mut self, side: Side, at: Boottime, bytes: &[u8], out: &mut Vec<Observation>) {
        if bytes.is_empty() {
            return;
        }
        match side {
            Side::Client => self.client(bytes, at, out),
            Side::Server => self.server(bytes, at, out),
        }
    }

    /// `length` bytes of one direction were lost here.
    fn gap(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>) {
        if length > 0 {
            self.hole(side, at, length, out);
        }
    }

    /// Rows were counted by the kernel programs instead of being copied. Only where [`Self::counts_rows`] is true;
    /// a range for which it was not, or no longer, is a hole.
    fn skipped(&mut self, side: Side, at: Boottime, skip: &Skip, out: &mut Vec<Observation>) {
        self.gap(side, at, u64::from(skip.length), out);
    }

    /// Whether the rows of long transfers may be counted from here on instead of being copied: every later byte that matters can
    /// be read without them. A configuration that keeps rows must make this false.
    fn counts_rows(&self) -> bool {
        false
    }

    /// Where the next byte of a side belongs, for who counts rows; `None`: within a header, or nobody knows.
    fn place(&self, _side: Side) -> Option<Within> {
        None
    }

    /// Bytes that it keeps, roughly, and that what is said can make more. Asked for at each step, and a function of what it was
    /// told alone: of lengths, not of capacities, so that one that was saved and restored keeps the same.
    fn memory(&self) -> usize;

    /// Memory is short: from here on it keeps next to nothing. What waits for an answer is given out without one, and the rest is
    /// as incomplete as it says.
    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>);

    /// The connection has ended: whatever is under way is given out as it stands.
    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>);
}

/// A dissector in state that outlives a daemon: its protocol and its own state.
pub(crate) mod saved {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use super::{Dissector, Protocol};

    #[expect(clippy::borrowed_box, reason = "serde hands out the field as it is")]
    pub(crate) fn serialize<S: Serializer>(
        dissector: &Box<dyn Dissector>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let state = dissector.save().map_err(ser::Error::custom)?;
        (dissector.protocol().name(), InOneGo(&state)).serialize(serializer)
    }

    /// Bytes that are written in one go, and read as if they had been written one by one.
    struct InOneGo<'a>(&'a [u8]);

    impl Serialize for InOneGo<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Box<dyn Dissector>, D::Error> {
        let (name, state) = <(String, Vec<u8>)>::deserialize(deserializer)?;
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
        let protocol = protocol.ok_or_else(|| de::Error::custom("a protocol that is not known"))?;
        (protocol.row().restore)(&state).map_err(de::Error::custom)
    }
}

/// What a dissector has found out.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// The client introduced itself. May come again when the session's user or database changes.
    Login(Login),
    /// The server accepted the client.
    Authenticated,
    /// The server turned the client away: it refused the login, or ended the session while no statement was under way.
    Refused(ServerError),
    /// A statement has ended, one way or another.
    Statement(Box<Statement>),
    /// The same of a request of HTTP.
    Request(Box<http::Request>),
    /// From here on both ends speak something else, which is told anew from its first byte. What they have said of it already.
    Switched {
        /// The client, and when it said the first of it.
        client: (Vec<u8>, Boottime),
        /// The server.
        server: Vec<u8>,
    },
    /// Both ends have agreed on TLS and go on in it: the dissector is given what is inside next, from its first byte.
    Encrypted {
        /// Of the bytes that it was given last, so many at the end are TLS already.
        rest: usize,
    },
    /// From here on the bytes of this connection cannot be read.
    Opaque(Opaque),
    /// The bytes do not follow the protocol; the dissector has given up on this connection.
    Violation(String),
}

/// Why a connection cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Opaque {
    /// TLS whose inside cannot be read; [`crate::record::Tls::reason`] says why.
    Tls,
    /// Both ends agreed on GSSAPI encryption.
    GssEncryption,
    /// Both ends agreed on a protocol that is not known, e.g. WebSocket.
    Upgraded,
    /// A hole in the stream, behind which it cannot be proven where a message begins.
    Hole,
    /// The server sends its log, or a copy of itself, to another server.
    Replication,
}

/// Who the client said it is.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Login {
    /// Database user.
    pub user: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// `application_name` and its equivalents.
    pub application: Option<String>,
    /// Other start-up parameters, in the order sent; never a secret.
    pub parameters: Vec<(String, String)>,
}

/// How a statement was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum StatementKind {
    /// Text sent for immediate execution.
    Simple,
    /// Parsed, bound and executed in separate messages.
    Prepared,
    /// A statement that moved bulk data (COPY).
    Copy,
    /// A call by function number.
    Function,
    /// Not SQL: replication commands, cancel requests.
    Admin,
}

/// How a statement ended.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// The server said that it is done.
    Completed,
    /// The server refused it or failed at it.
    Failed(ServerError),
    /// The server did not execute it, because an earlier one in the same batch failed.
    Skipped,
    /// The connection ended, or the record has a hole, before the server's answer.
    Unknown,
    /// It was prepared, or sent, and is told before it is executed, because its text may not be there any more when it is: so many are
    /// prepared that this one is forgotten, its name is not to be told from another, or it can be executed by other means than the
    /// protocol's. The record of an execution has the name only, or neither.
    Prepared,
}

/// An error as the server reported it.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ServerError {
    /// SQLSTATE or the protocol's equivalent.
    pub code: String,
    /// Severity as sent, not localised.
    pub severity: String,
    /// Primary message.
    pub message: String,
}

/// One value given to a prepared statement.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Parameter {
    /// SQL NULL.
    Null,
    /// The value as text: sent so, or decoded from a binary form of a known type.
    Text(String),
    /// A binary value of a type that is not decoded, or text that is not UTF-8.
    Binary(Vec<u8>),
    /// A value longer than what is kept: its first bytes and its whole length.
    Cut {
        /// What was kept.
        head: Vec<u8>,
        /// Length in bytes as sent.
        length: u64,
    },
}

/// A column of a result.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// Name as the server gave it.
    pub name: String,
    /// Type name where the type is a built-in one, else its number.
    pub type_name: String,
}

/// The end of one command; a simple query may hold several.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CommandResult {
    /// What the server calls it, e.g. `INSERT 0 3`.
    pub tag: String,
    /// Rows, where the tag counts them.
    pub rows: Option<u64>,
}

/// One statement with all that belongs to it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Statement {
    /// Position among the statements of this connection, from 1, in the order in which the client sent them.
    pub sequence: u64,
    /// How it was sent.
    pub kind: StatementKind,
    /// The text, byte for byte, up to [`Limits::max_statement_bytes`]. Shared, not copied, between the records of one
    /// prepared statement: ten bytes of request must not buy a copy of a long text.
    pub text: Bytes,
    /// Length of the whole text in bytes; larger than `text.len()` when it was cut.
    pub text_length: u64,
    /// Name of the prepared statement; empty for the unnamed one; `None` where there is none.
    pub name: Option<String>,
    /// Name of the portal, where text and values are told by one record and the execution by another.
    pub portal: Option<String>,
    /// Bind values in order.
    pub parameters: Vec<Parameter>,
    /// The commands that were completed, in order.
    pub results: Vec<CommandResult>,
    /// Columns of the last result, where kept.
    pub columns: Vec<Column>,
    /// How it ended.
    pub outcome: Outcome,
    /// Severity and message of notices that came with it, at most a few.
    pub notices: Vec<ServerError>,
    /// Transaction state after it: `I` idle, `T` in a transaction, `E` in a failed one; `None` where not told.
    pub transaction: Option<char>,
    /// When the request's first byte passed the hook.
    pub started: Boottime,
    /// When the byte that ended it passed the hook.
    pub finished: Boottime,
    /// Bytes of its request messages, headers included.
    pub request_bytes: u64,
    /// Bytes of its response messages, headers included.
    pub response_bytes: u64,
    /// A hole in the stream fell into it: text, parameters or counts may be missing.
    pub incomplete: bool,
}

impl ServerError {
    /// Bytes that it takes, roughly.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.code.len() + self.severity.len() + self.message.len()
    }
}

impl Login {
    /// Bytes that it takes, roughly.
    pub(crate) fn memory(&self) -> usize {
        let optional = [&self.user, &self.database, &self.application].into_iter().flatten();
        let parameters = self.parameters.iter();
        optional.map(String::len).sum::<usize>()
            + parameters.map(|(name, value)| PARAMETER + name.len() + value.len()).sum::<usize>()
    }

    /// A parameter has this value now; one that was not told has `default`. Answers whether that changes it.
    pub(crate) fn set(&mut self, name: &str, value: &str, default: &str) -> bool {
        match self.parameters.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) if known == value => false,
            Some((_, known)) => {
                value.clone_into(known);
                true
            }
            None if value == default => false,
            None => {
                self.parameters.push((name.to_owned(), value.to_owned()));
                true
            }
        }
    }

    /// Keeps the beginnings only.
    pub(crate) fn shorten(&mut self) {
        self.parameters = Vec::new();
        for text in [&mut self.user, &mut self.database, &mut self.application].into_iter().flatten() {
            text.truncate(text.floor_char_boundary(SHORT));
            text.shrink_to_fit();
        }
    }
}

/// What a start-up parameter takes beside its bytes.
const PARAMETER: usize = size_of::<(String, String)>() + 32;
/// Bytes of a name that is shortened.
const SHORT: usize = 256;

impl Statement {
    /// Rows over all commands, `None` where no tag counted any.
    pub fn rows(&self) -> Option<u64> {
        self.results.iter().filter_map(|result| result.rows).reduce(u64::saturating_add)
    }
}
