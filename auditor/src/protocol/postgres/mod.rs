//! PostgreSQL frontend/backend protocol 3.0 and 3.2.
//!
//! Follows both directions of one connection and gives out one record for each statement, with its text, values, outcome
//! and counts. Assumes that the client's bytes are given before the server's answer to them, which is how they pass a hook
//! on the client's host; apart from that the bytes are hostile. Never kept: passwords, SASL and GSSAPI exchanges, cancel
//! keys, rows, COPY data.
//!
//! What happens to bytes, in order: `startup` reads what comes before messages have types; `frame` finds messages;
//! `request` and `response` read the bodies that matter; `conversation` brings requests and responses together, with
//! `extended` and `names` for prepared statements and portals and `unanswered` for requests without an answer;
//! `record` makes the record, `values` and `value` its parameters.
//!
//! Where both ends agree on TLS ([`Observation::Encrypted`]), what is inside is read from a start-up packet on.
//!
//! Refused, and from there on nothing is read: bytes that do not follow the protocol ([`Observation::Violation`]), encryption by
//! GSSAPI ([`Observation::Opaque`]). After a hole in the server's bytes statements are still told, but without outcomes: any pattern that might mark the next
//! message can also be somebody's data, so there is no place at which reading on could be proven right. After such a hole
//! in the client's bytes nothing is told, for the same reason. A hole within the body of one message does no such harm.
//!
//! Not even silence proves a boundary. It seems to: the server has said ReadyForQuery, everything is acknowledged, nothing is under
//! way, and then the client goes on. But a server answers what is whole and waits for the rest without a word. A client that
//! hides the header of a long message at the end of a hole, behind a Sync, is answered the same, pauses the same, and what it
//! sends next is the inside of that message, which it can make look like any others. Nothing on the wire tells the two apart.
//!
//! Rows that the kernel programs counted instead of copying them ([`Skip`]) are no hole: the count says where the messages end,
//! and it must continue what was read before it, else it is taken for one.

#![forbid(unsafe_code)]

mod conversation;
mod due;
mod extended;
mod field;
mod frame;
mod names;
mod record;
mod request;
mod response;
mod startup;
mod table;
#[cfg(test)]
mod tests;
mod unanswered;
mod value;
mod values;

pub use startup::detect;

use conversation::{Conversation, Violation};
use frame::{Framer, Hole, Step};
use record::{Subject, Unit};
use request::{Request, RequestReader};
use response::ResponseReader;
use startup::{MAX_PACKET, Packet, Replication, StartupReader};

use crate::stream::Skip;

use super::{Dissector, Limits, Login, Observation, Opaque, Outcome, Side, StatementKind, Within};
use crate::clock::Boottime;

/// Bytes of a statement that are kept where memory is short.
const STATEMENT_IN_NEED: usize = 4 << 10;

/// One connection to a PostgreSQL server.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Postgres {
    limits: Limits,
    phase: Phase,
    /// SSLRequest and GSSENCRequest that were refused: a server reads each once.
    refused: (bool, bool),
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Phase {
    /// The client's packets without type bytes.
    Startup(StartupReader),
    /// The client has asked for encryption and the server answers with one byte.
    Negotiation(Negotiation),
    /// Messages in both directions.
    Session(Box<Session>),
    /// Nothing more is read.
    Over,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Negotiation {
    wanted: Wanted,
    /// What the client sent without waiting for the answer, and since when.
    early: Vec<u8>,
    early_since: Boottime,
}

/// What a client has asked for.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Wanted {
    Tls,
    GssEncryption,
}

impl Postgres {
    /// Begins at the connection's first byte.
    pub fn new(limits: Limits) -> Self {
        Self { limits, phase: Phase::Startup(StartupReader::default()), refused: (false, false) }
    }

