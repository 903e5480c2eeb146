//! Servers that speak TLS, and what the trail must say of the connections to them.
//!
//! PostgreSQL is the judge here too: with `log_connections` it writes down version and cipher of each connection, by the
//! client's end, as it does with statements. Both accounts are of the same handshake, and neither learnt it from the other.

pub mod front;
pub mod ja4;
pub mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::{Certificates, Key, SERVER};
use crate::daemon::Daemon;
use crate::postgres::log::Entry;
use crate::postgres::{Options, Postgres};
use crate::{UNPRIVILEGED, child, clients, oracle, place};

/// The agent of these tests.
pub const AGENT: &str = "tls-agent";

/// A PostgreSQL with a certificate.
#[derive(Debug)]
pub struct Server {
    /// The server.
    pub postgres: Postgres,
    /// Its certificate, and one for clients.
    pub certificates: Certificates,
    _folder: TempDir,
}

impl Server {
    /// Starts it with further settings.
    ///
    /// # Errors
    /// See [`Postgres::start`] and [`Certificates::new`].
    pub fn start(key: Key, log_statements: bool, settings: &[(&str, &str)]) -> Result<Self> {
        let folder = place::scratch()?;
        let user = child::find_user(&["postgres", UNPRIVILEGED])?;
        let certificates = Certificates::new(folder.path(), key, &user)?;
        let path = |path: std::path::PathBuf| path.display().to_string();
        let mut all = vec![
            ("ssl".to_owned(), "on".to_owned()),
            ("ssl_cert_file".to_owned(), path(certificates.certificate())),
            ("ssl_key_file".to_owned(), path(certificates.key())),
            ("log_connections".to_owned(), if log_statements { "on" } else { "off" }.to_owned()),
        ];
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let postgres = Postgres::start(&Options { log_statements, settings: all })?;
        Ok(Self { postgres, certificates, _folder: folder })
    }

    /// What libpq is told to reach it and to insist on its certificate.
    pub fn target(&self) -> String {
        let authority = self.certificates.authority();
        format!(
            "host={SERVER} port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            self.postgres.port(),
            authority.display()
        )
    }

    /// A policy that lets [`AGENT`] speak PostgreSQL with it, and do what `rules` say.
    pub fn configuration(&self, rules: &str) -> String {
        let port = self.postgres.port();
        format!(
            "[[agent]]\nname = \"{AGENT}\"\npolicy = \"tls\"\n\n[[policy]]\nname = \"tls\"\ndefault = \"deny\"\n\
             [[policy.rule]]\nto = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n\
             {rules}"
        )
    }
}

/// The longest alert. The last word of one end may arrive when the other has closed already: then it was seen, and the kernel,
/// which counts what was taken in and what was acknowledged, does not count it.
pub const CLOSE_NOTIFY: u64 = 5 + 16 + 2 + 48 + 16;

/// What must be said of every connection of a test.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Part of the library's name and version.
    pub library: &'a str,
    /// What the client asks for.
    pub sni: Option<&'a str>,
}

/// A server, a daemon, and the sessions that ran.
#[derive(Debug)]
pub struct Scene {
    /// The daemon.
    pub daemon: Daemon,
    /// The server.
    pub server: Server,
    pids: Vec<u32>,
}

impl Scene {
    /// Starts both.
    ///
    /// # Errors
    /// One does not start.
    pub fn new(key: Key, settings: &[(&str, &str)]) -> Result<Self> {
        crate::require_root()?;
        let server = Server::start(key, true, settings)?;
        let daemon = Daemon::start(&server.configuration(""))?;
        Ok(Self::of(server, daemon))
    }

    /// Of what runs already.
    pub fn of(server: Server, daemon: Daemon) -> Self {
        Self { daemon, server, pids: Vec::new() }
    }

    /// Runs a client that tells its process id in a session of its own.
    ///
    /// # Errors
    /// It failed; what it and the daemon said is part of the error.
    pub fn run(&mut self, words: &[OsString]) -> Result<Output> {
        let output = self.daemon.run(AGENT, UNPRIVILEGED, words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{words:?}: {}\n{stderr}\ndaemon: {}", output.status, self.daemon.said());
        }
        self.pids.push(clients::pid_told(&output.stderr)?);
        Ok(output)
    }

