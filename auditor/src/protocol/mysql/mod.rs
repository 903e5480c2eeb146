//! The client/server protocol of MySQL and MariaDB, version 10.
//!
//! Follows both directions of one connection and gives out one record for each command, with its text, values, outcome and counts.
//! Assumes that the client's bytes are given before the server's answer to them, which is how they pass a hook on the client's
//! host; apart from that the bytes are hostile. Never kept: what proves a client's identity, rows, content of files.
//!
//! What happens to bytes, in order: `greeting` tells the protocol and reads the server's first packet, `login` the client's;
//! `compress` unpacks frames where both ends agreed on them; `packet` finds messages; `body` and `answer` read the payloads that matter
//! (`request`, `values` and `value` are what comes of them); `conversation` brings commands and answers together, with `definitions` for
//! what stands between them, `statements` for what was prepared and `unanswered` for commands without an answer; `record` makes the
//! record.
//!
//! Where the client asks for TLS ([`Observation::Encrypted`]), what is inside is read from its login on. A client does not wait for
//! the server to agree, so TLS may begin within the bytes that hold the request.
//!
//! Refused, and from there on nothing is read: bytes that do not follow the protocol ([`Observation::Violation`]), among them a client that
//! does not wait for the end of the login. Once a server sends its binary log, or itself to be cloned, the rest is counted
//! ([`Opaque::Replication`]). After a hole in the server's bytes commands are still told, but without outcomes: any pattern that might mark
//! the next packet can also be somebody's data, so there is no place at which reading on could be proven right. After such a hole in
//! the client's bytes nothing is told, for the same reason. A hole within the payload of one packet does no such harm, unless
//! packets are in compressed frames.

#![forbid(unsafe_code)]

mod answer;
mod body;
mod capability;
mod compress;
mod conversation;
mod definitions;
mod field;
mod greeting;
mod login;
mod packet;
mod record;
mod request;
mod session;
mod statements;
#[cfg(test)]
mod tests;
mod unanswered;
mod value;
mod values;

pub use greeting::detect;

use answer::{AnswerReader, Done};
use capability::Capabilities;
use compress::Method;
use conversation::Violation;
use greeting::Greeting;
use login::{LoginReader, Said};
use packet::{Framer, Step};
use session::Session;

use super::{Dissector, Limits, Login, Observation, Opaque, Side};
use crate::clock::Boottime;

/// Bytes of a statement that are kept where memory is short.
const STATEMENT_IN_NEED: usize = 4 << 10;
/// No server's greeting is longer.
const GREETING_BYTES: usize = 1 << 10;
/// Bytes kept of a packet during the login.
const LOGIN_ANSWER_BYTES: usize = 2 << 10;

/// One connection to a MySQL or MariaDB server.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Mysql {
    limits: Limits,
    phase: Phase,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Phase {
    /// The server speaks first.
    Greeting(Framer, AnswerReader),
    /// Who the client is, and proofs of it.
    Login(Box<Entry>),
    /// Commands and answers.
    Session(Box<Session>),
    /// Nothing more is read.
    Over,
}

/// A connection between the greeting and the end of the login.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Entry {
    offered: Capabilities,
    client: Framer,
    reader: LoginReader,
    server: Framer,
    answers: AnswerReader,
    /// What the client said.
    said: Option<(Login, Capabilities)>,
    /// The server has asked for another proof.
    asked: bool,
    encrypted: bool,
}

/// What comes after a packet of the login.
enum Next {
    /// The server lets the client in; the rest of its bytes are commands' answers.
    Session,
    /// It does not.
    Over,
}

/// Whether this is caching_sha2_password's word for a proof that the server knows already: it asks for nothing.
fn is_accepted_already(body: &[u8]) -> bool {
    body == [1, 3]
}

impl Mysql {
    /// Begins at the connection's first byte.
    pub fn new(limits: Limits) -> Self {
        Self { limits, phase: Phase::Greeting(Framer::default(), AnswerReader::default()) }
    }

    fn greeting(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        let Phase::Greeting(framer, reader) = &mut self.phase else { return };
        while let Some(step) = framer.step(&mut bytes, at) {
            match step {
                Step::Start(_) => reader.start(),
                Step::Body(piece) => reader.piece(piece, |_| GREETING_BYTES),
                Step::End(head) => {
                    let payload = reader.end(head).body;
                    match payload {
                        [10, payload @ ..] => match Greeting::read(payload) {
                            Some(greeting) => {
                                self.phase = Phase::Login(Box::new(Entry::new(greeting.offered)))
                            }
                            None => {
                                return self
                                    .end(Observation::Violation("a greeting that ends early".into()), out);
                            }
                        },
                        [answer::ERR, ..] => {
                            out.extend(answer::error(payload).map(Observation::Refused));
                            self.phase = Phase::Over;
                        }
                        _ => {
                            return self.end(
                                Observation::Violation("no greeting of protocol version 10".into()),
                                out,
                            );
                        }
                    }
                    if !bytes.is_empty() {
                        self.server(bytes, at, out);
                    }
                    return;
                }
            }
        }
    }

    fn settle(&mut self, result: Result<(), Violation>, at: Boottime, out: &mut Vec<Observation>) {
        if let Err(reason) = result {
            if let Phase::Session(session) = &mut self.phase {
                session.give_up(at, out);
            }
            self.end(Observation::Violation(reason), out);
        }
    }

    fn end(&mut self, last: Observation, out: &mut Vec<Observation>) {
        out.push(last);
        self.phase = Phase::Over;
    }
}

impl Dissector for Mysql {
    fn protocol(&self) -> super::Protocol {
        super::Protocol::Mysql
    }