    fn startup(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        let Phase::Startup(reader) = &mut self.phase else { return };
        let Some(packet) = reader.read(&mut bytes, at) else { return };
        match packet {
            Packet::Startup { login, replication } => {
                out.push(Observation::Login(login.clone()));
                self.phase = Phase::Session(Box::new(Session::new(self.limits, login, replication)));
            }
            Packet::Ssl if !self.refused.0 => self.negotiate(Wanted::Tls, at),
            Packet::GssEnc if !self.refused.1 => self.negotiate(Wanted::GssEncryption, at),
            Packet::Ssl | Packet::GssEnc => {
                return self.end(Observation::Violation("encryption asked for again".into()), out);
            }
            Packet::Cancel { process, size, started } => {
                // The server acts upon it and closes the connection without a word.
                let text = format!("CancelRequest {process}");
                let length = text.len() as u64;
                let unit = Unit { started: Some(started), request_bytes: size, ..Unit::default() };
                let subject = Subject::text(StatementKind::Admin, text.into(), length);
                out.push(Observation::Statement(subject.record(unit, 1, Outcome::Unknown, at)));
                self.phase = Phase::Over;
            }
            Packet::Invalid(reason) => return self.end(Observation::Violation(reason), out),
        }
        if !bytes.is_empty() {
            self.client(bytes, at, out);
        }
    }

    fn negotiate(&mut self, wanted: Wanted, at: Boottime) {
        self.phase = Phase::Negotiation(Negotiation { wanted, early: Vec::new(), early_since: at });
    }

    /// The server's answer to SSLRequest or GSSENCRequest.
    fn negotiated(&mut self, answer: u8, rest: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        let Phase::Negotiation(negotiation) = &mut self.phase else { return };
        let (wanted, since) = (negotiation.wanted, negotiation.early_since);
        let mut early = std::mem::take(&mut negotiation.early);
        match (answer, wanted) {
            (b'S', Wanted::Tls) | (b'G', Wanted::GssEncryption) if !early.is_empty() || !rest.is_empty() => {
                let reason =
                    format!("{} bytes in the clear before encryption began", early.len() + rest.len());
                self.end(Observation::Violation(reason), out);
            }
            (b'S', Wanted::Tls) => {
                out.push(Observation::Encrypted { rest: 0 });
                // No server reads a second request within.
                self.refused = (true, true);
                self.phase = Phase::Startup(StartupReader::default());
            }
            (b'G', Wanted::GssEncryption) => self.end(Observation::Opaque(Opaque::GssEncryption), out),
            (b'N', _) => {
                match wanted {
                    Wanted::Tls => self.refused.0 = true,
                    Wanted::GssEncryption => self.refused.1 = true,
                }
                self.phase = Phase::Startup(StartupReader::default());
                if !early.is_empty() {
                    self.client(&early, since, out);
                    // Eager clients may have put a password in there.
                    early.fill(0);
                }
                if !rest.is_empty() {
                    self.server(rest, at, out);
                }
            }
            (b'E', _) => {
                // A server that cannot even negotiate says so in an ErrorResponse.
                let session = Session::new(self.limits, Login::default(), Replication::None);
                self.phase = Phase::Session(Box::new(session));
                self.server(b"E", at, out);
                self.server(rest, at, out);
            }
            _ => self.end(
                Observation::Violation(format!(
                    "answer '{}' to a request for encryption",
                    answer.escape_ascii()
                )),
                out,
            ),
        }
    }

    fn settle(&mut self, result: Result<(), Violation>, at: Boottime, out: &mut Vec<Observation>) {
        if let (Err(reason), Phase::Session(session)) = (result, &mut self.phase) {
            session.conversation.give_up(false, at, out);
            session.conversation.lose_names(at, out);
            self.end(Observation::Violation(reason), out);
        }
    }

    fn end(&mut self, last: Observation, out: &mut Vec<Observation>) {
        out.push(last);
        self.phase = Phase::Over;
    }
}

impl Dissector for Postgres {
    fn protocol(&self) -> super::Protocol {
        super::Protocol::Postgres
    }

    fn save(&self) -> Result<Vec<u8>, postcard::Error> {
        crate::shared::scope(|| postcard::to_stdvec(self))
    }

