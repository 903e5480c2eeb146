//! No text is executed that is not on record: what may be executed without being looked up is told before.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::postgres::Postgres;
use crate::protocol::tests::events::{Daemons, Event, play};
use crate::protocol::{Dissector, Observation, Outcome, Protocol, Side, Statement};

/// Statements that names are kept of.
const KEPT: usize = 4096;

fn run(portal: &str, statement: &str) -> Vec<u8> {
    [bind(portal, statement, &[], &[]), execute(portal)].concat()
}

/// Name of the statement, name of the portal, and the record in a line.
fn named(statements: &[Statement]) -> Vec<String> {
    let told = |statement: &Statement| {
        let [name, portal] = [&statement.name, &statement.portal].map(|name| name.as_deref().unwrap_or("-"));
        format!("{name} {portal} | {}", summary(statement))
    };
    statements.iter().map(told).collect()
}

/// After one exchange, another; everything but the answers' bytes.
fn told(exchanges: &[(Vec<u8>, Vec<u8>)]) -> Vec<String> {
    let add = |script: Script, (client, server): &(Vec<u8>, Vec<u8>)| {
        script.client(std::slice::from_ref(client)).server(std::slice::from_ref(server))
    };
    named(&exchanges.iter().fold(Script::session(), add).statements())
}

#[test]
fn more_statements_than_are_kept_have_their_texts_on_record() {
    let parses: Vec<u8> = (0..=KEPT).flat_map(|n| parse(&format!("s{n}"), &format!("T{n}"), &[])).collect();
    for pipelined in [false, true] {
        let answers = bare("1").repeat(KEPT + 1);
        let execution = [run("", "s0"), sync()].concat();
        let executed = [bare("2"), complete("DELETE 1"), ready(b'I')].concat();
        let script = match pipelined {
            true => Script::session().client(&[parses.clone(), execution]).server(&[answers, executed]),
            false => Script::session()
                .client(&[parses.clone(), sync()])
                .server(&[answers, ready(b'I')])
                .client(&[execution])
                .server(&[executed]),
        };
        let told = named(&script.statements());
        assert_eq!(told.len(), KEPT + 2);
        // The first, which found no room, then the others, and then the execution.
        for (number, told) in told[..=KEPT].iter().enumerate() {
            assert_eq!(told, &format!("s{number} - | Prepared T{number} | prepared |  | -"));
        }
        assert_eq!(told[KEPT + 1], "s0 - | Prepared  | completed | DELETE 1 | I | incomplete");
    }
}