    fn save(&self) -> Result<Vec<u8>, postcard::Error> {
        crate::shared::scope(|| postcard::to_stdvec(self))
    }

    fn client(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        let result = match &mut self.phase {
            Phase::Greeting(..) => Err("the client spoke before the server".into()),
            Phase::Login(entry) => entry.client(bytes, at, out),
            Phase::Session(session) => session.client(bytes, at, out),
            Phase::Over => return,
        };
        self.settle(result, at, out);
    }

    fn server(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::Greeting(..) => self.greeting(bytes, at, out),
            Phase::Login(entry) => match entry.server(&mut bytes, at, out) {
                Ok(None) => {}
                Ok(Some(Next::Over)) => self.phase = Phase::Over,
                Ok(Some(Next::Session)) => {
                    let session = entry.session(self.limits);
                    self.phase = Phase::Session(Box::new(session));
                    if !bytes.is_empty() {
                        self.server(bytes, at, out);
                    }
                }
                Err(reason) => self.end(Observation::Violation(reason), out),
            },
            Phase::Session(session) => match session.server(bytes, at, out) {
                Ok(None) => {}
                Ok(Some(why)) => {
                    session.give_up(at, out);
                    self.end(Observation::Opaque(why), out);
                }
                Err(reason) => self.settle(Err(reason), at, out),
            },
            Phase::Over => {}
        }
    }

    fn hole(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>) {
        match (&mut self.phase, side) {
            (Phase::Session(session), Side::Client) => {
                if session.client_gap(length) {
                    // The hole may have reached to the message's end.
                    let result = session.client(&[], at, out);
                    self.settle(result, at, out);
                } else {
                    session.partial(at, out);
                    self.end(Observation::Opaque(Opaque::Hole), out);
                }
            }
            (Phase::Session(session), Side::Server) => {
                session.server_gap(length, at, out);
                self.server(&[], at, out);
            }
            (Phase::Greeting(..) | Phase::Login(_), _) => self.end(Observation::Opaque(Opaque::Hole), out),
            (Phase::Over, _) => {}
        }
    }

    fn memory(&self) -> usize {
        match &self.phase {
            Phase::Greeting(_, reader) => reader.memory(),
            Phase::Login(entry) => entry.memory(),
            Phase::Session(session) => session.memory(),
            Phase::Over => 0,
        }
    }

    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Phase::Session(session) = &mut self.phase
            && !session.spare(at, out)
        {
            self.end(Observation::Opaque(Opaque::Hole), out);
        }
    }

    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Phase::Session(session) = &mut self.phase {
            session.close(at, out);
        }
        self.phase = Phase::Over;
    }
}

impl Entry {
    fn new(offered: Capabilities) -> Self {
        Self {
            offered,
            client: Framer::default(),
            reader: LoginReader::response(offered),
            server: Framer::default(),
            answers: AnswerReader::default(),
            said: None,
            asked: false,
            encrypted: false,
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
                Step::Start(_) if self.said.is_some() && !std::mem::take(&mut self.asked) => {
                    return Err("the client does not wait for the end of its login".into());
                }
                Step::Start(_) => {}
                Step::Body(mut piece) if self.said.is_none() => self.reader.read(&mut piece),
                Step::Body(_) => {}
                Step::End(_) if self.said.is_some() => {}
                Step::End(_) => {
                    let reader = std::mem::replace(&mut self.reader, LoginReader::response(self.offered));
                    let shared = reader.shared;
                    match reader.end(self.encrypted) {
                        Said::Ssl => {
                            self.encrypted = true;
                            out.push(Observation::Encrypted { rest: bytes.len() });
                            return Ok(());
                        }
                        Said::Login(login) => {
                            out.push(Observation::Login(login.clone()));
                            self.said = Some((login, shared));
                        }
                        Said::Short => return Err("a login that ends early".into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn server(
        &mut self,
        bytes: &mut &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Next>, Violation> {
        while let Some(step) = self.server.step(bytes, at) {
            match step {
                Step::Start(_) => self.answers.start(),
                Step::Body(piece) => self.answers.piece(piece, |_| LOGIN_ANSWER_BYTES),
                Step::End(head) => {
                    let answer = self.answers.end(head);
                    match (answer.first, &mut self.said) {
                        (Some(answer::ERR), _) => {
                            if let Some(error) = answer::error(answer.body) {
                                out.push(Observation::Refused(error));
                                return Ok(Some(Next::Over));
                            }
                        }
                        (_, None) => return Err("the server does not wait for the client's login".into()),
                        (Some(answer::OK), Some((login, shared))) => {
                            if let Some(database) = Done::read(answer, *shared).database
                                && login.database.as_deref() != Some(&database)
                            {
                                login.database = Some(database);
                                out.push(Observation::Login(login.clone()));
                            }
                            out.push(Observation::Authenticated);
                            return Ok(Some(Next::Session));
                        }
                        (_, Some(_)) => self.asked = !is_accepted_already(answer.body),
                    }
                }
            }
        }
        Ok(None)
    }

    /// The session that follows.
    fn session(&mut self, limits: Limits) -> Session {
        let (login, shared) = self.said.take().unwrap_or_default();
        let method = if shared.has(Capabilities::COMPRESS) {
            Some(Method::Zlib)
        } else if shared.has(Capabilities::ZSTD) {
            Some(Method::Zstd)
        } else {
            None
        };
        Session::new(limits, shared, login, method)
    }

    fn memory(&self) -> usize {
        let said = self.said.as_ref().map_or(0, |(login, _)| 2 * login.memory());
        said + self.reader.memory() + self.answers.memory()
    }
}
