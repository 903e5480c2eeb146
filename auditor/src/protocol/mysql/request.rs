//! The client's commands: one byte that says which, then its arguments.
//!
//! What they are read by is in [`super::body`].

use bytes::Bytes;

use super::STATEMENT_IN_NEED;
use super::field::Text;
use super::values::Values;
use crate::protocol::Login;

pub(super) const QUIT: u8 = 0x01;
pub(super) const INIT_DB: u8 = 0x02;
pub(super) const QUERY: u8 = 0x03;
pub(super) const FIELD_LIST: u8 = 0x04;
pub(super) const CREATE_DB: u8 = 0x05;
pub(super) const DROP_DB: u8 = 0x06;
pub(super) const STATISTICS: u8 = 0x09;
pub(super) const PROCESS_KILL: u8 = 0x0c;
pub(super) const CHANGE_USER: u8 = 0x11;
pub(super) const BINLOG_DUMP: u8 = 0x12;
pub(super) const TABLE_DUMP: u8 = 0x13;
pub(super) const REGISTER_SLAVE: u8 = 0x15;
pub(super) const STMT_PREPARE: u8 = 0x16;
pub(super) const STMT_EXECUTE: u8 = 0x17;
pub(super) const STMT_SEND_LONG_DATA: u8 = 0x18;
pub(super) const STMT_CLOSE: u8 = 0x19;
pub(super) const STMT_RESET: u8 = 0x1a;
pub(super) const SET_OPTION: u8 = 0x1b;
pub(super) const STMT_FETCH: u8 = 0x1c;
pub(super) const BINLOG_DUMP_GTID: u8 = 0x1e;
pub(super) const RESET_CONNECTION: u8 = 0x1f;
pub(super) const CLONE: u8 = 0x20;
/// MariaDB's.
pub(super) const STMT_BULK_EXECUTE: u8 = 0xfa;

/// Commands that are known, by number.
const NAMES: [&str; 33] = [
    "COM_SLEEP",
    "COM_QUIT",
    "COM_INIT_DB",
    "COM_QUERY",
    "COM_FIELD_LIST",
    "COM_CREATE_DB",
    "COM_DROP_DB",
    "COM_REFRESH",
    "COM_SHUTDOWN",
    "COM_STATISTICS",
    "COM_PROCESS_INFO",
    "COM_CONNECT",
    "COM_PROCESS_KILL",
    "COM_DEBUG",
    "COM_PING",
    "COM_TIME",
    "COM_DELAYED_INSERT",
    "COM_CHANGE_USER",
    "COM_BINLOG_DUMP",
    "COM_TABLE_DUMP",
    "COM_CONNECT_OUT",
    "COM_REGISTER_SLAVE",
    "COM_STMT_PREPARE",
    "COM_STMT_EXECUTE",
    "COM_STMT_SEND_LONG_DATA",
    "COM_STMT_CLOSE",
    "COM_STMT_RESET",
    "COM_SET_OPTION",
    "COM_STMT_FETCH",
    "COM_DAEMON",
    "COM_BINLOG_DUMP_GTID",
    "COM_RESET_CONNECTION",
    "COM_CLONE",
];

/// A command, as far as it matters. Small, because many of them may wait for an answer.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Request {
    /// Text to be executed.
    Query(Box<Query>),
    /// Text to be prepared.
    Prepare(Box<Query>),
    /// An execution of what was prepared.
    Execute(Box<Execute>),
    /// A piece of a value for the next execution.
    LongData(Box<LongData>),
    /// Of a statement by number: RESET, CLOSE, FETCH.
    Statement(u8, u32),
    /// Another user.
    ChangeUser(Box<Login>),
    /// Another database.
    Database(Text),
    /// Anything else: the command's number, and what is shown of it.
    Other(u8, Box<[u8]>),
    /// The client leaves.
    Quit,
}

/// Text, with the values that go with it.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Query {
    pub(super) text: Bytes,
    pub(super) text_length: u64,
    pub(super) attributes: Values,
    /// Nothing is missing.
    pub(super) whole: bool,
}

/// An execution.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Execute {
    pub(super) number: u32,
    pub(super) bulk: bool,
    pub(super) values: Given,
    /// Nothing is missing.
    pub(super) whole: bool,
}

/// An execution's values.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Given {
    Read(Values),
    /// Behind the number, as they came, and whether all of it was kept.
    Raw(Bytes, bool),
}

/// A piece of a value.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct LongData {
    pub(super) number: u32,
    pub(super) place: u16,
    pub(super) head: Vec<u8>,
    pub(super) length: u64,
}

impl Request {
    /// Bytes that it takes beside its own size, roughly.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Query(query) | Self::Prepare(query) => {
                size_of::<Query>() + query.text.len() + query.attributes.cost()
            }
            Self::Execute(execute) => {
                size_of::<Execute>()
                    + match &execute.values {
                        Given::Read(values) => values.cost(),
                        Given::Raw(raw, _) => raw.len(),
                    }
            }
            Self::LongData(data) => size_of::<LongData>() + data.head.len(),
            Self::ChangeUser(login) => size_of::<Login>() + login.memory(),
            Self::Database(text) => text.kept.len(),
            Self::Other(_, text) => text.len(),
            Self::Statement(..) | Self::Quit => 0,
        }
    }

    /// Keeps next to nothing of it.
    pub(super) fn strip(&mut self) {
        match self {
            Self::Query(query) | Self::Prepare(query) => {
                query.text = Bytes::copy_from_slice(&query.text[..query.text.len().min(STATEMENT_IN_NEED)]);
                query.attributes.strip();
            }
            Self::Execute(execute) => match &mut execute.values {
                Given::Read(values) => values.strip(),
                Given::Raw(raw, whole) => (*raw, *whole) = (Bytes::new(), false),
            },
            Self::LongData(data) => data.head = Vec::new(),
            Self::ChangeUser(login) => login.shorten(),
            Self::Statement(..) | Self::Database(_) | Self::Other(..) | Self::Quit => {}
        }
    }
}

/// The name of a command.
pub(super) fn name(command: u8) -> String {
    match NAMES.get(usize::from(command)) {
        Some(name) => (*name).to_owned(),
        None => format!("COMMAND {command}"),
    }
}