#[test]
fn what_is_executed_next_or_taken_away_is_told_once_or_never() {
    let ready = || ready(b'I');
    let told = told(&[
        (
            [parse("a", "A", &[]), run("", "a"), sync()].concat(),
            [bare("12"), complete("X"), ready()].concat(),
        ),
        ([parse("b", "B", &[]), close('S', "b"), sync()].concat(), [bare("13"), ready()].concat()),
        ([run("", "a"), sync()].concat(), [bare("2"), complete("X"), ready()].concat()),
        ([parse("c", "C", &[]), sync()].concat(), [bare("1"), ready()].concat()),
        (query("DEALLOCATE c"), [complete("DEALLOCATE"), ready()].concat()),
        ([parse("d", "D", &[]), sync()].concat(), [bare("1"), ready()].concat()),
    ]);
    let expected = [
        "a - | Prepared A | completed | X | I",
        "a - | Prepared A | completed | X | I",
        "- - | Simple DEALLOCATE c | completed | DEALLOCATE | I",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_name_that_is_too_long_to_be_kept_is_told_with_its_text() {
    let long = "n".repeat(64);
    let told = told(&[
        ([parse(&long, "EVIL", &[]), sync()].concat(), [bare("1"), ready(b'I')].concat()),
        ([run("", &long), sync()].concat(), [bare("2"), complete("X"), ready(b'I')].concat()),
    ]);
    let cut = &long[..63];
    assert_eq!(
        told,
        [
            format!("{cut} - | Prepared EVIL | prepared |  | -"),
            format!("{cut} - | Prepared  | completed | X | I | incomplete"),
        ]
    );
}

#[test]
fn a_name_that_the_server_cuts_to_another_is_told_with_the_texts_that_it_may_mean() {
    let short = "n".repeat(63);
    for other in [format!("{short}x"), format!("{short}\u{e9}")] {
        let told = told(&[
            ([parse(&short, "EVIL", &[]), sync()].concat(), [bare("1"), ready(b'I')].concat()),
            ([run("", &other), sync()].concat(), [bare("2"), complete("X"), ready(b'I')].concat()),
        ]);
        assert_eq!(told[0], format!("{short} - | Prepared EVIL | prepared |  | -"));
        assert!(
            told.len() == 2 && told[1].ends_with("Prepared  | completed | X | I | incomplete"),
            "{told:?}"
        );
    }
}

#[test]
fn what_sql_may_execute_by_name_is_told_before() {
    let cut = [
        ("EXECUTE p", "X"),
        ("SELECT f()", "SELECT 1"),
        ("EXECUTE p; DEALLOCATE ALL", "DEALLOCATE ALL"),
        ("EXECUTE p; DEALLOCATE p", "DEALLOCATE"),
        ("PREPARE q AS SELECT 1", "PREPARE"),
    ];
    for (sql, tag) in cut {
        let told = told(&[
            ([parse("p", "EVIL", &[]), sync()].concat(), [bare("1"), ready(b'I')].concat()),
            (query(sql), [complete(tag), ready(b'I')].concat()),
        ]);
        let expected = [
            "p - | Prepared EVIL | prepared |  | -".to_owned(),
            format!("- - | Simple {sql} | completed | {tag} | I"),
        ];
        assert_eq!(told, expected);
    }
}

#[test]
fn what_is_bound_and_fetched_by_sql_is_told_before_with_its_values() {
    let script = Script::session()
        .client(&[parse("", "EVIL $1", &[25]), bind("c", "", &[], &[Some(b"v")]), sync()])
        .server(&[bare("12"), ready(b'T')])
        .client(&[query("FETCH c")])
        .server(&[complete("FETCH 1"), ready(b'T')]);
    let statements = script.statements();
    assert_eq!(
        named(&statements),
        [" c | Prepared EVIL $1 | prepared |  | -", "- - | Simple FETCH c | completed | FETCH 1 | T"]
    );
    assert_eq!(statements[0].parameters.len(), 1);
}

#[test]
fn more_portals_than_are_kept_have_their_texts_on_record() {
    let bind_all: Vec<u8> = (0..513)
        .flat_map(|n| [parse("", &format!("T{n}"), &[]), bind(&format!("c{n}"), "", &[], &[])].concat())
        .collect();
    let told = told(&[
        ([bind_all, sync()].concat(), [bare("12").repeat(513), ready(b'T')].concat()),
        ([execute("c0"), sync()].concat(), [complete("X"), ready(b'T')].concat()),
    ]);
    assert_eq!(told.len(), 514);
    for (number, told) in told[..513].iter().enumerate() {
        assert_eq!(told, &format!(" c{number} | Prepared T{number} | prepared |  | -"));
    }
    assert_eq!(told[513], "- c0 | Prepared  | completed | X | T | incomplete");
}

#[test]
fn a_portal_whose_name_is_too_long_is_told_with_its_text() {
    let long = "n".repeat(70);
    let told = told(&[(
        [parse("", "EVIL", &[]), run(&long, ""), sync()].concat(),
        [bare("12"), complete("X"), ready(b'I')].concat(),
    )]);
    let cut = &long[..63];
    assert_eq!(
        told,
        [
            format!(" {cut} | Prepared EVIL | prepared |  | -"),
            format!("- {cut} | Prepared  | completed | X | I | incomplete"),
        ]
    );
}

#[test]
fn behind_a_hole_both_meanings_of_a_name_are_told() {
    let mut dissector = Postgres::new(LIMITS);
    let mut out = Vec::new();
    dissector.bytes(Side::Client, Boottime(1), &startup(), &mut out);
    dissector.bytes(Side::Server, Boottime(1), &welcome(), &mut out);
    dissector.bytes(Side::Client, Boottime(1), &parse("p", "ONE", &[]), &mut out);
    dissector.gap(Side::Server, Boottime(2), 5, &mut out);
    dissector.bytes(Side::Client, Boottime(3), &[parse("p", "TWO", &[]), run("", "p")].concat(), &mut out);
    let statements: Vec<_> = statements(out);
    assert_eq!(
        statements.iter().map(summary).collect::<Vec<_>>(),
        [
            "Prepared ONE | prepared |  | - | incomplete",
            "Prepared TWO | prepared |  | - | incomplete",
            "Prepared  | unknown |  | - | incomplete",
        ]
    );
}

#[test]
fn where_memory_is_short_texts_are_told_before_they_are_forgotten() {
    let mut dissector = Postgres::new(LIMITS);
    let mut out = Vec::new();
    for (side, bytes) in Script::session()
        .client(&[parse("p", "ONE", &[]), parse("", "UNNAMED", &[])])
        .server(&[bare("11")])
        .said
    {
        dissector.bytes(side, Boottime(1), &bytes, &mut out);
    }
    dissector.spare(Boottime(2), &mut out);
    let told: Vec<_> = statements(out).iter().map(summary).collect();
    assert_eq!(told, ["Prepared ONE | prepared |  | -", "Prepared UNNAMED | prepared |  | -"]);
}

#[test]
fn what_is_sent_beyond_what_can_wait_is_told_at_once() {
    let long = |number: usize| format!("{number} {}", "x".repeat(60_000));
    let count = (17 << 20) / 60_000;
    let mut client: Vec<u8> = (0..count).flat_map(|n| parse(&format!("s{n}"), &long(n), &[])).collect();
    client.extend(run("", "s0"));
    let drop = format!("DROP TABLE t -- {}", "x".repeat(60_000));
    client.extend(query(&drop));
    let script = Script::session().client(&[client]).server(&[
        bare("1").repeat(count),
        bare("2"),
        complete("SELECT 1"),
        complete("DROP TABLE"),
        ready(b'I'),
    ]);
    let whole = script.play(LIMITS, |_| usize::MAX);
    assert_eq!(whole, script.play(LIMITS, |_| 1 << 12));
    let statements = statements(whole);
    let place = |text: &[u8]| statements.iter().position(|statement| statement.text == text);
    for number in 0..count {
        assert!(place(long(number).as_bytes()).is_some(), "{number}");
    }
    let dropped = place(drop.as_bytes()).unwrap();
    assert_eq!(statements[dropped].outcome, Outcome::Prepared);
    let last = statements.last().unwrap();
    assert!(last.outcome == Outcome::Completed && last.text.is_empty() && last.incomplete);
    assert_eq!(statements.iter().filter(|statement| statement.outcome == Outcome::Completed).count(), 2);
}

fn statements(observations: Vec<Observation>) -> Vec<Statement> {
    let statement = |observation| match observation {
        Observation::Statement(statement) => Some(*statement),
        _ => None,
    };
    observations.into_iter().filter_map(statement).collect()
}

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    Parse(usize),
    /// More than are kept.
    Fill,
    Bind(usize, usize),
    Execute(usize),
    CloseStatement(usize),
    ClosePortal(usize),
    /// SQL's EXECUTE.
    Sql(usize),
    /// SQL's FETCH.
    Fetch(usize),
    Sync,
}

fn names() -> Vec<String> {
    let long = "n".repeat(63);
    let other = [format!("{long}x"), format!("{long}y"), format!("{long}\u{e9}"), "\u{e9}".repeat(12)];
    [String::new(), "a".into(), "b".into(), long].into_iter().chain(other).collect()
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..names().len();
    prop_oneof![
        6 => name().prop_map(Step::Parse),
        1 => Just(Step::Fill),
        6 => (name(), name()).prop_map(|(portal, statement)| Step::Bind(portal, statement)),
        6 => name().prop_map(Step::Execute),
        1 => name().prop_map(Step::CloseStatement),
        1 => name().prop_map(Step::ClosePortal),
        1 => name().prop_map(Step::Sql),
        1 => name().prop_map(Step::Fetch),
        3 => Just(Step::Sync),
    ]
}

/// As much of a server as it takes: names cut to 63 bytes, errors, and what it has executed.
#[derive(Default)]
struct Server {
    statements: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, String>,
    skipping: bool,
    executed: Vec<String>,
    prepared: usize,
}

fn cut(name: &str) -> Vec<u8> {
    name.as_bytes()[..name.len().min(63)].to_vec()
}

impl Server {
    fn parse(&mut self, name: &str) -> (Vec<u8>, Vec<u8>) {
        self.prepared += 1;
        let text = format!("T{}", self.prepared);
        let request = parse(name, &text, &[]);
        let answer = self.answers(|server| {
            if !name.is_empty() && server.statements.contains_key(&cut(name)) {
                return Err("42P05");
            }
            server.statements.insert(cut(name), text);
            Ok(bare("1"))
        });
        (request, answer)
    }

    fn answers(&mut self, step: impl FnOnce(&mut Self) -> Result<Vec<u8>, &'static str>) -> Vec<u8> {
        if self.skipping {
            return Vec::new();
        }
        step(self).unwrap_or_else(|code| {
            self.skipping = true;
            error(code)
        })
    }

    fn execute(&mut self, text: Option<String>) -> Result<Vec<u8>, &'static str> {
        self.executed.push(text.ok_or("26000")?);
        Ok(complete("X"))
    }

    fn take(&mut self, step: &Step, names: &[String]) -> (Vec<u8>, Vec<u8>) {
        match *step {
            Step::Parse(name) => self.parse(&names[name]),
            Step::Fill => {
                let from = self.prepared;
                let all = (0..=KEPT).map(|number| self.parse(&format!("fill {}", from + number)));
                let (requests, answers): (Vec<_>, Vec<_>) = all.unzip();
                (requests.concat(), answers.concat())
            }
            Step::Bind(portal, statement) => {
                let (portal, statement) = (&names[portal], &names[statement]);
                let answer = self.answers(|server| {
                    let text = server.statements.get(&cut(statement)).cloned().ok_or("26000")?;
                    if !portal.is_empty() && server.portals.contains_key(&cut(portal)) {
                        return Err("42P03");
                    }
                    server.portals.insert(cut(portal), text);
                    Ok(bare("2"))
                });
                (bind(portal, statement, &[], &[]), answer)
            }
            Step::Execute(portal) => {
                let portal = &names[portal];
                let answer = self.answers(|server| {
                    let text = server.portals.get(&cut(portal)).cloned();
                    server.execute(text)
                });
                (execute(portal), answer)
            }
            Step::CloseStatement(name) => {
                let answer = self.answers(|server| {
                    server.statements.remove(&cut(&names[name]));
                    Ok(bare("3"))
                });
                (close('S', &names[name]), answer)
            }
            Step::ClosePortal(name) => {
                let answer = self.answers(|server| {
                    server.portals.remove(&cut(&names[name]));
                    Ok(bare("3"))
                });
                (close('P', &names[name]), answer)
            }
            Step::Sql(name) | Step::Fetch(name) => {
                let fetches = matches!(step, Step::Fetch(_));
                let of = if fetches { &self.portals } else { &self.statements };
                let text = of.get(&cut(&names[name])).filter(|_| !names[name].is_empty()).cloned();
                let word = if fetches { "FETCH" } else { "EXECUTE" };
                let (before, end) = self.take(&Step::Sync, names);
                let answer = self.execute(text).unwrap_or_else(error);
                let unnamed = Vec::new();
                self.statements.remove(&unnamed);
                self.portals.remove(&unnamed);
                let request = [before, query(&format!("{word} \"{}\"", names[name]))].concat();
                (request, [end, answer, ready(b'T')].concat())
            }
            Step::Sync => {
                self.skipping = false;
                (sync(), ready(b'T'))
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_executed_was_told_by_then(batches in vec(vec(step(), 1..12), 1..8), cuts in vec(1_usize..4000, 1..50)) {
        let names = names();
        let mut server = Server::default();
        let mut script = Script::session();
        for batch in &batches {
            let all = batch.iter().chain([&Step::Sync]).map(|step| server.take(step, &names));
            let (requests, answers): (Vec<_>, Vec<_>) = all.unzip();
            script = script.client(&requests).server(&answers);
        }
        let whole = script.play(LIMITS, |_| usize::MAX);
        prop_assert_eq!(&whole, &script.play(LIMITS, |piece| cuts[piece % cuts.len()]));
        let events: Vec<_> = script.said.iter().cloned().map(Event::from).collect();
        let restored = play(Protocol::Postgres, LIMITS, &events, |_| usize::MAX, Daemons::Many);
        prop_assert_eq!(&whole, &restored, "written and read");
        let mut told = std::collections::HashSet::new();
        let mut executed = server.executed.iter();
        for (index, statement) in statements(whole).into_iter().enumerate() {
            prop_assert_eq!(statement.sequence, index as u64 + 1);
            let text = String::from_utf8(statement.text.to_vec()).unwrap();
            if !text.is_empty() {
                told.insert(text.clone());
            }
            if statement.outcome == Outcome::Completed {
                let expected = executed.next().unwrap();
                prop_assert!(told.contains(expected), "{} was executed and not told", expected);
                if statement.kind == crate::protocol::StatementKind::Prepared {
                    prop_assert!(text.is_empty() || text == *expected, "{} told as {}", expected, text);
                }
            }
        }
        prop_assert_eq!(executed.next(), None);
    }
}
