//! What becomes of requests and their answers.

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::{
    Column, CommandResult, Limits, Observation, Opaque, Outcome, Parameter, ServerError, StatementKind,
};

fn pbes(text: &str) -> Vec<u8> {
    [parse("", text, &[]), bind("", "", &[], &[]), execute(""), sync()].concat()
}

#[test]
fn a_query_is_one_record_with_all_its_commands() {
    let script = Script::session().client(&[query("INSERT; SELECT")]).server(&[
        complete("INSERT 0 3"),
        row_description(&[("id", 20)]),
        message(b'D', b"\0\x01\0\0\0\x01x"),
        complete("SELECT 1"),
        ready(b'T'),
    ]);
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!(statement.kind, StatementKind::Simple);
    assert_eq!(&statement.text[..], b"INSERT; SELECT");
    assert_eq!((statement.text_length, statement.name.as_ref(), statement.rows()), (14, None, Some(4)));
    assert_eq!(statement.columns, [Column { name: "id".into(), type_name: "int8".into() }]);
    assert_eq!((statement.transaction, &statement.outcome), (Some('T'), &Outcome::Completed));
    assert_eq!((statement.started, statement.finished), (Boottime(2), Boottime(3)));
    assert_eq!(statement.request_bytes, 20);
    assert_eq!(statement.response_bytes, script.said[3].1.len() as u64);
}

#[test]
fn an_empty_query_and_a_failed_one_have_records() {
    let script = Script::session()
        .client(&[query("")])
        .server(&[bare("I"), ready(b'I')])
        .client(&[query("BAD")])
        .server(&[error("42601"), ready(b'I')]);
    assert_eq!(script.told(), ["Simple  | completed |  | I", "Simple BAD | failed 42601 |  | I"]);
}

#[test]
fn a_long_text_is_cut_and_says_so() {
    let limits = Limits { max_statement_bytes: 4, ..LIMITS };
    for (text, kept, length) in [("SELE", "SELE", 4), ("SELEC", "SELE", 5), ("SELECT 12345", "SELE", 12)] {
        for client in [query(text), pbes(text)] {
            let server = if client[0] == b'Q' { Vec::new() } else { bare("12") };
            let script =
                Script::session().client(&[client]).server(&[server, complete("SELECT 0"), ready(b'I')]);
            let observations = script.observations_with(limits);
            let Some(Observation::Statement(statement)) = observations.last() else {
                panic!("{observations:?}")
            };
            assert_eq!((&statement.text[..], statement.text_length), (kept.as_bytes(), length));
            assert!(!statement.incomplete);
        }
    }
}

#[test]
fn an_execute_has_the_text_of_its_parse_and_the_values_of_its_bind() {
    let seven = 7_i32.to_be_bytes();
    let script = Script::session()
        .client(&[parse("s1", "SELECT $1, $2, $3, $4", &[23, 0]), describe('S', "s1"), sync()])
        .server(&[
            bare("1"),
            message(b't', b"\0\x04\0\0\0\x17\0\0\0\x19\0\0\0\x14\0\0\x40\x00"),
            bare("n"),
            ready(b'I'),
        ])
        .client(&[
            bind("p", "s1", &[1, 0, 1, 1], &[Some(&seven), Some(b"a b"), None, Some(b"\x01")]),
            execute("p"),
            sync(),
        ])
        .server(&[bare("2"), message(b'D', b"\0\0"), complete("SELECT 1"), ready(b'I')]);
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!(statement.kind, StatementKind::Prepared);
    assert_eq!(&statement.text[..], b"SELECT $1, $2, $3, $4");
    assert_eq!(statement.name.as_deref(), Some("s1"));
    let text = |text: &str| Parameter::Text(text.into());
    assert_eq!(statement.parameters, [text("7"), text("a b"), Parameter::Null, Parameter::Binary(vec![1])]);
    assert_eq!((statement.rows(), statement.transaction), (Some(1), Some('I')));
    // Bind and Execute, and their answers; neither the earlier Parse nor the Sync.
    assert_eq!(statement.request_bytes, script.said[4].1.len() as u64 - 5);
    assert_eq!(statement.response_bytes, script.said[5].1.len() as u64 - 6);
    assert_eq!((statement.started, statement.finished), (Boottime(4), Boottime(5)));
}

