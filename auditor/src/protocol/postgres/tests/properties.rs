//! What must hold for any conversation, any cuts, and any bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::postgres::Postgres;
use crate::protocol::{Dissector, Limits, Observation, Outcome, Side};

/// A part of a conversation: what both sides say, and the outcomes of the records that it makes.
#[derive(Clone, Debug)]
struct Part {
    said: Vec<(Side, Vec<u8>)>,
    outcomes: Vec<&'static str>,
}

fn part(client: Vec<u8>, server: Vec<u8>, outcomes: &[&'static str]) -> Part {
    Part { said: vec![(Side::Client, client), (Side::Server, server)], outcomes: outcomes.to_vec() }
}

fn any_part() -> impl Strategy<Value = Part> {
    let text = "[ -~]{0,40}";
    let value = prop_oneof![Just(None), vec(any::<u8>(), 0..20).prop_map(Some)];
    let noise = select(vec![
        Vec::new(),
        message(b'A', b"\0\0\0\x01c\0p\0"),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'N', b"VNOTICE\0C00000\0Mhm\0\0"),
    ]);
    let rows = (0_usize..4).prop_map(|rows| message(b'D', b"\0\x01\0\0\0\x01x").repeat(rows));
    (0..9, text, vec(value, 0..4), noise, rows, select(vec![b'I', b'T', b'E'])).prop_map(
        |(kind, text, values, noise, rows, state)| {
            let values: Vec<_> = values.iter().map(Option::as_deref).collect();
            let run = [bind("", "s", &[], &values), execute(""), sync()].concat();
            let done = [bare("2"), rows.clone(), noise.clone(), complete("SELECT 1"), ready(state)].concat();
            let named = [close('S', "s"), parse("s", &text, &[25])].concat();
            match kind {
                0 => part(
                    query(&text),
                    [rows, noise, complete("SELECT 1"), ready(state)].concat(),
                    &["completed"],
                ),
                1 => part(query(&text), [rows, noise, error("XX000"), ready(state)].concat(), &["failed"]),
                2 => part([named, run].concat(), [bare("31"), done].concat(), &["completed"]),
                3 => part(
                    [named, run].concat(),
                    [bare("3"), error("42601"), ready(state)].concat(),
                    &["failed"],
                ),
                4 => part(
                    [named, execute("none"), run].concat(),
                    [bare("31"), error("34000"), noise, ready(state)].concat(),
                    &["failed", "skipped"],
                ),
                5 => part(
                    [run.clone(), run].concat(),
                    [done.clone(), done].concat(),
                    &["completed", "completed"],
                ),
                6 => Part {
                    said: vec![
                        (Side::Client, query(&text)),
                        (Side::Server, [noise, message(b'G', b"\0\0\0")].concat()),
                        (Side::Client, [message(b'd', text.as_bytes()), sync(), message(b'c', b"")].concat()),
                        (Side::Server, [complete("COPY 1"), ready(state)].concat()),
                    ],
                    outcomes: vec!["completed"],
                },
                7 => part(
                    [parse("", &text, &[]), bind("", "", &[], &[]), execute(""), execute(""), sync()]
                        .concat(),
                    [bare("12"), rows, bare("s"), complete("SELECT 0"), ready(state)].concat(),
                    &["completed", "completed"],
                ),
                _ => part(
                    message(b'F', &[&[0, 0, 0, 9][..], &values_of(&[], &values), &[0, 0]].concat()),
                    [message(b'V', b"\xff\xff\xff\xff"), ready(state)].concat(),
                    &["completed"],
                ),
            }
        },
    )
}

fn conversation(parts: &[Part]) -> Script {
    let mut script = Script::session();
    script.said.extend(parts.iter().flat_map(|part| part.said.iter().cloned()));
    script
}

/// What happens on a connection, cut and damaged.
#[derive(Clone, Debug)]
enum Event {
    Bytes(Side, Vec<u8>),
    Hole(Side, u64),
}

