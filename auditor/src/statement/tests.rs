//! Each statement of the corpus with what is to be known of it.
//!
//! A case is a statement, and below it `->` with verbs, objects and classes, each sorted as found, and the functions that are told;
//! several commands of one text follow each other. `-> unclassified: reason` where nobody knows.

use proptest::prelude::*;

use super::*;
use crate::protocol::Login;

fn text(dialect: Dialect, text: &str) -> Text<'_> {
    Text { dialect, bytes: text.as_bytes(), incomplete: false, session: 1, at: Boottime(0) }
}

fn meaning(dialect: Dialect, sql: &str) -> Arc<Meaning> {
    Classifier::default().classify(text(dialect, sql), &mut Dialogue::default())
}

fn said(meaning: &Meaning) -> String {
    let mut said = String::new();
    for command in &meaning.commands {
        let classes: Vec<_> = command.classes.names().collect();
        let lists = [
            command.verbs.join(" "),
            command.objects.join(" "),
            classes.join(" "),
            command.functions.join(" "),
        ];
        said += format!("-> {}", lists.join(" | ")).trim_end_matches([' ', '|']);
        said.push('\n');
    }
    if let Some(reason) = meaning.unclassified {
        said += &format!("-> unclassified: {reason}\n");
    }
    said
}

fn corpus(dialect: Dialect, cases: &str, least: usize) {
    let (mut count, mut wrong) = (0, String::new());
    for case in cases.split("\n\n").map(str::trim).filter(|case| !case.is_empty() && !case.starts_with("##"))
    {
        let (sql, expected) =
            case.split_once("\n->").map_or((case, String::new()), |(sql, rest)| (sql, format!("->{rest}")));
        let found = said(&meaning(dialect, sql));
        if expected.trim_end() != found.trim_end() {
            wrong += &format!("{sql}\n{found}\n");
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "found otherwise:\n{wrong}");
    assert!(count >= least, "{count} cases");
}

#[test]
fn postgres_statements_mean_what_the_corpus_says() {
    corpus(Dialect::Postgres, include_str!("corpus/postgres.sql"), 250);
}

#[test]
fn mysql_statements_mean_what_the_corpus_says() {
    corpus(Dialect::MySql, include_str!("corpus/mysql.sql"), 60);
}

fn sure(dialect: Dialect, sql: &str) -> Option<String> {
    let mut shape = Shape::default();
    shape.read(dialect, sql.as_bytes());
    shape.sure.then(|| String::from_utf8(shape.tokens).unwrap())
}

/// What keeps an attacker from having a statement taken for another one: a shape that is sure and can be parsed says what the text
/// itself says.
fn shape_says_what_the_text_says(sql: &str) {
    let Some(shape) = sure(Dialect::Postgres, sql) else { return };
    let (by_shape, by_text) = (postgres::commands(&shape, true), postgres::commands(sql, true));
    // What the server refuses does no harm. An option's value is left out, and then taken for the worse.
    if let (Some(by_shape), Some(by_text)) = (by_shape, by_text)
        && !sql.contains("analyze")
    {
        assert_eq!(by_shape, by_text, "{sql}: {shape}");
    }
}

#[test]
fn shapes_of_the_corpus_say_what_the_texts_say() {
    let mut shapes = 0;
    for case in include_str!("corpus/postgres.sql").split("\n\n") {
        let sql = case.split_once("\n->").map_or(case, |(sql, _)| sql);
        shape_says_what_the_text_says(sql);
        shapes += usize::from(sure(Dialect::Postgres, sql).is_some());
    }
    assert!(shapes > 200, "{shapes} shapes are sure");
}

const PIECES: [&str; 48] = [
    "select ",
    "1",
    "'",
    "''",
    "'a'",
    "\"",
    "\"a\"",
    "$$",
    "$a$",
    "$1",
    " ",
    "\n",
    "--",
    "/*",
    "*/",
    "\\",
    "E'",
    "e",
    "U&'",
    "U&\"",
    "b'1'",
    "x'f'",
    "n'a'",
    ",",
    "(",
    ")",
    "from t",
    " from u ",
    "delete from t",
    ";",
    "::",
    ":",
    ".",
    "1.5",
    "1e5",
    "a",
    "_b",
    "+",
    "-",
    "*",
    "/",
    "=",
    "@",
    "[",
    "]",
    "uescape '!'",
    "\u{e9}",
    "?",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn shapes_of_anything_say_what_the_texts_say(pieces in proptest::collection::vec(0..PIECES.len(), 0..12)) {
        let sql: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        shape_says_what_the_text_says(&format!("select {sql}"));
        shape_says_what_the_text_says(&format!("select 1 {sql} from t"));
    }

    #[test]
    fn anything_has_a_meaning(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for dialect in [Dialect::Postgres, Dialect::MySql] {
            let text = Text { dialect, bytes: &bytes, incomplete: false, session: 1, at: Boottime(0) };
            Classifier::default().classify(text, &mut Dialogue::default());
        }
    }
}

#[test]
fn literals_do_not_change_the_fingerprint_and_all_else_does() {
    let fingerprint = |sql: &str| meaning(Dialect::Postgres, sql).fingerprint;
    let same = [
        "select * from t where a = 1 and b in (1, 2)",
        "SELECT * FROM t WHERE a = 99.5 AND b IN (7)",
        "select *   from t where a=3 /* x */ and b in (1,2,3,4)",
    ];
    for sql in same {
        assert_eq!(fingerprint(sql), fingerprint(same[0]), "{sql}");
    }
    for sql in ["select * from u where a = 1 and b in (1, 2)", "select * from t where a = 'x' and b in (1)"] {
        assert_ne!(fingerprint(sql), fingerprint(same[0]), "{sql}");
    }
    let rows = |count: usize| format!("insert into t values {}", vec!["(1, 'x')"; count].join(","));
    assert_eq!(fingerprint(&rows(1)), fingerprint(&rows(20_000)));
}

/// One connection.
#[derive(Default)]
struct Connection(Classifier, Dialogue);

impl Connection {
    fn says(&mut self, sql: &str, completed: bool, transaction: char) -> String {
        let meaning = self.0.classify(text(Dialect::Postgres, sql), &mut self.1);
        self.1.ended(completed, Some(transaction));
        let resolved = meaning.resolved();
        let resolved = if resolved.is_empty() { String::new() } else { format!("in {}", resolved.join(" ")) };
        said(&meaning) + &resolved
    }
}

#[test]
fn executing_does_what_was_prepared() {
    let mut connection = Connection::default();
    let mut does = |sql, completed| connection.says(sql, completed, 'I');
    does("prepare p as delete from t", true);
    assert_eq!(does("execute p", true), "-> execute delete | t | writes\n");
    // There is one of that name already.
    does("prepare p as select 1", false);
    assert_eq!(does("execute p", true), "-> execute\n-> unclassified: prepared\n");
    does("deallocate p", true);
    does("prepare p as select 1", true);
    assert_eq!(does("execute p", true), "-> execute select\n");
    does("deallocate all", true);
    assert_eq!(does("execute p", true), "-> execute\n-> unclassified: prepared\n");
    does("prepare p as select 1", true);
    // Nobody knows what that was.
    does("prepare p again", true);
    assert_eq!(does("execute p", true), "-> execute\n-> unclassified: prepared\n");
}

#[test]
fn names_are_resolved_where_the_path_is_known() {
    let mut connection = Connection::default();
    let mut does = |sql: &str, transaction| connection.says(sql, true, transaction);
    assert_eq!(does("select * from t", 'I'), "-> select | t | reads\n");
    does("set search_path = a, b", 'I');
    assert_eq!(does("select * from t, s.u", 'I'), "-> select | t s.u | reads\nin a.t b.t");
    does("set local search_path = c", 'T');
    assert_eq!(does("select * from t", 'T'), "-> select | t | reads\n", "for how long is not known");
    does("set search_path = c", 'T');
    assert_eq!(does("select * from t", 'T'), "-> select | t | reads\n", "it may be rolled back");
    does("set search_path to d", 'I');
    assert_eq!(does("delete from t", 'I'), "-> delete | t | writes\nin d.t");
    does("select set_config('search_path', 'x', false)", 'I');
    assert_eq!(does("delete from t", 'I'), "-> delete | t | writes\n");

    let mut connection = Connection::default();
    let path = |path: &str| Login {
        user: Some("bob".into()),
        parameters: vec![("search_path".into(), path.into())],
        ..Login::default()
    };
    connection.1.login(&path(r#""$user", public"#));
    assert_eq!(connection.says("table t", true, 'I'), "-> select | t | reads\nin bob.t public.t");
    connection.1.login(&path(r#""A b", Public"#));
    assert_eq!(connection.says("table t", true, 'I'), "-> select | t | reads\nin A b.t public.t");
    let options = ("options".into(), "-c search_path=x".into());
    connection.1.login(&Login { parameters: vec![options], ..Login::default() });
    assert_eq!(connection.says("table t", true, 'I'), "-> select | t | reads\nin x.t");
}

#[test]
fn strings_end_where_the_server_lets_them_end() {
    let sql = r"select 'a\'; delete from t; -- '";
    let mut connection = Connection::default();
    assert_eq!(connection.says(sql, true, 'I'), "-> select\n-> delete | t | writes\n");
    let off = ("standard_conforming_strings".into(), "off".into());
    connection.1.login(&Login { parameters: vec![off], ..Login::default() });
    assert_eq!(connection.says(sql, true, 'I'), "-> select\n");
    // In the same batch, before the server has said what it did.
    let mut connection = Connection::default();
    connection
        .0
        .classify(text(Dialect::Postgres, "set standard_conforming_strings = off"), &mut connection.1);
    connection.1.ended(true, None);
    assert_eq!(connection.says(sql, true, 'I'), "-> unclassified: settings\n");
}

#[test]
fn what_is_not_whole_is_not_classified() {
    let mut classifier = Classifier::default();
    let cut = Text { incomplete: true, ..text(Dialect::Postgres, "select 1") };
    assert_eq!(said(&classifier.classify(cut, &mut Dialogue::default())), "-> unclassified: incomplete\n");
    let bytes = Text { bytes: b"select '\xff'", ..cut };
    let bytes = Text { incomplete: false, ..bytes };
    // The shape has no literal in it.
    assert_eq!(said(&classifier.classify(bytes, &mut Dialogue::default())), "-> select\n");
    let bytes = Text { bytes: b"select \xff from t", ..bytes };
    assert_eq!(said(&classifier.classify(bytes, &mut Dialogue::default())), "-> unclassified: encoding\n");
    let long = format!("select {}", "a,".repeat(20_000));
    assert_eq!(said(&meaning(Dialect::Postgres, &long)), "-> unclassified: length\n");
}

#[test]
fn what_a_server_executes_in_a_comment_is_not_left_out() {
    let (mut classifier, mut dialogue) = (Classifier::default(), Dialogue::default());
    let mut says = |sql| said(&classifier.classify(text(Dialect::MySql, sql), &mut dialogue));
    // The shape of the first one is known when the others come.
    assert_eq!(says("select 1"), "-> select\n");
    for sql in ["select 1 /*! into outfile '/tmp/x' */", "select 1 /*M! into outfile '/tmp/x' */"] {
        assert_eq!(says(sql), "-> unclassified: syntax\n", "{sql}");
    }
}

#[test]
fn a_character_may_hide_a_quote() {
    let sql = "select '\u{4f60}\\' into outfile \"/tmp/x\" -- '";
    let mut connection = Connection::default();
    let mut does = |sql: &str| {
        let meaning = connection.0.classify(text(Dialect::MySql, sql), &mut connection.1);
        connection.1.ended(true, None);
        said(&meaning)
    };
    assert_eq!(does("select '\u{e9}' from t"), "-> select | t | reads\n");
    assert_eq!(does("set names gbk"), "-> set |  | settings\n");
    assert_eq!(does(sql), "-> unclassified: encoding\n");
    assert_eq!(does("select '\u{e9}' from t"), "-> unclassified: encoding\n");
    assert_eq!(does("select 'e' from t"), "-> select | t | reads\n");
    does("set names 'utf8mb4'");
    assert_eq!(does("select '\u{e9}' from t"), "-> select | t | reads\n");
    assert_eq!(does("set names gbk; select '\u{e9}'"), "-> unclassified: encoding\n");
    does("set names utf8mb4");
    does("set @@character_set_client = concat('g', 'bk')");
    assert_eq!(does("select '\u{e9}' from t"), "-> unclassified: encoding\n");

    let mut connection = Connection::default();
    let encoding =
        |name: &str| Login { parameters: vec![("client_encoding".into(), name.into())], ..Login::default() };
    connection.1.login(&encoding("GBK"));
    assert_eq!(connection.says("select '\u{e9}'", true, 'I'), "-> unclassified: encoding\n");
    connection.1.login(&encoding("UTF8"));
    assert_eq!(connection.says("select '\u{e9}'", true, 'I'), "-> select\n");
    connection.0.classify(text(Dialect::Postgres, "set client_encoding = 'SJIS'"), &mut connection.1);
    connection.1.ended(true, None);
    assert_eq!(connection.says("select '\u{e9}'", true, 'I'), "-> unclassified: encoding\n");
}

#[test]
fn what_may_have_been_prepared_anew_is_not_known() {
    let mut connection = Connection::default();
    connection.says("prepare p as select 1", true, 'I');
    assert_eq!(connection.says("execute p", true, 'I'), "-> execute select\n");
    connection.says("do $$ begin execute 'deallocate p'; end $$", true, 'I');
    assert_eq!(connection.says("execute p", true, 'I'), "-> execute\n-> unclassified: prepared\n");
    connection.says("prepare p as select 1", true, 'I');
    connection.1.named();
    assert_eq!(connection.says("execute p", true, 'I'), "-> execute\n-> unclassified: prepared\n");
}

#[test]
fn what_is_only_prepared_changes_nothing() {
    let mut connection = Connection::default();
    connection.says("set search_path = s", true, 'I');
    let path = |connection: &mut Connection| {
        let meaning = connection.0.classify(text(Dialect::Postgres, "select * from t"), &mut connection.1);
        connection.1.ended(true, Some('I'));
        meaning.resolved()
    };
    assert_eq!(path(&mut connection), ["s.t"]);
    connection.0.classify(text(Dialect::Postgres, "set search_path = other"), &mut connection.1);
    connection.1.not_executed();
    assert_eq!(path(&mut connection), ["s.t"]);
}

#[test]
fn a_session_cannot_have_everything_parsed() {
    let (mut classifier, mut dialogue) = (Classifier::default(), Dialogue::default());
    let mut says = |session, number: u64, at| {
        let sql = format!("select {} from t{number}", "a,".repeat(10_000) + "a");
        let (dialect, bytes) = (Dialect::Postgres, sql.as_bytes());
        let text = Text { dialect, bytes, incomplete: false, session, at: Boottime(at) };
        classifier.classify(text, &mut dialogue).unclassified
    };
    let refused = (0..100).find(|number| says(1, *number, 0) == Some("budget")).unwrap();
    assert!((20..60).contains(&refused), "{refused}");
    assert_eq!(says(2, 1000, 0), None, "others are not asked to pay");
    assert_eq!(says(1, 2000, 1_000_000_000), None, "and in a second it has some again");
}
