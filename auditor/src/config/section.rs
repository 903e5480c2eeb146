//! The sections of the file, one function each.
//!
//! Every function reports what is wrong and goes on with what it can still check; whether anything was wrong is decided
//! once, at the end.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Report, quoted};
use super::document::{At, Section, Word, nearest};
use super::overlap::{self, Spans};
use super::{
    Agent, Capture, Daemon, ExistingSockets, FailMode, Overload, Results, Settings, Trail, confinement,
    expiry, guarantees,
};
use crate::clock::Utc;
use crate::policy::{Action, Destination, Policy, Rule, SCHEME, SocketName};
use crate::protocol::Protocol;

/// Bounds on `ring_bytes`. The least holds a largest segment of the loopback device (64 KiB) several times over: one that never
/// finds room never leaves.
const RING_BYTES: std::ops::RangeInclusive<usize> = 256 << 10..=1 << 30;
/// Bounds on `max_statement_bytes`.
const STATEMENT_BYTES: std::ops::RangeInclusive<usize> = 1 << 10..=8 << 20;

/// Bounds on `checkpoint_every`, in seconds.
const CHECKPOINT_SECONDS: std::ops::RangeInclusive<usize> = 1..=86_400;

/// Longest name of an agent or a policy, in bytes.
const MAX_NAME: usize = 64;

const NOT_YET_MASKING: &str = "[masking] is not supported by this version: remove it; \
                               to keep no bind values, write `parameters = false` in [capture]";
const NOT_YET_SINK: &str = "[[sink]] is not supported by this version: remove it; records are in the trail";
const NOT_YET_STATEMENT: &str =
    "[[policy.statement]] is not supported by this version: remove it, and decide by destination";
const NOT_YET_MATCH: &str = "`match` is not supported by this version: remove it, and start the agent with `auditor run` or `auditor tag`";
const NOT_YET_HOLDING: &str =
    "holding for approval is not supported by this version, write \"allow\" or \"deny\"";

/// Reads the whole document. The settings are meaningful only where no diagnostic is an error.
pub(super) fn settings(text: &str, now: Utc) -> (Option<Settings>, Vec<Diagnostic>) {
    let mut report = Report::new(text);
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            // Some of the parser's messages have lines; a diagnostic is one.
            let message = error.message().replace('\n', ", ");
            report.error(span, format!("not valid TOML: {message}"));
            return (None, report.finish());
        }
    };
    let root = Section::new("", document.get_ref(), 0..0);
    root.check_keys(
        &["daemon", "capture", "trail", "agent", "policy"],
        &[("masking", NOT_YET_MASKING), ("sink", NOT_YET_SINK)],
        &mut report,
    );
    let daemon = root.section("daemon", "[daemon]", &mut report);
    let guarantees = daemon.as_ref().map(|section| guarantees::of_host(section, &mut report));
    let daemon = daemon.map_or_else(Daemon::default, |section| self::daemon(&section, &mut report));
    let capture = root.section("capture", "[capture]", &mut report);
    let capture = capture.map_or_else(Capture::default, |section| self::capture(&section, &mut report));

    let trail = root.section("trail", "[trail]", &mut report);
    let trail = trail.map_or_else(Trail::default, |section| self::trail(&section, &mut report));

    let agents = root.sections("agent", "[[agent]]", &mut report);
    let agents: Vec<NamedAgent<'_>> = agents.iter().map(|section| agent(section, &mut report)).collect();
    let policies = root.sections("policy", "[[policy]]", &mut report);
    let policies: Vec<(Policy, Range<usize>)> =
        policies.iter().map(|section| policy(section, now, &mut report)).collect();

    unique("agent", agents.iter().map(|agent| (agent.name.value, &agent.name.span)), &mut report);
    unique("policy", policies.iter().map(|(policy, span)| (policy.name.as_str(), span)), &mut report);
    references(&agents, &policies, &mut report);
    if root.value("agent").is_none() {
        report.warning(0..0, "no agent is declared, so nothing is audited: add an [[agent]] section");
    }

    let agents = agents.into_iter().filter_map(NamedAgent::complete).collect();
    let policies = policies.into_iter().map(|(policy, _)| policy).collect();
    let guarantees = guarantees.unwrap_or_default();
    (Some(Settings { daemon, guarantees, capture, trail, agents, policies }), report.finish())
}

