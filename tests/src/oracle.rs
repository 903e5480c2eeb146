//! Compares what PostgreSQL says it was told with what the trail says it was told.
//!
//! Both accounts are grouped by the client's end of the connection, which both know and neither learnt from the other. Within
//! a connection the order, the text (byte for byte), the outcome and the bind values must be equal. The trail's statements that
//! were sent but never executed, because an earlier one of their batch had failed, are not in the server's log and are
//! left out of the comparison, as is what was only prepared (its executions have records of their own) and what is not SQL (cancel requests, replication commands).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::postgres::log::Entry;

/// How many differences a report names; the count is always whole.
const NAMED: usize = 20;
/// How much of a text a difference shows.
const SHOWN: usize = 120;

/// One statement, by either account.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Told {
    /// Text, verbatim.
    pub text: String,
    /// SQLSTATE, if it failed.
    pub failed: Option<String>,
    /// Bind values as text, as far as the account has them as text; `None` for NULL.
    pub parameters: Option<Vec<Option<String>>>,
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub struct Report {
    /// Connections on which the server was told something.
    pub connections: usize,
    /// Statements by the server's account.
    pub told: usize,
    /// Of these, in the trail, verbatim and in their place.
    pub matched: usize,
    /// Bind values compared.
    pub parameters: usize,
    /// By the server's account only.
    pub lost: usize,
    /// By the trail's account only.
    pub invented: usize,
    /// The first of the differences, in words.
    pub differences: Vec<String>,
}

impl Report {
    /// Whether both accounts are equal.
    pub fn is_equal(&self) -> bool {
        self.lost == 0 && self.invented == 0 && self.differences.is_empty()
    }

    fn differ(&mut self, what: String) {
        if self.differences.len() < NAMED {
            self.differences.push(what);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections, {} statements told, {} matched, {} lost, {} invented, {} bind values compared",
            self.connections, self.told, self.matched, self.lost, self.invented, self.parameters
        )?;
        self.differences.iter().try_for_each(|difference| write!(f, "\n  {difference}"))
    }
}

/// What the server was told by TCP clients, by client.
pub fn told(log: &[Entry]) -> BTreeMap<SocketAddr, Vec<Told>> {
    told_by(log, |entry| entry.client)
}

/// What the server was told, by what `key` makes of a line; without the lines of which it makes nothing.
fn told_by<K: Ord>(log: &[Entry], key: impl Fn(&Entry) -> Option<K>) -> BTreeMap<K, Vec<Told>> {
    let mut clients: BTreeMap<K, Vec<Told>> = BTreeMap::new();
    for entry in log {
        let Some(client) = key(entry) else { continue };
        let statements = clients.entry(client).or_default();
        if let Some(statement) = entry.statement() {
            let text = statement.text.to_owned();
            statements.push(Told { text, failed: None, parameters: entry.parameters() });
        } else if entry.is_error() && !entry.query.is_empty() {
            match statements.last_mut() {
                // It was logged when it was executed, and failed then.
                Some(last) if last.failed.is_none() && last.text == entry.query => {
                    last.failed = Some(entry.sqlstate.clone());
                }
                // It was refused before: not parsed, or not bound.
                _ => statements.push(Told {
                    text: entry.query.clone(),
                    failed: Some(entry.sqlstate.clone()),
                    parameters: None,
                }),
            }
        }
    }
    clients.retain(|_, statements| !statements.is_empty());
    clients
}

/// The trail's account of the same.
///
/// # Errors
/// A statement's record lacks what every such record must have.
pub fn recorded(records: &[Value]) -> Result<BTreeMap<SocketAddr, Vec<Told>>> {
    // A client's port may be used again by a later connection: these are told apart by their id, in order of appearance.
    let mut clients: BTreeMap<SocketAddr, Vec<Told>> = BTreeMap::new();
    for connection in connections(records)? {
        clients.entry(client(connection.first)?).or_default().extend(connection.in_order());
    }
    Ok(clients)
}

/// Connections by the trail's account, in order of appearance.
fn connections(records: &[Value]) -> Result<Vec<Connection<'_>>> {
    let mut connections: Vec<Connection<'_>> = Vec::new();
    for record in records.iter().filter(|record| is_statement(record)) {
        let own = &record["unmapped"]["auditor"];
        let id = own["connection"]["id"].as_str().with_context(|| format!("no connection id: {record}"))?;
        let sequence = own["statement"]["seq"].as_u64().with_context(|| format!("no sequence: {record}"))?;
        let statement = (sequence, statement(record)?);
        match connections.iter_mut().find(|connection| connection.id == id) {
            Some(connection) => connection.statements.push(statement),
            None => connections.push(Connection { id, first: record, statements: vec![statement] }),
        }
    }
    Ok(connections)
}

/// A connection by the trail's account, its statements with their sequence numbers.
struct Connection<'a> {
    id: &'a str,
    first: &'a Value,
    statements: Vec<(u64, Told)>,
}

impl Connection<'_> {
    fn in_order(mut self) -> impl Iterator<Item = Told> {
        self.statements.sort_by_key(|(sequence, _)| *sequence);
        self.statements.into_iter().map(|(_, statement)| statement)
    }
}

