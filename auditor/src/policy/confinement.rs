//! What a policy leaves to an agent beside destinations: which sockets it may make, and which of the system calls that
//! `auditor run` takes from a command it may have all the same.
//!
//! TCP and UDP are the kernel programs' matter, wherever the agent was started. The rest is kept by the filter of `auditor run`
//! alone, because no hook of a cgroup sees it; an agent that was tagged has it, and the record of its session says so by having no
//! confinement.
//!
//! There is no word for what cannot be audited (raw and packet sockets, SCTP, MPTCP, ICMP), nor for what no agent needs (modules, kexec,
//! bpf): neither is to be had.

use std::collections::BTreeSet;

use auditor_common::control::{SOCKET_TCP, SOCKET_UDP};
use serde::{Deserialize, Serialize};

/// A kind of socket.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketKind {
    /// TCP over IPv4 and IPv6.
    Tcp,
    /// UDP over IPv4 and IPv6.
    Udp,
    /// Unix sockets; pairs of them are always to be had.
    Unix,
    /// Questions to the kernel: interfaces, routes.
    Netlink,
    /// Sockets to the hypervisor. Nothing of them is decided or recorded.
    Vsock,
    /// The kernel's ciphers.
    Alg,
}

impl SocketKind {
    /// All that a policy can name.
    pub const ALL: [Self; 6] = [Self::Tcp, Self::Udp, Self::Unix, Self::Netlink, Self::Vsock, Self::Alg];

    /// As the configuration and the record have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
            Self::Netlink => "netlink",
            Self::Vsock => "vsock",
            Self::Alg => "alg",
        }
    }
}

/// What the filter of `auditor run` refuses, unless a policy permits it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permit {
    /// Debuggers: ptrace(2) and its relatives, on processes of the session.
    Ptrace,
    /// Sandboxes of browsers and container tools: user namespaces, and to enter other ones.
    UserNamespaces,
    /// mount(2) and its relatives; of use in a user namespace only.
    Mounts,
    /// io_uring.
    IoUring,
    /// userfaultfd(2).
    Userfaultfd,
    /// Profilers: perf_event_open(2).
    PerfEvents,
    /// Signals to processes outside of the session, and, with [`Self::Ptrace`] or through `/proc/PID/mem`, their memory. Kept by
    /// Landlock (Linux 6.12); where that is missing, it is as if it were permitted.
    OtherProcesses,
}

impl Permit {
    /// All that a policy can name.
    pub const ALL: [Self; 7] = [
        Self::Ptrace,
        Self::UserNamespaces,
        Self::Mounts,
        Self::IoUring,
        Self::Userfaultfd,
        Self::PerfEvents,
        Self::OtherProcesses,
    ];

    /// As the configuration and the record have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ptrace => "ptrace",
            Self::UserNamespaces => "user-namespaces",
            Self::Mounts => "mounts",
            Self::IoUring => "io-uring",
            Self::Userfaultfd => "userfaultfd",
            Self::PerfEvents => "perf-events",
            Self::OtherProcesses => "other-processes",
        }
    }
}

/// What no policy permits.
const NEVER: [&str; 8] = [
    "capabilities",
    "raw-sockets",
    "tun",
    "bpf",
    "kernel-modules",
    "kexec",
    "terminal-input",
    "other-architectures",
];

/// Both of a policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Confinement {
    /// Sockets that may be made.
    pub sockets: BTreeSet<SocketKind>,
    /// What is not refused.
    pub permit: BTreeSet<Permit>,
}

impl Default for Confinement {
    fn default() -> Self {
        let sockets = [SocketKind::Tcp, SocketKind::Udp, SocketKind::Unix, SocketKind::Netlink];
        Self { sockets: sockets.into(), permit: BTreeSet::new() }
    }
}

impl Confinement {
    /// Whether it is in there.
    pub fn permits(&self, what: Permit) -> bool {
        self.permit.contains(&what)
    }

    /// Whether such a socket may be made.
    pub fn has(&self, kind: SocketKind) -> bool {
        self.sockets.contains(&kind)
    }

    /// Internet sockets as the kernel programs have them.
    pub fn in_kernel(&self) -> u32 {
        let bit = |kind, bit| if self.has(kind) { bit } else { 0 };
        bit(SocketKind::Tcp, SOCKET_TCP) | bit(SocketKind::Udp, SOCKET_UDP)
    }

    /// Names of what a command cannot do, beside sockets of other kinds.
    pub fn refused(&self) -> Vec<&'static str> {
        let refused = Permit::ALL.into_iter().filter(|what| !self.permits(*what)).map(Permit::name);
        NEVER.into_iter().chain(refused).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_has_the_names_of_the_configuration() {
        for kind in SocketKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for permit in Permit::ALL {
            assert_eq!(serde_json::to_value(permit).unwrap(), permit.name());
        }
    }

    #[test]
    fn what_is_permitted_is_not_refused() {
        let mut confinement = Confinement::default();
        assert!(confinement.refused().contains(&"ptrace"));
        confinement.permit.insert(Permit::Ptrace);
        assert!(!confinement.refused().contains(&"ptrace"));
        assert_eq!(confinement.refused().len(), NEVER.len() + Permit::ALL.len() - 1);
    }
}
