//! What must hold on any connection, whatever its bytes and however they are cut and damaged.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::events::{Daemons, Event, play};
use crate::protocol::{Limits, Observation, Outcome, Protocol, Side, Statement, StatementKind};

/// So little that what is said does not fit.
pub(in crate::protocol) const NARROW: Limits =
    Limits { max_statement_bytes: 30, parameters: true, columns: true };

/// A part of a conversation with a database: what both sides say, and the outcomes of the records that it makes.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Part {
    pub(in crate::protocol) said: Vec<(Side, Vec<u8>)>,
    pub(in crate::protocol) outcomes: Vec<&'static str>,
}

pub(in crate::protocol) fn part(client: Vec<u8>, server: Vec<u8>, outcomes: &[&'static str]) -> Part {
    Part { said: vec![(Side::Client, client), (Side::Server, server)], outcomes: outcomes.to_vec() }
}

pub(in crate::protocol) fn outcome(statement: &Statement) -> &'static str {
    match statement.outcome {
        Outcome::Completed => "completed",
        Outcome::Failed(_) => "failed",
        Outcome::Skipped => "skipped",
        Outcome::Unknown => "unknown",
    }
}

/// What comes of events under [`NARROW`]: the same whatever the cuts, and whoever reads on; and no more than one observation for each
/// message, of which the shortest has so many bytes, and some more.
pub(in crate::protocol) fn bounded(
    protocol: Protocol,
    events: &[Event],
    shortest: usize,
    more: usize,
) -> Result<Vec<Observation>, TestCaseError> {
    let whole = play(protocol, NARROW, events, |_| usize::MAX, Daemons::One);
    prop_assert_eq!(&whole, &play(protocol, NARROW, events, |_| 1, Daemons::One));
    prop_assert_eq!(&whole, &play(protocol, NARROW, events, |_| 7, Daemons::Many));
    let bytes: usize =
        events.iter().map(|event| if let Event::Bytes(_, bytes) = event { bytes.len() } else { 0 }).sum();
    prop_assert!(whole.len() <= bytes / shortest + more, "{} observations of {bytes} bytes", whole.len());
    Ok(whole)
}

/// Statements under [`NARROW`] are in order, and no longer than what is kept.
pub(in crate::protocol) fn in_order(observations: &[Observation]) -> Result<(), TestCaseError> {
    let mut sequence = 0;
    for observation in observations {
        if let Observation::Statement(statement) = observation {
            sequence += 1;
            prop_assert_eq!(statement.sequence, sequence);
            let admin = statement.kind == StatementKind::Admin;
            prop_assert!(statement.text.len() <= NARROW.max_statement_bytes || admin);
            prop_assert!(statement.text_length >= statement.text.len() as u64);
            prop_assert!(statement.started <= statement.finished);
        }
    }
    Ok(())
}

pub(in crate::protocol) fn side() -> impl Strategy<Value = Side> {
    select(vec![Side::Client, Side::Server])
}

/// One thing that goes wrong on a connection.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Damage {
    event: Index,
    place: Index,
    kind: DamageKind,
}

#[derive(Clone, Debug)]
enum DamageKind {
    /// A byte is another one.
    Changed(u8),
    /// So many bytes at most are lost.
    Lost(usize),
    /// A hole out of nothing.
    Hole(Side, u64),
}

pub(in crate::protocol) fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let kind = prop_oneof![
        any::<u8>().prop_map(DamageKind::Changed),
        (1_usize..60).prop_map(DamageKind::Lost),
        (side(), 1_u64..60).prop_map(|(side, length)| DamageKind::Hole(side, length)),
    ];
    let one = (any::<Index>(), any::<Index>(), kind);
    vec(one.prop_map(|(event, place, kind)| Damage { event, place, kind }), 1..6)
}

pub(in crate::protocol) fn damaged(mut events: Vec<Event>, damage: &[Damage]) -> Vec<Event> {
    for Damage { event, place, kind } in damage {
        let at = event.index(events.len());
        if let Event::Bytes(side, bytes) = &mut events[at] {
            let (side, place) = (*side, place.index(bytes.len()));
            match kind {
                DamageKind::Changed(byte) => bytes[place] = *byte,
                DamageKind::Lost(length) => {
                    let after = bytes.split_off(place);
                    let (lost, rest) = after.split_at(after.len().min(*length));
                    events.insert(at + 1, Event::Hole(side, lost.len() as u64));
                    events.insert(at + 2, Event::Bytes(side, rest.to_vec()));
                }
                DamageKind::Hole(side, length) => events.insert(at, Event::Hole(*side, *length)),
            }
        }
        events.retain(|event| !matches!(event, Event::Bytes(_, bytes) if bytes.is_empty()));
    }
    events
}
