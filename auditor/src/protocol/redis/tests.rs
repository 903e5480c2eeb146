//! Conversations as they stand in the protocol's documents and as servers were seen to have them, and what must hold for any bytes.

use proptest::prelude::*;

use super::*;
use crate::protocol::{First, Outcome, Protocol, Statement, StatementKind};

const LIMITS: Limits = Limits { max_statement_bytes: 1 << 16, parameters: true, columns: true };

/// A command as clients send it.
fn command(words: &[&str]) -> String {
    let arguments: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{arguments}", words.len())
}

#[derive(Clone, Debug)]
enum Said {
    Client(Vec<u8>),
    Server(Vec<u8>),
    Hole(Side, u64),
}

fn client(text: impl AsRef<[u8]>) -> Said {
    Said::Client(text.as_ref().to_vec())
}

fn server(text: impl AsRef<[u8]>) -> Said {
    Said::Server(text.as_ref().to_vec())
}

fn play(said: &[Said], cut: usize) -> Vec<Observation> {
    let mut redis: Box<dyn Dissector> = Box::new(Redis::new(LIMITS));
    let mut out = Vec::new();
    for (at, said) in said.iter().enumerate() {
        let at = Boottime(at as u64);
        match said {
            Said::Client(bytes) => {
                bytes.chunks(cut).for_each(|piece| redis.bytes(Side::Client, at, piece, &mut out))
            }
            Said::Server(bytes) => {
                bytes.chunks(cut).for_each(|piece| redis.bytes(Side::Server, at, piece, &mut out))
            }
            Said::Hole(side, length) => redis.gap(*side, at, *length, &mut out),
        }
        // As the next daemon would have it.
        redis = Box::new(postcard::from_bytes::<Redis>(&redis.save().unwrap()).unwrap());
    }
    redis.close(Boottime(said.len() as u64), &mut out);
    out
}

fn statements(said: &[Said]) -> Vec<Statement> {
    let found = play(said, usize::MAX);
    assert_eq!(found, play(said, 1), "cut into bytes");
    found
        .into_iter()
        .filter_map(|observation| match observation {
            Observation::Statement(statement) => Some(*statement),
            _ => None,
        })
        .collect()
}