fn replay(events: &[Event], limits: Limits, cut: usize) -> Vec<Observation> {
    let mut dissector = Postgres::new(limits);
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

/// The same whatever the cuts, in order, and no more than what was asked for.
fn check(events: &[Event]) -> Result<(), TestCaseError> {
    let limits = Limits { max_statement_bytes: 30, parameters: true, columns: true };
    let whole = replay(events, limits, usize::MAX);
    prop_assert_eq!(&whole, &replay(events, limits, 1));
    prop_assert_eq!(&whole, &replay(events, limits, 7));
    let bytes: usize =
        events.iter().map(|event| if let Event::Bytes(_, bytes) = event { bytes.len() } else { 0 }).sum();
    prop_assert!(whole.len() <= bytes / 5 + 2, "{} observations of {bytes} bytes", whole.len());
    let mut sequence = 0;
    for observation in &whole {
        if let Observation::Statement(statement) = observation {
            sequence += 1;
            prop_assert_eq!(statement.sequence, sequence);
            prop_assert!(
                statement.text.len() <= 30 || matches!(statement.kind, crate::protocol::StatementKind::Admin)
            );
            prop_assert!(statement.text_length >= statement.text.len() as u64);
        }
    }
    Ok(())
}

fn side() -> impl Strategy<Value = Side> {
    select(vec![Side::Client, Side::Server])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn cuts_change_nothing(parts in vec(any_part(), 1..6), cuts in vec(1_usize..40, 1..50)) {
        // The statement that kinds 5 uses exists in any order of parts.
        let mut all = vec![part([parse("s", "FIRST", &[]), sync()].concat(), [bare("1"), ready(b'I')].concat(), &[])];
        all.extend(parts);
        let script = conversation(&all);
        let whole = script.play(LIMITS, |_| usize::MAX);
        prop_assert_eq!(&whole, &script.play(LIMITS, |_| 1));
        prop_assert_eq!(&whole, &script.play(LIMITS, |piece| cuts[piece % cuts.len()]));
        let outcomes: Vec<_> = whole.iter().skip(2).map(|observation| match observation {
            Observation::Statement(statement) => match statement.outcome {
                Outcome::Completed => "completed",
                Outcome::Failed(_) => "failed",
                Outcome::Skipped => "skipped",
                Outcome::Unknown => "unknown",
                Outcome::Prepared => "prepared",
            },
            _ => "something else",
        }).filter(|outcome| *outcome != "prepared").collect();
        prop_assert_eq!(outcomes, all.into_iter().flat_map(|part| part.outcomes).collect::<Vec<_>>());
    }

    #[test]
    fn damage_is_survived(
        parts in vec(any_part(), 1..6),
        damage in vec((any::<Index>(), any::<Index>(), any::<u8>(), 0_u8..3, side(), 1_u64..60), 1..6),
    ) {
        let mut events: Vec<_> =
            conversation(&parts).said.into_iter().map(|(side, bytes)| Event::Bytes(side, bytes)).collect();
        for (which, place, byte, kind, side, length) in damage {
            let at = which.index(events.len());
            if let Event::Bytes(of, bytes) = &mut events[at] {
                let place = place.index(bytes.len());
                match kind {
                    0 => bytes[place] = byte,
                    1 => {
                        let after = bytes.split_off(place);
                        let lost = after.len().min(usize::try_from(length).unwrap());
                        let (of, rest) = (*of, after[lost..].to_vec());
                        events.insert(at + 1, Event::Hole(of, lost as u64));
                        events.insert(at + 2, Event::Bytes(of, rest));
                    }
                    _ => events.insert(at, Event::Hole(side, length)),
                }
            }
            events.retain(|event| !matches!(event, Event::Bytes(_, bytes) if bytes.is_empty()));
        }
        check(&events)?;
    }

    #[test]
    fn any_bytes_are_survived(
        logged_in: bool,
        said in vec((side(), vec(prop_oneof![any::<u8>(), select(b"QPBEDCSHXdcf12345tTnZIsGW\0\0\0\0\x04\x05\x08".to_vec())], 1..60)), 0..20),
    ) {
        let mut events = Vec::new();
        if logged_in {
            events.push(Event::Bytes(Side::Client, startup()));
            events.push(Event::Bytes(Side::Server, welcome()));
        }
        events.extend(said.into_iter().map(|(side, bytes)| Event::Bytes(side, bytes)));
        check(&events)?;
    }

    #[test]
    fn any_messages_are_survived(
        said in vec((side(), select(b"QPBEDCSHXdcfFpRKSZTDCIENA123nstGHWV".to_vec()), vec(select(b"\0\0\0\0s\x01\x02IT".to_vec()), 0..20)), 0..60),
    ) {
        let mut events = vec![Event::Bytes(Side::Client, startup()), Event::Bytes(Side::Server, welcome())];
        events.extend(said.into_iter().map(|(side, kind, body)| Event::Bytes(side, message(kind, &body))));
        check(&events)?;
    }
}
