//! Builders of what both sides say, to be played into a dissector, and one line for each thing that comes out.

use std::fmt::Write as _;

use crate::protocol::http::{Outcome, Request};
use crate::protocol::tests::events::{Daemons, play};
pub(super) use crate::protocol::tests::events::{Event, client, server};
use crate::protocol::{Limits, Observation, Protocol};

pub(super) const LIMITS: Limits = Limits { max_statement_bytes: 1 << 16, parameters: true, columns: true };

/// Plays events in pieces as long as `cut` says. Whatever a state is, the next daemon goes on from it.
pub(super) fn replay(events: &[Event], limits: Limits, cut: impl FnMut(usize) -> usize) -> Vec<Observation> {
    play(Protocol::Http, limits, events, cut, Daemons::Many)
}

/// What comes out, a line for each, whatever the cuts.
pub(super) fn told(events: &[Event]) -> Vec<String> {
    let whole = replay(events, LIMITS, |_| usize::MAX);
    let lines = |all: &[Observation]| all.iter().map(line).collect::<Vec<_>>();
    for cut in [1, 7] {
        let pieces = replay(events, LIMITS, |_| cut);
        assert!(whole == pieces, "{:#?}\nin pieces of {cut}: {:#?}", lines(&whole), lines(&pieces));
    }
    lines(&whole)
}

pub(super) fn requests(observations: &[Observation]) -> Vec<&Request> {
    let told = observations.iter().filter_map(|one| match one {
        Observation::Request(request) => Some(&**request),
        _ => None,
    });
    told.collect()
}

pub(super) fn line(observation: &Observation) -> String {
    match observation {
        Observation::Request(request) => request_line(request),
        Observation::Switched { client, server } => {
            format!("switched {} {}", client.0.escape_ascii(), server.escape_ascii())
        }
        other => format!("{other:?}"),
    }
}

fn request_line(request: &Request) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
    let mut line = format!("{} {} ", request.sequence, or_dash(&request.method));
    if let Some(scheme) = &request.scheme {
        write!(line, "{scheme}://").unwrap();
    }
    let target = request.target.as_deref().unwrap_or(b"-");
    write!(line, "{}{}", or_dash(&request.authority), target.escape_ascii()).unwrap();
    match (request.status, request.outcome) {
        (Some(status), Outcome::Answered) => write!(line, " {status}"),
        (status, outcome) => write!(line, " {status:?} {outcome:?}"),
    }
    .unwrap();
    write!(
        line,
        " {}/{} {}/{}",
        request.request_body, request.request_bytes, request.response_body, request.response_bytes
    )
    .unwrap();
    let words = [&request.request_type, &request.response_type, &request.agent];
    for (name, word) in ["type", "answered type", "agent"].into_iter().zip(words) {
        if let Some(word) = word {
            write!(line, " | {name} {word}").unwrap();
        }
    }
    if let Some(upgrade) = &request.upgrade {
        write!(line, " | upgrade {upgrade}").unwrap();
    }
    if let Some(grpc) = &request.grpc {
        write!(line, " | grpc {} {} {:?}", grpc.service, grpc.method, grpc.status).unwrap();
        if let Some(message) = &grpc.message {
            write!(line, " {message}").unwrap();
        }
    }
    if let Some(call) = &request.api {
        write!(line, " | {} {} {} {}", call.service.name(), call.verb, call.resource, or_dash(&call.name))
            .unwrap();
    }
    if !request.masked.is_empty() {
        write!(line, " | masked {}", request.masked.join(" ")).unwrap();
    }
    if request.pushed {
        line.push_str(" | pushed");
    }
    if request.reversed {
        line.push_str(" | reversed");
    }
    if request.incomplete {
        line.push_str(" | incomplete");
    }
    line
}

/// A frame of HTTP/2.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as an encoder without imagination writes them; `indexed` ones go into the table.
pub(super) fn fields(fields: &[(&str, &str)], indexed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(if indexed { 0x40 } else { 0x00 });
        for text in [name, value] {
            integer(&mut out, 7, 0, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// An integer with a prefix.
pub(super) fn integer(out: &mut Vec<u8>, prefix: u32, first: u8, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.push(first | u8::try_from(value).unwrap());
    }
    out.push(first | u8::try_from(mask).unwrap());
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
}

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What both ends begin HTTP/2 with.
pub(super) fn hello() -> [Event; 2] {
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    [client([PREFACE, &settings].concat()), server([settings, frame(4, 1, 0, &[])].concat())]
}

/// HEADERS of a request with its end.
pub(super) fn ask(stream: u32, method: &str, path: &str, more: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let mut all = vec![(":method", method), (":scheme", "http"), (":authority", "h"), (":path", path)];
    all.extend(more);
    frame(1, 4 | flags, stream, &fields(&all, true))
}
