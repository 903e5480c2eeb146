//! HTTP/1.0, HTTP/1.1 and HTTP/2, with what is said within them by gRPC, the Docker Engine API and the Kubernetes API.
//!
//! Gives out one [`Request`] for each request, with its answer: method, authority, path, status, sizes, types, times. Assumes
//! that the client's bytes are given before the server's answer to them; apart from that everything is hostile. Never kept: bodies,
//! which are skipped, not copied; credentials in fields, of which the name alone is told; and secrets in URLs, which are
//! masked before anything is kept ([`mask`](self)).
//!
//! What happens to bytes, in order: here it is told which version is spoken; `one` and `two` follow it; `field` and `head` take what
//! matters out of heads; `mask` takes secrets out of that; `api` tells what a path means; `request` is what comes out.
//!
//! A protocol that changes is followed: h2c by Upgrade here, a tunnel (CONNECT) by telling what is inside anew
//! ([`Observation::Switched`]). After any other Upgrade, WebSocket above all, the request says so, and the rest of the connection is opaque.
//!
//! Refused, and from there on nothing is read: whatever two receivers could read in two ways (RFC 9112, section 11.2) and whatever does not
//! follow the protocol ([`Observation::Violation`]). After a hole that did not fall into a body, see `one` and `two`.
//!
//! Two ends that are both the agent's may say anything under the name of HTTP: the record then has what they said, and sizes.

#![forbid(unsafe_code)]

mod api;
mod detect;
mod field;
mod head;
mod mask;
mod one;
mod request;
#[cfg(test)]
mod tests;
mod two;

pub use detect::detect_first;
#[cfg(test)]
use detect::{detect, detect_server};
pub use request::{Call, Grpc, Outcome, Request, Service, Version};

use self::one::Switch;
use super::{Dissector, Limits, Observation, Opaque, Side};
use crate::clock::Boottime;

/// Why bytes cannot be followed.
type Violation = String;

/// Bytes of a path that are kept at most; longer ones are no server's.
const LONGEST_PATH: usize = 64 << 10;

/// One connection to an HTTP server.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Http {
    /// Bytes of a path that are kept.
    long: usize,
    phase: Phase,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Phase {
    /// The beginning of what may be HTTP/2's preface.
    Beginning(Vec<u8>, Boottime),
    One(Box<one::Session>),
    Two(Box<two::Session>),
    /// Nothing more is read.
    Over,
}

impl Http {
    /// Begins at the connection's first byte.
    pub fn new(limits: Limits) -> Self {
        let long = limits.max_statement_bytes.min(LONGEST_PATH);
        Self { long, phase: Phase::Beginning(Vec::new(), Boottime(0)) }
    }

    fn two(&mut self, side: Side, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        let (Phase::Two(session), Some(first)) = (&mut self.phase, bytes.first()) else { return };
        let done = match session.role(side, *first, out) {
            Side::Client => session.client(bytes, at, out),
            Side::Server => session.server(bytes, at, out),
        };
        self.settle(done.map(|()| None), &[], at, out);
    }

    /// Goes on as a step demands. `rest`: what the server has said since.
    fn settle(
        &mut self,
        done: Result<Option<Switch>, Violation>,
        rest: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        let switch = match done {
            Ok(None) => return,
            Ok(Some(switch)) => switch,
            Err(reason) => {
                self.give_up(false, at, out);
                return out.push(Observation::Violation(reason));
            }
        };
        let Phase::One(session) = &mut self.phase else { return };
        let (held, since) = session.take_held();
        match switch {
            Switch::Two(request) => {
                let next = two::Session::upgraded(self.long, session.sequence(), request);
                self.phase = Phase::Two(Box::new(next));
                if !held.is_empty() {
                    self.client(&held, since, out);
                }
                if !rest.is_empty() {
                    self.server(rest, at, out);
                }
            }
            Switch::Tunnel => {
                out.push(Observation::Switched { client: (held, since), server: rest.to_vec() });
                self.phase = Phase::Over;
            }
            Switch::Other => {
                out.push(Observation::Opaque(Opaque::Upgraded));
                self.phase = Phase::Over;
            }
            Switch::Hole => self.lost(at, out),
        }
    }

