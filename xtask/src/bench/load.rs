//! The load: pgbench's read-only transactions, one statement each, in one of four settings.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use auditor_tests::daemon::Daemon;
use auditor_tests::pgbouncer::Pgbouncer;
use auditor_tests::postgres::Postgres;
use auditor_tests::{UNPRIVILEGED, child};

/// Beyond the load's own time: connecting, and a machine that is busy.
const SLACK: Duration = Duration::from_secs(30);
/// The agent whose session the load runs in.
pub(super) const AGENT: &str = "bench-agent";

/// A policy that lets this agent speak to this server.
pub(super) fn configuration(postgres: &Postgres) -> String {
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"bench\"\n\n[[policy]]\nname = \"bench\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n",
        postgres.port()
    )
}

/// What one run of pgbench reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throughput {
    /// Transactions a second, connecting not counted.
    pub(super) tps: f64,
    /// Transactions in all.
    pub(super) transactions: u64,
}

/// The words of a pgbench call.
pub(super) fn words(
    postgres: &Postgres,
    port: u16,
    clients: u32,
    seconds: u32,
    more: &[&str],
) -> Vec<OsString> {
    let mut words = vec![postgres.program("pgbench").into_os_string()];
    let threads = clients.min(2);
    words.extend(["-n", "-S", "-c", &clients.to_string(), "-j", &threads.to_string()].map(OsString::from));
    words
        .extend(["-T", &seconds.to_string(), "-h", "127.0.0.1", "-p", &port.to_string()].map(OsString::from));
    words.extend(more.iter().map(OsString::from));
    words.extend(["-U", "postgres", "postgres"].map(OsString::from));
    words
}

/// Straight to the server, or through something that listens on `port`.
pub(super) fn plain(words: &[OsString], seconds: u32) -> Result<Throughput> {
    let (program, arguments) = words.split_first().context("no command")?;
    let user = child::find_user(&[UNPRIVILEGED])?;
    let mut command = Command::new(program);
    // libpq looks for a client's certificate in the home, which must not be root's.
    command.args(arguments).current_dir("/").env("HOME", "/nonexistent");
    let printed = child::succeed(child::as_user(&mut command, &user), limit(seconds))?;
    parse(&printed)
}

/// In an agent's session.
pub(super) fn audited(daemon: &Daemon, words: &[OsString], seconds: u32) -> Result<Throughput> {
    let printed = child::succeed(&mut daemon.home().run(AGENT, UNPRIVILEGED, words), limit(seconds))
        .with_context(|| format!("the daemon said: {}", daemon.said()))?;
    parse(&printed)
}

/// Through a gateway.
pub(super) fn through_pgbouncer(postgres: &Postgres, clients: u32, seconds: u32) -> Result<Throughput> {
    let gateway = Pgbouncer::start(postgres)?;
    plain(&words(postgres, gateway.port(), clients, seconds, &[]), seconds)
}

/// With the server's own log of statements.
pub(super) fn with_server_log(postgres: &Postgres, words: &[OsString], seconds: u32) -> Result<Throughput> {
    postgres.set("log_statement", "all")?;
    let measured = plain(words, seconds);
    postgres.set("log_statement", "none")?;
    measured
}

fn limit(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()) + SLACK
}

fn parse(printed: &str) -> Result<Throughput> {
    let after = |prefix: &str| printed.lines().find_map(|line| line.strip_prefix(prefix));
    let tps = after("tps = ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let transactions = after("number of transactions actually processed: ")
        .and_then(|rest| rest.split(['/', ' ']).next()?.parse().ok());
    match (tps, transactions) {
        (Some(tps), Some(transactions)) => Ok(Throughput { tps, transactions }),
        _ => anyhow::bail!("pgbench did not report its throughput: {printed}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_pgbench_is_read() {
        let printed = "transaction type: <builtin: select only>\nnumber of transactions actually processed: 4711\n\
                       latency average = 0.1 ms\ntps = 1234.5 (without initial connection time)\n";
        let throughput = parse(printed).unwrap();
        assert_eq!((throughput.tps, throughput.transactions), (1234.5, 4711));
        assert!(parse("pgbench: error").is_err());
    }
}
