//! Searching a trail with known content.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{lines, open};
use crate::clock::{Boottime, Utc};
use crate::protocol::{CommandResult, Login, Outcome, Statement, StatementKind};
use crate::record::{Agent, Application, Connection, Entry, Event, Session, Transport, Verdict};
use crate::statement::{Classifier, Dialect, Dialogue, Meaning, Text};
use crate::trail::query::{Cursor, Destination, Query, Scanned, find, scan};

/// Twelve records: three sessions, each with a connection opened, two statements and a connection refused.
fn sample(directory: &Path) -> String {
    let trail = open(directory);
    for number in 0..3_u16 {
        let session = Arc::new(Session {
            id: format!("000000000000000{number}"),
            agent: Agent { name: format!("agent \"{}\"", number % 2), ..Agent::default() },
            task: None,
            policy: "p".to_owned(),
        });
        let connection = |allowed, port| {
            Arc::new(Connection {
                id: format!("boot-{number}"),
                transport: Transport::Tcp,
                local: None,
                remote: Some(SocketAddr::from(([10, 0, 0, 1], port))),
                socket: None,
                inbound: false,
                adopted: None,
                verdict: Verdict { allowed, rule: None, reason: "rule", policy: None },
            })
        };
        let statement = |text: &str, sequence| Event::Statement {
            connection: connection(true, 5432),
            application: Arc::new(Application { protocol: Some("postgres"), ..Application::default() }),
            statement: Box::new(Statement {
                sequence,
                kind: StatementKind::Simple,
                text: text.as_bytes().to_vec().into(),
                text_length: 0,
                name: None,
                portal: None,
                parameters: Vec::new(),
                // As if the second statement had been two.
                results: ["DROP TABLE", "CREATE TABLE"]
                    .map(|tag| CommandResult { tag: tag.to_owned(), rows: None })
                    .into_iter()
                    .filter(|_| sequence == 2)
                    .collect(),
                columns: Vec::new(),
                outcome: Outcome::Completed,
                notices: Vec::new(),
                transaction: None,
                started: Boottime(0),
                finished: Boottime(0),
                request_bytes: 0,
                response_bytes: 0,
                incomplete: false,
            }),
            meaning: Some(meaning(text)),
        };
        let events = [
            Event::ConnectionOpened { connection: connection(true, 5432) },
            statement("SELECT 'a\"b' FROM t", 1),
            statement(&format!("DROP TABLE t{number}"), 2),
            Event::ConnectionRefused { connection: connection(false, 443), call: "connect" },
        ];
        for (event, position) in events.into_iter().zip(0..) {
            let time = Utc((u64::from(number) * 1000 + position) * 1_000_000);
            trail.append(&Entry { time, session: Some(Arc::clone(&session)), process: None, event }).unwrap();
        }
    }
    let id = trail.id().to_owned();
    trail.close().unwrap();
    id
}

/// As if it had been said with a search path of one schema.
fn meaning(text: &str) -> Arc<Meaning> {
    let mut dialogue = Dialogue::default();
    let path = ("search_path".to_owned(), "shop".to_owned());
    dialogue.login(&Login { parameters: vec![path], ..Login::default() });
    let (dialect, bytes, at) = (Dialect::Postgres, text.as_bytes(), Boottime(0));
    let text = Text { dialect, bytes, incomplete: false, session: 1, at };
    Classifier::default().classify(text, &mut dialogue)
}

fn matching(directory: &Path, query: &Query) -> Vec<u64> {
    let all = lines(directory);
    let mut found = Vec::new();
    let scanned = scan(directory, query, &mut Cursor::default(), |line, view| {
        let sequence = view.metadata.sequence;
        assert_eq!(all[usize::try_from(sequence).unwrap() - 1].2, line, "the bytes are those of the trail");
        found.push(sequence);
        ControlFlow::Continue(())
    });
    let scanned = scanned.unwrap();
    assert_eq!((scanned.matched, scanned.unreadable), (u64::try_from(found.len()).unwrap(), 0));
    found
}

