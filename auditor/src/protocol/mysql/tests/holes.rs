//! What is told around holes in the stream.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::mysql::Mysql;
use crate::protocol::{Dissector, Limits, Observation, Opaque, Outcome, Side};

const NARROW: Limits = Limits { columns: false, ..LIMITS };

/// A session that goes on with these bytes and holes.
struct Damaged {
    dissector: Mysql,
    out: Vec<Observation>,
    at: u64,
}

impl Damaged {
    fn session(flags: u64) -> Self {
        let mut damaged = Self { dissector: Mysql::new(NARROW), out: Vec::new(), at: 0 };
        for (side, bytes) in Script::session(flags).said {
            damaged.say(side, &bytes);
        }
        damaged.out.clear();
        damaged
    }

    fn say(&mut self, side: Side, bytes: &[u8]) {
        self.at += 1;
        self.dissector.bytes(side, Boottime(self.at), bytes, &mut self.out);
    }

    fn client(mut self, bytes: &[u8]) -> Self {
        self.say(Side::Client, bytes);
        self
    }

    fn server(mut self, bytes: &[u8]) -> Self {
        self.say(Side::Server, bytes);
        self
    }

    fn hole(mut self, side: Side, length: u64) -> Self {
        self.at += 1;
        self.dissector.gap(side, Boottime(self.at), length, &mut self.out);
        self
    }

    /// Each record's text, whether it was answered, and whether it is incomplete; then what else was observed.
    fn told(mut self) -> (Vec<(String, bool, bool)>, Vec<Observation>) {
        self.dissector.close(Boottime(self.at + 1), &mut self.out);
        let mut statements = Vec::new();
        let mut rest = Vec::new();
        for observation in self.out {
            match observation {
                Observation::Statement(statement) => statements.push((
                    String::from_utf8_lossy(&statement.text).into_owned(),
                    statement.outcome != Outcome::Unknown,
                    statement.incomplete,
                )),
                other => rest.push(other),
            }
        }
        (statements, rest)
    }
}

fn record(text: &str, answered: bool, incomplete: bool) -> (String, bool, bool) {
    (text.to_owned(), answered, incomplete)
}

#[test]
fn a_hole_within_a_row_harms_nothing() {
    let rows = packets(1, &[&[1], &column("a"), &eof(2), &[&[200][..], &[b'x'; 200]].concat(), &eof(2)]);
    let place = rows.len() - 150;
    let damaged = Damaged::session(0)
        .client(&query("select 1"))
        .server(&rows[..place])
        .hole(Side::Server, 100)
        .server(&rows[place + 100..])
        .client(&query("select 2"))
        .server(&packet(1, &ok(0)));
    let expected = vec![record("select 1", true, false), record("select 2", true, false)];
    assert_eq!(damaged.told(), (expected, vec![]));
}

#[test]
fn behind_a_hole_between_answers_commands_have_no_outcome() {
    let damaged = Damaged::session(0)
        .client(&[query("select 1"), query("select 2")].concat())
        .hole(Side::Server, 11)
        .server(&packet(1, &ok(0)))
        .client(&query("select 3"))
        .server(&packet(1, &ok(0)));
    let told = ["select 1", "select 2", "select 3"].map(|text| record(text, false, true));
    assert_eq!(damaged.told(), (told.to_vec(), vec![]));
}

#[test]
fn where_the_end_of_a_result_is_lost_so_is_what_follows() {
    let answer = packet(1, &done(0, 0, 2, 0));
    let damaged = Damaged::session(0)
        .client(&query("select 1"))
        .server(&answer[..6])
        .hole(Side::Server, 5)
        .client(&query("select 2"))
        .server(&answer);
    let told = ["select 1", "select 2"].map(|text| record(text, false, true));
    assert_eq!(damaged.told(), (told.to_vec(), vec![]));
}

#[test]
fn a_hole_within_a_text_harms_that_text_only() {
    let text = query("select 'abcdefgh'");
    let damaged = Damaged::session(0)
        .client(&text[..14])
        .hole(Side::Client, 4)
        .client(&text[18..])
        .server(&packet(1, &ok(0)))
        .client(&query("select 2"))
        .server(&packet(1, &ok(0)));
    let expected = vec![record("select 'a", true, true), record("select 2", true, false)];
    assert_eq!(damaged.told(), (expected, vec![]));
}

#[test]
fn behind_a_hole_between_commands_nothing_is_told() {
    let damaged = Damaged::session(0)
        .client(&query("select 1"))
        .client(&query("select 'begun")[..10])
        .hole(Side::Client, 40)
        .client(&query("select 2"));
    let expected = vec![record("select 1", false, true), record("selec", false, true)];
    assert_eq!(damaged.told(), (expected, vec![Observation::Opaque(Opaque::Hole)]));
}

#[test]
fn in_frames_every_hole_is_one_between_messages() {
    let stored = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap(), 0, 0, 0, 0, 0, 0][..], bytes].concat();
    let damaged = Damaged::session(COMPRESS)
        .client(&stored(&query("select 1")))
        .hole(Side::Server, 1)
        .client(&stored(&query("select 2")))
        .hole(Side::Client, 1)
        .client(&stored(&query("select 3")));
    let told = ["select 1", "select 2"].map(|text| record(text, false, true));
    assert_eq!(damaged.told(), (told.to_vec(), vec![Observation::Opaque(Opaque::Hole)]));
}

#[test]
fn what_was_prepared_behind_a_hole_is_told_with_its_text() {
    let damaged = Damaged::session(0)
        .hole(Side::Server, 9)
        .client(&command(0x16, b"delete from t where a = ?"))
        .client(&execute(u32::MAX, b"\0\x01\x03\0\x07\0\0\0"))
        .client(&execute(1, b"\0\x01\x03\0\x07\0\0\0"));
    let delete = "delete from t where a = ?";
    let told = vec![record(delete, false, true), record(delete, false, true), record("", false, true)];
    assert_eq!(damaged.told(), (told, vec![]));
}

#[test]
fn where_memory_is_short_commands_are_told_without_answers() {
    let mut damaged = Damaged::session(0).client(&query("select 1"));
    damaged.dissector.spare(Boottime(9), &mut damaged.out);
    let long = format!("select '{}'", "x".repeat(20_000));
    let damaged = damaged.server(&packet(1, &ok(0))).client(&query(&long));
    assert!(damaged.dissector.memory() < 10_000, "{}", damaged.dissector.memory());
    let (told, rest) = damaged.told();
    assert_eq!((told.len(), told[1].0.len(), rest), (2, 4 << 10, vec![]));
}

#[test]
fn a_hole_during_the_login_ends_the_reading() {
    let mut out = Vec::new();
    let mut dissector = Mysql::new(LIMITS);
    for (side, bytes) in Script::greeted(0).said {
        dissector.bytes(side, Boottime(0), &bytes, &mut out);
    }
    dissector.gap(Side::Client, Boottime(1), 1, &mut out);
    assert_eq!(out, [Observation::Opaque(Opaque::Hole)]);
}
