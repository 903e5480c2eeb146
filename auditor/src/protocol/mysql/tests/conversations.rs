//! What records come of which conversation.

use super::script::*;
use crate::protocol::{Observation, Outcome, Parameter, StatementKind};

fn text(text: &str) -> Parameter {
    Parameter::Text(text.into())
}

/// A result of one column with these rows, all packets from number one on.
fn result(flags: u64, rows: &[&[u8]], status: u16) -> Vec<u8> {
    let (count, column, old_end, new_end) = (vec![1], column("a"), eof(status), done(0xfe, 0, status, 0));
    let mut all: Vec<&[u8]> = vec![&count, &column];
    let middle = eof(2);
    if flags & NEW_EOF == 0 {
        all.push(&middle);
    }
    all.extend(rows);
    all.push(if flags & NEW_EOF == 0 { &old_end } else { &new_end });
    packets(1, &all)
}

#[test]
fn the_login_is_told_and_nothing_that_proves_it() {
    let flags = WITH_DB | ATTRS;
    let logins = Script::session(flags).logins();
    let [login] = &logins[..] else { panic!("{logins:?}") };
    assert_eq!((login.user.as_deref(), login.database.as_deref()), (Some("ann"), Some("shop")));
    assert_eq!(login.application.as_deref(), Some("cli"));
    assert_eq!(login.parameters, [("_pid".into(), "10".into()), ("my_token".into(), "(not kept)".into())]);
    assert!(!format!("{:?}", Script::session(flags).observations()).contains("PASSWORD"));
}

#[test]
fn a_server_may_ask_for_another_proof() {
    let script = Script::greeted(0)
        .client(&packet(1, &response(0)))
        .server(&packet(2, b"\xfecaching_sha2_password\0saltsaltsaltsaltsalt\0"))
        .client(&packet(3, b"01234567890123456789012345678901"))
        .server(&packet(4, b"\x01\x04"))
        .client(&packet(5, b"\x02"))
        .server(&packet(6, b"\x01-----BEGIN PUBLIC KEY-----"))
        .client(&packet(7, b"SECRETSECRET"))
        .server(&packet(8, &ok(0)))
        .client(&query("select 1"))
        .server(&packet(1, &ok(0)));
    assert_eq!(script.statements().len(), 1);
    assert!(!format!("{:?}", script.observations()).contains("SECRET"));
}

#[test]
fn a_proof_that_the_server_knows_is_accepted_at_once() {
    let script = Script::greeted(0)
        .client(&packet(1, &response(0)))
        .server(&packets(2, &[b"\x01\x03", &ok(0)]))
        .client(&query("select 1"))
        .server(&packet(1, &ok(7)));
    assert_eq!(script.statements()[0].rows(), Some(7));
}

#[test]
fn who_is_turned_away_is_refused() {
    let script = Script::greeted(0)
        .client(&packet(1, &response(0)))
        .server(&packet(2, &error(1045, "28000", "Access denied")));
    assert!(
        matches!(&script.observations()[..], [Observation::Login(_), Observation::Refused(error)] if error.code == "28000")
    );
    let script = Script::default().server(b"\x17\0\0\0\xff\x10\x04Too many connections");
    assert!(matches!(&script.observations()[..], [Observation::Refused(error)] if error.code == "1040"));
}

#[test]
fn tls_begins_within_the_bytes_that_ask_for_it() {
    let request = packet(1, &response(SSL)[..32]);
    let script = Script::greeted(SSL)
        .client(&[request.clone(), packet(2, &response(SSL))].concat())
        .server(&packet(3, &ok(0)))
        .client(&query("select 1"))
        .server(&packet(1, &ok(0)));
    let all = script.observations();
    assert!(matches!(&all[..2], [Observation::Encrypted { .. }, Observation::Login(_)]), "{all:?}");
    assert_eq!(script.statements().len(), 1);
    let mut dissector = crate::protocol::mysql::Mysql::new(LIMITS);
    let mut out = Vec::new();
    use crate::protocol::{Dissector as _, Side};
    for (side, bytes) in &Script::greeted(SSL).said {
        dissector.bytes(*side, crate::clock::Boottime(0), bytes, &mut out);
    }
    let hello = [&request[..], b"\x16\x03\x01"].concat();
    dissector.bytes(Side::Client, crate::clock::Boottime(0), &hello, &mut out);
    assert_eq!(out, [Observation::Encrypted { rest: 3 }]);
}