    fn lost(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.give_up(false, at, out);
        out.push(Observation::Opaque(Opaque::Hole));
    }

    fn give_up(&mut self, ended: bool, at: Boottime, out: &mut Vec<Observation>) {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::One(mut session) => session.give_up(ended, at, out),
            Phase::Two(mut session) => session.give_up(at, out),
            Phase::Beginning(seen, since) => {
                let mut session = one::Session::new(self.long);
                match session.client(&seen, since, out) {
                    Err(reason) if ended => out.push(Observation::Violation(reason)),
                    _ => session.give_up(ended, at, out),
                }
            }
            Phase::Over => {}
        }
    }
}

impl Dissector for Http {
    fn protocol(&self) -> super::Protocol {
        super::Protocol::Http
    }

    fn save(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    fn client(&mut self, bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::Beginning(seen, since) => {
                if seen.is_empty() {
                    *since = at;
                }
                let wanted = two::PREFACE.len() - seen.len();
                let (first, rest) = bytes.split_at(bytes.len().min(wanted));
                seen.extend_from_slice(first);
                let (seen, since) = (std::mem::take(seen), *since);
                if !two::PREFACE.starts_with(&seen) {
                    self.phase = Phase::One(Box::new(one::Session::new(self.long)));
                } else if seen.len() == two::PREFACE.len() {
                    self.phase = Phase::Two(Box::new(two::Session::new(self.long)));
                } else {
                    self.phase = Phase::Beginning(seen, since);
                    return;
                }
                self.client(&seen, since, out);
                if !rest.is_empty() {
                    self.client(rest, at, out);
                }
            }
            Phase::One(session) => {
                let done = session.client(bytes, at, out);
                self.settle(done, &[], at, out);
            }
            Phase::Two(_) => self.two(Side::Client, bytes, at, out),
            Phase::Over => {}
        }
    }

    fn server(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::Beginning(seen, since) => {
                let (seen, since) = (std::mem::take(seen), *since);
                // A server that speaks first speaks HTTP/2, unless it hangs up.
                self.phase = if bytes.first() == Some(&0) {
                    Phase::Two(Box::new(two::Session::new(self.long)))
                } else {
                    Phase::One(Box::new(one::Session::new(self.long)))
                };
                if !seen.is_empty() {
                    self.client(&seen, since, out);
                }
                self.server(bytes, at, out);
            }
            Phase::One(session) => {
                let done = session.server(&mut bytes, at, out);
                self.settle(done, bytes, at, out);
            }
            Phase::Two(_) => self.two(Side::Server, bytes, at, out),
            Phase::Over => {}
        }
    }

    fn hole(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>) {
        let done = match (&mut self.phase, side) {
            // All that is to come.
            (Phase::One(_) | Phase::Two(_), _) if length == u64::MAX => Ok(Some(Switch::Hole)),
            (Phase::One(session), Side::Client) => Ok(session.client_gap(length, at, out)),
            (Phase::One(session), Side::Server) => session.server_gap(length, at, out),
            (Phase::Two(session), side) if session.asks(side) => {
                session.client_gap(length, at, out).map(|read_on| (!read_on).then_some(Switch::Hole))
            }
            (Phase::Two(session), _) => session.server_gap(length, at, out).map(|()| None),
            (Phase::Beginning(..), _) => Ok(Some(Switch::Hole)),
            (Phase::Over, _) => Ok(None),
        };
        if let Ok(Some(Switch::Hole)) = done {
            self.lost(at, out);
        } else {
            self.settle(done, &[], at, out);
        }
    }

    fn memory(&self) -> usize {
        match &self.phase {
            Phase::Beginning(seen, _) => seen.len(),
            Phase::One(session) => session.memory(),
            Phase::Two(session) => session.memory(),
            Phase::Over => 0,
        }
    }

    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        match &mut self.phase {
            Phase::One(session) => {
                if session.spare(at, out).is_some() {
                    self.lost(at, out);
                }
            }
            Phase::Two(session) => session.spare(at, out),
            Phase::Beginning(..) | Phase::Over => {}
        }
    }

    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.give_up(true, at, out);
    }
}
