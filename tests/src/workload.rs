//! Runs our own workload programs in a session, and holds what they and their kernel counted against the trail.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::oracle;
use crate::postgres::Postgres;

/// A connection by the workload's account.
#[derive(Clone, Debug)]
pub struct Account {
    /// How it was used.
    pub way: String,
    /// The end that connected.
    pub client: SocketAddr,
    /// Payload bytes that the workload sent and received.
    pub own: (u64, u64),
    /// The same by TCP_INFO, which the workload asked for before it closed.
    pub kernel: (u64, u64),
    /// Statements that it sent.
    pub statements: usize,
}

/// Reads the accounts that a workload has printed.
///
/// # Errors
/// A line is not what the workload prints.
pub fn accounts(printed: &str) -> Result<Vec<Account>> {
    printed.lines().filter(|line| line.starts_with("closed ")).map(account).collect()
}

fn account(line: &str) -> Result<Account> {
    let words: Vec<&str> = line.split(' ').collect();
    let [_, way, client, sent, received, acked, counted, statements] = words.as_slice() else {
        bail!("no account: {line:?}");
    };
    let number = |word: &str| word.parse().with_context(|| format!("{word:?} in {line:?}"));
    let client: SocketAddr = client.parse().with_context(|| format!("an address in {line:?}"))?;
    Ok(Account {
        way: (*way).to_owned(),
        client: SocketAddr::new(client.ip().to_canonical(), client.port()),
        own: (number(sent)?, number(received)?),
        kernel: (number(acked)?, number(counted)?),
        statements: usize::try_from(number(statements)?)?,
    })
}

/// Records of a kind.
pub fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).collect()
}

/// The record of a connection's end, by its client.
///
/// # Errors
/// There is none, or more than one.
pub fn closed(records: &[Value], client: SocketAddr) -> Result<&Value> {
    let of_client = |record: &&&Value| oracle::client(record).is_ok_and(|found| found == client);
    let ends = of_kind(records, "connection-closed");
    let ends: Vec<_> = ends.iter().filter(of_client).collect();
    match ends.as_slice() {
        [end] => Ok(end),
        ends => bail!("{} ends of a connection from {client}", ends.len()),
    }
}

/// Checks one connection's coverage: what the workload knows, what its kernel told it, what the auditor says the kernel moved
/// and what it audited are the same, to the byte, both ways.
///
/// # Errors
/// They are not.
pub fn check_coverage(records: &[Value], account: &Account) -> Result<()> {
    let Account { way, client, own, kernel, .. } = account;
    let end = closed(records, *client).with_context(|| way.clone())?;
    let coverage = &end["unmapped"]["auditor"]["connection"]["coverage"];
    let count = |name: &str| coverage[name].as_u64().with_context(|| format!("{way}: no {name}: {coverage}"));
    let moved = (count("sent")?, count("received")?);
    let audited = (count("audited_sent")?, count("audited_received")?);
    if own != kernel || moved != *kernel || audited != *kernel || coverage["gaps"] != Value::Array(Vec::new())
    {
        bail!(
            "{way} {client}: the workload counts {own:?}, its kernel {kernel:?}, the record has {coverage}"
        );
    }
    Ok(())
}

/// Holds the trail against the workload's accounts and the server's log: every statement verbatim and in order, every byte
/// audited, all of it in `session`.
///
/// # Errors
/// The first thing that is not so.
pub fn check(postgres: &Postgres, records: &[Value], accounts: &[Account], sessions: usize) -> Result<()> {
    let report = oracle::compare(&postgres.log()?, records)?;
    let expected: usize = accounts.iter().map(|account| account.statements).sum();
    if !report.is_equal() || report.told != expected {
        bail!("{expected} statements were sent; {report}");
    }
    accounts.iter().try_for_each(|account| check_coverage(records, account))?;
    let mut seen: Vec<&str> = Vec::new();
    for record in of_kind(records, "statement").into_iter().chain(of_kind(records, "connection-closed")) {
        let session = record["unmapped"]["auditor"]["session"]["id"].as_str();
        let session = session.with_context(|| format!("no session: {}", record["unmapped"]["auditor"]))?;
        if !seen.contains(&session) {
            seen.push(session);
        }
    }
    if seen.len() != sessions {
        bail!("records are of {} sessions, not of {sessions}", seen.len());
    }
    Ok(())
}