#[test]
fn a_query_has_its_result_in_both_styles() {
    for flags in [0, NEW_EOF] {
        let script = Script::session(flags).client(&query("select a from t")).server(&result(
            flags,
            &[b"\x01x", b"\xfb", b"\x03abc"],
            3,
        ));
        let [statement] = &script.statements()[..] else { panic!() };
        assert_eq!((statement.kind, &statement.text[..]), (StatementKind::Simple, &b"select a from t"[..]));
        assert_eq!((statement.rows(), statement.transaction), (Some(3), Some('T')));
        assert_eq!((&*statement.columns[0].name, &*statement.columns[0].type_name), ("a", "varchar"));
        assert_eq!((statement.request_bytes, statement.outcome.clone()), (20, Outcome::Completed));
    }
}

#[test]
fn several_results_are_one_record() {
    let more = [result(0, &[b"\x01x"], 8 | 2), packet(5, &done(0, 4, 8 | 2, 2)), result(0, &[], 2)].concat();
    let script = Script::session(0).client(&query("select 1; update t; select 2")).server(&more);
    let [statement] = &script.statements()[..] else { panic!() };
    let rows: Vec<_> = statement.results.iter().map(|result| result.rows).collect();
    assert_eq!(rows, [Some(1), Some(4), Some(0)]);
    assert_eq!(statement.notices[0].message, "2 warnings");
    let script = Script::session(0).client(&query("select 1; nonsense")).server(
        &[result(0, &[b"\x01x"], 8 | 2), packet(5, &error(1064, "42000", "You have an error"))].concat(),
    );
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!((failed(statement), statement.results.len()), ("42000", 1));
}

#[test]
fn an_error_among_rows_ends_the_statement() {
    let all = [&[1][..], &column("a"), &eof(2), b"\x01x", &error(1317, "70100", "interrupted")];
    let script = Script::session(0).client(&query("select 1")).server(&packets(1, &all));
    assert_eq!(failed(&script.statements()[0]), "70100");
}

#[test]
fn how_far_a_command_is_is_no_error() {
    let script = Script::session(0)
        .client(&query("alter table t"))
        .server(&packets(1, &[b"\xff\xff\xff\x01\x02\x03\x00\x00\x00\x05stage", &ok(0)]));
    assert_eq!(script.statements()[0].outcome, Outcome::Completed);
}

#[test]
fn a_prepared_statement_is_told_when_it_is_executed() {
    for flags in [0, NEW_EOF] {
        let (definition, end) = (column("?"), eof(2));
        let mut definitions: Vec<&[u8]> = vec![&definition, &definition];
        if flags == 0 {
            definitions.push(&end);
        }
        let head = prepared(9, 0, 2);
        definitions.insert(0, &head);
        let script = Script::session(flags)
            .client(&command(0x16, b"insert into t values (?, ?)"))
            .server(&packets(1, &definitions))
            .client(&execute(9, b"\0\x01\x03\0\xfd\0\x07\0\0\0\x02hi"))
            .server(&packet(1, &ok(1)))
            .client(&execute(9, b"\x02\0\x08\0\0\0"))
            .server(&packet(1, &ok(1)))
            .client(&command(0x19, b"\x09\0\0\0"))
            .client(&execute(9, b"\x02\0\x08\0\0\0"))
            .server(&packet(1, &error(1243, "HY000", "Unknown prepared statement")));
        let [first, second, third] = &script.statements()[..] else { panic!() };
        assert_eq!(
            (first.kind, &first.text[..]),
            (StatementKind::Prepared, &b"insert into t values (?, ?)"[..])
        );
        assert_eq!((first.name.as_deref(), &first.parameters[..]), (Some("9"), &[text("7"), text("hi")][..]));
        assert!(!first.incomplete);
        assert_eq!(second.parameters, [text("8"), Parameter::Null], "the types of before");
        assert_eq!((&third.text[..], third.incomplete, failed(third)), (&b""[..], true, "HY000"));
    }
}

#[test]
fn what_is_pipelined_means_what_the_server_makes_of_it() {
    // The number stands for another text until the server has answered.
    let one = [prepared(1, 0, 1), column("?"), eof(2)];
    let other = [prepared(2, 0, 1), column("?"), eof(2)];
    let all =
        |payloads: &[Vec<u8>]| packets(1, &payloads.iter().map(|payload| &payload[..]).collect::<Vec<_>>());
    let script = Script::session(0)
        .client(&command(0x16, b"select harmless where a = ?"))
        .server(&all(&one))
        .client(
            &[
                command(0x16, b"delete from t where a = ?"),
                execute(u32::MAX, b"\0\x01\x03\0\x07\0\0\0"),
                command(0x1f, b""),
                execute(1, b"\0\x01\x03\0\x07\0\0\0"),
            ]
            .concat(),
        )
        .server(
            &[all(&other), packet(1, &ok(1)), packet(1, &ok(0)), packet(1, &error(1243, "HY000", "no"))]
                .concat(),
        );
    let [delete, reset, unknown] = &script.statements()[..] else { panic!() };
    assert_eq!(
        (&delete.text[..], &delete.parameters[..]),
        (&b"delete from t where a = ?"[..], &[text("7")][..])
    );
    assert_eq!((delete.name.as_deref(), delete.incomplete), (Some("2"), false));
    assert_eq!((reset.kind, &reset.text[..]), (StatementKind::Admin, &b"COM_RESET_CONNECTION"[..]));
    assert_eq!((&unknown.text[..], unknown.incomplete), (&b""[..], true));
}

