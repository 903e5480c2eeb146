//! What the rules of one policy mean together.
//!
//! Two rules meet when they name the same network, port and transport: the longest prefix cannot choose between them, so
//! saying different things is an error. Different networks that contain one another do not meet: there the longer prefix
//! wins, by design.

use std::collections::HashMap;
use std::ops::Range;

use super::diagnostic::{Report, quoted};
use crate::policy::{Action, Policy, Rule};

/// Where a policy and the destinations of its rules stand, in the order of [`Policy::rules`] and their destinations.
pub(super) struct Spans {
    pub(super) policy: Range<usize>,
    pub(super) rules: Vec<Range<usize>>,
    pub(super) destinations: Vec<Vec<Range<usize>>>,
    /// Something was reported and left out: what the rest means together is not what the file says.
    pub(super) incomplete: bool,
}

pub(super) fn check(policy: &Policy, spans: &Spans, report: &mut Report<'_>) {
    check_meeting(policy, spans, report);
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