#[test]
fn a_name_means_what_it_meant_at_the_bind() {
    let script = Script::session()
        .client(&[parse("s", "SELECT 1", &[]), bind("p", "s", &[], &[]), close('S', "s")])
        .client(&[parse("s", "DELETE", &[]), execute("p"), bind("q", "s", &[], &[]), execute("q"), sync()])
        .server(&[bare("1231"), complete("SELECT 1"), bare("2"), complete("DELETE 1"), ready(b'I')]);
    assert_eq!(
        script.told(),
        [
            "Prepared SELECT 1 | prepared |  | -",
            "Prepared DELETE | prepared |  | -",
            "Prepared SELECT 1 | completed | SELECT 1 | -",
            "Prepared DELETE | completed | DELETE 1 | I"
        ]
    );
}

/// A Bind runs what its values' types have for input, a domain's CHECK for instance, which may be a function that executes them.
#[test]
fn what_is_bound_and_never_executed_is_told_with_its_values() {
    let bound = |portal: &str| bind(portal, "", &[], &[Some(b"DELETE FROM t")]);
    for (requests, answers) in [
        (vec![bound(""), sync()], "2"),
        (vec![bound("p"), sync()], "2"),
        (vec![bound("p"), close('P', "p"), sync()], "23"),
    ] {
        let script = Script::session().client(&[parse("", "SELECT $1", &[0])]).client(&requests).server(&[
            bare("1"),
            bare(answers),
            ready(b'I'),
        ]);
        assert_eq!(script.told(), ["Prepared SELECT $1 | prepared |  | -"], "{requests:?}");
        assert_eq!(script.statements()[0].parameters, [Parameter::Text("DELETE FROM t".into())]);
    }
}

/// Which may be EXECUTE of what has a name, and is gone when it is told.
#[test]
fn a_name_that_a_bind_may_have_executed_is_told_before_it_is_closed() {
    let script = Script::session()
        .client(&[parse("s", "DELETE", &[]), parse("", "SELECT $1", &[0])])
        .client(&[bind("", "", &[], &[Some(b"EXECUTE s")]), close('S', "s"), sync()])
        .server(&[bare("1123"), ready(b'I')]);
    assert_eq!(script.told(), ["Prepared DELETE | prepared |  | -", "Prepared SELECT $1 | prepared |  | -"]);
}

#[test]
fn a_refused_parse_does_not_change_what_a_name_means() {
    let script = Script::session()
        .client(&[parse("s", "DELETE", &[]), sync()])
        .server(&[bare("1"), ready(b'I')])
        .client(&[parse("s", "SELECT 1", &[]), sync(), bind("", "s", &[], &[]), execute(""), sync()])
        .server(&[error("42P05"), ready(b'I'), bare("2"), complete("DELETE 9"), ready(b'I')]);
    assert_eq!(
        script.told(),
        [
            "Prepared DELETE | prepared |  | -",
            "Prepared SELECT 1 | failed 42P05 |  | I",
            "Prepared DELETE | completed | DELETE 9 | I"
        ]
    );
}