    fn client(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::Startup(_) => self.startup(bytes, at, out),
            Phase::Negotiation(negotiation) => {
                if negotiation.early.is_empty() {
                    negotiation.early_since = at;
                }
                if negotiation.early.len() + bytes.len() > usize::try_from(MAX_PACKET).unwrap_or(usize::MAX) {
                    return self.end(
                        Observation::Violation(
                            "the client does not wait for the answer about encryption".into(),
                        ),
                        out,
                    );
                }
                negotiation.early.extend_from_slice(bytes);
            }
            Phase::Session(session) => {
                let result = session.client(bytes, at, out);
                self.settle(result, at, out);
            }
            Phase::Over => {}
        }
    }

    fn server(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        match (&mut self.phase, bytes) {
            (_, []) | (Phase::Over, _) => {}
            (Phase::Startup(_), _) => self.end(Observation::Violation("the server spoke first".into()), out),
            (Phase::Negotiation(_), [answer, rest @ ..]) => self.negotiated(*answer, rest, at, out),
            (Phase::Session(session), _) => {
                let result = session.server(bytes, at, out);
                self.settle(result, at, out);
            }
        }
    }

    fn hole(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::Session(session) => {
                let result = match side {
                    Side::Client => session.client_gap(length, at, out),
                    Side::Server => session.server_gap(length, at, out),
                };
                match result {
                    Ok(Hole::InBody) => {}
                    Ok(Hole::Lost) => self.end(Observation::Opaque(Opaque::Hole), out),
                    Err(reason) => self.settle(Err(reason), at, out),
                }
            }
            Phase::Startup(_) | Phase::Negotiation(_) => self.end(Observation::Opaque(Opaque::Hole), out),
            Phase::Over => {}
        }
    }

    fn skipped(&mut self, side: Side, at: Boottime, skip: &Skip, out: &mut Vec<Observation>) {
        match (&mut self.phase, side) {
            (Phase::Session(session), Side::Server) => {
                let result = session.server_skipped(skip, at, out);
                self.settle(result, at, out);
            }
            (Phase::Session(session), Side::Client) => {
                if !session.client_skipped(skip, at) {
                    session.partial(at, out);
                    self.end(Observation::Opaque(Opaque::Hole), out);
                }
            }
            _ => self.gap(side, at, u64::from(skip.length), out),
        }
    }

    fn counts_rows(&self) -> bool {
        matches!(&self.phase, Phase::Session(session) if session.conversation.follows_answers())
    }

    fn place(&self, side: Side) -> Option<Within> {
        let Phase::Session(session) = &self.phase else { return None };
        match side {
            Side::Client => session.client.place(),
            Side::Server => session.server.place(),
        }
    }

    fn memory(&self) -> usize {
        match &self.phase {
            Phase::Startup(reader) => reader.memory(),
            Phase::Negotiation(negotiation) => negotiation.early.len(),
            Phase::Session(session) => session.memory(),
            Phase::Over => 0,
        }
    }

    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Phase::Session(session) = &mut self.phase {
            session.spare(at, out);
        }
    }

    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Phase::Session(session) = &mut self.phase {
            session.close(at, out);
        }
        self.phase = Phase::Over;
    }
}

/// A connection past its start-up packets.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Session {
    client: Framer,
    requests: RequestReader,
    server: Framer,
    responses: ResponseReader,
    conversation: Conversation,
    terminated: bool,
}

impl Session {
    fn new(limits: Limits, login: Login, replication: Replication) -> Self {
        Self {
            client: Framer::default(),
            requests: RequestReader::new(limits),
            server: Framer::default(),
            responses: ResponseReader::new(limits),
            conversation: Conversation::new(limits, login, replication),
            terminated: false,
        }
    }

