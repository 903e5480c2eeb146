//! HTTP/1.0 and HTTP/1.1: requests in a row, answers in the same row.
//!
//! Answers are told apart by their place alone, so what the server says must be followed to the byte. After a hole in it requests are
//! still told, without answers; after one in what the client says nothing is, unless it fell into a body of known length.
//!
//! A request that asks for another protocol (CONNECT, Upgrade) is followed by bytes of which nobody knows what they are until the server
//! has answered. They are held until then, and what they become depends on the answer.

mod framing;
mod line;
mod message;

use std::collections::VecDeque;

use self::framing::Framing;
pub(super) use self::message::is_request_line;
use self::message::{Message, Reader, Step};
use super::Violation;
use super::head::text;
use super::request::{Outcome, Request, Version};
use crate::clock::Boottime;
use crate::protocol::Observation;

/// Requests that may wait for their answers.
const MOST_PENDING: usize = 1024;
/// Bytes of the client's that are held while it is not known what they are.
const MOST_HELD: usize = 64 << 10;
/// Bytes of a path that are kept where memory is short.
const PATH_IN_NEED: usize = 1 << 10;

/// What is said from here on is no longer HTTP/1.
#[derive(Debug)]
pub(super) enum Switch {
    /// HTTP/2, whose first stream answers this request.
    Two(Box<Request>),
    /// Whatever the ends of a tunnel speak.
    Tunnel,
    /// What the answer names.
    Other,
    /// It cannot be known what.
    Hole,
}

/// A connection from its first request on.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Session {
    client: Reader,
    server: Reader,
    pending: VecDeque<Pending>,
    sequence: u64,
    /// Bytes that requests without an answer keep.
    kept: usize,
    held: Vec<u8>,
    held_since: Boottime,
    /// The server's bytes are not followed any more.
    deaf: bool,
    /// And whether it has changed the protocol cannot be known.
    blind: bool,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Pending {
    request: Request,
    /// HEAD: the answer has no body, whatever it says.
    bodiless: bool,
    connect: bool,
    upgrade: bool,
    /// It was sent to its end.
    sent: bool,
    /// It was answered to the answer's end.
    answered: bool,
    /// Bytes that it was counted with.
    cost: usize,
}

impl Session {
    pub(super) fn new(long: usize) -> Self {
        Self {
            client: Reader::new(true, long),
            server: Reader::new(false, long),
            pending: VecDeque::new(),
            sequence: 0,
            kept: 0,
            held: Vec::new(),
            held_since: Boottime(0),
            deaf: false,
            blind: false,
        }
    }

    pub(super) fn client(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Switch>, Violation> {
        loop {
            if self.blind {
                return Ok(Some(Switch::Hole));
            }
            if self.waits() {
                return self.hold(bytes, at).map(|()| None);
            }
            match self.client.step(&mut bytes, at)? {
                None => return Ok(None),
                Some(Step::Head) => {
                    let framing = self.request(at)?;
                    if self.client.begin(framing).is_some() {
                        self.sent(at, out);
                    }
                }
                Some(Step::End) => self.sent(at, out),
            }
        }
    }

    /// `bytes` is left with what comes after a switch.
    pub(super) fn server(
        &mut self,
        bytes: &mut &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Switch>, Violation> {
        while !self.deaf {
            match self.server.step(bytes, at)? {
                None => return Ok(None),
                Some(Step::Head) => {
                    let (framing, switch) = self.response(at, out)?;
                    if switch.is_some() {
                        return Ok(switch);
                    }
                    let Some(framing) = framing else { continue };
                    if self.server.begin(framing).is_some()
                        && let Some(switch) = self.answered(at, out)?
                    {
                        return Ok(Some(switch));
                    }
                }
                Some(Step::End) => {
                    if let Some(switch) = self.answered(at, out)? {
                        return Ok(Some(switch));
                    }
                }
            }
        }
        *bytes = &[];
        Ok(None)
    }

    /// What the client has said since the request that led to a switch.
    pub(super) fn take_held(&mut self) -> (Vec<u8>, Boottime) {
        (std::mem::take(&mut self.held), self.held_since)
    }

    /// Requests so far.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn client_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Option<Switch> {
        if self.waits() {
            return Some(Switch::Hole);
        }
        match self.client.gap(length) {
            Ok(Some(_)) => self.sent(at, out),
            Ok(None) => {}
            Err(()) => return Some(Switch::Hole),
        }
        None
    }

    pub(super) fn server_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Switch>, Violation> {
        if self.deaf {
            return Ok(None);
        }
        match self.server.gap(length) {
            Ok(Some(_)) => self.answered(at, out),
            Ok(None) => Ok(None),
            Err(()) => Ok(self.go_deaf(at, out)),
        }
    }

    /// Does without answers.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) -> Option<Switch> {
        self.client.long = self.client.long.min(PATH_IN_NEED);
        self.go_deaf(at, out)
    }