    /// Compares both accounts of statements and of connections: all of the server's connections were of agents, and each
    /// one is as `expected`. Returns the trail.
    ///
    /// # Errors
    /// They differ.
    pub fn judge(&self, name: &str, least: usize, expected: Expected<'_>) -> Result<Vec<Value>> {
        self.daemon.settle()?;
        let (log, records) = (self.server.postgres.log()?, self.daemon.records()?);
        let report = oracle::compare(&log, &records)?;
        eprintln!("tls, {name}: {report}");
        if !report.is_equal() {
            bail!("{report}\n{}\ndaemon: {}", summary(&records), self.daemon.said());
        }
        if report.told < least {
            bail!("only {} statements: the test did not do its work", report.told);
        }
        oracle::check_attribution(&records, AGENT, &self.pids)?;
        let connections = check_connections(&log, &records, expected)?;
        eprintln!("tls, {name}: {connections} connections as the server has them");
        let status = self.daemon.status()?;
        if status["failures"].as_array().map(Vec::len) != Some(0) {
            bail!("{status}");
        }
        Ok(records)
    }
}

/// Checks connections that nobody could read against the server's account: what the handshake says in the clear is there, the
/// reason is, no statement is, and a rule that names a protocol is violated. Returns how many there were.
///
/// # Errors
/// The first thing that is not so.
pub fn check_opaque(log: &[Entry], records: &[Value], sni: Option<&str>) -> Result<usize> {
    let agreed = agreed(log)?;
    if let Some(record) = records.iter().find(|record| oracle::is_statement(record)) {
        bail!("a statement of nobody knows whom: {record}");
    }
    for (client, handshakes) in &agreed {
        let record = records.iter().find(|record| {
            record["unmapped"]["auditor"]["kind"] == "connection-closed"
                && oracle::client(record).is_ok_and(|end| end == *client)
        });
        let connection =
            &record.with_context(|| format!("no end of {client}"))?["unmapped"]["auditor"]["connection"];
        let tls = &connection["tls"];
        let known =
            handshakes.iter().any(|(version, cipher)| tls["version"] == *version && tls["cipher"] == *cipher);
        let reason = tls["reason"].as_str().is_some_and(|reason| !reason.is_empty());
        if !known
            || !reason
            || tls["decrypted"] != false
            || tls["sni"].as_str() != sni
            || !tls["ja4"].is_string()
        {
            bail!("{client} agreed on {handshakes:?}; the trail has {connection}");
        }
        let violations = records.iter().filter(|record| {
            let own = &record["unmapped"]["auditor"];
            own["connection"]["id"] == connection["id"] && own["finding"]["kind"] == "opaque-connection"
        });
        if violations.count() != 1 {
            bail!("not one violation of {connection}");
        }
    }
    Ok(agreed.len())
}

/// The words of a command with further variables.
pub fn with_variables(variables: &[(&str, &str)], words: &[OsString]) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["/usr/bin/env".into()];
    all.extend(variables.iter().map(|(name, value)| format!("{name}={value}").into()));
    all.extend(words.iter().cloned());
    all
}

/// Version (`1.3`) and suite (IANA's name).
pub type Agreed = (String, String);

/// What the server agreed on with TCP clients, by client, in order.
///
/// # Errors
/// The suites' names are not to be had.
pub fn agreed(log: &[Entry]) -> Result<BTreeMap<SocketAddr, Vec<Agreed>>> {
    let names = standard_names()?;
    let mut clients: BTreeMap<SocketAddr, Vec<Agreed>> = BTreeMap::new();
    for entry in log {
        let (Some(client), Some((_, rest))) =
            (entry.client, entry.message.split_once("SSL enabled (protocol=TLSv"))
        else {
            continue;
        };
        let (version, rest) = rest.split_once(", cipher=").context("no cipher in the server's log")?;
        let cipher = rest.split([',', ')']).next().unwrap_or_default();
        let version = if version == "1" { "1.0" } else { version };
        let cipher = names.get(cipher).with_context(|| format!("openssl does not know {cipher}"))?;
        clients.entry(client).or_default().push((version.to_owned(), cipher.clone()));
    }
    Ok(clients)
}

/// IANA's names of suites by OpenSSL's.
///
/// # Errors
/// openssl does not tell them.
pub fn standard_names() -> Result<BTreeMap<String, String>> {
    let mut command = Command::new("openssl");
    command.args(["ciphers", "-stdname", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]);
    let text = child::succeed(&mut command, Duration::from_secs(10))?;
    let names = text.lines().filter_map(|line| {
        let (standard, rest) = line.split_once(" - ")?;
        Some((rest.split_whitespace().next()?.to_owned(), standard.trim().to_owned()))
    });
    Ok(names.collect())
}

