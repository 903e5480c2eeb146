//! The compiled form of a policy, and an evaluator over it.

use std::collections::BTreeMap;

use auditor_common::endpoint::Endpoint;
use auditor_common::rule::{
    ACTION_DENY, ANY_PORT, KEY_PREFIX_BITS, NO_RULE, RuleKey, RuleValue, Verdict, decide,
};

use super::destination::network;
use super::{Policy, SocketKind, TCP, UDP};
use crate::clock::{Boottime, Clock};

/// One entry of the kernel's longest-prefix table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Bits of the key that must match: [`KEY_PREFIX_BITS`] and the address prefix.
    pub prefix_length: u32,
    /// The key.
    pub key: RuleKey,
    /// The value.
    pub value: RuleValue,
}

pub(super) fn compile(policy: &Policy, table: u32, clock: &Clock) -> Vec<Entry> {
    let mut entries = BTreeMap::new();
    let made = [(TCP, SocketKind::Tcp), (UDP, SocketKind::Udp)];
    let (made, not_made): (Vec<_>, Vec<_>) =
        made.into_iter().partition(|(_, kind)| policy.confinement.has(*kind));
    let made: Vec<u8> = made.into_iter().map(|(transport, _)| transport).collect();
    for (transport, _) in not_made {
        // Sockets that are there already: older than a tag, or than the policy. The default may be to allow.
        let key = RuleKey::new(table, transport, ANY_PORT, [0; 16]);
        let value = RuleValue { action: ACTION_DENY, rule: NO_RULE, prefix: 0, _padding: 0, expires: 0 };
        let entry = Entry { prefix_length: KEY_PREFIX_BITS, key, value };
        entries.insert((transport, ANY_PORT, [0; 16], 0), entry);
    }
    for rule in &policy.rules {
        // Zero means without end, so what ended before boot ends at its first nanosecond.
        let expires = rule.expires.map_or(0, |expires| clock.boottime(expires).0.max(1));
        for destination in &rule.destinations {
            for &transport in destination.transports().numbers() {
                if !made.contains(&transport) {
                    continue;
                }
                let (port, address, prefix) =
                    (destination.port(), destination.address(), destination.prefix());
                let key = RuleKey::new(table, transport, port, address);
                let value =
                    RuleValue { action: rule.action.code(), rule: rule.number, prefix, _padding: 0, expires };
                let entry = Entry { prefix_length: KEY_PREFIX_BITS + prefix, key, value };
                // The configuration lets only equal rules share a key; the first one gives its number.
                entries.entry((transport, port, address, prefix)).or_insert(entry);
            }
        }
    }
    entries.into_values().collect()
}

/// The user-side twin of the kernel's table for one policy: the same entries, the same longest-prefix rule, the same
/// [`decide`].
#[derive(Clone, Debug)]
pub struct Table {
    default_action: u32,
    entries: Vec<Entry>,
}

impl Table {
    /// Compiles a policy.
    pub fn new(policy: &Policy, clock: &Clock) -> Self {
        Self { default_action: policy.default.code(), entries: policy.compile(TABLE, clock) }
    }

    /// What happens to traffic to `remote` over `transport` (IP protocol number) at `now`.
    pub fn decide(&self, remote: Endpoint, transport: u8, now: Boottime) -> Verdict {
        let remote = remote.as_destination();
        let exact = self.longest(&RuleKey::new(TABLE, transport, remote.port(), remote.address()));
        let any = self.longest(&RuleKey::new(TABLE, transport, ANY_PORT, remote.address()));
        decide(exact, any, self.default_action, now.0)
    }

    /// What BPF_MAP_TYPE_LPM_TRIE answers. Every entry is looked at: this is for a person's question, not for packets.
    fn longest(&self, wanted: &RuleKey) -> Option<&RuleValue> {
        let matches = |entry: &&Entry| {
            let prefix = entry.prefix_length - KEY_PREFIX_BITS;
            let address = |key: &RuleKey| network(u128::from_be_bytes(key.address()), prefix);
            (entry.key.transport(), entry.key.port()) == (wanted.transport(), wanted.port())
                && address(&entry.key) == address(wanted)
        };
        self.entries.iter().filter(matches).max_by_key(|entry| entry.prefix_length).map(|entry| &entry.value)
    }
}

