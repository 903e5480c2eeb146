//! Commands between MULTI and its end.

use super::script::*;
use crate::protocol::{Observation, Outcome};

#[test]
fn a_transaction_is_told_by_its_end() {
    let begin =
        [command(&["MULTI"]), command(&["SET", "a", "1"]), command(&["LPOP", "a"]), command(&["GET", "a"])]
            .concat();
    let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n";
    let said = [
        client(&begin),
        server(queued),
        client(command(&["EXEC"])),
        server("*3\r\n+OK\r\n-WRONGTYPE no\r\n$1\r\n1\r\n"),
    ];
    assert_eq!(
        told(&said),
        ["MULTI => +OK", "SET a 1 => +OK", "LPOP a => -WRONGTYPE no", "GET a => $1", "EXEC => *3"]
    );
    for (end, reply, tag) in [
        ("EXEC", "*-1\r\n", "*-1"),
        ("EXEC", "_\r\n", "_"),
        ("EXEC", "-EXECABORT x\r\n", "-EXECABORT x"),
        ("DISCARD", "+OK\r\n", "+OK"),
    ] {
        let said = [client(&begin), server(queued), client(command(&[end])), server(reply)];
        let last = format!("{end} => {tag}");
        assert_eq!(
            told(&said),
            ["MULTI => +OK", "SET a 1 => skipped", "LPOP a => skipped", "GET a => skipped", last.as_str()]
        );
    }
    // One that was not queued, and an end that nobody saw.
    let said = [client(&begin), server("+OK\r\n+QUEUED\r\n-ERR wrong\r\n")];
    assert_eq!(
        told(&said),
        ["MULTI => +OK", "SET a 1 => unknown", "LPOP a => -ERR wrong", "GET a => unknown"]
    );
}

#[test]
fn a_transaction_ends_where_the_server_ends_it() {
    let said = [
        client([command(&["MULTI"]), command(&["DISCARD", "x"]), command(&["SET", "a", "1"])].concat()),
        server("+OK\r\n-ERR wrong number\r\n+QUEUED\r\n"),
        client(command(&["EXEC"])),
        server("-EXECABORT no\r\n"),
    ];
    assert_eq!(
        told(&said),
        ["MULTI => +OK", "DISCARD x => -ERR wrong number", "SET a 1 => skipped", "EXEC => -EXECABORT no"]
    );
    // Of more results than are kept apart, the rest is unknown, and not skipped.
    let many = 65_537;
    let said = [
        client([command(&["MULTI"]), command(&["PING"]).repeat(many), command(&["EXEC"])].concat()),
        server(format!("+OK\r\n{}*{many}\r\n{}", "+QUEUED\r\n".repeat(many), "+PONG\r\n".repeat(many))),
    ];
    let found = play(&said, usize::MAX);
    let outcomes = |wanted: Outcome| {
        let is = |found: &&Observation| matches!(found, Observation::Statement(one) if one.outcome == wanted);
        found.iter().filter(is).count()
    };
    assert_eq!((outcomes(Outcome::Unknown), outcomes(Outcome::Skipped)), (1, 0));
    // A count that does not fit says nothing about any of them.
    let said = [
        client([command(&["MULTI"]), command(&["GET", "a"]), command(&["EXEC"])].concat()),
        server("+OK\r\n+QUEUED\r\n*2\r\n:1\r\n:2\r\n"),
    ];
    assert_eq!(told(&said), ["MULTI => +OK", "GET a => unknown", "EXEC => *2"]);
}

#[test]
fn who_is_who_is_known_when_a_transaction_has_ended() {
    let login = |end: &str| {
        let said = [
            client([command(&["MULTI"]), command(&["SELECT", "3"]), command(&["AUTH", "bob", "x"])].concat()),
            server("+OK\r\n+QUEUED\r\n+QUEUED\r\n"),
            client(command(&["EXEC"])),
            server(end),
        ];
        let logins = play(&said, 9).into_iter().filter_map(|observation| match observation {
            Observation::Login(login) => Some((login.user, login.database)),
            _ => None,
        });
        logins.collect::<Vec<_>>()
    };
    assert_eq!(login("*-1\r\n"), []);
    assert_eq!(login("*2\r\n+OK\r\n-WRONGPASS no\r\n"), [(None, Some("3".to_owned()))]);
}