#[test]
fn names_that_sql_takes_away_are_unknown() {
    let run = |sql: &str, tag: &str| {
        Script::session()
            .client(&[parse("s", "SELECT 1", &[]), sync()])
            .server(&[bare("1"), ready(b'I')])
            .client(&[query(sql)])
            .server(&[complete(tag), ready(b'I')])
            .client(&[bind("", "s", &[], &[]), execute(""), sync()])
            .server(&[bare("2"), complete("SELECT 9"), ready(b'I')])
            .told()
            .pop()
            .unwrap()
    };
    let unknown = "Prepared  | completed | SELECT 9 | I | incomplete";
    assert_eq!(run("DEALLOCATE s", "DEALLOCATE"), unknown);
    assert_eq!(run("DEALLOCATE/**/x", "DEALLOCATE"), unknown);
    assert_eq!(run("DEALLOCATE ALL", "DEALLOCATE ALL"), unknown);
    assert_eq!(run("DISCARD ALL", "DISCARD ALL"), unknown);
    assert_eq!(run("PREPARE s AS SELECT 2", "PREPARE"), unknown);
    assert_eq!(run("DEALLOCATE t", "DEALLOCATE"), "Prepared SELECT 1 | completed | SELECT 9 | I");
}

#[test]
fn cursors_that_sql_declares_are_unknown() {
    let script = Script::session()
        .client(&[query("BEGIN")])
        .server(&[complete("BEGIN"), ready(b'T')])
        .client(&[parse("", "SELECT 1", &[]), bind("c", "", &[], &[]), sync()])
        .server(&[bare("12"), ready(b'T')])
        .client(&[query("ROLLBACK; BEGIN; DECLARE c CURSOR FOR SELECT 2")])
        .server(&[complete("ROLLBACK"), complete("BEGIN"), complete("DECLARE CURSOR"), ready(b'T')])
        .client(&[execute("c"), sync()])
        .server(&[complete("SELECT 1"), ready(b'T')]);
    assert_eq!(script.told().pop().unwrap(), "Prepared  | completed | SELECT 1 | T | incomplete");
}

#[test]
fn a_text_that_the_tag_contradicts_is_not_vouched_for() {
    let script = Script::session()
        .client(&[parse("s", "SELECT 1", &[]), sync()])
        .server(&[bare("1"), ready(b'I')])
        .client(&[query("DO $$ BEGIN EXECUTE 'DEALLOCATE s'; EXECUTE 'PREPARE s AS DELETE FROM t'; END $$")])
        .server(&[complete("DO"), ready(b'I')])
        .client(&[bind("", "s", &[], &[]), execute(""), sync()])
        .server(&[bare("2"), complete("DELETE 9"), ready(b'I')]);
    assert_eq!(script.told()[2], "Prepared SELECT 1 | completed | DELETE 9 | I | incomplete");
}

#[test]
fn a_query_takes_the_unnamed_statement_away() {
    let script = Script::session()
        .client(&[parse("", "SELECT 1", &[]), sync()])
        .server(&[bare("1"), ready(b'I')])
        .client(&[query("BEGIN")])
        .server(&[complete("BEGIN"), ready(b'T')])
        .client(&[bind("", "", &[], &[]), sync()])
        .server(&[error("26000"), ready(b'E')]);
    assert_eq!(script.told()[1], "Prepared  | failed 26000 |  | E | incomplete");
}

#[test]
fn a_failed_part_is_told_with_its_execute() {
    for (answers, part) in [(vec![error("42601")], "Parse"), (vec![bare("1"), error("42601")], "Bind")] {
        let script = Script::session().client(&[pbes("BAD")]).server(&answers).server(&[ready(b'I')]);
        let [statement] = &script.statements()[..] else { panic!("{part}") };
        assert_eq!(summary(statement), "Prepared BAD | failed 42601 |  | I");
        assert_eq!(statement.request_bytes, script.said[2].1.len() as u64 - 5);
        assert_eq!(statement.finished, Boottime(3));
    }
}

#[test]
fn after_an_error_everything_up_to_sync_is_skipped() {
    let script = Script::session()
        .client(&[pbes("ONE"), parse("", "TWO", &[]), describe('S', "")])
        .client(&[parse("x", "THREE", &[]), bind("", "x", &[], &[]), execute("")])
        .client(&[query("FOUR"), sync(), pbes("FIVE")])
        .server(&[bare("12"), complete("ONE"), ready(b'T')])
        .server(&[error("42601"), ready(b'E')])
        .server(&[bare("12"), complete("FIVE"), ready(b'E')]);
    assert_eq!(
        script.told(),
        [
            "Prepared ONE | completed | ONE | T",
            "Prepared TWO | failed 42601 |  | E",
            "Prepared THREE | skipped |  | E",
            "Simple FOUR | skipped |  | E",
            "Prepared FIVE | completed | FIVE | E",
        ]
    );
}

