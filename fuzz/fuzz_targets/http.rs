//! Arbitrary bytes and holes on both sides of an HTTP connection, of either version.
//!
//! The input is a list of events: a byte whose lowest bits say who speaks (or whether a hole follows), a byte with a
//! length, and that many bytes. Whatever they are, nothing panics, cuts change nothing, no request comes twice, what comes
//! out is bounded by what went in, and a state that was written goes on as if it had not been.
#![no_main]

use std::collections::BTreeSet;

use auditor::clock::Boottime;
use auditor::protocol::http::Http;
use auditor::protocol::{Dissector, Limits, Observation, Side};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_statement_bytes: 64, parameters: true, columns: true };

enum Event<'a> {
    Bytes(Side, &'a [u8]),
    Hole(Side, u64),
    Spare,
}

fn events(mut input: &[u8]) -> Vec<Event<'_>> {
    let mut events = Vec::new();
    while let [head, length, rest @ ..] = input {
        let side = if head & 1 == 0 { Side::Client } else { Side::Server };
        if head & 0b1110 == 0b1110 {
            events.push(if head & 0b1_0000 == 0 { Event::Hole(side, u64::from(*length)) } else { Event::Spare });
            input = rest;
        } else {
            let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
            events.push(Event::Bytes(side, bytes));
            input = rest;
        }
    }
    events
}

fn replay(events: &[Event<'_>], cut: usize, save: bool) -> Vec<Observation> {
    let mut dissector = Http::new(LIMITS);
    let mut out = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let at = Boottime(index as u64);
        match event {
            Event::Bytes(side, bytes) => {
                bytes.chunks(cut).for_each(|piece| dissector.bytes(*side, at, piece, &mut out));
            }
            Event::Hole(side, length) => dissector.gap(*side, at, *length, &mut out),
            Event::Spare => dissector.spare(at, &mut out),
        }
        assert!(dissector.memory() < 4 << 20, "{} bytes", dissector.memory());
        if save {
            dissector = postcard::from_bytes(&dissector.save().expect("a state")).expect("the same state");
        }
    }
    dissector.close(Boottime(events.len() as u64), &mut out);
    out
}

/// What a switch leaves for whoever reads on depends on the cuts; the rest must not.
fn comparable(mut observations: Vec<Observation>) -> Vec<Observation> {
    for observation in &mut observations {
        if let Observation::Switched { server, .. } = observation {
            server.clear();
        }
    }
    observations
}

fuzz_target!(|input: &[u8]| {
    let events = events(input);
    let whole = comparable(replay(&events, usize::MAX, false));
    assert_eq!(whole, comparable(replay(&events, 1, true)), "cut into bytes");
    // The shortest request is a frame without fields; an unfinished line makes one, too.
    assert!(whole.len() <= input.len() / 9 + 3, "{} observations", whole.len());
    let mut seen = BTreeSet::new();
    for observation in &whole {
        if let Observation::Request(request) = observation {
            assert!(seen.insert(request.sequence), "{} twice", request.sequence);
            // A mask may be longer than what it hides.
            assert!(request.target.as_ref().is_none_or(|target| target.len() <= 4 * LIMITS.max_statement_bytes));
            assert!(request.started <= request.finished);
            assert!(request.request_body <= request.request_bytes);
        }
    }
});