/// Ends of connections by the trail, each with its client, those of port `port` only.
fn closed(records: &[Value], port: u16) -> Result<Vec<(SocketAddr, &Value)>> {
    let closed = records.iter().filter(|record| {
        record["unmapped"]["auditor"]["kind"] == "connection-closed" && record["dst_endpoint"]["port"] == port
    });
    closed.map(|record| Ok((oracle::client(record)?, record))).collect()
}

/// Checks each connection's own record against the server's account; returns how many there were.
///
/// # Errors
/// The first difference.
pub fn check_connections(log: &[Entry], records: &[Value], expected: Expected<'_>) -> Result<usize> {
    let mut agreed = agreed(log)?;
    let Some(port) = records.iter().find_map(|record| {
        let client = oracle::client(record).ok()?;
        agreed.contains_key(&client).then(|| record["dst_endpoint"]["port"].as_u64())?
    }) else {
        bail!("the trail has none of the server's connections: {:?}", agreed.keys());
    };
    let port = u16::try_from(port).context("port")?;
    let mut checked = 0;
    for (client, record) in closed(records, port)? {
        let Some(waiting) = agreed.get_mut(&client).filter(|waiting| !waiting.is_empty()) else {
            // The server refused it before TLS: it has no say in this.
            bail!("the server has no TLS connection of {client}: {record}");
        };
        let (version, cipher) = waiting.remove(0);
        check_connection(record, &version, &cipher, expected)
            .with_context(|| format!("{client}: {record}"))?;
        checked += 1;
    }
    agreed.retain(|_, left| !left.is_empty());
    if !agreed.is_empty() {
        bail!("the trail has no end of {} connections: {agreed:?}", agreed.len());
    }
    Ok(checked)
}

/// Checks a record of a connection that was read.
///
/// # Errors
/// The first thing in it that is not so.
pub fn check_connection(record: &Value, version: &str, cipher: &str, expected: Expected<'_>) -> Result<()> {
    let connection = &record["unmapped"]["auditor"]["connection"];
    let tls = &connection["tls"];
    for (name, want) in [("version", Some(version)), ("cipher", Some(cipher)), ("sni", expected.sni)] {
        if tls[name].as_str() != want {
            bail!("{name} is {}, not {want:?}", tls[name]);
        }
    }
    if tls["decrypted"] != true || !tls["reason"].is_null() || !connection["opaque"].is_null() {
        bail!("it is not decrypted");
    }
    let coverage = &connection["coverage"];
    for (all, kinds) in [
        ("sent", ["audited_sent", "opaque_sent", "skipped_sent"]),
        ("received", ["audited_received", "opaque_received", "skipped_received"]),
    ] {
        let [audited, opaque, skipped] = kinds.map(|kind| coverage[kind].as_u64());
        let seen = audited.zip(skipped).map(|(left, right)| left + right);
        let fits = coverage[all]
            .as_u64()
            .zip(seen)
            .is_some_and(|(all, seen)| (all..=all + CLOSE_NOTIFY).contains(&seen));
        if opaque != Some(0) || !fits {
            bail!("not all that was {all} was audited");
        }
    }
    if coverage["gaps"].as_array().map(Vec::len) != Some(0) {
        bail!("there are gaps");
    }
    let library = tls["library"].as_str().unwrap_or_default();
    if !library.to_lowercase().contains(&expected.library.to_lowercase()) {
        bail!("the library is {}, not {}", tls["library"], expected.library);
    }
    Ok(())
}

/// How connections were read, in a line each kind: for the message of a test that fails.
fn summary(records: &[Value]) -> String {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed")
    {
        let connection = &record["unmapped"]["auditor"]["connection"];
        let kind = format!("opaque {}, tls {}", connection["opaque"], connection["tls"]);
        *kinds.entry(kind).or_default() += 1;
    }
    kinds.iter().map(|(kind, count)| format!("{count} connections: {kind}\n")).collect()
}

/// Kinds of findings in a trail.
pub fn findings(records: &[Value]) -> BTreeSet<&str> {
    records.iter().filter_map(|record| record["unmapped"]["auditor"]["finding"]["kind"].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_account_of_a_handshake_is_read() {
        let client = SocketAddr::from(([127, 0, 0, 1], 7));
        let message = "connection authorized: user=postgres database=postgres application_name=psql SSL enabled \
                       (protocol=TLSv1.2, cipher=ECDHE-RSA-AES256-GCM-SHA384, bits=256)";
        let entry = Entry { client: Some(client), message: message.to_owned(), ..Entry::default() };
        let found = agreed(&[entry]).unwrap();
        let suite = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
        assert_eq!(found[&client], [("1.2".to_owned(), suite.to_owned())]);
    }
}