    pub(super) fn memory(&self) -> usize {
        self.client.memory() + self.server.memory() + self.kept + self.held.len()
    }

    /// Gives out what is under way as it stands. `ended`: because the connection has.
    pub(super) fn give_up(&mut self, ended: bool, at: Boottime, out: &mut Vec<Observation>) {
        if self.deaf {
            // What the server said last is not known.
        } else if ended && self.server.until_close() {
            // There is nobody left to go on to what the client has asked since.
            _ = self.answered(at, out);
        } else if let Some(front) = self.pending.front_mut().filter(|front| !front.answered) {
            let request = &mut front.request;
            request.response_bytes += self.server.size;
            request.response_body = self.server.body;
            request.incomplete |= self.server.size > 0;
            if self.server.size > 0 {
                request.finished = at;
            }
        }
        if let Some(back) = self.pending.back_mut().filter(|back| !back.sent) {
            back.request.request_bytes = self.client.size;
            back.request.request_body = self.client.body;
            back.request.incomplete = true;
        }
        let whole = self.client.in_head();
        for pending in self.pending.drain(..) {
            let Pending { mut request, sent, answered, .. } = pending;
            request.outcome = if sent && answered { Outcome::Answered } else { Outcome::Unknown };
            out.push(Observation::Request(Box::new(request)));
        }
        self.kept = 0;
        if whole {
            let message = self.client.unfinished();
            let mut request = self.begin(&message, at);
            request.request_bytes = self.client.size;
            request.incomplete = true;
            request.finished = at;
            out.push(Observation::Request(Box::new(request)));
        }
        self.deaf = true;
    }

    /// Whether the client's next bytes may be another protocol's.
    fn waits(&self) -> bool {
        self.pending.back().is_some_and(|back| back.sent && !back.answered && (back.connect || back.upgrade))
    }

