//! `auditor policy check` and `auditor policy test`: is the configuration valid, and what would it decide? No daemon needed.

use std::fmt;
use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;

use auditor::api::types::RecordFilter;
use auditor::clock::Clock;
use auditor::config::{self, Loaded};
use auditor::policy::learn::{self, Learning};
use auditor::policy::{self, Destination, DestinationError, Explanation, SCHEME, SocketName};
use auditor::record::Transport;
use auditor_common::endpoint::Endpoint;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::failure::{Failure, complain_of_place};
use super::{Connection, Places, json};

/// Arguments of `auditor policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Check a configuration file
    Check {
        /// The file [default: the one of --config]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print a policy that allows what a session did, and nothing else
    Learn {
        /// The session, by its id or enough of its first digits
        #[arg(long, value_name = "ID")]
        session: String,
    },
    /// Tell what would happen to a connection, and by which rule
    Test {
        /// Agent, by its name in the configuration
        #[arg(long, value_name = "NAME")]
        agent: String,
        /// Where to: 10.20.0.9:5432, [2001:db8::1]:443, unix:/run/postgresql/.s.PGSQL.5432 or unix:@name
        #[arg(long, value_name = "DESTINATION", value_parser = destination)]
        to: To,
        #[arg(long = "statement", hide = true, value_name = "SQL", value_parser = super::absent::option)]
        _statement: Option<super::absent::Never>,
        /// Over which transport
        #[arg(long, value_enum, default_value_t = Over::Tcp)]
        transport: Over,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What is asked about.
#[derive(Clone, Debug)]
pub(crate) enum To {
    Address(SocketAddr),
    Socket(SocketName),
}

impl fmt::Display for To {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Socket(socket) => socket.fmt(formatter),
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Over {
    Tcp,
    Udp,
}

/// What `policy test --json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    allowed: bool,
    agent: &'a str,
    to: String,
    policy: &'a str,
    rule: Option<&'a str>,
    reason: &'a str,
    protocol: Option<&'a str>,
}

impl Policy {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        match self {
            Self::Check { file } => check(file.unwrap_or_else(|| places.config.clone())),
            Self::Learn { session } => learn(places, &session),
            Self::Test { agent, to, transport, json, .. } => test(places, &agent, &to, transport, json),
        }
    }
}

fn check(file: PathBuf) -> Result<(), Failure> {
    let Loaded { settings, warnings, digest, .. } =
        config::load(&file).map_err(|error| Failure::configuration(&error))?;
    let mut out = stdout().lock();
    for warning in &warnings {
        writeln!(out, "{}", warning.render(&file))?;
    }
    writeln!(
        out,
        "{}: valid: {}, {}, {}; sha256 {digest}",
        file.display(),
        counted(settings.agents.len(), "agent", "agents"),
        counted(settings.policies.len(), "policy", "policies"),
        counted(warnings.len(), "warning", "warnings")
    )?;
    Ok(())
}

/// Asks the daemon for what the session did.
fn learn(places: &Places, session: &str) -> Result<(), Failure> {
    let mut learning = Learning::default();
    let Connection { mut client, runtime } = Connection::open(places)?;
    for kind in learn::KINDS {
        let filter = RecordFilter {
            session: Some(session.to_owned()),
            kind: Some(kind.to_owned()),
            ..RecordFilter::default()
        };
        runtime.block_on(async {
            let mut lines = client.records(&filter).await?;
            while let Some(line) = lines.next().await? {
                learning
                    .add(&line)
                    .map_err(|error| Failure::refused(format!("a record cannot be read: {error}")))?;
            }
            Ok::<_, Failure>(())
        })?;
    }
    if learning.is_empty() {
        return Err(Failure::refused(format!("no session {session}: `auditor sessions` lists them")));
    }
    stdout().lock().write_all(learning.text().as_bytes())?;
    Ok(())
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn test(places: &Places, agent: &str, to: &To, transport: Over, as_json: bool) -> Result<(), Failure> {
    let loaded = config::load(&places.config).map_err(|error| Failure::configuration(&error))?;
    let Loaded { settings, warnings, .. } = loaded;
    let transport = match transport {
        Over::Tcp => Transport::Tcp,
        Over::Udp => Transport::Udp,
    };
    let (clock, now) = (Clock::read(), Clock::now());
    let explanation = match to {
        To::Address(address) => {
            policy::explain(&settings, agent, Endpoint::from(*address), transport, &clock, now)
        }
        To::Socket(socket) => policy::explain_socket(&settings, agent, socket.bytes(), &clock, now),
    }
    .map_err(Failure::usage)?;
    let concerns = |policy: &String| *policy == explanation.policy;
    for warning in warnings.iter().filter(|warning| warning.policy.as_ref().is_none_or(concerns)) {
        complain_of_place(warning.render(&places.config));
    }
    let mut out = stdout().lock();
    if as_json {
        json::line(&mut out, &answer(&explanation, agent, to))?;
    } else {
        writeln!(out, "{}", sentence(&explanation))?;
    }
    if explanation.allowed { Ok(()) } else { Err(Failure::told()) }
}

/// One address and one port, or one unix socket, for clap.
fn destination(text: &str) -> Result<To, String> {
    if let Ok(address) = text.parse() {
        return Ok(To::Address(address));
    }
    if text.starts_with(SCHEME) {
        return match text.parse::<SocketName>() {
            Ok(socket) if socket.is_directory() => {
                Err("ask about one socket, not about a directory".to_owned())
            }
            Ok(socket) => Ok(To::Socket(socket)),
            Err(error) => Err(error.to_string()),
        };
    }
    // What rules take, questions take too, except for networks and every port; so the same reasons are given.
    Err(match text.parse::<Destination>() {
        Ok(_) => "write one address and one port, e.g. 10.20.0.9:5432 or [2001:db8::1]:443".to_owned(),
        Err(DestinationError::Name) => {
            "names are not supported by this version: write the address, e.g. 127.0.0.1:5432".to_owned()
        }
        Err(error) => error.to_string(),
    })
}

fn answer<'a>(explanation: &'a Explanation, agent: &'a str, to: &To) -> Answer<'a> {
    Answer {
        allowed: explanation.allowed,
        agent,
        to: to.to_string(),
        policy: &explanation.policy,
        rule: explanation.rule.as_deref(),
        reason: explanation.reason,
        protocol: explanation.protocol.map(auditor::protocol::Protocol::name),
    }
}

fn sentence(explanation: &Explanation) -> String {
    let verdict = if explanation.allowed { "allowed" } else { "denied" };
    let by = match (&explanation.rule, explanation.reason) {
        (Some(rule), "expired") => format!("its rule has expired: {rule}"),
        (Some(rule), _) => format!("by {rule}"),
        (None, "default") => format!("by the default of policy {}", explanation.policy),
        (None, reason) => format!("{reason}, policy {}", explanation.policy),
    };
    match explanation.protocol {
        Some(protocol) if explanation.allowed => format!(
            "{verdict} {by}; it must speak {}: anything else on it is recorded as a violation (not stopped)",
            protocol.name()
        ),
        _ => format!("{verdict} {by}"),
    }
}