#[test]
fn a_commit_that_fails_at_the_sync_fails_the_statement() {
    let script = Script::session().client(&[pbes("INSERT")]).server(&[
        bare("12"),
        complete("INSERT 0 1"),
        error("23503"),
        ready(b'I'),
    ]);
    assert_eq!(script.told(), ["Prepared INSERT | failed 23503 | INSERT 0 1 | I"]);
}

#[test]
fn each_execute_of_a_suspended_portal_is_a_record() {
    let script = Script::session()
        .client(&[
            parse("", "SELECT", &[]),
            bind("c", "", &[], &[Some(b"v")]),
            execute("c"),
            execute("c"),
            sync(),
        ])
        .server(&[bare("12"), bare("DDs"), bare("D"), complete("SELECT 1"), ready(b'T')]);
    let statements = script.statements();
    assert_eq!(statements[0].results, [CommandResult { tag: "PortalSuspended".into(), rows: Some(2) }]);
    assert_eq!(statements[1].results, [CommandResult { tag: "SELECT 1".into(), rows: Some(1) }]);
    assert_eq!(statements[0].parameters, statements[1].parameters);
}

#[test]
fn copy_from_the_client_counts_its_data() {
    let data = [message(b'd', b"1\n"), message(b'd', b"2\n"), message(b'c', b"")].concat();
    let script = Script::session()
        .client(&[query("COPY t FROM STDIN")])
        .server(&[message(b'G', b"\0\0\0")])
        .client(std::slice::from_ref(&data))
        .server(&[complete("COPY 2"), ready(b'I')]);
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!(summary(statement), "Copy COPY t FROM STDIN | completed | COPY 2 | I");
    assert_eq!(statement.request_bytes, (script.said[2].1.len() + data.len()) as u64);
}

#[test]
fn a_sync_during_copy_is_not_waited_for() {
    for early in [true, false] {
        let copy =
            [parse("", "COPY t FROM STDIN", &[]), bind("", "", &[], &[]), execute(""), sync()].concat();
        let data = [message(b'd', b"1\n"), message(b'c', b""), sync()].concat();
        let answer = [bare("12"), message(b'G', b"\0\0\0")].concat();
        let script = if early {
            Script::session().client(&[copy, data]).server(&[answer])
        } else {
            Script::session().client(&[copy]).server(&[answer]).client(&[data])
        };
        let script = script.server(&[complete("COPY 1"), ready(b'I')]).client(&[pbes("X")]).server(&[
            bare("12"),
            complete("X"),
            ready(b'I'),
        ]);
        assert_eq!(
            script.told(),
            ["Copy COPY t FROM STDIN | completed | COPY 1 | I", "Prepared X | completed | X | I"]
        );
    }
}

#[test]
fn a_failed_copy_ignores_what_still_comes() {
    let script = Script::session()
        .client(&[query("COPY t FROM STDIN")])
        .server(&[message(b'G', b"\0\0\0")])
        .client(&[message(b'd', b"x\n")])
        .server(&[error("22P02"), ready(b'I')])
        .client(&[message(b'd', b"y\n"), message(b'f', b"why\0"), query("X")])
        .server(&[complete("X"), ready(b'I')]);
    assert_eq!(
        script.told(),
        ["Copy COPY t FROM STDIN | failed 22P02 |  | I", "Simple X | completed | X | I"]
    );
}

#[test]
fn copy_to_the_client_counts_its_data() {
    let answer = [
        message(b'H', b"\0\0\0"),
        message(b'd', b"1\n"),
        message(b'c', b""),
        complete("COPY 1"),
        ready(b'I'),
    ];
    let script = Script::session().client(&[query("COPY t TO STDOUT")]).server(&answer);
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!((statement.kind, statement.rows()), (StatementKind::Copy, Some(1)));
    assert_eq!(statement.response_bytes, answer.concat().len() as u64);
}