#[test]
fn a_statement_that_cannot_be_prepared_is_told() {
    let script = Script::session(0)
        .client(&command(0x16, b"nonsense ?"))
        .server(&packet(1, &error(1064, "42000", "You have an error")));
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!((statement.kind, failed(statement)), (StatementKind::Prepared, "42000"));
}

#[test]
fn long_values_come_in_pieces() {
    let definitions = [&prepared(1, 0, 1)[..], &column("?"), &eof(2)];
    let script = Script::session(0)
        .client(&command(0x16, b"insert into t values (?)"))
        .server(&packets(1, &definitions))
        .client(&[command(0x18, b"\x01\0\0\0\0\0long "), command(0x18, b"\x01\0\0\0\0\0value")].concat())
        .client(&execute(1, b"\0\x01\xfc\0"))
        .server(&packet(1, &ok(1)))
        .client(&execute(1, b"\0\x01\xfc\0\x01x"))
        .server(&packet(1, &ok(1)));
    let [first, second] = &script.statements()[..] else { panic!() };
    assert_eq!((&first.parameters[..], first.request_bytes), (&[text("long value")][..], 18 + 2 * 16));
    assert_eq!(second.parameters, [text("x")]);
}

#[test]
fn a_cursor_is_fetched_from() {
    let cursor = [&[1][..], &column("a"), &eof(0x42)];
    let definitions = [&prepared(1, 1, 0)[..], &column("a"), &eof(2)];
    let script = Script::session(0)
        .client(&command(0x16, b"select a from t"))
        .server(&packets(1, &definitions))
        .client(&execute(1, b""))
        .server(&packets(1, &cursor))
        .client(&command(0x1c, b"\x01\0\0\0\x02\0\0\0"))
        .server(&packets(1, &[b"\0\0\x01a", b"\0\0\x01b", &eof(0x42)]));
    let [opened, fetched] = &script.statements()[..] else { panic!() };
    assert_eq!((opened.rows(), &opened.columns[0].name[..]), (Some(0), "a"));
    assert_eq!((&fetched.text[..], fetched.rows()), (&b"COM_STMT_FETCH 1"[..], Some(2)));
}

#[test]
fn a_file_of_the_clients_is_counted_and_not_kept() {
    let script = Script::session(0)
        .client(&query("load data local infile 'x' into table t"))
        .server(&packet(1, b"\xfb/etc/passwd"))
        .client(&packets(2, &[b"\x03drop table t", b"\x01", b""]))
        .server(&packet(5, &ok(2)))
        .client(&query("select 1"))
        .server(&packet(1, &ok(0)));
    let [load, _] = &script.statements()[..] else { panic!() };
    assert_eq!((load.kind, load.rows(), load.request_bytes), (StatementKind::Copy, Some(2), 44 + 17 + 5 + 4));
    assert_eq!((&*load.notices[0].severity, &*load.notices[0].message), ("LOCAL INFILE", "/etc/passwd"));
    let early = Script::session(0)
        .client(&[query("load data local infile 'x' into table t"), query("select 1")].concat())
        .server(&packet(1, b"\xfb/etc/passwd"));
    assert!(early.violation().contains("waits for a file"));
}

#[test]
fn the_user_and_the_database_may_change() {
    let change = [&b"bob\0\x04PASSshop\0\x2d\0"[..], b"mysql_native_password\0"].concat();
    let script = Script::session(0)
        .client(&command(2, b"first"))
        .server(&packet(1, &ok(0)))
        .client(&query("USE `second`;"))
        .server(&packet(1, &ok(0)))
        .client(&command(0x11, &change))
        .server(&packet(1, b"\xfemysql_clear_password\0"))
        .client(&packet(2, b"SECRET\0"))
        .server(&packet(3, &ok(0)));
    let logins = script.logins();
    let seen: Vec<_> =
        logins.iter().map(|login| (login.user.as_deref(), login.database.as_deref())).collect();
    let ann = Some("ann");
    assert_eq!(seen, [(ann, None), (ann, Some("first")), (ann, Some("second")), (Some("bob"), Some("shop"))]);
    assert_eq!(script.statements()[2].text, "COM_CHANGE_USER bob");
    assert!(!format!("{:?}", script.observations()).contains("SECRET"));
}

