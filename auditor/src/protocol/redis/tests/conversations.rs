//! What each command and its reply become, as it stands in the protocol's documents and as servers were seen to have it.

use super::script::*;
use crate::protocol::redis::split;
use crate::protocol::{Observation, StatementKind};

#[test]
fn replies_go_with_commands_in_their_order() {
    let pipeline =
        [command(&["SET", "a", "1"]), command(&["GET", "a"]), command(&["LRANGE", "l", "0", "-1"])].concat();
    let replies = "+OK\r\n$1\r\n1\r\n*3\r\n$1\r\nx\r\n*1\r\n:1\r\n$-1\r\n";
    let said = [client(pipeline), server(replies)];
    assert_eq!(told(&said), ["SET a 1 => +OK", "GET a => $1", "LRANGE l 0 -1 => *3"]);
    let first = &statements(&said)[0];
    assert_eq!((first.request_bytes, first.response_bytes, first.kind), (27, 5, StatementKind::Simple));
    assert_eq!(statements(&said)[2].results[0].rows, Some(3));
}

#[test]
fn lines_are_commands_too() {
    let said = [
        client("PING\r\n\r\nset 'a b' \"x\\x00\\n\"\n"),
        server("+PONG\r\n+OK\r\n"),
        client("get \"a"),
        client(" b\"\r\n"),
        server("$-1\r\n"),
    ];
    assert_eq!(told(&said), ["PING => +PONG", r#"set "a b" "x\x00\n" => +OK"#, r#"get "a b" => $-1"#]);
}

#[test]
fn headers_end_as_the_server_reads_them() {
    let said = [client("*1\rx$4\r*PING\r\n*0\r\r*-1\r\n*1\r\n$4\r\nQUIT\r\n"), server("+PONG\r\n+OK\r\n")];
    assert_eq!(told(&said), ["PING => +PONG", "QUIT => +OK"]);
    assert_eq!(
        split(b" \x0b\x0cget a\x0bb\x0cc d"),
        Some(vec![b"get".into(), b"a\x0bb\x0cc".into(), b"d".into()])
    );
}

#[test]
fn errors_and_redirects_are_outcomes() {
    let said = [
        client([command(&["GET", "x"]), command(&["INCR", "s"]), command(&["EVAL", "x", "0"])].concat()),
        server(
            "-MOVED 3999 127.0.0.1:6381\r\n-ERR value is not an integer or out of range\r\n!9\r\nSYNTAX no\r\n",
        ),
    ];
    assert_eq!(
        told(&said),
        [
            "GET x => -MOVED 3999 127.0.0.1:6381",
            "INCR s => -ERR value is not an integer or out of range",
            "EVAL x 0 => -ERR "
        ]
    );
}

#[test]
fn resp3_has_pushes_maps_and_attributes() {
    let said = [
        client(command(&["HELLO", "3"])),
        server("%2\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:7\r\n"),
        client([command(&["SUBSCRIBE", "a"]), command(&["GET", "k"])].concat()),
        server(">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"),
        server("|1\r\n+ttl\r\n:3\r\n$3\r\nabc\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"),
        client(
            [command(&["A"]), command(&["B"]), command(&["C"]), command(&["D"]), command(&["E"])].concat(),
        ),
        server("~2\r\n#t\r\n,1.5\r\n(123\r\n=7\r\ntxt:abc\r\n_\r\n*0\r\n"),
    ];
    let expected = [
        "HELLO 3 => %2",
        "SUBSCRIBE a => >3",
        "GET k => $3",
        "A => ~2",
        "B => (",
        "C => =7",
        "D => _",
        "E => *0",
    ];
    assert_eq!(told(&said), expected);
}

#[test]
fn what_a_script_answers_is_no_message() {
    let said = [
        client(
            [
                command(&["EVAL", "return {'subscribe','x',5}", "0"]),
                command(&["EVAL", "return {'message'}", "0"]),
                command(&["CONFIG", "SET", "maxmemory", "banana"]),
                command(&["FLUSHALL"]),
            ]
            .concat(),
        ),
        server("*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:5\r\n*1\r\n$7\r\nmessage\r\n-ERR no\r\n+OK\r\n"),
    ];
    assert_eq!(
        told(&said),
        [
            r#"EVAL "return {'subscribe','x',5}" 0 => *3"#,
            r#"EVAL "return {'message'}" 0 => *1"#,
            "CONFIG SET maxmemory banana => -ERR no",
            "FLUSHALL => +OK"
        ]
    );
    // Where there are pushes, arrays are answers; until HELLO 2.
    let said = [
        client([command(&["HELLO", "3"]), command(&["SUBSCRIBE", "c"])].concat()),
        server("%1\r\n$5\r\nproto\r\n:3\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"),
        client([command(&["LRANGE", "l", "0", "-1"]), command(&["HELLO", "2"]), command(&["PING"])].concat()),
        server("*2\r\n$7\r\nmessage\r\n$1\r\na\r\n*2\r\n$5\r\nproto\r\n:2\r\n"),
        server("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\na\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
    ];
    assert_eq!(
        told(&said),
        ["HELLO 3 => %1", "SUBSCRIBE c => >3", "LRANGE l 0 -1 => *2", "HELLO 2 => *2", "PING => *2"]
    );
}

#[test]
fn from_client_reply_off_on_nothing_is_known() {
    for how in ["SKIP", "OFF"] {
        let said = [
            client(
                [command(&["GET", "a"]), command(&["CLIENT", "REPLY", how]), command(&["GET", "b"])].concat(),
            ),
            server("+QUEUED\r\n$1\r\n1\r\n-NOPERM no\r\n-ERR no\r\n"),
            client(command(&["FLUSHALL"])),
            server("+OK\r\n"),
        ];
        let reply = format!("CLIENT REPLY {how} => unknown");
        assert_eq!(
            told(&said),
            ["GET a => unknown", reply.as_str(), "GET b => unknown", "FLUSHALL => unknown"]
        );
    }
    let said = [client(command(&["CLIENT", "REPLY", "ON"])), server("+OK\r\n")];
    assert_eq!(told(&said), ["CLIENT REPLY ON => +OK"]);
}

#[test]
fn after_monitor_and_replication_nothing_is_known() {
    let line = "+1700000000.000000 [0 127.0.0.1:1] \"get\" \"x\"\r\n";
    let said = [
        client(command(&["MONITOR"])),
        server(format!("+OK\r\n{line}{line}")),
        client([command(&["GET", "x"]), command(&["SET", "x", "1"])].concat()),
        server(format!("{line}$5\r\nhello\r\n{line}+OK\r\n")),
    ];
    assert_eq!(told(&said), ["MONITOR => +OK", "GET x => unknown", "SET x 1 => unknown"]);
    let said = [
        client(command(&["PSYNC", "?", "-1"])),
        server("+FULLRESYNC abc 0\r\n$5\r\nREDIS"),
        client(command(&["REPLCONF", "ACK", "0"])),
    ];
    assert_eq!(told(&said), ["PSYNC ? -1 => +FULLRESYNC abc 0", "REPLCONF ACK 0 => unknown"]);
    assert_eq!(statements(&said)[0].kind, StatementKind::Admin);
}

#[test]
fn the_server_says_who_is_who() {
    let said = [
        client(
            [
                command(&["AUTH", "bob", "x"]),
                command(&["SELECT", "3"]),
                command(&["CLIENT", "SETNAME", "job"]),
            ]
            .concat(),
        ),
        server("-WRONGPASS no\r\n+OK\r\n+OK\r\n"),
        client(command(&["AUTH", "bob", "y"])),
        server("+OK\r\n"),
    ];
    let logins: Vec<_> = play(&said, 7)
        .into_iter()
        .filter_map(|observation| match observation {
            Observation::Login(login) => Some((login.user, login.database, login.application)),
            _ => None,
        })
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        logins,
        [(None, some("3"), None), (None, some("3"), some("job")), (some("bob"), some("3"), some("job"))]
    );
}

#[test]
fn what_a_server_refuses_is_a_violation() {
    for bytes in
        ["*x\r\n", "*1\r\n+a\r\n", "*1\r\n$-5\r\n", "get \"a\r\n", "*3000000000\r\n", "*1\r\n$600000000\r\n"]
    {
        let found = play(&[client(bytes)], usize::MAX);
        assert!(matches!(found.last(), Some(Observation::Violation(_))), "{bytes}: {found:?}");
    }
    let said = [client(command(&["GET", "a"])), server("HTTP/1.1 400 Bad Request\r\n")];
    assert!(matches!(play(&said, 5).last(), Some(Observation::Violation(_))));
}
