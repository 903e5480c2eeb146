//! Policies: which destinations an agent may reach.
//!
//! A [`Policy`] is what the configuration says. [`Policy::compile`] turns it into the entries of the kernel's
//! longest-prefix table; [`Table`] answers from exactly those entries, for `policy test`. Both decide with
//! [`auditor_common::rule::decide`], so there is one place where a destination is decided, and nothing to keep in step.
//!
//! Precedence, for the one table as for the other: the longest address prefix; at the same length a rule for the port
//! before one for every port. The order in the file decides nothing: the configuration refuses two rules that name the
//! same destination and say different things of it.
#![forbid(unsafe_code)]

mod confinement;
mod destination;
mod explain;
mod guarded;
pub mod learn;
mod socket;
mod table;

use std::collections::BTreeSet;

use auditor_common::endpoint::Endpoint;
use auditor_common::rule;

use crate::clock::{Clock, Utc};
use crate::posture::session::Guarantee;
use crate::protocol::Protocol;
use crate::record;

pub use confinement::{Confinement, Permit, SocketKind};
pub(crate) use destination::network;
pub use destination::{Destination, DestinationError, TCP, Transports, UDP, ambiguous};
pub use explain::{Explanation, UnknownAgent, explain, explain_socket};
pub(crate) use guarded::CONTAINERS;
pub use socket::{NameEntry, SCHEME, SocketName, SocketNameError, show as show_socket};
pub use table::{Entry, Table};

/// What happens to traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// It passes.
    Allow,
    /// It is refused with EPERM.
    Deny,
}

impl Action {
    /// As the configuration and the record have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// As the kernel has it: one of the `ACTION_*` constants of [`auditor_common::rule`].
    pub const fn code(self) -> u32 {
        match self {
            Self::Allow => rule::ACTION_ALLOW,
            Self::Deny => rule::ACTION_DENY,
        }
    }
}

/// A place in the configuration file, both from 1.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// One rule: some destinations, and what happens to traffic to them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Position within its policy, from 1, in the order of the file.
    pub number: u32,
    /// What it is about.
    pub destinations: Vec<Destination>,
    /// And unix sockets.
    pub sockets: Vec<SocketName>,
    /// What happens.
    pub action: Action,
    /// What must be spoken there; anything else is a violation.
    pub protocol: Option<Protocol>,
    /// When it ends. From then on it denies, until the rule is taken out.
    pub expires: Option<Utc>,
    /// Where it stands.
    pub place: Place,
}

/// A named set of rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What happens to destinations that no rule names.
    pub default: Action,
    /// Rules in the order of the file.
    pub rules: Vec<Rule>,
    /// What it leaves beside destinations.
    pub confinement: Confinement,
    /// What a session under it must have.
    pub guarantees: BTreeSet<Guarantee>,
}

impl Policy {
    /// The rule of this number, as verdicts name it.
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.number == number)
    }

    /// The entries of the kernel's table for this policy, each key once.
    ///
    /// `table`: number of the compiled policy, [`rule::RuleKey::table`]. `clock` turns ends of validity into boot time;
    /// compile again when the wall clock was set.
    pub fn compile(&self, table: u32, clock: &Clock) -> Vec<Entry> {
        table::compile(self, table, clock)
    }

    /// The rule as the record shows it, e.g. `backfill#2: 10.20.0.0/16:5432 allow`; of several destinations, the one that
    /// `remote` and `transport` (IP protocol number) fall under.
    pub fn rule_text(&self, number: u32, remote: Endpoint, transport: u8) -> String {
        let Some(rule) = self.rule(number) else {
            // The policy was exchanged between the verdict and its rendering.
            return format!("{}#{number}", self.name);
        };
        let remote = remote.as_destination();
        let matching = rule
            .destinations
            .iter()
            .filter(|destination| destination.contains(remote, transport))
            .max_by_key(|destination| (destination.prefix(), destination.port()));
        let destination = match (matching, rule.destinations.as_slice()) {
            (Some(destination), _) => destination.to_string(),
            (None, []) => String::new(),
            (None, [only]) => only.to_string(),
            (None, [first, others @ ..]) => format!("{first} and {} more", others.len()),
        };
        let protocol = rule.protocol.map_or(String::new(), |protocol| format!(" ({})", protocol.name()));
        format!("{}#{number}: {destination} {}{protocol}", self.name, rule.action.name())
    }
}

/// A kernel verdict as the record shows it.
///
/// `policy`: the one of the session, `None` where there was no session. `remote` and `transport` (IP protocol number): what
/// was decided.
pub fn render(
    policy: Option<&Policy>,
    verdict: &rule::Verdict,
    remote: Endpoint,
    transport: u8,
) -> record::Verdict {
    render_with(policy, verdict, |policy| policy.rule_text(verdict.rule, remote, transport))
}

/// The same for a unix socket's name.
pub fn render_socket(policy: Option<&Policy>, verdict: &rule::Verdict, name: &[u8]) -> record::Verdict {
    render_with(policy, verdict, |policy| policy.socket_rule_text(verdict.rule, name))
}

fn render_with(
    policy: Option<&Policy>,
    verdict: &rule::Verdict,
    rule_text: impl FnOnce(&Policy) -> String,
) -> record::Verdict {
    let (reason, decided_by_policy) = match verdict.reason {
        rule::REASON_RULE => ("rule", true),
        rule::REASON_DEFAULT => ("default", true),
        rule::REASON_EXPIRED => ("expired", true),
        rule::REASON_NO_SESSION => ("no-session", false),
        rule::REASON_SOCKET_TYPE => ("socket-type", false),
        rule::REASON_MALFORMED => ("malformed", false),
        rule::REASON_LEASE => ("lease", false),
        rule::REASON_URGENT => ("urgent-data", false),
        rule::REASON_OTHER_ROOT => ("other-root", true),
        rule::REASON_UNREADABLE_NAME => ("unreadable-name", false),
        _ => ("unknown", false),
    };
    let policy = policy.filter(|_| decided_by_policy);
    // An entry that stands for no rule: sockets of a kind that the policy does not name.
    let rule = policy.filter(|_| verdict.rule != rule::NO_RULE).map(rule_text);
    record::Verdict {
        allowed: verdict.allows(),
        rule,
        reason,
        policy: policy.map(|policy| policy.name.clone()),
    }
}
