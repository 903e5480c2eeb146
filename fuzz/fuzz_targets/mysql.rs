//! Arbitrary bytes and holes on both sides of a MySQL connection.
//!
//! The input is a list of events: a byte whose lowest bits say who speaks (or whether a hole follows), a byte with a
//! length, and that many bytes. Whatever they are, nothing panics, cuts change nothing, records are in order, a state that is
//! written and read goes on the same, and what comes out is bounded by what went in. What is under TLS is read as it is.
#![no_main]

use auditor::clock::Boottime;
use auditor::protocol::mysql::Mysql;
use auditor::protocol::{Dissector, Limits, Observation, Side, StatementKind};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_statement_bytes: 64, parameters: true, columns: true };
/// Commands that may be in one compressed frame.
const IN_FRAME: usize = 16 << 10;

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

fn tell(dissector: &mut Mysql, side: Side, at: Boottime, bytes: &[u8], out: &mut Vec<Observation>) {
    let before = out.len();
    dissector.bytes(side, at, bytes, out);
    if let Some(Observation::Encrypted { rest }) = out[before..].last_mut() {
        let rest = std::mem::take(rest);
        tell(dissector, side, at, &bytes[bytes.len() - rest..], out);
    }
}

fn replay(events: &[Event<'_>], cut: usize, saved: bool) -> Vec<Observation> {
    let mut dissector = Mysql::new(LIMITS);
    let mut out = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let at = Boottime(index as u64);
        match event {
            Event::Bytes(side, bytes) => {
                bytes.chunks(cut).for_each(|piece| tell(&mut dissector, *side, at, piece, &mut out));
            }
            Event::Hole(side, length) => dissector.gap(*side, at, *length, &mut out),
        }
        if saved && index % 4 == 3 {
            let state = dissector.save().expect("a state can be written");
            dissector = auditor::shared::scope(|| postcard::from_bytes(&state)).expect("and read");
        }
    }
    dissector.close(Boottime(events.len() as u64), &mut out);
    out
}

fuzz_target!(|input: &[u8]| {
    let events = events(input);
    let whole = replay(&events, usize::MAX, false);
    assert_eq!(whole, replay(&events, 1, false), "cut into bytes");
    assert_eq!(whole, replay(&events, usize::MAX, true), "written and read");
    // The shortest message has four bytes and makes at most one record; a compressed frame has seven and makes more.
    assert!(whole.len() <= input.len() / 4 + 3 + input.len() / 8 * IN_FRAME, "{} observations", whole.len());
    let mut sequence = 0;
    for observation in &whole {
        if let Observation::Statement(statement) = observation {
            sequence += 1;
            assert_eq!(statement.sequence, sequence);
            assert!(statement.text.len() <= LIMITS.max_statement_bytes || statement.kind == StatementKind::Admin);
            assert!(statement.text_length >= statement.text.len() as u64);
            assert!(statement.started <= statement.finished);
        }
    }
});
