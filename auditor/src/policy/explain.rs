//! What would happen, and by which rule: the answer of `auditor policy test`.

use auditor_common::endpoint::Endpoint;
use auditor_common::rule::{REASON_SOCKET_TYPE, Verdict};

use super::{Policy, TCP, Table, UDP, render, render_socket, socket};
use crate::clock::{Boottime, Clock};
use crate::config::Settings;
use crate::protocol::Protocol;
use crate::record::Transport;

/// The verdict on one destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// Whether it would pass.
    pub allowed: bool,
    /// The rule as the record would show it; `None` where the policy's default decides.
    pub rule: Option<String>,
    /// Why: `rule`, `default`, `expired`, `socket-type`.
    pub reason: &'static str,
    /// The agent's policy.
    pub policy: String,
    /// What a connection there must speak.
    pub protocol: Option<Protocol>,
}

/// The configuration has no such agent.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no agent is named {name:?}: name one of the [[agent]] sections ({known})")]
pub struct UnknownAgent {
    /// The name asked for.
    pub name: String,
    /// Those that there are, joined with commas.
    pub known: String,
}

/// What would happen if `agent` sent to `destination` at `now`, by exactly the entries that the kernel would get.
pub fn explain(
    settings: &Settings,
    agent: &str,
    destination: Endpoint,
    transport: Transport,
    clock: &Clock,
    now: Boottime,
) -> Result<Explanation, UnknownAgent> {
    let policy = policy_of(settings, agent)?;
    let (verdict, number) = match transport {
        Transport::Tcp => (Table::new(policy, clock).decide(destination, TCP, now), TCP),
        Transport::Udp => (Table::new(policy, clock).decide(destination, UDP, now), UDP),
        Transport::Unix | Transport::Other(_) => (Verdict::refuse(REASON_SOCKET_TYPE), 0),
    };
    let rendered = render(Some(policy), &verdict, destination, number);
    Ok(Explanation {
        allowed: rendered.allowed,
        rule: rendered.rule,
        reason: rendered.reason,
        policy: policy.name.clone(),
        protocol: policy.rule(verdict.rule).and_then(|rule| rule.protocol),
    })
}

/// The same for a unix socket's `name`, as connect(2) takes it, in the host's own root directory.
pub fn explain_socket(
    settings: &Settings,
    agent: &str,
    name: &[u8],
    clock: &Clock,
    now: Boottime,
) -> Result<Explanation, UnknownAgent> {
    let policy = policy_of(settings, agent)?;
    let rendered = render_socket(Some(policy), &socket::decide(policy, name, clock, now), name);
    Ok(Explanation {
        allowed: rendered.allowed,
        rule: rendered.rule,
        reason: rendered.reason,
        policy: policy.name.clone(),
        protocol: None,
    })
}

fn policy_of<'a>(settings: &'a Settings, agent: &str) -> Result<&'a Policy, UnknownAgent> {
    settings.agent(agent).and_then(|agent| settings.policy(&agent.policy)).ok_or_else(|| {
        let known: Vec<&str> = settings.agents.iter().map(|agent| agent.name.as_str()).collect();
        UnknownAgent { name: agent.to_owned(), known: known.join(", ") }
    })
}
