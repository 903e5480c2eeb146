//! What must hold for any conversation, any cuts, and any bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::script::*;
use crate::protocol::tests::events::Event;
use crate::protocol::tests::properties::*;
use crate::protocol::{Observation, Protocol, Side};

/// A result with these rows.
fn result(first: u8, rows: &[Vec<u8>], status: u16) -> Vec<u8> {
    let (column, middle, end) = (column("a"), eof(2), eof(status));
    let mut all: Vec<&[u8]> = vec![&[1], &column, &middle];
    all.extend(rows.iter().map(|row| &row[..]));
    all.push(&end);
    packets(first, &all)
}

fn any_part() -> impl Strategy<Value = Part> {
    let row = "[a-z]{0,9}".prop_map(|text| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat());
    (0..8, "[ -~]{1,40}", vec(row, 0..4), select(vec![2_u16, 3])).prop_map(|(kind, text, rows, status)| {
        let run = execute(
            1,
            &[&b"\0\x01\xfd\0"[..], &[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat(),
        );
        let done = packet(1, &done(0, 1, status, 1));
        let failed = packet(1, &error(1064, "42000", &text));
        match kind {
            0 => part(query(&text), result(1, &rows, status), &["completed"]),
            1 => part(query(&text), failed, &["failed"]),
            2 => part(query(&text), [result(1, &rows, 10), done].concat(), &["completed"]),
            3 => part(run, result(1, &[], status), &["completed"]),
            4 => {
                part([run.clone(), query(&text)].concat(), [done, failed].concat(), &["completed", "failed"])
            }
            5 => part(
                [command(0x18, b"\x01\0\0\0\0\0x"), execute(1, b"\0\x01\xfd\0")].concat(),
                done,
                &["completed"],
            ),
            6 => Part {
                said: vec![
                    (Side::Client, query(&text)),
                    (Side::Server, packet(1, b"\xfbfile")),
                    (Side::Client, packets(2, &[text.as_bytes(), b""])),
                    (Side::Server, packet(4, &ok(1))),
                ],
                outcomes: vec!["completed"],
            },
            _ => part(command(0x16, text.as_bytes()), failed, &["failed"]),
        }
    })
}

/// A session in which statement 1 has one parameter.
fn conversation(parts: &[Part]) -> Script {
    let definitions = [&prepared(1, 0, 1)[..], &column("?"), &eof(2)];
    let mut script = Script::session(0).client(&command(0x16, b"select ?")).server(&packets(1, &definitions));
    script.said.extend(parts.iter().flat_map(|part| part.said.iter().cloned()));
    script
}

/// What must hold; the shortest packet has four bytes.
fn check(events: &[Event]) -> Result<(), TestCaseError> {
    in_order(&bounded(Protocol::Mysql, events, 4, 3)?)
}

fn logged_in(flags: u64) -> Vec<Event> {
    Script::session(flags).said.into_iter().map(Event::from).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn cuts_change_nothing(parts in vec(any_part(), 1..6), cuts in vec(1_usize..40, 1..50)) {
        let script = conversation(&parts);
        let whole = script.play(LIMITS, |_| usize::MAX);
        prop_assert_eq!(&whole, &script.play(LIMITS, |_| 1));
        prop_assert_eq!(&whole, &script.play(LIMITS, |piece| cuts[piece % cuts.len()]));
        let outcomes: Vec<_> = whole.iter().skip(2).filter_map(|observation| match observation {
            Observation::Statement(statement) => Some(outcome(statement)),
            // A text may be USE.
            Observation::Login(_) => None,
            _ => Some("something else"),
        }).collect();
        prop_assert_eq!(outcomes, parts.into_iter().flat_map(|part| part.outcomes).collect::<Vec<_>>());
    }

    #[test]
    fn damage_is_survived(parts in vec(any_part(), 1..6), damage in damage()) {
        let events = conversation(&parts).said.into_iter().map(Event::from).collect();
        check(&damaged(events, &damage))?;
    }

    #[test]
    fn any_bytes_are_survived(
        begun: bool,
        compressed in select(vec![0, COMPRESS, ZSTD | MYSQL]),
        said in vec((side(), vec(prop_oneof![any::<u8>(), select(b"\0\0\0\0\x01\x02\x03\x05\x16\x17\xfe\xff".to_vec())], 1..60)), 0..20),
    ) {
        let mut events = if begun { logged_in(compressed) } else { Vec::new() };
        events.extend(said.into_iter().map(Event::from));
        check(&events)?;
    }

    #[test]
    fn any_packets_are_survived(
        flags in select(vec![0, NEW_EOF | TRACK, NEW_EOF | CACHE, QUERY_ATTRIBUTES | OPTIONAL | MYSQL]),
        said in vec((
            side(),
            select(vec![0, 1, 2, 3, 4, 0x11, 0x12, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1c, 0x1f, 0xfa, 0xfb, 0xfe, 0xff]),
            vec(select(b"\0\0\0\0\x01\x01\x02\x03\x40\xfd\xfe".to_vec()), 0..24),
        ), 0..60),
    ) {
        let mut events = logged_in(flags);
        events.extend(said.into_iter().map(|(side, first, rest)| {
            let sequence = u8::from(side == Side::Server);
            Event::Bytes(side, packet(sequence, &[&[first], &rest[..]].concat()))
        }));
        check(&events)?;
    }
}