    fn hold(&mut self, bytes: &[u8], at: Boottime) -> Result<(), Violation> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.held.is_empty() {
            self.held_since = at;
        }
        if self.held.len() + bytes.len() > MOST_HELD {
            return Err("the client does not wait for the answer about another protocol".into());
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn begin(&mut self, message: &Message, at: Boottime) -> Request {
        self.sequence += 1;
        let started = self.client.since.unwrap_or(at);
        let version = message.version;
        Request { version, started, finished: started, ..message.head.request(self.sequence) }
    }

    /// A request's head is there.
    fn request(&mut self, at: Boottime) -> Result<Framing, Violation> {
        let message = std::mem::take(&mut self.client.message);
        let request = self.begin(&message, at);
        let method = request.method.as_deref();
        let connect = method == Some("CONNECT");
        let old = message.version == Some(Version::Http10);
        let pending = Pending {
            bodiless: method == Some("HEAD"),
            connect,
            upgrade: !connect && !old && message.head.upgrade.is_some(),
            sent: false,
            answered: false,
            cost: request.memory(),
            request,
        };
        self.kept += pending.cost;
        self.pending.push_back(pending);
        let framing = message.fields.of_request(old)?;
        if connect && framing != Framing::None {
            return Err("a CONNECT with a body: receivers may disagree where the tunnel begins".into());
        }
        Ok(framing)
    }

    /// The newest request is there to its end.
    fn sent(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Some(back) = self.pending.back_mut() {
            back.sent = true;
            self.blind |= self.deaf && (back.connect || back.upgrade);
            let request = &mut back.request;
            request.request_bytes = self.client.size;
            request.request_body = self.client.body;
            request.incomplete |= self.client.hole;
            request.finished = at;
        }
        self.client.next();
        self.emit(out);
        if self.pending.len() > MOST_PENDING {
            // The oldest has waited in vain. What is answered from here on cannot be told apart.
            _ = self.go_deaf(at, out);
        }
    }

    /// A head of the server's is there: how its body is framed, unless it was no final answer, and what is spoken from here on.
    fn response(
        &mut self,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(Option<Framing>, Option<Switch>), Violation> {
        let message = std::mem::take(&mut self.server.message);
        let status = message.head.status.unwrap_or_default();
        if self.pending.is_empty() {
            // Servers say so before they hang up on somebody who asks nothing, or not to the end.
            if status < 400 {
                return Err(format!("an answer {status} to no request"));
            }
            self.sequence += 1;
            let started = self.server.since.unwrap_or(at);
            let request = Request {
                sequence: self.sequence,
                started,
                finished: started,
                incomplete: true,
                ..Request::default()
            };
            let pending = Pending {
                cost: request.memory(),
                request,
                bodiless: false,
                connect: false,
                upgrade: false,
                sent: true,
                answered: false,
            };
            self.kept += pending.cost;
            self.pending.push_back(pending);
        }
        let Some(front) = self.pending.front_mut().filter(|front| !front.answered) else {
            return Err(format!("an answer {status} to a request that was answered"));
        };
        let interim = (100..200).contains(&status);
        if interim && status != 101 {
            front.request.response_bytes += self.server.size;
            self.server.next();
            return Ok((None, None));
        }
        message.head.answer(&mut front.request);
        let tunnel = front.connect && (200..300).contains(&status);
        if interim || tunnel {
            let asked = if interim { front.upgrade } else { true };
            if !asked || !front.sent {
                return Err(format!("an answer {status} that changes the protocol, unasked"));
            }
            return Ok((None, Some(self.switch(&message, at, out))));
        }
        let old = message.version == Some(Version::Http10);
        let framing = match status {
            204 | 304 => Framing::None,
            _ if front.bodiless => Framing::None,
            _ => message.fields.of_response(old)?,
        };
        Ok((Some(framing), None))
    }

    /// Both ends go on in another protocol.
    fn switch(&mut self, message: &Message, at: Boottime, out: &mut Vec<Observation>) -> Switch {
        let Some(Pending { mut request, connect, .. }) = self.pending.pop_front() else {
            return Switch::Hole;
        };
        request.response_bytes += self.server.size;
        request.finished = at;
        request.outcome = Outcome::Answered;
        let named = message.head.upgrade.as_deref().map(text);
        request.upgrade = if connect { Some("tunnel".to_owned()) } else { named.clone() };
        self.deaf = true;
        self.kept = 0;
        if named.is_some_and(|name| name.eq_ignore_ascii_case("h2c")) && !connect {
            return Switch::Two(Box::new(request));
        }
        out.push(Observation::Request(Box::new(request)));
        if connect { Switch::Tunnel } else { Switch::Other }
    }

    /// The answer to the oldest request is there to its end.
    fn answered(&mut self, at: Boottime, out: &mut Vec<Observation>) -> Result<Option<Switch>, Violation> {
        let waited = self.waits();
        if let Some(front) = self.pending.front_mut() {
            front.answered = true;
            let request = &mut front.request;
            request.response_bytes += self.server.size;
            request.response_body = self.server.body;
            request.incomplete |= self.server.hole;
            request.finished = at;
            self.server.message.head.trailers(request);
        }
        self.server.next();
        self.emit(out);
        if waited && !self.waits() && !self.held.is_empty() {
            // Nothing came of the other protocol: what the client said since was HTTP/1.
            let (held, since) = self.take_held();
            return self.client(&held, since, out);
        }
        Ok(None)
    }

    fn go_deaf(&mut self, at: Boottime, out: &mut Vec<Observation>) -> Option<Switch> {
        if self.waits() {
            return Some(Switch::Hole);
        }
        if let Some(front) = self.pending.front_mut().filter(|front| !front.answered && self.server.size > 0)
        {
            front.request.response_bytes += self.server.size;
            front.request.response_body = self.server.body;
            front.request.finished = at;
            front.request.incomplete = true;
        }
        self.server.next();
        self.deaf = true;
        self.emit(out);
        None
    }

    fn emit(&mut self, out: &mut Vec<Observation>) {
        while let Some(pending) =
            self.pending.pop_front_if(|front| front.sent && (front.answered || self.deaf))
        {
            let Pending { mut request, answered, cost, .. } = pending;
            self.kept -= cost;
            request.outcome = if answered { Outcome::Answered } else { Outcome::Unknown };
            out.push(Observation::Request(Box::new(request)));
        }
    }
}
