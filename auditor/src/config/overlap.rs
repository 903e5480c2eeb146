//! What the rules of one policy mean together.
//!
//! Two rules meet when they name the same network, port and transport: the longest prefix cannot choose between them, so
//! saying different things is an error.
//!
//! One network within another is decided by the longer prefix, *whatever the ports*: an allow for every port of a /24 lifts a
//! deny for port 5432 of the /16 around it. That is by design, and easily not what was meant, so each destination that takes
//! traffic from one around it with another action is a warning that says who wins. The same network with and without a port
//! is no news: there the port wins, as one expects.

use std::collections::HashMap;
use std::ops::Range;

use auditor_common::rule::ANY_PORT;

use super::diagnostic::{Report, quoted};
use super::sockets;
use crate::policy::{Action, Destination, Policy, Rule, network};

/// Where a policy and the destinations of its rules stand, in the order of [`Policy::rules`] and their destinations.
pub(super) struct Spans {
    pub(super) policy: Range<usize>,
    pub(super) rules: Vec<Range<usize>>,
    pub(super) destinations: Vec<Vec<Range<usize>>>,
    /// The same of their unix sockets.
    pub(super) sockets: Vec<Vec<Range<usize>>>,
    /// Something was reported and left out: what the rest means together is not what the file says.
    pub(super) incomplete: bool,
}

pub(super) fn check(policy: &Policy, spans: &Spans, report: &mut Report<'_>) {
    check_meeting(policy, spans, report);
    check_nesting(policy, spans, report);
    sockets::check(policy, &spans.sockets, report);
    if !spans.incomplete {
        check_effect(policy, spans, report);
    }
}

/// Rules that name the same destination.
fn check_meeting(policy: &Policy, spans: &Spans, report: &mut Report<'_>) {
    let mut first_at = HashMap::new();
    for (rule, spans) in policy.rules.iter().zip(&spans.destinations) {
        for (destination, span) in rule.destinations.iter().zip(spans) {
            let mut met: Option<(&Rule, u32)> = None;
            for transport in destination.transports().numbers() {
                let key = (destination.address(), destination.prefix(), destination.port(), *transport);
                let line = report.place(span).line;
                let first = *first_at.entry(key).or_insert((rule, line, span.start));
                if first.2 != span.start {
                    met = met.or(Some((first.0, first.1)));
                }
            }
            let Some((first, line)) = met else { continue };
            let text = quoted(&destination.to_string());
            let difference = if first.action != rule.action {
                "action"
            } else if first.protocol != rule.protocol {
                "protocol"
            } else if first.expires != rule.expires {
                "end of validity"
            } else {
                report.warning(
                    span.clone(),
                    format!("{text} is named on line {line} already: remove one of the two"),
                );
                continue;
            };
            report.error(
                span.clone(),
                format!(
                    "overlap with a different {difference}: {text} is named by rule {} (line {line}) too: \
                     remove one of the two or narrow its prefix",
                    first.number
                ),
            );
        }
    }
}

/// A destination and the rule that names it.
#[derive(Clone, Copy)]
struct Named<'a> {
    rule: &'a Rule,
    destination: &'a Destination,
    line: u32,
}

/// What is named of one network over one transport.
#[derive(Default)]
struct Network<'a> {
    every_port: Option<Named<'a>>,
    ports: HashMap<u16, Named<'a>>,
    /// Those of `ports` that are allowed, and those that are denied.
    allowed: Vec<Named<'a>>,
    denied: Vec<Named<'a>>,
}

impl<'a> Network<'a> {
    fn add(&mut self, named: Named<'a>) {
        match named.destination.port() {
            ANY_PORT => self.every_port = self.every_port.or(Some(named)),
            port => {
                self.ports.entry(port).or_insert(named);
                match named.rule.action {
                    Action::Allow => self.allowed.push(named),
                    Action::Deny => self.denied.push(named),
                }
            }
        }
    }