fn daemon(section: &Section<'_>, report: &mut Report<'_>) -> Daemon {
    section.check_keys(&["fail_mode", "overload", "ring_bytes", "guarantees", "degraded"], &[], report);
    let fail_mode = [("closed", Word::Means(FailMode::Closed)), ("open", Word::Means(FailMode::Open))];
    let overload = [
        ("backpressure", Word::Means(Overload::Backpressure)),
        ("record-loss", Word::Means(Overload::RecordLoss)),
    ];
    let default = Daemon::default();
    Daemon {
        fail_mode: section.choice("fail_mode", &fail_mode, report).unwrap_or(default.fail_mode),
        overload: section.choice("overload", &overload, report).unwrap_or(default.overload),
        ring_bytes: ring_bytes(section, report).unwrap_or(default.ring_bytes),
    }
}

/// The kernel takes only powers of two as the size of a ring.
fn ring_bytes(section: &Section<'_>, report: &mut Report<'_>) -> Option<u32> {
    let bytes = section.integer("ring_bytes", RING_BYTES, report)?;
    if !bytes.is_power_of_two() {
        let span = section.value("ring_bytes").map_or(0..0, |value| value.span());
        let (below, above) = (bytes.next_power_of_two() / 2, bytes.next_power_of_two());
        report.error(span, format!("`ring_bytes` must be a power of two, such as {below} or {above}"));
        return None;
    }
    u32::try_from(bytes).ok()
}

fn capture(section: &Section<'_>, report: &mut Report<'_>) -> Capture {
    section.check_keys(&["results", "parameters", "max_statement_bytes"], &[], report);
    let default = Capture::default();
    Capture {
        results: results(section, report).unwrap_or(default.results),
        parameters: section.boolean("parameters", report).unwrap_or(default.parameters),
        max_statement_bytes: section
            .integer("max_statement_bytes", STATEMENT_BYTES, report)
            .unwrap_or(default.max_statement_bytes),
    }
}

fn trail(section: &Section<'_>, report: &mut Report<'_>) -> Trail {
    section.check_keys(&["checkpoint_every"], &[], report);
    let seconds = section.integer("checkpoint_every", CHECKPOINT_SECONDS, report);
    seconds.map_or_else(Trail::default, |seconds| Trail {
        checkpoint_every: Duration::from_secs(seconds as u64),
    })
}

fn results(section: &Section<'_>, report: &mut Report<'_>) -> Option<Results> {
    const REFUSED: &str = "keeping rows is not supported by this version, write \"shape\" or \"none\"";
    if let Some(value) =
        section.value("results").and_then(|value| value.get_ref().as_str().map(|text| (text, value.span())))
        && value.0.starts_with("sample:")
    {
        report.error(value.1, format!("`results` = {}: {REFUSED}", quoted(value.0)));
        return None;
    }
    let words = [
        ("none", Word::Means(Results::None)),
        ("shape", Word::Means(Results::Shape)),
        ("sample", Word::Refused(REFUSED)),
        ("full", Word::Refused(REFUSED)),
    ];
    section.choice("results", &words, report)
}

/// An agent as far as it was readable.
struct NamedAgent<'a> {
    /// Empty where there was none.
    name: At<&'a str>,
    policy: Option<At<&'a str>>,
    existing_sockets: Option<ExistingSockets>,
}

impl NamedAgent<'_> {
    fn complete(self) -> Option<Agent> {
        let policy = self.policy?.value.to_owned();
        let existing_sockets = self.existing_sockets.unwrap_or_default();
        Some(Agent { name: self.name.value.to_owned(), policy, existing_sockets })
    }
}

fn agent<'a>(section: &Section<'a>, report: &mut Report<'_>) -> NamedAgent<'a> {
    section.check_keys(&["name", "policy", "existing_sockets"], &[("match", NOT_YET_MATCH)], report);
    let name = name(section, report);
    let policy = section.required("policy", "\"NAME\"", report);
    let existing_sockets = section.choice(
        "existing_sockets",
        &[("destroy", Word::Means(ExistingSockets::Destroy)), ("adopt", Word::Means(ExistingSockets::Adopt))],
        report,
    );
    NamedAgent { name, policy, existing_sockets }
}