#[test]
fn the_session_tells_of_its_database() {
    let told = b"\0\0\0\x02\x40\0\0\0\x07\x01\x05\x04shop";
    let script = Script::session(TRACK).client(&query("call go()")).server(&packet(1, told));
    assert_eq!(script.logins().last().unwrap().database.as_deref(), Some("shop"));
}

#[test]
fn attributes_go_with_the_text() {
    let attributes = b"\x02\x01\0\x01\xfd\0\x05trace\x03\0\x01n\x03abc\x07\0\0\0select 1";
    let script = Script::session(QUERY_ATTRIBUTES | MYSQL)
        .client(&command(3, attributes))
        .server(&packet(1, &ok(0)))
        .client(&command(3, b"\0\x01select 2"))
        .server(&packet(1, &ok(0)));
    let [first, second] = &script.statements()[..] else { panic!() };
    assert_eq!(first.text, "select 1");
    assert_eq!(first.parameters, [text("trace=abc"), text("n=7")]);
    assert_eq!((&second.text[..], second.parameters.len()), (&b"select 2"[..], 0));
}

#[test]
fn results_may_come_without_definitions() {
    for (flags, end) in
        [(CACHE | NEW_EOF, done(0xfe, 0, 2, 0)), (OPTIONAL | NEW_EOF | MYSQL, done(0xfe, 0, 2, 0))]
    {
        let script = Script::session(flags)
            .client(&query("select 1"))
            .server(&packets(1, &[b"\x01\0", b"\x01x", b"\x01y", &end]))
            .client(&query("select 2"))
            .server(&packets(1, &[b"\x01\x01", &column("a"), b"\x01x", &end]));
        let rows: Vec<_> = script.statements().iter().map(crate::protocol::Statement::rows).collect();
        assert_eq!(rows, [Some(2), Some(1)]);
    }
}

#[test]
fn rows_in_bulk_are_one_execution() {
    let definitions = [&prepared(1, 0, 2)[..], &column("?"), &column("?"), &eof(2)];
    let script = Script::session(0)
        .client(&command(0x16, b"insert into t values (?, ?)"))
        .server(&packets(1, &definitions))
        .client(&command(0xfa, b"\x01\0\0\0\x80\0\x01\0\xfd\0\0\x01\0\x01a\0\x02\x01"))
        .server(&packet(1, &ok(2)));
    let [bulk] = &script.statements()[..] else { panic!() };
    assert_eq!(bulk.parameters, [text("1"), text("a"), text("2"), Parameter::Null]);
    assert_eq!((bulk.rows(), bulk.incomplete), (Some(2), false));
}

#[test]
fn other_commands_are_told_by_name() {
    let script = Script::session(0)
        .client(&command(0x0e, b""))
        .server(&packet(1, &ok(0)))
        .client(&command(0x0c, b"\x07\0\0\0"))
        .server(&packet(1, &error(1094, "HY000", "Unknown thread id")))
        .client(&command(0x09, b""))
        .server(&packet(1, b"Uptime: 5"))
        .client(&command(0x04, b"t\0%"))
        .server(&packets(1, &[&column("a"), &column("b"), &eof(2)]))
        .client(&command(0x15, b"\x07\0\0\0\x04host\x04user\x06SECRET"))
        .server(&packet(1, &ok(0)))
        .client(&command(0x77, b""))
        .server(&packet(1, &error(1047, "08S01", "Unknown command")));
    let statements = script.statements();
    let texts: Vec<_> = statements.iter().map(|statement| String::from_utf8_lossy(&statement.text)).collect();
    assert_eq!(
        texts,
        [
            "COM_PING",
            "COM_PROCESS_KILL 7",
            "COM_STATISTICS",
            "COM_FIELD_LIST t",
            "COM_REGISTER_SLAVE 7",
            "COMMAND 119",
        ]
    );
    assert!(statements.iter().all(|statement| statement.kind == StatementKind::Admin));
    assert!(!format!("{:?}", script.observations()).contains("SECRET"));
}