    /// What of it a destination within it takes traffic from: something with another action, if there is any, otherwise
    /// something that would have decided the same. `own`: the inner one's network, whose ports decide for themselves.
    fn loses_to(&self, inner: &Named<'_>, own: Option<&Self>) -> Option<Named<'a>> {
        let taken =
            |named: &&Named<'_>| own.is_none_or(|own| !own.ports.contains_key(&named.destination.port()));
        let other_ports = match (inner.destination.port(), inner.rule.action) {
            (ANY_PORT, Action::Allow) => self.denied.iter().find(taken),
            (ANY_PORT, Action::Deny) => self.allowed.iter().find(taken),
            (port, _) => self.ports.get(&port),
        };
        other_ports.copied().or(self.every_port)
    }
}

/// Destinations that take traffic from those around them. Each is looked up in the networks around it, from the narrowest on:
/// at most one for each prefix length, so this is linear in the destinations.
fn check_nesting(policy: &Policy, spans: &Spans, report: &mut Report<'_>) {
    let all = || {
        let rules = policy.rules.iter().zip(&spans.destinations);
        rules.flat_map(|(rule, spans)| {
            rule.destinations.iter().zip(spans).map(move |(destination, span)| (rule, destination, span))
        })
    };
    let mut networks: HashMap<(u8, u32, u128), Network<'_>> = HashMap::new();
    for (rule, destination, span) in all() {
        let named = Named { rule, destination, line: report.place(span).line };
        let address = u128::from_be_bytes(destination.address());
        for transport in destination.transports().numbers() {
            networks.entry((*transport, destination.prefix(), address)).or_default().add(named);
        }
    }
    for (rule, destination, span) in all() {
        let inner = Named { rule, destination, line: 0 };
        let address = u128::from_be_bytes(destination.address());
        let around = |transport: u8| {
            let wider = (0..destination.prefix()).rev();
            let named = |prefix| networks.get(&(transport, prefix, network(address, prefix)));
            let own = named(destination.prefix());
            wider.filter_map(named).find_map(|network| network.loses_to(&inner, own))
        };
        let mut losers = destination.transports().numbers().iter().filter_map(|transport| around(*transport));
        if let Some(outer) = losers.find(|outer| outer.rule.action != rule.action) {
            report.warning(span.clone(), nested(&inner, &outer));
        }
    }
}

fn nested(inner: &Named<'_>, outer: &Named<'_>) -> String {
    let text = quoted(&inner.destination.to_string());
    let (inner_port, outer_port) = (inner.destination.port(), outer.destination.port());
    let ports = match (inner_port, outer_port) {
        (ANY_PORT, ANY_PORT) => String::new(),
        (ANY_PORT, port) | (port, _) => format!(", port {port} included,"),
    };
    let action = match inner.rule.action {
        Action::Allow => "allowed",
        Action::Deny => "denied",
    };
    let lifts_a_denied_port =
        inner.rule.action == Action::Allow && inner_port == ANY_PORT && outer_port != ANY_PORT;
    format!(
        "{text} lies within {} of rule {} (line {}, {}): the longer prefix wins, so traffic to {text}{ports} is {action}{}",
        quoted(&outer.destination.to_string()),
        outer.rule.number,
        outer.line,
        outer.rule.action.name(),
        if lifts_a_denied_port {
            "; if that port is to stay denied, name it in a rule for the narrower network too"
        } else {
            ""
        }
    )
}

/// Policies and rules that change nothing.
fn check_effect(policy: &Policy, spans: &Spans, report: &mut Report<'_>) {
    let name = &policy.name;
    match policy.default {
        Action::Deny if policy.rules.is_empty() => report.warning(
            spans.policy.clone(),
            format!("policy \"{name}\" has no rules and denies everything: add a [[policy.rule]]"),
        ),
        Action::Allow if policy.rules.iter().all(|rule| rule.action == Action::Allow) => {
            for (rule, span) in policy.rules.iter().zip(&spans.rules) {
                // A protocol or an end of validity restricts what the default would let through.
                if rule.protocol.is_none() && rule.expires.is_none() {
                    report.warning(
                        span.clone(),
                        format!(
                            "rule {} of policy \"{name}\" allows what the default allows already: \
                             remove it, or write `default = \"deny\"`",
                            rule.number
                        ),
                    );
                }
            }
        }
        _ => {}
    }
}
