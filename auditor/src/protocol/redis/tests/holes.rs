//! What is told where bytes are missing, cannot be read, or are more than is kept.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::redis::Redis;
use crate::protocol::tests::events::Event;
use crate::protocol::{Dissector, Observation, Opaque, Outcome, Side};

#[test]
fn holes_harm_as_little_as_they_must() {
    let long = "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$10\r\n01";
    // Within an argument, and up to its end.
    for (hole, rest) in [(5, "789\r\n"), (10, "")] {
        let said = [
            client(long),
            Event::Hole(Side::Client, hole),
            client(rest),
            server("+OK\r\n"),
            client(command(&["PING"])),
            server("+PONG\r\n"),
        ];
        let found = statements(&said);
        assert_eq!(found.iter().map(|statement| statement.incomplete).collect::<Vec<_>>(), [true, false]);
        assert_eq!(found[0].outcome, Outcome::Completed);
    }
    let said = [client(long), Event::Hole(Side::Client, 50), client(command(&["PING"]))];
    assert_eq!(told(&said), ["SET a 01 => unknown"]);
    assert!(play(&said, 3).contains(&Observation::Opaque(Opaque::Hole)));
    // In the server's bytes.
    let said = [
        client(command(&["GET", "a"])),
        server("$10\r\n01"),
        Event::Hole(Side::Server, 5),
        server("789\r\n"),
        client(command(&["GET", "b"])),
        Event::Hole(Side::Server, 5),
        server("+OK\r\n"),
        client(command(&["PING"])),
        server("+PONG\r\n"),
    ];
    assert_eq!(told(&said), ["GET a => $10", "GET b => unknown", "PING => unknown"]);
}

#[test]
fn answers_that_cannot_be_read_do_not_hide_commands() {
    for answer in ["*1\r\n".repeat(200), format!("-ERR {}\r\n", "x".repeat(70_000)), "$?\r\n".into()] {
        let said = [
            client(command(&["EVAL", "x", "0"])),
            server(answer),
            client(command(&["FLUSHALL"])),
            server("+OK\r\n"),
        ];
        assert_eq!(told(&said), ["EVAL x 0 => unknown", "FLUSHALL => unknown"]);
    }
    let said = [
        client([command(&["GET", "a"]), command(&["GET", "b"])].concat()),
        server("$-1\r\nwhat\r\n"),
        client(command(&["FLUSHALL"])),
    ];
    assert_eq!(told(&said), ["GET a => $-1", "GET b => unknown", "FLUSHALL => unknown"]);
}

#[test]
fn texts_are_cut_and_memory_is_bounded() {
    let value = "x".repeat(1 << 20);
    let said = [(Side::Client, command(&["SET", "a", &value])), (Side::Server, "+OK\r\n".to_owned())];
    let mut redis = Redis::new(LIMITS);
    let mut out = Vec::new();
    for (side, bytes) in &said {
        redis.bytes(*side, Boottime(0), bytes.as_bytes(), &mut out);
        assert!(redis.memory() < 2 * LIMITS.max_statement_bytes);
    }
    let Some(Observation::Statement(statement)) = out.last() else { panic!("{out:?}") };
    assert!(statement.text.len() <= LIMITS.max_statement_bytes && statement.text_length > 1 << 20);
    // Nobody answers.
    let many = command(&["SET", "a", &"y".repeat(1000)]).repeat(1000);
    out.clear();
    for _ in 0..200 {
        redis.bytes(Side::Client, Boottime(0), many.as_bytes(), &mut out);
        assert!(redis.memory() < 70 << 20, "{}", redis.memory());
    }
    redis.close(Boottime(0), &mut out);
    assert_eq!(out.len(), 200_000);
}