/// Whether a record is of an SQL statement that the server was to execute.
pub fn is_statement(record: &Value) -> bool {
    let own = &record["unmapped"]["auditor"];
    own["kind"] == "statement"
        && own["statement"]["kind"] != "admin"
        && own["statement"]["outcome"] != "skipped"
        && own["statement"]["outcome"] != "prepared"
}

/// Checks that the statements of the n-th session are all of the n-th process, and of `agent`.
///
/// # Errors
/// One is not, or there are not as many sessions as processes.
pub fn check_attribution(records: &[Value], agent: &str, pids: &[u32]) -> Result<()> {
    let opened = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "session-opened");
    let sessions: Option<Vec<&str>> =
        opened.map(|record| record["unmapped"]["auditor"]["session"]["id"].as_str()).collect();
    let sessions = sessions.context("a session without an id")?;
    let expected: BTreeMap<&str, u32> = sessions.iter().copied().zip(pids.iter().copied()).collect();
    if sessions.len() != pids.len() || expected.len() != pids.len() {
        anyhow::bail!("not one session a client, each with an id of its own: {sessions:?}");
    }
    for record in records.iter().filter(|record| is_statement(record)) {
        let own = &record["unmapped"]["auditor"];
        let (connection, session) = (&own["connection"], own["session"]["id"].as_str());
        if own["agent"]["name"] != agent
            || connection["verdict"] != "allow"
            || connection["user"] != "postgres"
        {
            anyhow::bail!("another agent, verdict or user: {record}");
        }
        let pid = session.and_then(|session| expected.get(session)).context("an unknown session")?;
        if record["actor"]["process"]["pid"] != *pid {
            anyhow::bail!("of another process than {pid}: {record}");
        }
    }
    Ok(())
}

/// The client's end of a record's connection.
///
/// # Errors
/// The record does not tell it.
pub fn client(record: &Value) -> Result<SocketAddr> {
    let end = &record["src_endpoint"];
    let address = end["ip"].as_str().and_then(|ip| ip.parse().ok());
    let port = end["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let (Some(address), Some(port)) = (address, port) else {
        anyhow::bail!("no source address and port: {record}");
    };
    Ok(SocketAddr::new(address, port))
}

fn statement(record: &Value) -> Result<Told> {
    let own = &record["unmapped"]["auditor"]["statement"];
    let text = record["query_info"]["query_string"].as_str().with_context(|| format!("no text: {record}"))?;
    let parameters =
        own["parameters"].as_array().and_then(|values| values.iter().map(text_or_null).collect());
    let failed = own["error_code"].as_str().map(str::to_owned);
    Ok(Told { text: text.to_owned(), failed, parameters })
}

/// `None` where the trail has the value in another form than text.
fn text_or_null(value: &Value) -> Option<Option<String>> {
    match value {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        _ => None,
    }
}

/// Compares the two accounts.
///
/// # Errors
/// A record lacks what it must have.
pub fn compare(log: &[Entry], records: &[Value]) -> Result<Report> {
    let (told, mut recorded) = (told(log), recorded(records)?);
    let mut report = Report { connections: told.len(), ..Report::default() };
    for (client, expected) in &told {
        report.told += expected.len();
        let found = recorded.remove(client).unwrap_or_default();
        compare_connection(client, expected, &found, &mut report);
    }
    for (client, invented) in recorded {
        report.invented += invented.len();
        report.differ(format!("{client}: the server knows no such client; the trail has {}", invented.len()));
    }
    Ok(report)
}

/// Compares the two accounts of clients of a unix socket, of which the server's log does not say who is who: whatever
/// connections the one account has, the other must have the same, each with the same statements in the same order. `application`: the name
/// by which the server knows the agents' connections.
///
/// # Errors
/// A record lacks what it must have.
pub fn compare_local(log: &[Entry], records: &[Value], application: &str) -> Result<Report> {
    let agents = |entry: &Entry| {
        (entry.client.is_none() && entry.application == application).then(|| entry.session.clone())
    };
    let details = |statements: &[Told]| {
        let detail = |told: &Told| (told.text.clone(), told.parameters.clone());
        statements.iter().map(detail).collect::<Vec<_>>()
    };
    let mut told: Vec<Vec<Told>> = told_by(log, agents).into_values().collect();
    let mut recorded: Vec<Vec<Told>> =
        connections(records)?.into_iter().map(|connection| connection.in_order().collect()).collect();
    told.sort_by_cached_key(|statements| details(statements));
    recorded.sort_by_cached_key(|statements| details(statements));
    let mut report = Report { connections: told.len(), ..Report::default() };
    let count = told.len().max(recorded.len());
    for number in 0..count {
        let side = |account: &[Vec<Told>]| account.get(number).cloned().unwrap_or_default();
        let (expected, found) = (side(&told), side(&recorded));
        report.told += expected.len();
        compare_connection(format!("connection {number}"), &expected, &found, &mut report);
    }
    Ok(report)
}