    fn client(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        while let Some(step) = self.client.step(&mut bytes, at) {
            match step {
                Step::Start(_) if self.terminated => return Err("a message after Terminate".into()),
                Step::Start(head) if !self.requests.start(head) => return Err(unknown("client", head.kind)),
                Step::Start(_) => {}
                Step::Body(piece) => self.requests.piece(piece),
                Step::End(head) => {
                    let request = self.requests.end(head);
                    self.terminated |= matches!(request, Request::Terminate);
                    self.conversation.request(request, head, at, out)?;
                }
                Step::Malformed { kind, length } => return Err(malformed("client", kind, length)),
            }
        }
        Ok(())
    }

    fn server(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if self.conversation.deaf.is_some() {
            return Ok(());
        }
        while let Some(step) = self.server.step(&mut bytes, at) {
            match step {
                Step::Start(head) if !self.responses.start(head) => return Err(unknown("server", head.kind)),
                Step::Start(_) => {}
                Step::Body(piece) => self.responses.piece(piece),
                Step::End(head) => self.conversation.response(self.responses.end(head), at, out)?,
                Step::Malformed { kind, length } => return Err(malformed("server", kind, length)),
            }
        }
        Ok(())
    }

    fn client_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Hole, Violation> {
        let hole = self.client.hole(length);
        match hole {
            Hole::InBody => {
                self.requests.hole();
                // The hole may have reached to the message's end.
                self.client(&[], at, out)?;
            }
            Hole::Lost => self.partial(at, out),
        }
        Ok(hole)
    }

    /// A hole on this side never ends the reading: requests are told without their answers.
    fn server_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Hole, Violation> {
        if self.conversation.deaf.is_none() {
            match self.server.hole(length) {
                Hole::InBody => {
                    self.responses.hole();
                    self.server(&[], at, out)?;
                }
                Hole::Lost => self.conversation.deafen(at, out),
            }
        }
        Ok(Hole::InBody)
    }

    /// CopyData that was counted elsewhere. `false`: that cannot be, and the place of the next message is lost.
    fn client_skipped(&mut self, skip: &Skip, at: Boottime) -> bool {
        if self.terminated || skip.message != b'd' {
            return false;
        }
        let Some(ended) = self.client.skip(skip, at) else { return false };
        if let Some(head) = self.client.under_way() {
            self.requests.start(head);
        }
        self.conversation.count_copy_data(ended.bytes);
        true
    }

    /// Rows that were counted elsewhere.
    fn server_skipped(
        &mut self,
        skip: &Skip,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if self.conversation.deaf.is_some() {
            return Ok(());
        }
        let Some(ended) = self.server.skip(skip, at) else {
            self.conversation.deafen(at, out);
            return Ok(());
        };
        if let Some(head) = self.server.under_way()
            && !self.responses.start(head)
        {
            return Err(unknown("server", head.kind));
        }
        self.conversation.rows(ended, at, out)
    }

    fn memory(&self) -> usize {
        self.requests.memory() + self.responses.memory() + self.conversation.memory()
    }

    /// Framing goes on: the length of what is under way is known.
    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.conversation.spare(at, out);
        self.requests.spare();
        // No answer is looked at any more.
        self.responses = ResponseReader::new(self.conversation.limits);
    }

    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        // Nothing is missing of what was said, unless a statement breaks off.
        self.conversation.give_up(false, at, out);
        if self.client.under_way().is_some_and(|head| head.kind == b'Q') {
            self.partial(at, out);
        }
    }

    /// Gives out what is under way, down to a Query of which only the beginning came.
    fn partial(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.conversation.give_up(true, at, out);
        let Some(head) = self.client.under_way().filter(|head| head.kind == b'Q') else { return };
        self.requests.hole();
        let request = self.requests.end(head);
        // The queue is empty, so it cannot overflow.
        if self.conversation.request(request, head, at, out).is_ok() {
            self.conversation.give_up(true, at, out);
        }
    }
}

fn unknown(side: &str, kind: u8) -> Violation {
    format!("unknown {side} message '{}'", kind.escape_ascii())
}

fn malformed(side: &str, kind: u8, length: u32) -> Violation {
    format!("{side} message '{}' with an impossible length of {length}", kind.escape_ascii())
}
