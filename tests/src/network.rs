//! Another host: a network namespace behind a pair of virtual interfaces, with the kernel's own counters at the far end.
//!
//! Whether a packet left is asked where it would have arrived, not of the auditor and not of this host.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child;

const LIMIT: Duration = Duration::from_secs(10);

/// Ranges reserved for documentation. Some hosts use one all the same; then the wire gets the other.
const RANGES: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];

/// A host at the other end of a wire. Its addresses are of the ranges reserved for documentation.
#[derive(Debug)]
pub struct FarEnd {
    namespace: String,
    interface: String,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

/// What has arrived at the far end, by its kernel's count. Neighbour discovery and other housekeeping are not in it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Arrivals {
    /// TCP segments, IPv4 and IPv6.
    pub tcp: u64,
    /// UDP datagrams, IPv4 and IPv6, whether or not somebody listens.
    pub udp: u64,
}

impl FarEnd {
    /// Makes the namespace and the wire.
    ///
    /// # Errors
    /// The caller is not root, or `ip` is not installed.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        crate::require_root()?;
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Interface names have 15 bytes at most. The subnets differ by process, so that two tests may run at once.
        let net = u8::try_from(std::process::id() % 63).unwrap_or_default() * 4;
        let [a, b, c] = unused_range()?;
        let end = Self {
            namespace: format!("auditor-{id}"),
            interface: format!("at{id}"),
            v4: IpAddr::V4(Ipv4Addr::new(a, b, c, net + 2)),
            v6: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xa0d1, u16::from(net), 0, 0, 0, 2)),
        };
        let (near, namespace) = (end.interface.as_str(), end.namespace.as_str());
        let far = "eth0";
        let near_v4 = format!("{a}.{b}.{c}.{}/30", net + 1);
        let near_v6 = format!("2001:db8:a0d1:{net:x}::1/64");
        let (far_v4, far_v6) = (format!("{}/30", end.v4), format!("{}/64", end.v6));
        ip(&["netns", "add", namespace])?;
        ip(&["link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace])?;
        ip(&["addr", "add", &near_v4, "dev", near])?;
        ip(&["addr", "add", &near_v6, "dev", near, "nodad"])?;
        ip(&["-n", namespace, "addr", "add", &far_v4, "dev", far])?;
        ip(&["-n", namespace, "addr", "add", &far_v6, "dev", far, "nodad"])?;
        ip(&["link", "set", near, "up"])?;
        ip(&["-n", namespace, "link", "set", far, "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        Ok(end)
    }

    /// Its name for `ip netns` and for [`crate::namespace::within`].
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The interface at this end of the wire.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// A command that runs on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// What has arrived so far.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let mut cat = self.command("cat");
        let text = child::succeed(cat.args(["/proc/net/snmp", "/proc/net/snmp6"]), LIMIT)?;
        let v4 = |protocol: &str, names: &[&str]| sum_v4(&text, protocol, names);
        let datagrams = ["InDatagrams", "NoPorts", "InErrors"];
        let v6 =
            datagrams.iter().map(|name| counter_v6(&text, &format!("Udp6{name}"))).sum::<Result<u64>>()?;
        Ok(Arrivals { tcp: v4("Tcp", &["InSegs"])?, udp: v4("Udp", &datagrams)? + v6 })
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        // The namespace takes its end of the wire with it, and that the other; what is already gone is no loss.
        let _ = ip(&["link", "del", &self.interface]);
        let _ = ip(&["netns", "del", &self.namespace]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    child::succeed(Command::new("ip").args(arguments), LIMIT).map(drop)
}

/// The first range of which this host has no address, not counting the wires of tests that run beside us.
fn unused_range() -> Result<[u8; 3]> {
    let addresses = child::succeed(Command::new("ip").args(["-4", "-o", "addr", "show"]), LIMIT)?;
    let theirs = |line: &&str| line.split_whitespace().nth(1).is_some_and(|name| !name.starts_with("at"));
    let taken: Vec<&str> = addresses.lines().filter(theirs).collect();
    let free = |[a, b, c]: &[u8; 3]| !taken.iter().any(|line| line.contains(&format!(" {a}.{b}.{c}.")));
    RANGES.into_iter().find(free).context("this host uses all address ranges reserved for documentation")
}

/// `/proc/net/snmp` has two lines a protocol: names, then values.
fn sum_v4(text: &str, protocol: &str, names: &[&str]) -> Result<u64> {
    let mut prefix = String::new();
    write!(prefix, "{protocol}: ")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (Some(head), Some(values)) = (lines.next(), lines.next()) else {
        bail!("no {protocol} in /proc/net/snmp");
    };
    let mut total = 0;
    for (name, value) in head.split(' ').zip(values.split(' ')) {
        if names.contains(&name) {
            total += value.parse::<u64>().with_context(|| format!("{protocol} {name} {value:?}"))?;
        }
    }
    Ok(total)
}

/// `/proc/net/snmp6` has a line a counter.
fn counter_v6(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    let value = line.and_then(|line| line.split_whitespace().nth(1)).with_context(|| format!("no {name}"))?;
    value.parse().with_context(|| format!("{name} {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "Tcp: RtoMin InSegs OutSegs\nTcp: 200 7 9\nUdp6InDatagrams                 \t3\n";
        assert_eq!(sum_v4(text, "Tcp", &["InSegs"]).unwrap(), 7);
        assert_eq!(sum_v4(text, "Tcp", &["InSegs", "OutSegs"]).unwrap(), 16);
        assert_eq!(counter_v6(text, "Udp6InDatagrams").unwrap(), 3);
        assert!(counter_v6(text, "Udp6NoPorts").is_err());
    }
}
