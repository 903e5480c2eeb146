//! Searching the trail: which records, in what order they were written, as the bytes that were written.
//!
//! There is no index. A line is first put to tests that need no parsing (its time, which stands at its beginning; the bytes
//! of the names that it must contain), and only what passes is parsed. Segments are never skipped by time: wall clocks
//! step, and a search that leaves out what it should show is worse than one that reads a little more.

mod scan;
mod view;

use std::net::IpAddr;

use memchr::memmem::Finder;
use regex::Regex;

pub use self::scan::{Cursor, Scanned, find, scan, sessions};
pub use self::view::{
    Actor, Agent, Connection, Coverage, Endpoint, Finding, HttpRequest, Metadata, Own, Process, QueryInfo,
    Request, Session, Statement, Text, User, View,
};
use super::error::Error;
use crate::policy::SCHEME;

/// A destination to look for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    /// Address, host name in any case, or name of a unix socket (`unix:…`), which has no port.
    pub host: String,
    /// Any, where `None`.
    pub port: Option<u16>,
}

impl Destination {
    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port`, a bare IPv6 address, or `unix:` and a name.
    pub fn parse(text: &str) -> Option<Self> {
        let whole =
            |host: &str| Some(Self { host: host.to_owned(), port: None }).filter(|_| !host.is_empty());
        if text.starts_with(SCHEME) {
            return whole(text);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']')?;
            return match port.strip_prefix(':') {
                Some(port) => Some(Self { host: host.to_owned(), port: Some(port.parse().ok()?) }),
                None if port.is_empty() => whole(host),
                None => None,
            };
        }
        match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => whole(text),
            Some((host, port)) => Some(Self { port: Some(port.parse().ok()?), ..whole(host)? }),
            None => whole(text),
        }
    }

    fn matches(&self, endpoint: &Endpoint<'_>) -> bool {
        if self.host.starts_with(SCHEME) {
            return endpoint.name.as_deref() == Some(&*self.host);
        }
        if self.port.is_some_and(|port| endpoint.port != Some(port)) {
            return false;
        }
        if endpoint.hostname.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(&self.host)) {
            return true;
        }
        match (self.host.parse::<IpAddr>(), endpoint.ip.as_deref().map(str::parse::<IpAddr>)) {
            (Ok(wanted), Some(Ok(ip))) => wanted.to_canonical() == ip.to_canonical(),
            _ => false,
        }
    }
}

/// What to look for. A record has to pass all that is set.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Session id.
    pub session: Option<String>,
    /// Agent's name.
    pub agent: Option<String>,
    /// Where to.
    pub to: Option<Destination>,
    /// Protocol.
    pub protocol: Option<String>,
    /// Any of a statement's verbs, or its first keyword; of a request the API's verb, or the method. In any case.
    pub verb: Option<String>,
    /// Object that a statement names.
    pub object: Option<String>,
    /// `allowed`, `denied`, …; `allow` and `deny` are the same as the first two.
    pub decision: Option<String>,
    /// What happened, e.g. `statement`.
    pub kind: Option<String>,
    /// Milliseconds since the epoch: not before.
    pub since: Option<u64>,
    /// Milliseconds since the epoch: before.
    pub until: Option<u64>,
    /// Pattern for a statement's text, or for the whole line of a record that is not a statement.
    pub grep: Option<Regex>,
    /// Stop after so many.
    pub limit: Option<u64>,
}

impl Query {
    /// Compiles a pattern for [`Query::grep`].
    pub fn pattern(pattern: &str) -> Result<Regex, Error> {
        Ok(Regex::new(pattern)?)
    }

    /// Whether a parsed record passes, the limit aside.
    pub fn matches(&self, line: &[u8], view: &View<'_>) -> bool {
        let own = view.own();
        let statement = own.statement.as_ref();
        self.in_time(view.time)
            && is(&self.session, own.session.as_ref().map(|session| &*session.id))
            && is(&self.agent, own.agent.as_ref().map(|agent| &*agent.name))
            && is(&self.kind, Some(&*own.kind))
            && is(
                &self.protocol,
                own.connection.as_ref().and_then(|connection| connection.protocol.as_deref()),
            )
            && self.verb.as_deref().is_none_or(|wanted| {
                let of_request = own.request.iter().flat_map(|request| &request.verb);
                let of_statement =
                    statement.iter().flat_map(|statement| statement.verb.iter().chain(&statement.verbs));
                of_request.chain(of_statement).any(|verb| verb.eq_ignore_ascii_case(wanted))
            })
            && self.object.as_deref().is_none_or(|wanted| {
                statement.is_some_and(|statement| {
                    let named =
                        statement.objects.iter().chain(&statement.resolved).chain(&statement.functions);
                    named.into_iter().any(|name| names(name, wanted))
                })
            })
            && self.decision.as_deref().is_none_or(|wanted| {
                view.decision().is_some_and(|decision| canonical(decision) == canonical(wanted))
            })
            && self.to.as_ref().is_none_or(|to| view.dst_endpoint.as_ref().is_some_and(|end| to.matches(end)))
            && self.grep.as_ref().is_none_or(|grep| match &view.query_info {
                Some(info) => grep.is_match(&info.query_string),
                None => std::str::from_utf8(line).is_ok_and(|line| grep.is_match(line)),
            })
    }

    fn in_time(&self, time: u64) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }

    /// Byte strings that any matching line contains: values as the renderer writes them.
    fn needles(&self) -> Vec<Finder<'static>> {
        let exact = [&self.session, &self.agent, &self.protocol, &self.kind];
        let verb = self.verb.as_ref().map(|verb| verb.to_ascii_lowercase());
        exact
            .into_iter()
            .flatten()
            .chain(&verb)
            .filter_map(|value| serde_json::to_string(value).ok())
            .chain(self.object.as_deref().and_then(part_of_name))
            .map(|value| Finder::new(value.as_bytes()).into_owned())
            .collect()
    }
}

/// Whether an object is the one that is looked for: the same name, `schema.*`, or a bare name in whatever schema.
fn names(object: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*').filter(|schema| schema.ends_with('.')) {
        Some(schema) => object.starts_with(schema),
        None => object.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('.')),
    }
}

/// What a line has to have of such a name: its end, or its beginning.
fn part_of_name(wanted: &str) -> Option<String> {
    let written = serde_json::to_string(wanted).ok()?;
    Some(match wanted.ends_with(".*") {
        true => written.strip_suffix("*\"")?.to_owned(),
        false => written.strip_prefix('"')?.to_owned(),
    })
}

fn is(wanted: &Option<String>, value: Option<&str>) -> bool {
    wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
}

/// Connections are `allow`ed or `deny`ed, statements `allowed` or `denied`; to whoever asks it is the same.
fn canonical(decision: &str) -> &str {
    match decision {
        "allow" => "allowed",
        "deny" => "denied",
        decision => decision,
    }
}
