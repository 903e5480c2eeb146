//! Arbitrary bytes and holes on both sides of a Redis connection.
//!
//! The input is a list of events: a byte whose lowest bits say who speaks (or whether a hole follows), a byte with a
//! length, and that many bytes. Whatever they are, nothing panics, cuts change nothing, records are in order, and what comes
//! out is bounded by what went in.
#![no_main]

use auditor::clock::Boottime;
use auditor::protocol::redis::Redis;
use auditor::protocol::{Dissector, Limits, Observation, Side};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_statement_bytes: 64, parameters: true, columns: true };

enum Event<'a> {
    Bytes(Side, &'a [u8]),
    Hole(Side, u64),
}

fn events(mut input: &[u8]) -> Vec<Event<'_>> {
    let mut events = Vec::new();
    while let [head, length, rest @ ..] = input {
        let side = if head & 1 == 0 { Side::Client } else { Side::Server };
        if head & 0b1110 == 0b1110 {
            events.push(Event::Hole(side, u64::from(*length)));
            input = rest;
        } else {
            let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
            events.push(Event::Bytes(side, bytes));
            input = rest;
        }
    }
    events
}

fn replay(events: &[Event<'_>], cut: usize) -> Vec<Observation> {
    let mut dissector = Redis::new(LIMITS);
    let mut out = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let at = Boottime(index as u64);
        match event {
            Event::Bytes(side, bytes) => {
                bytes.chunks(cut).for_each(|piece| dissector.bytes(*side, at, piece, &mut out));
            }
            Event::Hole(side, length) => dissector.gap(*side, at, *length, &mut out),
        }
    }
    dissector.close(Boottime(events.len() as u64), &mut out);
    out
}

fuzz_target!(|input: &[u8]| {
    let events = events(input);
    let whole = replay(&events, usize::MAX);
    assert_eq!(whole, replay(&events, 1), "cut into bytes");
    // The shortest command has two bytes, and makes one record; of a reply come two observations at most.
    assert!(whole.len() <= input.len() + 2, "{} observations", whole.len());
    let mut sequence = 0;
    for observation in &whole {
        if let Observation::Statement(statement) = observation {
            sequence += 1;
            assert_eq!(statement.sequence, sequence);
            assert!(statement.text.len() <= LIMITS.max_statement_bytes);
            assert!(statement.text_length >= statement.text.len() as u64);
            assert!(statement.started <= statement.finished);
        }
    }
});