/// Text, outcome and tag of each command.
fn told(said: &[Said]) -> Vec<String> {
    let tell = |(number, statement): (usize, Statement)| {
        assert_eq!(statement.sequence, number as u64 + 1);
        let outcome = match &statement.outcome {
            Outcome::Completed => {
                let tags: Vec<_> = statement.results.iter().map(|result| result.tag.as_str()).collect();
                tags.join(" ")
            }
            Outcome::Failed(error) => format!("-{} {}", error.code, error.message),
            Outcome::Skipped => "skipped".to_owned(),
            Outcome::Unknown => "unknown".to_owned(),
            Outcome::Prepared => "prepared".to_owned(),
        };
        format!("{} => {outcome}", String::from_utf8_lossy(&statement.text))
    };
    statements(said).into_iter().enumerate().map(tell).collect()
}

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
fn messages_belong_to_no_command() {
    let said = [
        client(command(&["SUBSCRIBE", "a", "b"])),
        server("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
        client(command(&["PING"])),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
        client(command(&["UNSUBSCRIBE"])),
        server("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n"),
        client(command(&["GET", "x"])),
        server("$-1\r\n"),
    ];
    assert_eq!(told(&said), ["SUBSCRIBE a b => *3", "PING => *2", "UNSUBSCRIBE => *3", "GET x => $-1"]);
    // A list that looks like a message is a reply all the same.
    let said = [
        client(command(&["LRANGE", "l", "0", "-1"])),
        server("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
    ];
    assert_eq!(told(&said), ["LRANGE l 0 -1 => *3"]);
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
fn unsubscribing_from_everything_has_as_many_answers_as_there_are_channels() {
    let confirmation = |word: &str, channel: &str, left: usize| {
        format!("*3\r\n${}\r\n{word}\r\n${}\r\n{channel}\r\n:{left}\r\n", word.len(), channel.len())
    };
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
    let said = [
        client([command(&["SUBSCRIBE", "a", "b"]), command(&["PSUBSCRIBE", "p"])].concat()),
        server([confirmation("subscribe", "a", 1), confirmation("subscribe", "b", 2)].concat()),
        server([confirmation("psubscribe", "p", 3), message.to_owned()].concat()),
        client([command(&["UNSUBSCRIBE"]), command(&["PUNSUBSCRIBE"]), command(&["UNSUBSCRIBE"])].concat()),
        client(command(&["LRANGE", "l", "0", "-1"])),
        server([confirmation("unsubscribe", "a", 2), confirmation("unsubscribe", "b", 1)].concat()),
        server([confirmation("punsubscribe", "p", 0), confirmation("unsubscribe", "", 0)].concat()),
        server(message),
    ];
    assert_eq!(
        told(&said),
        [
            "SUBSCRIBE a b => *3",
            "PSUBSCRIBE p => *3",
            "UNSUBSCRIBE => *3",
            "PUNSUBSCRIBE => *3",
            "UNSUBSCRIBE => *3",
            "LRANGE l 0 -1 => *3"
        ]
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
fn passwords_are_not_kept() {
    const SECRET: &str = "hunter2";
    for words in [
        &["AUTH", SECRET][..],
        &["auth", "bob", SECRET],
        &["AUTH", "bob", SECRET, SECRET],
        &["HELLO", "3", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "x", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "AUTH", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "keys", "AUTH", "bob", SECRET],
        &["HELLO", "3", "SETNAME", "AUTH", "bob", SECRET],
        &["CONFIG", "SET", "requirepass", SECRET],
        &["config", "set", "maxmemory", "1", "masterauth", SECRET],
        &["ACL", "SETUSER", "bob", "on", ">hunter2", "<hunter2", "#hunter2", "!hunter2", "+@all"],
        &["MIGRATE", "h", "1", "k", "0", "10", "AUTH", SECRET],
        &["MIGRATE", "h", "1", "", "0", "10", "COPY", "AUTH2", "bob", SECRET, "KEYS", "a"],
        &["SENTINEL", "SET", "m", "auth-pass", SECRET],
        &["SENTINEL", "CONFIG", "SET", "sentinel-pass", SECRET],
    ] {
        let error = format!("-ERR syntax error at '{SECRET}'\r\n");
        for text in [command(words), words.join(" ").replace("  ", " \"\" ") + "\r\n"] {
            let said = [client(text), server(&error)];
            let told = told(&said);
            assert_eq!(told.len(), 1);
            assert!(!told[0].contains(SECRET) && told[0].contains("(redacted)"), "{told:?}");
        }
    }
    let said = [client(command(&["ACL", "SETUSER", "bob", ">x", "~k*"])), server("+OK\r\n")];
    assert_eq!(told(&said), ["ACL SETUSER bob >(redacted) ~k* => +OK"]);
    let said =
        [client(command(&["MIGRATE", "h", "1", "", "0", "10", "KEYS", "AUTH", "x"])), server("+OK\r\n")];
    assert_eq!(told(&said), [r#"MIGRATE h 1 "" 0 10 KEYS AUTH x => +OK"#]);
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
fn holes_harm_as_little_as_they_must() {
    let long = "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$10\r\n01";
    // Within an argument, and up to its end.
    for (hole, rest) in [(5, "789\r\n"), (10, "")] {
        let said = [
            client(long),
            Said::Hole(Side::Client, hole),
            client(rest),
            server("+OK\r\n"),
            client(command(&["PING"])),
            server("+PONG\r\n"),
        ];
        let found = statements(&said);
        assert_eq!(found.iter().map(|statement| statement.incomplete).collect::<Vec<_>>(), [true, false]);
        assert_eq!(found[0].outcome, Outcome::Completed);
    }
    let said = [client(long), Said::Hole(Side::Client, 50), client(command(&["PING"]))];
    assert_eq!(told(&said), ["SET a 01 => unknown"]);
    assert!(play(&said, 3).contains(&Observation::Opaque(Opaque::Hole)));
    // In the server's bytes.
    let said = [
        client(command(&["GET", "a"])),
        server("$10\r\n01"),
        Said::Hole(Side::Server, 5),
        server("789\r\n"),
        client(command(&["GET", "b"])),
        Said::Hole(Side::Server, 5),
        server("+OK\r\n"),
        client(command(&["PING"])),
        server("+PONG\r\n"),
    ];
    assert_eq!(told(&said), ["GET a => $10", "GET b => unknown", "PING => unknown"]);
}

#[test]
fn what_is_left_of_a_command_has_no_password() {
    const SECRET: &str = "hunter2";
    for (words, name) in [(&["HELLO", "3", "AUTH", "bob", SECRET][..], "HELLO"), (&["AUTH", SECRET], "AUTH")]
    {
        let bytes = command(words);
        let argument = bytes.find(&format!("\r\n{name}")).unwrap() + 3;
        for cut in argument..bytes.len() {
            let mut redis = Redis::new(LIMITS);
            let mut out = Vec::new();
            redis.bytes(Side::Client, Boottime(0), &bytes.as_bytes()[..cut], &mut out);
            redis.spare(Boottime(1), &mut out);
            redis.bytes(Side::Client, Boottime(2), &bytes.as_bytes()[cut..], &mut out);
            redis.close(Boottime(3), &mut out);
            let [Observation::Statement(statement)] = &out[..] else { panic!("{out:?}") };
            let text = String::from_utf8_lossy(&statement.text);
            assert!(!text.contains("hunter") && statement.incomplete, "{cut}: {text}");
        }
        // One byte of it is lost.
        for cut in argument..bytes.len() - 1 {
            let said = [
                client(&bytes[..cut]),
                Said::Hole(Side::Client, 1),
                client(&bytes[cut + 1..]),
                server("-ERR what is 'hunter2'\r\n"),
            ];
            for found in told(&said) {
                assert!(!found.contains("hunter"), "{cut}: {found}");
            }
        }
    }
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
fn headers_end_as_the_server_reads_them() {
    let said = [client("*1\rx$4\r*PING\r\n*0\r\r*-1\r\n*1\r\n$4\r\nQUIT\r\n"), server("+PONG\r\n+OK\r\n")];
    assert_eq!(told(&said), ["PING => +PONG", "QUIT => +OK"]);
    assert_eq!(
        split(b" \x0b\x0cget a\x0bb\x0cc d"),
        Some(vec![b"get".into(), b"a\x0bb\x0cc".into(), b"d".into()])
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

#[test]
fn texts_are_cut_and_memory_is_bounded() {
    let value = "x".repeat(1 << 20);
    let said = [client(command(&["SET", "a", &value])), server("+OK\r\n")];
    let mut redis = Redis::new(LIMITS);
    let mut out = Vec::new();
    for said in &said {
        match said {
            Said::Client(bytes) => redis.bytes(Side::Client, Boottime(0), bytes, &mut out),
            Said::Server(bytes) => redis.bytes(Side::Server, Boottime(0), bytes, &mut out),
            Said::Hole(..) => unreachable!(),
        }
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

#[test]
fn it_is_told_by_its_first_bytes() {
    let all = |text: &str| crate::protocol::detect(First { client: text.as_bytes(), server: &[] });
    let long = format!("set k {}", "x".repeat(2000));
    let blank = "\r\n".repeat(300) + "PING\r\n";
    for yes in [
        "*1\r\n$4\r\nPING\r\n",
        "*3\r\n$",
        "*3\rx$",
        "*0\r\n*-1\r\n\r\n*1\r\n$",
        "PING\r\n",
        "\r\n \r\n  PING\r\n",
        "auth x\r\n",
        "GET /a\r\n",
        "set k v\n",
        "UNLINK k\r\n",
        "\"unlink\" k\r\n",
        "un'link' k\r\n",
        &long,
        &blank,
    ] {
        assert_eq!(all(yes), Detection::Yes(Protocol::Redis), "{yes}");
    }
    for more in ["", "*", "*12", "*1\r", "*1\r\n", "*0\r\n", "*-", "\r\n", " ", "P", "PIN", "PING", "PING\r"]
    {
        assert_eq!(detect(more.as_bytes()), Detection::Incomplete, "{more}");
    }
    for no in [
        "*a",
        "*1\r\n:",
        "GET / HTTP/1.1\r\n",
        "EHLO x\r\n",
        "PINGS\r\n",
        "\x16\x03\x01",
        "PUT / HTTP/1.1\r\n",
    ] {
        assert_eq!(detect(no.as_bytes()), Detection::No, "{no}");
    }
}

proptest! {
    #[test]
    fn arguments_come_back_from_a_text(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 1..6)) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in &words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        let found = statements(&[Said::Client(bytes)]);
        // Letters that are not ASCII stand as they are, and a zero ends a line of the server's: this reads them both.
        prop_assert_eq!(split(&found[0].text), Some(words));
    }

    #[test]
    fn cuts_change_nothing(said in proptest::collection::vec((any::<bool>(), "[*$+:>%0-9a-zA-Z \r\n-]{0,40}"), 0..12), cut in 1_usize..9) {
        let said: Vec<Said> = said
            .into_iter()
            .map(|(is_client, text)| {
                let text = text.replace('\n', "\r\n");
                if is_client { client(text) } else { server(text) }
            })
            .collect();
        prop_assert_eq!(play(&said, usize::MAX), play(&said, cut));
    }
}