#[test]
fn function_calls_have_their_number_and_values() {
    let body = [&1234_u32.to_be_bytes()[..], &values_of(&[], &[Some(b"x"), None]), &[0, 0]].concat();
    let script = Script::session()
        .client(&[message(b'F', &body)])
        .server(&[message(b'V', b"\xff\xff\xff\xff"), ready(b'I')]);
    let [statement] = &script.statements()[..] else { panic!() };
    assert_eq!(summary(statement), "Function function 1234 | completed |  | I");
    assert_eq!(statement.parameters, [Parameter::Text("x".into()), Parameter::Null]);
}

#[test]
fn notices_are_kept_up_to_a_few() {
    let notice = message(b'N', b"SHINWEIS\0VNOTICE\0C00000\0Mhello\0\0");
    let script =
        Script::session().client(&[query("DO")]).server(&[notice.repeat(20), complete("DO"), ready(b'I')]);
    let [statement] = &script.statements()[..] else { panic!() };
    let expected = ServerError { code: "00000".into(), severity: "NOTICE".into(), message: "hello".into() };
    assert_eq!(statement.notices, vec![expected; 8]);
}

#[test]
fn asynchronous_messages_may_come_anywhere() {
    let status = message(b'S', b"TimeZone\0UTC\0");
    let notification = message(b'A', b"\0\0\0\x01channel\0payload\0");
    let notice = message(b'N', b"VNOTICE\0\0");
    let noise = [status, notification, notice].concat();
    let script = Script::session()
        .server(std::slice::from_ref(&noise))
        .client(&[pbes("X")])
        .server(&[
            noise.clone(),
            bare("1"),
            noise.clone(),
            bare("2"),
            noise.clone(),
            complete("X"),
            noise.clone(),
        ])
        .server(&[ready(b'I'), noise]);
    assert_eq!(script.told(), ["Prepared X | completed | X | I"]);
}

#[test]
fn a_changed_application_name_or_user_is_a_login_again() {
    let script = Script::session().client(&[query("SET")]).server(&[
        message(b'S', b"application_name\0evil\0"),
        message(b'S', b"session_authorization\0root\0"),
        message(b'S', b"session_authorization\0root\0"),
        complete("SET"),
        ready(b'I'),
    ]);
    let logins: Vec<_> = script
        .observations()
        .into_iter()
        .filter_map(|observation| match observation {
            Observation::Login(login) => Some((login.user.unwrap(), login.application.unwrap_or_default())),
            _ => None,
        })
        .collect();
    let expected =
        [("ann", ""), ("ann", "evil"), ("root", "evil")].map(|(user, name)| (user.into(), name.into()));
    assert_eq!(logins, expected);
}

#[test]
fn a_refused_login_and_an_ended_session_are_told() {
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C28P01\0Mno\0\0");
    let refused = ServerError { code: "28P01".into(), severity: "FATAL".into(), message: "no".into() };
    let script = Script::default()
        .client(&[startup()])
        .server(&[message(b'R', b"\0\0\0\x03")])
        .client(&[message(b'p', b"hunter2\0")])
        .server(std::slice::from_ref(&fatal));
    assert_eq!(script.observations()[1..], [Observation::Refused(refused.clone())]);
    let script = Script::session().server(&[fatal]);
    assert_eq!(script.observations()[2..], [Observation::Refused(refused)]);
}

