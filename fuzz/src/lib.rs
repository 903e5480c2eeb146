//! What the targets of all protocols share: an input as events on a connection, and a dissector that is told them.
//!
//! An input is a list of events: a byte whose lowest bits say who speaks (or whether a hole follows), a byte with a length, and
//! that many bytes.

use auditor::clock::Boottime;
use auditor::protocol::{Dissector, Limits, Observation, Side, Statement, StatementKind};

/// So little that inputs go beyond it.
pub const LIMITS: Limits = Limits { max_statement_bytes: 64, parameters: true, columns: true };

/// What happens on a connection.
pub enum Event<'a> {
    /// One side says this.
    Bytes(Side, &'a [u8]),
    /// So many bytes of one side are lost.
    Hole(Side, u64),
    /// Memory is short.
    Spare,
}

/// What an input says. Only some targets have a bit for [`Event::Spare`]: in the others' inputs it means nothing.
pub fn events(mut input: &[u8], spares: bool) -> Vec<Event<'_>> {
    let mut events = Vec::new();
    while let [head, length, rest @ ..] = input {
        let side = if head & 1 == 0 { Side::Client } else { Side::Server };
        if head & 0b1110 == 0b1110 {
            let spare = spares && head & 0b1_0000 != 0;
            events.push(if spare { Event::Spare } else { Event::Hole(side, u64::from(*length)) });
            input = rest;
        } else {
            let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
            events.push(Event::Bytes(side, bytes));
            input = rest;
        }
    }
    events
}

/// Tells a dissector events, bytes in pieces of `cut`, and then the end. Time is the event's number. After each event `next` is given
/// its number and the dissector, and gives back the one that goes on.
pub fn replay<D: Dissector>(
    mut dissector: D,
    events: &[Event<'_>],
    cut: usize,
    next: impl Fn(usize, D) -> D,
) -> Vec<Observation> {
    let mut out = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let at = Boottime(index as u64);
        match event {
            Event::Bytes(side, bytes) => {
                bytes.chunks(cut).for_each(|piece| tell(&mut dissector, *side, at, piece, &mut out));
            }
            Event::Hole(side, length) => dissector.gap(*side, at, *length, &mut out),
            Event::Spare => dissector.spare(at, &mut out),
        }
        dissector = next(index, dissector);
    }
    dissector.close(Boottime(events.len() as u64), &mut out);
    out
}

/// What is under TLS is read as it is.
fn tell(dissector: &mut impl Dissector, side: Side, at: Boottime, bytes: &[u8], out: &mut Vec<Observation>) {
    let before = out.len();
    dissector.bytes(side, at, bytes, out);
    if let Some(Observation::Encrypted { rest }) = out[before..].last_mut() {
        let rest = std::mem::take(rest);
        tell(dissector, side, at, &bytes[bytes.len() - rest..], out);
    }
}

/// The statements, which are in order and no longer than what is kept.
pub fn statements(observations: &[Observation]) -> Vec<&Statement> {
    let statements: Vec<_> = observations
        .iter()
        .filter_map(|observation| match observation {
            Observation::Statement(statement) => Some(&**statement),
            _ => None,
        })
        .collect();
    for (statement, sequence) in statements.iter().zip(1..) {
        assert_eq!(statement.sequence, sequence);
        assert!(statement.text.len() <= LIMITS.max_statement_bytes || statement.kind == StatementKind::Admin);
        assert!(statement.text_length >= statement.text.len() as u64);
        assert!(statement.started <= statement.finished);
    }
    statements
}
