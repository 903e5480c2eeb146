//! What statements mean stands in their records, and is found by it. That a statement changes something is judged by the server: it refuses
//! those in a transaction that may only read.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, clients, require_root};
use serde_json::{Value, json};

const AGENT: &str = "classified-agent";

/// Objects that the statements name.
const OBJECTS: &str = "create table t (a int primary key, b text); create table u (a int, b text); create schema s; \
     create table s.t (a int); create view v as select * from t; create sequence q; create materialized view m as select * from t; \
     create function f() returns int language sql as 'select 1'; create role r";

/// Each in a transaction of its own that may only read: some are refused for that, some are not.
const STATEMENTS: [&str; 44] = [
    "select * from t",
    "select count(*) from t join s.t x on x.a = t.a",
    "with x as (select * from t) select * from x",
    "with x as (delete from t returning *) select * from x",
    "with x as (insert into t values (1) returning *), y as (update u set a = 1 returning *) select * from x, y",
    "insert into t values (1, 'a')",
    "insert into t values (1, 'a') on conflict (a) do update set b = 'c'",
    "update t set b = 'x' where a in (select a from u)",
    "delete from s.t",
    "merge into t using u on t.a = u.a when matched then delete",
    "truncate t, u",
    "select * into n from t",
    "create table n as select * from t",
    "create table n (a int)",
    "create index on t (b)",
    "create view w as select * from t",
    "create schema z",
    "create role z",
    "create function g() returns int language sql as 'select 1'",
    "alter table t add column c int",
    "alter table t rename to n",
    "alter role r superuser",
    "drop table t cascade",
    "drop schema s cascade",
    "grant select on t to r",
    "revoke select on t from r",
    "comment on table t is 'x'",
    "refresh materialized view m",
    "reassign owned by r to postgres",
    "explain select * from t",
    "explain delete from t",
    "explain analyze delete from t",
    "explain (analyze, verbose) update t set b = 'x'",
    "copy (select * from t) to stdout",
    "copy (delete from t returning *) to stdout",
    "copy t to stdout",
    "copy t from stdin",
    "select nextval('q')",
    "select f(), now()",
    "values (1), (2)",
    "table t",
    "set work_mem = '8MB'",
    "prepare other as delete from t",
    "execute p",
];

fn start(more: &str) -> (Postgres, Daemon) {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    postgres.sql(OBJECTS).unwrap();
    let configuration = format!(
        "{more}[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n",
        postgres.port()
    );
    let daemon = Daemon::start(&configuration).unwrap();
    (postgres, daemon)
}

