//! What becomes of statements when bytes were lost.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::postgres::Postgres;
use crate::protocol::{Dissector, Observation, Opaque, Side, Statement};

/// What happens on a connection.
enum Event {
    Client(Vec<u8>),
    Server(Vec<u8>),
    Hole(Side, u64),
}

use Event::{Client, Hole, Server};

fn play(events: Vec<Event>) -> Vec<Observation> {
    let mut dissector = Postgres::new(LIMITS);
    let mut out = Vec::new();
    dissector.bytes(Side::Client, Boottime(0), &startup(), &mut out);
    dissector.bytes(Side::Server, Boottime(0), &welcome(), &mut out);
    for event in events {
        match event {
            Client(bytes) => dissector.bytes(Side::Client, Boottime(1), &bytes, &mut out),
            Server(bytes) => dissector.bytes(Side::Server, Boottime(1), &bytes, &mut out),
            Hole(side, length) => dissector.gap(side, Boottime(1), length, &mut out),
        }
    }
    dissector.close(Boottime(2), &mut out);
    out.split_off(2)
}

fn told(observations: &[Observation]) -> Vec<String> {
    observations
        .iter()
        .map(|observation| match observation {
            Observation::Statement(statement) => summary(statement),
            other => format!("{other:?}"),
        })
        .collect()
}

fn cut(bytes: &[u8], from: usize, to: usize) -> (Vec<u8>, Vec<u8>, u64) {
    (bytes[..from].to_vec(), bytes[to..].to_vec(), (to - from) as u64)
}

#[test]
fn a_hole_in_a_row_changes_nothing() {
    let answer = [message(b'D', &[7; 100]), complete("SELECT 1"), ready(b'I')].concat();
    let (before, after, length) = cut(&answer, 20, 105);
    let events = vec![Client(query("X")), Server(before), Hole(Side::Server, length), Server(after)];
    assert_eq!(told(&play(events)), ["Simple X | completed | SELECT 1 | I"]);
}

#[test]
fn a_hole_in_copy_data_changes_nothing() {
    let data = [message(b'd', &[7; 100]), message(b'c', b"")].concat();
    let (before, after, length) = cut(&data, 5, 60);
    let observations = play(vec![
        Client(query("COPY")),
        Server(message(b'G', b"\0\0\0")),
        Client(before),
        Hole(Side::Client, length),
        Client(after),
        Server([complete("COPY 1"), ready(b'I')].concat()),
    ]);
    assert_eq!(told(&observations), ["Copy COPY | completed | COPY 1 | I"]);
    let [Observation::Statement(statement)] = &observations[..] else { panic!() };
    assert_eq!(statement.request_bytes, (10 + data.len()) as u64);
}

#[test]
fn a_hole_in_a_text_keeps_what_came_before_it() {
    let (before, after, length) = cut(&query("SELECT secret FROM t"), 12, 18);
    let observations = play(vec![
        Client(before),
        Hole(Side::Client, length),
        Client(after),
        Server([complete("SELECT 1"), ready(b'I')].concat()),
    ]);
    assert_eq!(told(&observations), ["Simple SELECT  | completed | SELECT 1 | I | incomplete"]);
    let [Observation::Statement(statement)] = &observations[..] else { panic!() };
    assert_eq!(statement.text_length, 20);
}

#[test]
fn a_hole_up_to_the_end_of_a_message_ends_it() {
    let (before, _, length) = cut(&query("SELECT 1"), 9, 14);
    let events =
        vec![Client(before), Hole(Side::Client, length), Server([complete("X"), ready(b'I')].concat())];
    assert_eq!(told(&play(events)), ["Simple SELE | completed | X | I | incomplete"]);
}

#[test]
fn a_hole_in_a_tag_or_state_leaves_them_out() {
    let answer = [complete("SELECT 10"), ready(b'I')].concat();
    let (before, after, length) = cut(&answer, 10, 14);
    let events = vec![Client(query("X")), Server(before), Hole(Side::Server, length), Server(after)];
    assert_eq!(told(&play(events)), ["Simple X | completed | SELEC | I | incomplete"]);
    let (before, _, length) = cut(&answer, 20, 21);
    let events = vec![Client(query("X")), Server(before), Hole(Side::Server, length)];
    assert_eq!(told(&play(events)), ["Simple X | completed | SELECT 10 | - | incomplete"]);
}