fn compare_connection(client: impl fmt::Display, expected: &[Told], found: &[Told], report: &mut Report) {
    let (mut left, mut right) = (expected, found);
    let mut place = 0;
    while let ([want, left_rest @ ..], [have, right_rest @ ..]) = (left, right) {
        place += 1;
        if want.text == have.text {
            report.matched += 1;
            compare_details(&client, place, want, have, report);
            (left, right) = (left_rest, right_rest);
            continue;
        }
        // Whichever account finds its way back to the other sooner tells what happened.
        let ahead = |list: &[Told], text: &str| list.iter().position(|told| told.text == text);
        let lost = ahead(left, &have.text).unwrap_or(usize::MAX);
        let invented = ahead(right, &want.text).unwrap_or(usize::MAX);
        if lost <= invented {
            report.lost += 1;
            report.differ(format!("{client} #{place}: lost {}", shorten(&want.text)));
            left = left_rest;
        } else {
            report.invented += 1;
            report.differ(format!("{client} #{place}: invented {}", shorten(&have.text)));
            right = right_rest;
        }
    }
    report.lost += left.len();
    report.invented += right.len();
    for told in left {
        report.differ(format!("{client}: lost at the end {}", shorten(&told.text)));
    }
    for told in right {
        report.differ(format!("{client}: invented at the end {}", shorten(&told.text)));
    }
}

fn compare_details(client: &impl fmt::Display, place: usize, want: &Told, have: &Told, report: &mut Report) {
    if want.failed != have.failed {
        let text = shorten(&want.text);
        report.differ(format!(
            "{client} #{place}: outcome {:?}, server {:?}: {text}",
            have.failed, want.failed
        ));
    }
    if let (Some(want), Some(have)) = (&want.parameters, &have.parameters) {
        report.parameters += want.len();
        if want != have {
            report.differ(format!("{client} #{place}: parameters {have:?}, server {want:?}"));
        }
    }
}

fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn logged(port: u16, severity: &str, message: &str, query: &str) -> Entry {
        Entry {
            client: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            severity: severity.to_owned(),
            sqlstate: "42601".to_owned(),
            message: message.to_owned(),
            query: query.to_owned(),
            ..Entry::default()
        }
    }

    fn record(port: u16, sequence: u64, text: &str, outcome: &str, error: Option<&str>) -> Value {
        json!({
            "src_endpoint": {"ip": "127.0.0.1", "port": port},
            "query_info": {"query_string": text},
            "unmapped": {"auditor": {
                "kind": "statement",
                "connection": {"id": format!("boot-{port}")},
                "statement": {"seq": sequence, "kind": "simple", "outcome": outcome, "error_code": error},
            }},
        })
    }

    #[test]
    fn equal_accounts_are_equal_in_whatever_order_the_records_come() {
        let log = [
            logged(1, "LOG", "statement: a", ""),
            logged(1, "ERROR", "no", "a"),
            logged(1, "ERROR", "syntax", "b"),
            logged(2, "LOG", "execute s: c", ""),
        ];
        let records = [
            record(1, 2, "b", "failed", Some("42601")),
            record(2, 1, "c", "completed", None),
            record(1, 1, "a", "failed", Some("42601")),
            record(1, 3, "never executed", "skipped", None),
            record(1, 4, "not executed yet", "prepared", None),
        ];
        let report = compare(&log, &records).unwrap();
        assert!(report.is_equal(), "{report}");
        assert_eq!((report.connections, report.told, report.matched), (2, 3, 3));
    }

    #[test]
    fn a_lost_one_and_an_invented_one_are_named() {
        let log = ["a", "b", "c"].map(|text| logged(1, "LOG", &format!("statement: {text}"), ""));
        let lost = [record(1, 1, "a", "completed", None), record(1, 2, "c", "completed", None)];
        let report = compare(&log, &lost).unwrap();
        assert_eq!((report.matched, report.lost, report.invented), (2, 1, 0), "{report}");
        let invented = ["a", "x", "b", "c"];
        let invented: Vec<Value> = (1..)
            .zip(invented)
            .map(|(sequence, text)| record(1, sequence, text, "completed", None))
            .collect();
        let report = compare(&log, &invented).unwrap();
        assert_eq!((report.matched, report.lost, report.invented), (3, 0, 1), "{report}");
    }

    #[test]
    fn a_swap_a_wrong_outcome_and_a_stranger_are_differences() {
        let log = ["a", "b"].map(|text| logged(1, "LOG", &format!("statement: {text}"), ""));
        let swapped = [record(1, 1, "b", "completed", None), record(1, 2, "a", "completed", None)];
        assert!(!compare(&log, &swapped).unwrap().is_equal());
        let failed = [record(1, 1, "a", "completed", None), record(1, 2, "b", "failed", Some("1"))];
        assert!(!compare(&log, &failed).unwrap().is_equal());
        let stranger = [
            record(1, 1, "a", "completed", None),
            record(1, 2, "b", "completed", None),
            record(9, 1, "z", "completed", None),
        ];
        assert_eq!(compare(&log, &stranger).unwrap().invented, 1);
    }
}