/// A table of its own has one policy; its number is of no consequence.
const TABLE: u32 = 1;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use auditor_common::rule::{
        ACTION_ALLOW, ACTION_DENY, NO_RULE, REASON_DEFAULT, REASON_EXPIRED, REASON_RULE,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Utc;
    use crate::policy::{Action, Confinement, Place, Rule, TCP, UDP, render};
    use crate::protocol::Protocol;

    fn rule(number: u32, to: &[&str], action: Action) -> Rule {
        let destinations = to.iter().map(|text| text.parse().unwrap()).collect();
        Rule {
            number,
            destinations,
            sockets: Vec::new(),
            action,
            protocol: None,
            expires: None,
            place: Place::default(),
        }
    }

    fn policy(default: Action, rules: Vec<Rule>) -> Policy {
        Policy {
            name: "backfill".to_owned(),
            default,
            rules,
            confinement: Confinement::default(),
            guarantees: [].into(),
        }
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn both_transports_are_compiled_and_each_key_once() {
        let policy = policy(
            Action::Deny,
            vec![
                rule(1, &["10.20.0.0/16:5432", "udp:[2001:db8::/32]:53"], Action::Allow),
                rule(2, &["10.20.0.0/16:5432"], Action::Allow),
            ],
        );
        let entries = policy.compile(7, &Clock::fixed(0));
        let shape: Vec<_> = entries
            .iter()
            .map(|entry| (entry.prefix_length, entry.key.transport(), entry.key.port(), entry.value.rule))
            .collect();
        assert_eq!(shape, [(176, TCP, 5432, 1), (96, UDP, 53, 1), (176, UDP, 5432, 1)]);
        assert!(entries.iter().all(|entry| entry.key.table() == 7));
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_the_unspecified_address_is_this_host() {
        let policy =
            policy(Action::Allow, vec![rule(1, &["10.0.0.0/8", "127.0.0.0/8", "::1"], Action::Deny)]);
        let table = Table::new(&policy, &Clock::fixed(0));
        for denied in ["[::ffff:10.1.2.3]:80", "10.1.2.3:80", "0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80"]
        {
            assert!(!table.decide(endpoint(denied), TCP, Boottime(0)).allows(), "{denied}");
        }
        assert!(table.decide(endpoint("11.0.0.1:80"), TCP, Boottime(0)).allows());
    }

    #[test]
    fn an_ended_rule_denies_even_where_it_ended_before_boot() {
        let mut allow = rule(1, &["10.0.0.1"], Action::Allow);
        allow.expires = Some(Utc(1_000));
        let policy = policy(Action::Allow, vec![allow]);
        let before_boot = Table::new(&policy, &Clock::fixed(5_000));
        let verdict = before_boot.decide(endpoint("10.0.0.1:80"), TCP, Boottime(1));
        assert_eq!((verdict.action, verdict.reason), (ACTION_DENY, REASON_EXPIRED));
        let ends_later = Table::new(&policy, &Clock::fixed(400));
        assert!(ends_later.decide(endpoint("10.0.0.1:80"), TCP, Boottime(599)).allows());
        assert!(!ends_later.decide(endpoint("10.0.0.1:80"), TCP, Boottime(600)).allows());
    }

    #[test]
    fn what_no_socket_may_be_made_for_is_denied_by_whatever_rule_and_default() {
        for default in [Action::Allow, Action::Deny] {
            let mut policy =
                policy(default, vec![rule(1, &["10.0.0.0/8", "udp:[2001:db8::]:53"], Action::Allow)]);
            policy.confinement.sockets.remove(&SocketKind::Udp);
            let table = Table::new(&policy, &Clock::fixed(0));
            for to in ["10.0.0.1:53", "[2001:db8::]:53", "192.0.2.1:53", "[::1]:53"] {
                assert!(!table.decide(endpoint(to), UDP, Boottime(0)).allows(), "{to}");
            }
            assert!(table.decide(endpoint("10.0.0.1:53"), TCP, Boottime(0)).allows());
        }
    }

    #[test]
    fn a_verdict_is_rendered_with_its_rule() {
        let mut first = rule(1, &["10.0.0.0/8", "10.20.0.0/16:5432"], Action::Allow);
        first.protocol = Some(Protocol::Postgres);
        let policy = policy(Action::Deny, vec![first]);
        let table = Table::new(&policy, &Clock::fixed(0));
        let show = |to: &str| {
            let verdict = table.decide(endpoint(to), TCP, Boottime(0));
            render(Some(&policy), &verdict, endpoint(to), TCP)
        };
        let matched = show("10.20.1.1:5432");
        assert_eq!(matched.rule.as_deref(), Some("backfill#1: 10.20.0.0/16:5432 allow (postgres)"));
        assert_eq!((matched.allowed, matched.reason), (true, "rule"));
        assert_eq!(show("10.9.1.1:1").rule.as_deref(), Some("backfill#1: 10.0.0.0/8 allow (postgres)"));
        let default = show("11.0.0.1:1");
        assert_eq!((default.allowed, default.rule, default.reason), (false, None, "default"));
        assert_eq!(default.policy.as_deref(), Some("backfill"));
        let refused = Verdict::refuse(auditor_common::rule::REASON_NO_SESSION);
        let refused = render(None, &refused, endpoint("11.0.0.1:1"), TCP);
        assert_eq!((refused.policy, refused.reason), (None, "no-session"));
    }

    /// The documented precedence, with textual addresses and no shared code: of the rules that name the destination, the one
    /// with the longest prefix, then the one with a port; ended rules deny.
    fn reference(policy: &Policy, ip: IpAddr, port: u16, tcp: bool, now: u64) -> (bool, u32, u8) {
        let ip = match ip.to_canonical() {
            ip if ip.is_unspecified() && ip.is_ipv4() => "127.0.0.1".parse().unwrap(),
            ip if ip.is_unspecified() => "::1".parse().unwrap(),
            ip => ip,
        };
        let mut best: Option<(u8, bool, &Rule)> = None;
        for rule in &policy.rules {
            for destination in &rule.destinations {
                let text = destination.to_string();
                let text = match (text.strip_prefix("tcp:"), text.strip_prefix("udp:")) {
                    (Some(rest), _) if tcp => rest,
                    (_, Some(rest)) if !tcp => rest,
                    (None, None) => &text,
                    _ => continue,
                };
                let (net, rule_port) = match text.strip_prefix('[') {
                    Some(inner) => {
                        let (net, port) = inner.split_once("]:").unwrap();
                        (net, Some(port))
                    }
                    None if text.matches(':').count() > 1 => (text, None),
                    None => text.split_once(':').map_or((text, None), |(net, port)| (net, Some(port))),
                };
                let net: ipnet::IpNet =
                    net.parse().unwrap_or_else(|_| ipnet::IpNet::from(net.parse::<IpAddr>().unwrap()));
                let named = rule_port.is_some();
                if !net.contains(&ip) || rule_port.is_some_and(|text| text != port.to_string()) {
                    continue;
                }
                if best.is_none_or(|(length, with_port, _)| (net.prefix_len(), named) > (length, with_port)) {
                    best = Some((net.prefix_len(), named, rule));
                }
            }
        }
        match best {
            None => (policy.default == Action::Allow, NO_RULE, REASON_DEFAULT),
            Some((_, _, rule)) if rule.expires.is_some_and(|end| end.0 <= now) => {
                (false, rule.number, REASON_EXPIRED)
            }
            Some((_, _, rule)) => (rule.action == Action::Allow, rule.number, REASON_RULE),
        }
    }

    /// Addresses out of a small world, so that prefixes nest and hit.
    fn address() -> impl Strategy<Value = IpAddr> {
        let octet = || prop_oneof![Just(0_u8), Just(1), Just(10), Just(127), Just(128), Just(255)];
        let v4 =
            (octet(), octet(), octet(), octet()).prop_map(|(a, b, c, d)| std::net::Ipv4Addr::new(a, b, c, d));
        let word = || prop_oneof![Just(0_u16), Just(1), Just(0xffff), Just(0x2001), Just(0x8000)];
        let v6 = prop::array::uniform8(word()).prop_map(std::net::Ipv6Addr::from_segments);
        prop_oneof![
            v4.clone().prop_map(IpAddr::V4),
            v4.prop_map(|v4| IpAddr::V6(v4.to_ipv6_mapped())),
            v6.prop_map(IpAddr::V6),
            Just("::".parse().unwrap()),
            Just("::1".parse().unwrap()),
        ]
    }

    fn destination() -> impl Strategy<Value = String> {
        let port = prop::option::of(prop_oneof![Just(80_u16), Just(5432)]);
        let transport = prop_oneof![3 => Just(""), 1 => Just("tcp:"), 1 => Just("udp:")];
        (address(), any::<u8>(), port, transport).prop_filter_map(
            "not a destination",
            |(ip, length, port, transport)| {
                let ip = ip.to_canonical();
                let length = length % if ip.is_ipv4() { 33 } else { 129 };
                let net = ipnet::IpNet::new(ip, length).ok()?.trunc();
                let text = match (ip, port) {
                    (_, None) => format!("{transport}{net}"),
                    (IpAddr::V4(_), Some(port)) => format!("{transport}{net}:{port}"),
                    (IpAddr::V6(_), Some(port)) => format!("{transport}[{net}]:{port}"),
                };
                text.parse::<crate::policy::Destination>().ok().map(|_| text)
            },
        )
    }

    proptest! {
        #[test]
        fn the_table_follows_the_documented_precedence(
            rules in prop::collection::vec((destination(), any::<bool>(), prop::option::of(1..30_u64)), 0..12),
            default_allows in any::<bool>(),
            questions in prop::collection::vec((address(), 0..3_usize, any::<bool>(), 0..30_u64), 1..20),
        ) {
            let rules = rules.iter().zip(1..).map(|((to, allow, expires), number)| Rule {
                expires: expires.map(Utc),
                ..rule(number, &[to.as_str()], if *allow { Action::Allow } else { Action::Deny })
            });
            let policy = policy(if default_allows { Action::Allow } else { Action::Deny }, rules.collect());
            let table = Table::new(&policy, &Clock::fixed(0));
            for (ip, port, tcp, now) in questions {
                let port = [80, 5432, 9][port];
                let remote = Endpoint::from(SocketAddr::new(ip, port));
                let verdict = table.decide(remote, if tcp { TCP } else { UDP }, Boottime(now));
                let expected = reference(&policy, ip, port, tcp, now);
                prop_assert_eq!((verdict.action == ACTION_ALLOW, verdict.rule, verdict.reason), expected);
            }
        }
    }
}