#[test]
fn after_a_hole_in_the_answers_statements_have_no_outcome() {
    let observations = play(vec![
        Client([parse("s", "ONE", &[]), sync()].concat()),
        Server([bare("1"), ready(b'I')].concat()),
        Client(query("TWO")),
        Hole(Side::Server, 3),
        Server(ready(b'I')),
        Client([bind("", "s", &[], &[Some(b"v")]), execute(""), sync()].concat()),
        Server([bare("2"), complete("forged"), ready(b'I')].concat()),
        // Whether the server took this new meaning is not known.
        Client([parse("s", "OTHER", &[]), sync(), bind("", "s", &[], &[]), execute(""), sync()].concat()),
        Client([parse("t", "THREE", &[]), bind("", "t", &[], &[]), execute(""), sync()].concat()),
    ]);
    assert_eq!(
        told(&observations),
        [
            "Prepared ONE | prepared |  | -",
            "Simple TWO | unknown |  | - | incomplete",
            "Prepared ONE | unknown |  | - | incomplete",
            "Prepared OTHER | prepared |  | - | incomplete",
            "Prepared  | unknown |  | - | incomplete",
            "Prepared THREE | unknown |  | - | incomplete",
        ]
    );
}

#[test]
fn after_a_hole_in_the_requests_nothing_is_read() {
    let observations = play(vec![
        Client(query("ONE")),
        Client(query("TWO")[..7].to_vec()),
        Hole(Side::Client, 100),
        Client(query("THREE")),
        Server([complete("ONE"), ready(b'I')].concat()),
    ]);
    assert_eq!(
        told(&observations),
        [
            "Simple ONE | unknown |  | - | incomplete".to_owned(),
            "Simple TW | unknown |  | - | incomplete".into(),
            format!("{:?}", Observation::Opaque(Opaque::Hole)),
        ]
    );
}

#[test]
fn a_hole_in_a_bind_keeps_the_values_before_it() {
    let message = bind("", "", &[], &[Some(b"first"), Some(b"second"), Some(b"third")]);
    let at = message.windows(6).position(|window| window == b"second").unwrap();
    let (before, after, length) = cut(&message, at + 1, at + 3);
    let observations = play(vec![
        Client([parse("", "X", &[]), before].concat()),
        Hole(Side::Client, length),
        Client([after, execute(""), sync()].concat()),
        Server([bare("12"), complete("X"), ready(b'I')].concat()),
    ]);
    let [Observation::Statement(statement)] = &observations[..] else { panic!() };
    let Statement { parameters, incomplete: true, .. } = &**statement else { panic!() };
    assert_eq!(*parameters, [crate::protocol::Parameter::Text("first".into())]);
}

#[test]
fn a_hole_in_the_name_of_a_parse_leaves_no_name_certain() {
    let message = parse("name", "EVIL", &[]);
    let (before, after, length) = cut(&message, 6, 8);
    let observations = play(vec![
        Client([parse("name", "GOOD", &[]), sync()].concat()),
        Server([bare("1"), ready(b'I')].concat()),
        Client(before),
        Hole(Side::Client, length),
        Client([after, bind("", "name", &[], &[]), execute(""), sync()].concat()),
        Server([bare("12"), complete("X"), ready(b'I')].concat()),
    ]);
    assert_eq!(
        told(&observations),
        ["Prepared GOOD | prepared |  | -", "Prepared  | completed | X | I | incomplete"]
    );
}

#[test]
fn a_hole_before_the_session_ends_the_reading() {
    for early in [&b""[..], &startup()[..10]] {
        let mut dissector = Postgres::new(LIMITS);
        let mut out = Vec::new();
        dissector.bytes(Side::Client, Boottime(0), early, &mut out);
        dissector.gap(Side::Client, Boottime(0), 1, &mut out);
        dissector.bytes(Side::Client, Boottime(0), &startup(), &mut out);
        assert_eq!(out, [Observation::Opaque(Opaque::Hole)]);
    }
}

#[test]
fn a_hole_in_the_authentication_does_no_harm() {
    let mut dissector = Postgres::new(LIMITS);
    let mut out = Vec::new();
    dissector.bytes(Side::Client, Boottime(0), &startup(), &mut out);
    let (before, after, length) = cut(&welcome(), 7, 9);
    dissector.bytes(Side::Server, Boottime(0), &before, &mut out);
    dissector.gap(Side::Server, Boottime(0), length, &mut out);
    dissector.bytes(Side::Server, Boottime(0), &after, &mut out);
    assert_eq!(out[1..], [Observation::Authenticated]);
}