#[test]
fn no_secret_is_kept() {
    let script = Script::default()
        .client(&[startup()])
        .server(&[message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")])
        .client(&[message(b'p', b"hunter2\0")])
        .server(&[message(b'R', b"\0\0\0\x0bhunter2"), welcome()])
        .client(&[query("X")]);
    let mut dissector = crate::protocol::postgres::Postgres::new(LIMITS);
    let mut out = Vec::new();
    for (side, bytes) in &script.said {
        for byte in bytes {
            crate::protocol::Dissector::bytes(&mut dissector, *side, Boottime(0), &[*byte], &mut out);
        }
        let state = format!("{dissector:?}{out:?}");
        assert!(!state.contains("hunter") && !state.contains(&format!("{:?}", b"hunt")[1..15]), "{state}");
    }
}

#[test]
fn replication_is_not_sql() {
    let script = Script::default()
        .client(&[packet(196_610, b"user\0ann\0replication\0database\0\0")])
        .server(&[
            message(b'v', b"\0\x03\0\0\0\0\0\0"),
            message(b'R', &[0; 4]),
            message(b'K', &[1; 36]),
            ready(b'I'),
        ])
        .client(&[query("IDENTIFY_SYSTEM")])
        .server(&[bare("D"), complete("IDENTIFY_SYSTEM"), ready(b'I')])
        .client(&[query("SELECT 1")])
        .server(&[bare("D"), complete("SELECT 1"), ready(b'I')])
        .client(&[query("START_REPLICATION SLOT s LOGICAL 0/0")])
        .server(&[message(b'W', b"\0\0\0"), message(b'd', b"wal")])
        .client(&[message(b'd', b"r"), message(b'c', b"")])
        .server(&[message(b'c', b""), complete("COPY 0"), ready(b'I')]);
    assert_eq!(
        script.told(),
        [
            "Admin IDENTIFY_SYSTEM | completed | IDENTIFY_SYSTEM | I",
            "Simple SELECT 1 | completed | SELECT 1 | I",
            "Admin START_REPLICATION SLOT s LOGICAL 0/0 | completed | COPY 0 | I",
        ]
    );
}

#[test]
fn a_cancel_request_names_the_process_only() {
    let script = Script::default().client(&[packet(80_877_102, b"\0\0\x12\x67secret")]);
    let [Observation::Statement(statement)] = &script.observations()[..] else { panic!() };
    assert_eq!(summary(statement), "Admin CancelRequest 4711 | unknown |  | -");
    assert_eq!(statement.request_bytes, 18);
}

#[test]
fn encryption_is_negotiated_or_not() {
    let (ssl, gss) = (packet(80_877_103, b""), packet(80_877_104, b""));
    let plain = Script::default()
        .client(std::slice::from_ref(&gss))
        .server(&[b"N".to_vec()])
        .client(std::slice::from_ref(&ssl))
        .server(&[b"N".to_vec()])
        .client(&[startup()])
        .server(&[welcome()]);
    assert_eq!(plain.observations().len(), 2);
    let tls = Script::default().client(std::slice::from_ref(&ssl)).server(&[b"S".to_vec()]);
    assert_eq!(tls.observations(), [Observation::Encrypted { rest: 0 }]);
    let inside = tls.client(&[startup()]).server(&[welcome()]);
    assert_eq!(inside.observations().len(), 3);
    let again = Script::default()
        .client(std::slice::from_ref(&ssl))
        .server(&[b"S".to_vec()])
        .client(std::slice::from_ref(&ssl));
    assert!(matches!(again.observations()[..], [Observation::Encrypted { .. }, Observation::Violation(_)]));
    let gss = Script::default().client(&[gss]).server(&[b"G".to_vec()]).client(&[query("X")]);
    assert_eq!(gss.observations(), [Observation::Opaque(Opaque::GssEncryption)]);
    let refused = Script::default().client(&[ssl]).server(&[message(b'E', b"VFATAL\0C53300\0\0")]);
    assert!(matches!(&refused.observations()[..], [Observation::Refused(error)] if error.code == "53300"));
}

#[test]
fn plaintext_in_front_of_encryption_is_not_believed() {
    let script = Script::default().client(&[packet(80_877_103, b""), startup(), query("DROP")]);
    let reason = format!("{} bytes in the clear before encryption began", script.said[0].1.len() - 8);
    assert_eq!(script.clone().server(&[b"S".to_vec()]).observations(), [Observation::Violation(reason)]);
    // Refused, the server reads on.
    let script = script.server(&[b"N".to_vec()]).server(&[welcome(), complete("DROP"), ready(b'I')]);
    assert_eq!(script.told(), ["Simple DROP | completed | DROP | I"]);
}

#[test]
fn what_does_not_follow_the_protocol_ends_the_reading_and_loses_nothing() {
    for (side_is_client, bytes) in [
        (true, message(b'!', b"")),
        (true, message(b'p', b"late")),
        (true, b"Q\0\0\0\x01".to_vec()),
        (false, message(b'!', b"")),
        (false, bare("1")),
        (false, ready(b'x')),
        (false, message(b'R', &[0; 4])),
    ] {
        let script = Script::session().client(&[query("X")]);
        let script = if side_is_client {
            script.client(&[bytes, query("Y")])
        } else {
            script.server(&[bytes, ready(b'I')])
        };
        let observations = script.observations();
        let [_, _, Observation::Statement(statement), Observation::Violation(_)] = &observations[..] else {
            panic!("{observations:?}")
        };
        assert_eq!(summary(statement), "Simple X | unknown |  | -");
    }
    let unasked = Script::session().server(&[complete("X")]);
    assert!(matches!(unasked.observations()[2..], [Observation::Violation(_)]));
    let first = Script::default().server(&[welcome()]);
    assert!(matches!(first.observations()[..], [Observation::Violation(_)]));
}

#[test]
fn what_is_under_way_at_the_end_is_told() {
    let script = Script::session()
        .client(&[parse("s", "ONE", &[]), sync()])
        .server(&[bare("1"), ready(b'I')])
        .client(&[bind("", "s", &[], &[]), execute(""), sync(), query("TWO"), query("THREE")[..8].to_vec()])
        .server(&[bare("2"), complete("ONE")]);
    assert_eq!(
        script.told(),
        [
            "Prepared ONE | completed | ONE | -",
            "Simple TWO | unknown |  | -",
            "Simple THR | unknown |  | - | incomplete",
        ]
    );
}

#[test]
fn long_values_are_cut_and_do_not_hide_those_behind_them() {
    let long = vec![b'x'; 100_000];
    let script = Script::session()
        .client(&[
            parse("", "X", &[]),
            bind("", "", &[], &[Some(&long), Some(b"after")]),
            execute(""),
            sync(),
        ])
        .server(&[bare("12"), complete("X"), ready(b'I')]);
    let [statement] = &script.statements()[..] else { panic!() };
    let [Parameter::Cut { head, length: 100_000 }, Parameter::Text(after)] = &statement.parameters[..] else {
        panic!()
    };
    assert_eq!((head.len(), after.as_str()), (16 << 10, "after"));
}

#[test]
fn nothing_is_kept_that_is_not_wanted() {
    let limits = Limits { max_statement_bytes: 1 << 16, parameters: false, columns: false };
    let script = Script::session()
        .client(&[
            parse("", "X", &[]),
            bind("", "", &[], &[Some(b"v")]),
            describe('P', ""),
            execute(""),
            sync(),
        ])
        .server(&[bare("12"), row_description(&[("a", 25)]), complete("X"), ready(b'I')]);
    let Some(Observation::Statement(statement)) = script.observations_with(limits).pop() else { panic!() };
    assert!(statement.parameters.is_empty() && statement.columns.is_empty() && !statement.incomplete);
}

#[test]
fn a_pipeline_without_answers_is_bounded() {
    let text = "x".repeat(60_000);
    let script = Script::session().client(&vec![query(&text); 400]);
    let statements = script.play(LIMITS, |_| usize::MAX);
    let kept: usize = statements
        .iter()
        .map(|observation| match observation {
            Observation::Statement(statement) => {
                assert_eq!(statement.incomplete, statement.text.is_empty());
                assert_eq!(statement.text_length, 60_000);
                statement.text.len()
            }
            _ => 0,
        })
        .sum();
    // Those that found no room have been told at once, and then that they have not been answered.
    assert_eq!((statements.len(), kept / 60_000), (2 + 2 * 400 - (16 << 20) / 60_100, 400));
    let script = Script::session().client(&vec![sync(); (1 << 19) + 1]);
    assert!(matches!(script.play(LIMITS, |_| usize::MAX)[2..], [Observation::Violation(_)]));
}

#[test]
fn a_copy_that_fails_may_or_may_not_have_ignored_the_sync() {
    let copy = [parse("", "COPY t FROM STDIN", &[]), bind("", "", &[], &[]), execute(""), sync()].concat();
    let data = [message(b'd', b"1\n"), message(b'c', b""), sync()].concat();
    let refused = [bare("12"), message(b'G', b"\0\0\0"), error("P0001")].concat();
    for early in [true, false] {
        for answers in [1, 2] {
            let script = if early {
                let answers = ready(b'I').repeat(answers);
                Script::session().client(&[copy.clone(), data.clone()]).server(&[refused.clone(), answers])
            } else {
                let before = ready(b'I').repeat(answers - 1);
                Script::session()
                    .client(std::slice::from_ref(&copy))
                    .server(&[refused.clone(), before])
                    .client(std::slice::from_ref(&data))
                    .server(&[ready(b'I')])
            };
            let script = script.client(&[pbes("X")]).server(&[bare("12"), complete("X"), ready(b'I')]);
            assert_eq!(
                script.told(),
                ["Copy COPY t FROM STDIN | failed P0001 |  | I", "Prepared X | completed | X | I"]
            );
        }
    }
    for next in [query("X"), pbes("X"), [sync(), query("X")].concat()] {
        let syncs = next.windows(5).filter(|window| **window == sync()).count();
        let (kind, parts) = if next == pbes("X") { ("Prepared", bare("12")) } else { ("Simple", Vec::new()) };
        let extra = if kind == "Simple" { ready(b'I').repeat(syncs) } else { Vec::new() };
        let script = Script::session().client(&[copy.clone(), data.clone(), next]).server(&[
            refused.clone(),
            ready(b'I').repeat(2),
            extra,
            parts,
            complete("X"),
            ready(b'I'),
        ]);
        assert_eq!(
            script.told(),
            [
                "Copy COPY t FROM STDIN | failed P0001 |  | I".to_owned(),
                format!("{kind} X | completed | X | I")
            ]
        );
    }
}

#[test]
fn ready_for_query_alone_answers_no_query() {
    let script = Script::session().client(&[query("X")]).server(&[ready(b'I')]);
    assert!(matches!(script.observations()[3..], [Observation::Violation(_)]));
}

#[test]
fn executing_again_and_again_does_not_multiply_long_values() {
    let long = vec![b'x'; 16 << 10];
    let values = vec![Some(long.as_slice()); 4];
    let begin = [parse("", "X", &[]), bind("c", "", &[], &values)].concat();
    let count = |observations: &[Observation]| -> (usize, usize) {
        let statements = observations.iter().filter_map(|observation| match observation {
            Observation::Statement(statement) => Some(statement),
            _ => None,
        });
        let with_values = statements.clone().filter(|statement| !statement.parameters.is_empty()).count();
        assert!(statements.clone().all(|statement| statement.incomplete == statement.parameters.is_empty()));
        (statements.count(), with_values)
    };
    let script = Script::session().client(&[begin, execute("c").repeat(1000), sync()]);
    let unanswered = script.play(LIMITS, |_| usize::MAX);
    assert_eq!(count(&unanswered), (1000, (32 << 20) / (65_536 + 4 * 8)));
    let answers = [bare("12"), complete("X").repeat(1000), ready(b'I')].concat();
    let answered = script.server(&[answers]).play(LIMITS, |_| usize::MAX);
    assert_eq!(count(&answered), (1000, 1));
}
