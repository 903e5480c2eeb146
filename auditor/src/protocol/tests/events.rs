//! What happens on a connection, played into a dissector.

use crate::clock::Boottime;
use crate::protocol::{Dissector, Limits, Observation, Protocol, Side};

/// What happens on a connection.
#[derive(Clone, Debug)]
pub(in crate::protocol) enum Event {
    Bytes(Side, Vec<u8>),
    Hole(Side, u64),
}

/// Whether one daemon sees a connection from its beginning to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::protocol) enum Daemons {
    One,
    /// After each event the next one goes on from what the one before has saved.
    Many,
}

impl From<(Side, Vec<u8>)> for Event {
    fn from((side, bytes): (Side, Vec<u8>)) -> Self {
        Self::Bytes(side, bytes)
    }
}

pub(in crate::protocol) fn client(bytes: impl AsRef<[u8]>) -> Event {
    Event::Bytes(Side::Client, bytes.as_ref().to_vec())
}

pub(in crate::protocol) fn server(bytes: impl AsRef<[u8]>) -> Event {
    Event::Bytes(Side::Server, bytes.as_ref().to_vec())
}

/// Plays events, bytes in pieces as long as `cut` says for the n-th, and then the end. Time is the event's number.
pub(in crate::protocol) fn play(
    protocol: Protocol,
    limits: Limits,
    events: &[Event],
    mut cut: impl FnMut(usize) -> usize,
    daemons: Daemons,
) -> Vec<Observation> {
    let mut dissector = protocol.dissector(limits);
    let mut out = Vec::new();
    let mut piece = 0;
    for (index, event) in events.iter().enumerate() {
        let at = Boottime(index as u64);
        match event {
            Event::Bytes(side, bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cut(piece).clamp(1, rest.len()));
                    tell(&mut *dissector, *side, at, now, &mut out);
                    (rest, piece) = (later, piece + 1);
                }
            }
            Event::Hole(side, length) => dissector.gap(*side, at, *length, &mut out),
        }
        if daemons == Daemons::Many {
            dissector = (protocol.row().restore)(&dissector.save().unwrap()).unwrap();
        }
    }
    dissector.close(Boottime(events.len() as u64), &mut out);
    out
}

/// Tells a dissector bytes. TLS is what it carries, from the byte on where it begins.
fn tell(dissector: &mut dyn Dissector, side: Side, at: Boottime, bytes: &[u8], out: &mut Vec<Observation>) {
    let before = out.len();
    dissector.bytes(side, at, bytes, out);
    if let Some(Observation::Encrypted { rest }) = out[before..].last_mut() {
        let rest = std::mem::take(rest);
        tell(dissector, side, at, &bytes[bytes.len() - rest..], out);
    }
}