/// Has psql say it, and go on after errors.
fn say(postgres: &Postgres, daemon: &Daemon, script: &str) {
    let script = clients::write(daemon.home().folder(), "script.sql", script).unwrap();
    let port = postgres.port().to_string();
    let arguments = ["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres", "-f"];
    let mut words = vec![postgres.program("psql").into_os_string()];
    words.extend(arguments.iter().map(OsString::from));
    words.push(script.into());
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn statements(daemon: &Daemon) -> Vec<(String, Value)> {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let statement = |record: &Value| {
        let text = record["query_info"]["query_string"].as_str()?.to_owned();
        Some((text, record["unmapped"]["auditor"]["statement"].clone()))
    };
    records.iter().filter_map(statement).collect()
}

#[test]
fn what_changes_something_is_what_the_server_refuses_to_whom_may_only_read() {
    let (postgres, daemon) = start("");
    // Anew for each: code that a statement calls may prepare something else under the name, so it is not relied on afterwards.
    let prepared = "deallocate all;\nprepare p as delete from t;\n";
    let each = STATEMENTS.map(|sql| format!("{prepared}begin read only;\n{sql};\nrollback;\n"));
    let script = each.concat().replace("stdin;", "stdin;\n\\.");
    say(&postgres, &daemon, &script);
    let told = statements(&daemon);
    let mut refused = 0;
    for sql in STATEMENTS {
        let (_, statement) = told.iter().rfind(|(text, _)| text.trim_end_matches(';') == sql).expect(sql);
        let has =
            |class: &str| statement["classes"].as_array().is_some_and(|all| all.contains(&json!(class)));
        let changes = has("writes") || has("defines") || has("grants");
        let read_only = statement["error_code"] == "25006";
        refused += usize::from(read_only);
        assert_ne!(statement["classified"], json!(false), "{sql}: {statement}");
        // What is prepared changes something when it is executed; here it is enough that it would.
        let only_prepared = sql.starts_with("prepare");
        assert!(changes == read_only || only_prepared, "{sql}: {statement}");
    }
    assert!(refused >= 28, "{refused} were refused");
    daemon.stop().unwrap();
}

#[test]
fn records_are_found_by_what_they_name() {
    let (postgres, daemon) = start("");
    let script = "set search_path = s;\ndelete from t where a = 7;\nreset search_path;\nselect * from u;\n\
                  select pg_sleep(0);\nselect * from u where a = 1;\nselect * from u where a = 2;\n";
    say(&postgres, &daemon, script);
    let told = statements(&daemon);
    let of = |sql: &str| {
        told.iter().find(|(text, _)| text.trim_end_matches(';') == sql).map(|(_, own)| own).unwrap()
    };
    let delete = of("delete from t where a = 7");
    assert_eq!(delete["verb"], "delete");
    assert_eq!((&delete["objects"], &delete["resolved"]), (&json!(["t"]), &json!(["s.t"])), "{delete}");
    let fingerprint = |sql| of(sql)["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(fingerprint("select * from u where a = 1"), fingerprint("select * from u where a = 2"));
    assert_ne!(fingerprint("select * from u where a = 1"), fingerprint("select * from u"));
    let found = |arguments: &[&str]| {
        let mut log = Command::new(auditor_tests::place::target().join("debug/auditor"));
        log.arg("log").arg("--json").arg("--socket").arg(daemon.home().socket()).args(arguments);
        child::succeed(&mut log, Duration::from_secs(60)).unwrap().lines().count()
    };
    assert_eq!(found(&["--object", "u"]), 3);
    assert_eq!(found(&["--object", "s.t"]), 1);
    assert_eq!(found(&["--object", "s.*", "--verb", "delete"]), 1);
    assert_eq!(found(&["--object", "pg_sleep"]), 1);
    assert_eq!(found(&["--object", "nothing"]), 0);
    daemon.stop().unwrap();
}

#[test]
fn whatever_was_executed_by_name_has_its_text_in_the_trail() {
    // As many as the daemon keeps of one connection.
    const KEPT: usize = 4096;
    let (postgres, daemon) = start("");
    postgres.sql("create table said (word text)").unwrap();
    let script =
        clients::write(daemon.home().folder(), "names.py", include_str!("../clients/names_postgres.py"))
            .unwrap();
    let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.into()];
    words.extend([postgres.port().to_string().into(), KEPT.to_string().into()]);
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let executed = postgres.sql("select word from said").unwrap();
    let executed: Vec<&str> = executed.lines().map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(executed, ["kept 0", "pipelined 0", "long", "cut", "sql", "fetched", "function"]);
    let told = statements(&daemon);
    let of = |word: &str| {
        let text = format!("insert into said values ('{word}')");
        let place = told.iter().position(|(told, _)| told.starts_with(&text));
        place.unwrap_or_else(|| panic!("{word:?} was executed and is not in the trail"))
    };
    for word in executed {
        let (text, own) = &told[of(word)];
        assert_eq!(
            (&own["outcome"], &own["kind"]),
            (&json!("prepared"), &json!("prepared")),
            "{text}: {own}"
        );
        assert_eq!((&own["verb"], &own["classes"]), (&json!("insert"), &json!(["writes"])), "{text}: {own}");
    }
    // Before it was executed, and under the same name.
    let execution = |name: String| {
        let found = told.iter().position(|(text, own)| text.is_empty() && own["name"] == name.as_str());
        found.unwrap_or_else(|| panic!("no execution of {name}"))
    };
    for (word, name) in [("kept 0", "p0".to_owned()), ("pipelined 0", "r0".into()), ("long", "l".repeat(63))]
    {
        let (first, then) = (of(word), execution(name.clone()));
        assert!(first < then, "{word}");
        assert_eq!(told[first].1["name"], name.as_str());
        assert_eq!(
            (&told[then].1["outcome"], &told[then].1["incomplete"]),
            (&json!("completed"), &json!(true))
        );
    }
    let (fetched, fetch) = (of("fetched"), told.iter().position(|(text, _)| text == "fetch c").unwrap());
    assert!(fetched < fetch && told[fetched].1["portal"] == "c");
    // What was prepared under the name by SQL is not what is executed now.
    let by_sql: Vec<_> = told.iter().filter(|(text, _)| text == "execute q").map(|(_, own)| own).collect();
    assert_eq!(by_sql[0]["verbs"], json!(["execute", "select"]), "{}", by_sql[0]);
    assert_eq!((&by_sql[1]["classified"], &by_sql[1]["unclassified"]), (&json!(false), &json!("prepared")));
    daemon.stop().unwrap();
}
