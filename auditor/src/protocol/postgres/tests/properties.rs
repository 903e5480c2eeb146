//! What must hold for any conversation, any cuts, and any bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::script::*;
use crate::protocol::tests::events::Event;
use crate::protocol::tests::properties::*;
use crate::protocol::{Observation, Protocol, Side};

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

fn session() -> Vec<Event> {
    Script::session().said.into_iter().map(Event::from).collect()
}

/// What must hold; the shortest message has five bytes.
fn check(events: &[Event]) -> Result<(), TestCaseError> {
    in_order(&bounded(Protocol::Postgres, events, 5, 2)?)
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
            Observation::Statement(statement) => outcome(statement),
            _ => "something else",
        }).collect();
        prop_assert_eq!(outcomes, all.into_iter().flat_map(|part| part.outcomes).collect::<Vec<_>>());
    }

    #[test]
    fn damage_is_survived(parts in vec(any_part(), 1..6), damage in damage()) {
        let events = conversation(&parts).said.into_iter().map(Event::from).collect();
        check(&damaged(events, &damage))?;
    }

    #[test]
    fn any_bytes_are_survived(
        logged_in: bool,
        said in vec((side(), vec(prop_oneof![any::<u8>(), select(b"QPBEDCSHXdcf12345tTnZIsGW\0\0\0\0\x04\x05\x08".to_vec())], 1..60)), 0..20),
    ) {
        let mut events = if logged_in { session() } else { Vec::new() };
        events.extend(said.into_iter().map(Event::from));
        check(&events)?;
    }

    #[test]
    fn any_messages_are_survived(
        said in vec((side(), select(b"QPBEDCSHXdcfFpRKSZTDCIENA123nstGHWV".to_vec()), vec(select(b"\0\0\0\0s\x01\x02IT".to_vec()), 0..20)), 0..60),
    ) {
        let mut events = session();
        events.extend(said.into_iter().map(|(side, kind, body)| Event::Bytes(side, message(kind, &body))));
        check(&events)?;
    }
}