/// The valid name of a section; empty, and reported, where there is none.
fn name<'a>(section: &Section<'a>, report: &mut Report<'_>) -> At<&'a str> {
    let Some(name) = section.required("name", "\"NAME\"", report) else {
        return At { value: "", span: section.span.clone() };
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.value.is_empty() || name.value.len() > MAX_NAME || !name.value.bytes().all(allowed) {
        report.error(
            name.span.clone(),
            format!(
                "{} is not a name: write 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -",
                quoted(name.value)
            ),
        );
    }
    name
}

fn policy(section: &Section<'_>, now: Utc, report: &mut Report<'_>) -> (Policy, Range<usize>) {
    section.check_keys(
        &["name", "default", "rule", "sockets", "permit", "guarantees"],
        &[("statement", NOT_YET_STATEMENT)],
        report,
    );
    let name = name(section, report);
    report.turn_to(Some(name.value));
    let default = action(section, "default", report);
    let mut spans = Spans {
        policy: section.span.clone(),
        rules: Vec::new(),
        destinations: Vec::new(),
        sockets: Vec::new(),
        incomplete: section.value("default").is_some() && default.is_none(),
    };
    let mut rules = Vec::new();
    let sections = section.sections("rule", "[[policy.rule]]", report);
    for (section, number) in sections.iter().zip(1..) {
        match rule(section, number, now, report) {
            (Some(rule), (destinations, sockets)) => {
                spans.incomplete |= rule.destinations.is_empty() && rule.sockets.is_empty();
                spans.sockets.push(sockets);
                spans.rules.push(section.span.clone());
                spans.destinations.push(destinations);
                rules.push(rule);
            }
            (None, _) => spans.incomplete = true,
        }
    }
    spans.incomplete |= section.value("rule").is_some() && sections.is_empty();
    let confinement = confinement::confinement(section, report);
    let guarantees = guarantees::of_sessions(section, report);
    let policy = Policy {
        name: name.value.to_owned(),
        default: default.unwrap_or(Action::Deny),
        rules,
        confinement,
        guarantees,
    };
    overlap::check(&policy, &spans, report);
    report.turn_to(None);
    (policy, name.span)
}

/// Spans of a rule's destinations and of its unix sockets.
type RuleSpans = (Vec<Range<usize>>, Vec<Range<usize>>);

/// A rule with its valid destinations and their spans; `None` where its action is not known.
fn rule(section: &Section<'_>, number: u32, now: Utc, report: &mut Report<'_>) -> (Option<Rule>, RuleSpans) {
    section.check_keys(&["to", "action", "protocol", "expires"], &[], report);
    if section.value("action").is_none() {
        report.error(
            section.span.clone(),
            "[[policy.rule]] has no `action`: add `action = \"allow\"` or `action = \"deny\"`",
        );
    }
    let action = action(section, "action", report);
    let protocol =
        section.choice("protocol", &Protocol::ALL.map(|known| (known.name(), Word::Means(known))), report);
    if let (Some(Action::Deny), Some(protocol), Some(value)) = (action, protocol, section.value("protocol")) {
        report.error(
            value.span(),
            format!(
                "a rule that denies cannot ask for a protocol: remove `protocol`, or allow {} only",
                protocol.name()
            ),
        );
    }
    let expires = expires(section, now, report);
    let (sockets, socket_spans) = sockets(section, report).into_iter().unzip();
    let (destinations, spans) = destinations(section, protocol, report).into_iter().unzip();
    let place = report.place(&section.span);
    (
        action.map(|action| Rule { number, destinations, sockets, action, protocol, expires, place }),
        (spans, socket_spans),
    )
}

fn action(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<Action> {
    let words = [
        ("allow", Word::Means(Action::Allow)),
        ("deny", Word::Means(Action::Deny)),
        ("ask", Word::Refused(NOT_YET_HOLDING)),
        ("guard", Word::Refused(NOT_YET_HOLDING)),
    ];
    section.choice(key, &words, report)
}

fn destinations(
    section: &Section<'_>,
    protocol: Option<Protocol>,
    report: &mut Report<'_>,
) -> Vec<(Destination, Range<usize>)> {
    if section.value("to").is_none() {
        let message = "[[policy.rule]] has no `to`: add the destinations, `to = [\"10.20.0.0/16:5432\"]`";
        report.error(section.span.clone(), message);
        return Vec::new();
    }
    let Some(list) = section.strings("to", report) else { return Vec::new() };
    if list.value.is_empty() {
        report.error(
            list.span,
            "`to` is empty, so the rule can never match: add a destination or remove the rule",
        );
    }
    let mut destinations = Vec::new();
    for At { value: text, span } in list.value {
        if text.starts_with(SCHEME) {
            continue;
        }
        let destination = match text.parse::<Destination>() {
            Ok(destination) => destination,
            Err(error) => {
                report.error(span, format!("destination {}: {error}", quoted(text)));
                continue;
            }
        };
        let Some(protocol) = protocol else {
            destinations.push((destination, span));
            continue;
        };
        match destination.tcp_only() {
            Some(destination) => destinations.push((destination, span)),
            None => report.error(
                span,
                format!(
                    "destination {}: {} is spoken over TCP only: remove \"udp:\"",
                    quoted(text),
                    protocol.name()
                ),
            ),
        }
    }
    destinations
}

/// The unix sockets among a rule's destinations; what else is wrong with `to` is told by [`destinations`].
fn sockets(section: &Section<'_>, report: &mut Report<'_>) -> Vec<(SocketName, Range<usize>)> {
    let Some(list) = section.value("to").and_then(|value| value.get_ref().as_array()) else {
        return Vec::new();
    };
    let mut sockets = Vec::new();
    for value in list {
        let Some(text) = value.get_ref().as_str().filter(|text| text.starts_with(SCHEME)) else { continue };
        let span = value.span();
        match text.parse::<SocketName>() {
            Err(error) => report.error(span, format!("unix socket {}: {error}", quoted(text))),
            Ok(socket) => sockets.push((socket, span)),
        }
    }
    sockets
}

fn expires(section: &Section<'_>, now: Utc, report: &mut Report<'_>) -> Option<Utc> {
    let value: &Spanned<DeValue<'_>> = section.value("expires")?;
    let parsed = match value.get_ref() {
        DeValue::Datetime(time) => expiry::utc(time),
        other => match other.as_str().map(str::parse::<toml::value::Datetime>) {
            Some(Ok(time)) => expiry::utc(&time),
            _ => Err("not a point in time: write it as in RFC 3339, \"2026-12-01T00:00:00Z\""),
        },
    };
    match parsed {
        Ok(expires) => {
            if expires <= now {
                let message =
                    "the rule has expired, so it denies what it names: remove it, or set a later end";
                report.warning(value.span(), message);
            }
            Some(expires)
        }
        Err(message) => {
            report.error(value.span(), format!("`expires`: {message}"));
            None
        }
    }
}

/// Reports names that are given twice.
fn unique<'a>(kind: &str, names: impl Iterator<Item = (&'a str, &'a Range<usize>)>, report: &mut Report<'_>) {
    let mut lines = HashMap::new();
    for (name, span) in names.filter(|(name, _)| !name.is_empty()) {
        let line = report.place(span).line;
        if let Some(first) = lines.get(name) {
            report.error(
                span.clone(),
                format!("{kind} {} is named on line {first} already: give each its own name", quoted(name)),
            );
        } else {
            lines.insert(name, line);
        }
    }
}

/// Agents without their policy, and policies without agents.
fn references(agents: &[NamedAgent<'_>], policies: &[(Policy, Range<usize>)], report: &mut Report<'_>) {
    let known: Vec<&str> = policies.iter().map(|(policy, _)| policy.name.as_str()).collect();
    let mut used = HashSet::new();
    for At { value: name, span } in agents.iter().filter_map(|agent| agent.policy.as_ref()) {
        used.insert(*name);
        if !known.contains(name) {
            let hint = match nearest(name, &known) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => "add a [[policy]] section of that name".to_owned(),
            };
            report.error(span.clone(), format!("no policy is named {}: {hint}", quoted(name)));
        }
    }
    for (policy, span) in policies {
        if !policy.name.is_empty() && !used.contains(policy.name.as_str()) {
            report.turn_to(Some(&policy.name));
            report.warning(
                span.clone(),
                format!(
                    "no agent uses policy {}: name it in an [[agent]], or remove it",
                    quoted(&policy.name)
                ),
            );
            report.turn_to(None);
        }
    }
}
