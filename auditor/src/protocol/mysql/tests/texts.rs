//! No text is executed that is not on record: what is forgotten is told before.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::mysql::Mysql;
use crate::protocol::{Dissector, Limits, Observation, Outcome, Side, Statement, StatementKind};

/// Statements that numbers are kept of.
const KEPT: u32 = 4096;

fn prepare(text: &str) -> Vec<u8> {
    command(0x16, text.as_bytes())
}

fn told(statements: &[Statement]) -> Vec<(Option<&str>, &str, bool)> {
    fn told(statement: &Statement) -> (Option<&str>, &str, bool) {
        let Statement { name, text, outcome, kind, .. } = statement;
        assert_eq!(*kind, StatementKind::Prepared);
        (name.as_deref(), std::str::from_utf8(text).unwrap(), *outcome == Outcome::Prepared)
    }
    statements.iter().map(told).collect()
}

#[test]
fn more_statements_than_are_kept_have_their_texts_on_record() {
    let numbers = 1..=KEPT + 2;
    let texts: Vec<_> = numbers.clone().map(|number| format!("delete {number}")).collect();
    let prepares: Vec<u8> = texts.iter().flat_map(|text| prepare(text)).collect();
    let answers: Vec<u8> = numbers.flat_map(|number| packet(1, &prepared(number, 0, 0))).collect();
    let executions = [execute(2, b""), execute(1, b""), execute(3, b"")].concat();
    let done = packet(1, &ok(1)).repeat(3);
    for script in [
        Script::session(0)
            .client(&[&prepares[..], &executions].concat())
            .server(&[&answers[..], &done].concat()),
        Script::session(0).client(&prepares).server(&answers).client(&executions).server(&done),
    ] {
        let statements = script.statements();
        assert_eq!(
            told(&statements),
            [
                (Some("1"), "delete 1", true),
                (Some("2"), "delete 2", true),
                (Some("2"), "", false),
                (Some("1"), "", false),
                (Some("3"), "delete 3", false),
            ]
        );
        assert!((1..).zip(&statements).all(|(place, statement)| statement.sequence == place));
    }
}

#[test]
fn what_was_executed_or_is_closed_is_not_told_again() {
    let mut script = Script::session(0)
        .client(&[prepare("executed"), execute(1, b""), prepare("closed")].concat())
        .server(&[packet(1, &prepared(1, 0, 0)), packet(1, &ok(0)), packet(1, &prepared(2, 0, 0))].concat())
        .client(&command(0x19, &2_u32.to_le_bytes()));
    for number in 3..KEPT + 3 {
        script = script.client(&prepare("other")).server(&packet(1, &prepared(number, 0, 0)));
    }
    assert_eq!(told(&script.statements()), [(Some("1"), "executed", false)]);
}

#[test]
fn where_memory_is_short_texts_are_told_before_they_are_forgotten() {
    let mut dissector = Mysql::new(LIMITS);
    let mut out = Vec::new();
    let script = Script::session(0).client(&prepare("delete")).server(&packet(1, &prepared(1, 0, 0)));
    for (side, bytes) in &script.said {
        dissector.bytes(*side, Boottime(1), bytes, &mut out);
    }
    dissector.spare(Boottime(2), &mut out);
    dissector.bytes(Side::Client, Boottime(3), &execute(1, b""), &mut out);
    let statements: Vec<_> = out.into_iter().filter_map(statement).collect();
    assert_eq!(told(&statements), [(Some("1"), "delete", true), (Some("1"), "", false)]);
}

#[test]
fn what_is_sent_beyond_what_can_wait_is_told_at_once() {
    let long = |number: usize| format!("{number} {}", "x".repeat(90_000));
    let count = (17 << 20) / 90_000;
    let mut client: Vec<u8> = (0..count).flat_map(|number| query(&long(number))).collect();
    client.extend(prepare(&long(count)));
    let script = Script::session(0).client(&client);
    let statements: Vec<_> = script.play(LIMITS, |_| usize::MAX).into_iter().filter_map(statement).collect();
    for number in 0..=count {
        let text = long(number);
        assert!(statements.iter().any(|statement| statement.text == text.as_bytes()), "{number}");
    }
    let forgotten = statements.iter().filter(|statement| statement.outcome == Outcome::Prepared);
    assert!((1..20).contains(&forgotten.count()));
}

#[test]
fn what_cannot_be_read_any_more_leaves_the_texts() {
    let limits = Limits { columns: false, ..LIMITS };
    let mut dissector = Mysql::new(limits);
    let mut out = Vec::new();
    let script = Script::session(0).client(&prepare("delete")).server(&packet(1, &prepared(1, 0, 0)));
    for (side, bytes) in &script.said {
        dissector.bytes(*side, Boottime(1), bytes, &mut out);
    }
    dissector.gap(Side::Client, Boottime(2), 7, &mut out);
    let [.., Observation::Statement(statement), Observation::Opaque(_)] = &out[..] else { panic!("{out:?}") };
    assert_eq!((&statement.text[..], &statement.outcome), (&b"delete"[..], &Outcome::Prepared));
}

fn statement(observation: Observation) -> Option<Statement> {
    match observation {
        Observation::Statement(statement) => Some(*statement),
        _ => None,
    }
}