#[test]
fn each_filter_finds_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    sample(folder.path());
    let some = |text: &str| Some(text.to_owned());
    let to = |text| Query { to: Some(Destination::parse(text).unwrap()), ..Query::default() };
    let grep = |pattern| Query { grep: Some(Query::pattern(pattern).unwrap()), ..Query::default() };
    let object = |name| Query { object: some(name), ..Query::default() };
    let cases: [(Query, &[u64]); 26] = [
        (Query::default(), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (Query { session: some("0000000000000001"), ..Query::default() }, &[5, 6, 7, 8]),
        (Query { agent: some("agent \"1\""), ..Query::default() }, &[5, 6, 7, 8]),
        (Query { agent: some("agent"), ..Query::default() }, &[]),
        (Query { kind: some("connection-refused"), ..Query::default() }, &[4, 8, 12]),
        (Query { protocol: some("postgres"), verb: some("Drop"), ..Query::default() }, &[3, 7, 11]),
        (Query { verb: some("create"), ..Query::default() }, &[3, 7, 11]),
        (Query { verb: some("select"), ..Query::default() }, &[2, 6, 10]),
        (Query { decision: some("deny"), ..Query::default() }, &[4, 8, 12]),
        (
            Query { decision: some("allowed"), kind: some("statement"), limit: Some(2), ..Query::default() },
            &[2, 3],
        ),
        (Query { since: Some(1002), until: Some(2001), ..Query::default() }, &[7, 8, 9]),
        (Query { limit: Some(0), ..Query::default() }, &[]),
        (to("10.0.0.1:443"), &[4, 8, 12]),
        (to("[::ffff:10.0.0.1]:443"), &[4, 8, 12]),
        (to("10.0.0.2"), &[]),
        (grep(r#"'a"b'"#), &[2, 6, 10]),
        (grep("t[12]$"), &[7, 11]),
        (grep("\"call\":\"connect\""), &[4, 8, 12]),
        (object("payments"), &[]),
        (object("t"), &[2, 6, 10]),
        (object("t1"), &[7]),
        (object("shop.t1"), &[7]),
        (object("shop.*"), &[2, 3, 6, 7, 10, 11]),
        (object("sho.*"), &[]),
        (object("shop"), &[]),
        (object("1"), &[]),
    ];
    for (query, found) in cases {
        assert_eq!(matching(folder.path(), &query), found, "{query:?}");
    }
}

#[test]
fn destinations_are_read_as_people_write_them() {
    let parsed = |text| Destination::parse(text).map(|to| (to.host, to.port));
    assert_eq!(parsed("db.internal:5432"), Some(("db.internal".to_owned(), Some(5432))));
    assert_eq!(parsed("db.internal"), Some(("db.internal".to_owned(), None)));
    assert_eq!(parsed("2001:db8::1"), Some(("2001:db8::1".to_owned(), None)));
    assert_eq!(parsed("[2001:db8::1]:443"), Some(("2001:db8::1".to_owned(), Some(443))));
    assert_eq!(parsed("[2001:db8::1]"), Some(("2001:db8::1".to_owned(), None)));
    for text in ["", ":5432", "host:port", "[::1", "[::1]x", "host:65536"] {
        assert_eq!(parsed(text), None, "{text}");
    }
}

#[test]
fn anything_with_an_id_is_found_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let trail = sample(folder.path());
    let found = |id: &str| {
        let mut found = Vec::new();
        let visit = |_: &[u8], view: &crate::trail::query::View<'_>| {
            found.push(view.metadata.sequence);
            ControlFlow::Continue(())
        };
        find(folder.path(), id, visit).unwrap();
        found
    };
    assert_eq!(found(&format!("{trail}-7")), [7]);
    assert_eq!(found(&format!("{}-7", "0".repeat(32))), [] as [u64; 0]);
    assert_eq!(found("12"), [12]);
    assert_eq!(found("13"), [] as [u64; 0]);
    assert_eq!(found("0000000000000002"), [9, 10, 11, 12]);
    assert_eq!(found("boot-1"), [5, 6, 7, 8]);
    assert_eq!(found("boot-1/2"), [7]);
}

#[test]
fn following_gives_each_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut cursor = Cursor::default();
    let mut seen = 0;
    for _ in 0..3 {
        sample(folder.path());
        let scanned = scan(folder.path(), &Query::default(), &mut cursor, |_, view| {
            seen += 1;
            assert_eq!(view.metadata.sequence, seen);
            ControlFlow::Continue(())
        });
        assert_eq!(scanned.unwrap().matched, 12);
    }
    let again = scan(folder.path(), &Query::default(), &mut cursor, |_, _| ControlFlow::Continue(()));
    assert_eq!(again.unwrap(), Scanned::default());
}