#[test]
fn a_binary_log_is_named_and_not_read() {
    let script = Script::session(0)
        .client(&command(0x12, b"\x04\0\0\0\0\0\x07\0\0\0binlog.000001"))
        .server(&packets(1, &[b"\0event", b"\0event"]));
    let all = script.observations();
    let [.., Observation::Statement(dump), Observation::Opaque(crate::protocol::Opaque::Replication)] =
        &all[..]
    else {
        panic!("{all:?}")
    };
    assert_eq!((&dump.text[..], dump.kind), (&b"COM_BINLOG_DUMP binlog.000001 4"[..], StatementKind::Admin));
}

#[test]
fn frames_of_both_methods_are_unpacked() {
    use std::io::Write as _;
    let zlib = |bytes: &[u8]| {
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let zstd =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let long = format!("select '{}'", "x".repeat(40_000));
    let commands = [query("select 1"), query(&long)].concat();
    let answers = [packet(1, &ok(1)), result(0, &[b"\x01x"], 2)].concat();
    type Pack<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    for (flags, pack) in [(COMPRESS, &zlib as Pack<'_>), (ZSTD | MYSQL, &zstd)] {
        let frame = |sequence: u8, bytes: &[u8], packed: bool| {
            let (content, whole) = if packed { (pack(bytes), bytes.len()) } else { (bytes.to_vec(), 0) };
            let three = |length: usize| u32::try_from(length).unwrap().to_le_bytes()[..3].to_vec();
            [three(content.len()), vec![sequence], three(whole), content].concat()
        };
        let script = Script::session(flags)
            .client(&[frame(0, &commands[..7], false), frame(1, &commands[7..], true)].concat())
            .server(&[frame(1, &answers[..30], true), frame(2, &answers[30..], false)].concat());
        let [first, second] = &script.statements()[..] else { panic!() };
        assert_eq!((&first.text[..], first.rows()), (&b"select 1"[..], Some(1)));
        assert_eq!((second.text.len(), second.rows()), (long.len(), Some(1)));
        let mut lies = frame(0, &commands, true);
        lies[4] ^= 1;
        assert!(Script::session(flags).client(&lies).violation().contains("compressed frame"));
        let garbage = Script::session(flags).client(b"\x04\0\0\0\x09\0\0xxxx");
        assert!(garbage.violation().contains("not z"));
    }
}

#[test]
fn a_text_of_more_than_one_packet_is_one() {
    let mut text = b"select '".to_vec();
    text.resize(0xff_ffff + 5_000, b'x');
    let first = [&[3][..], &text[..0xff_fffe]].concat();
    let header = b"\xff\xff\xff\0";
    let long = [&header[..], &first, &packet(1, &text[0xff_fffe..])].concat();
    let script = Script::session(0).client(&long).server(&packet(2, &ok(0)));
    let out = script.play(LIMITS, |_| usize::MAX);
    let Some(Observation::Statement(statement)) = out.last() else { panic!() };
    assert_eq!((statement.text.len(), statement.text_length), (100_000, text.len() as u64));
    assert_eq!((statement.request_bytes, statement.outcome.clone()), (long.len() as u64, Outcome::Completed));
}

#[test]
fn what_does_not_follow_the_protocol_is_a_violation() {
    assert!(Script::default().client(b"x").violation().contains("before the server"));
    let early = Script::greeted(0).client(&[packet(1, &response(0)), query("select 1")].concat());
    assert!(early.violation().contains("does not wait"));
    assert!(Script::session(0).server(&packet(1, &ok(0))).violation().contains("no command"));
    let numbered = Script::session(0).client(&packet(1, b"\x03select 1"));
    assert!(numbered.violation().contains("packet number 1"));
    let after = Script::session(0).client(&[command(1, b""), query("select 1")].concat());
    assert!(after.violation().contains("COM_QUIT"));
    // Both are told all the same.
    let unanswered = Script::session(0).client(&[query("select 1"), packet(3, b"x")].concat());
    let told = unanswered.observations();
    assert!(matches!(&told[..], [.., Observation::Statement(_), Observation::Violation(_)]), "{told:?}");
}

#[test]
fn a_session_that_is_ended_from_elsewhere_is_told() {
    let script = Script::session(0).server(&packet(0, &error(1927, "70100", "Connection was killed")));
    assert!(
        matches!(script.observations().last(), Some(Observation::Refused(error)) if error.code == "70100")
    );
}

#[test]
fn what_is_not_answered_is_told_at_the_end() {
    let script = Script::session(0).client(&[query("select 1"), command(0x16, b"delete from t")].concat());
    let [first, second] = &script.statements()[..] else { panic!() };
    assert_eq!((&first.outcome, first.incomplete), (&Outcome::Unknown, false));
    assert_eq!((&second.text[..], &second.outcome), (&b"delete from t"[..], &Outcome::Unknown));
}
