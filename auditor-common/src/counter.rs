//! Failures in the kernel programs, counted by site and errno.

/// Where a kernel program failed, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Failure {
    /// One of the `SITE_*` constants.
    pub site: u32,
    /// A positive errno value.
    pub errno: u32,
}
crate::assert_layout!(Failure, size = 8, align = 4);

macro_rules! sites {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $label:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $value;)*

        /// Name of a site as it stands in `auditor status`.
        pub const fn site_name(site: u32) -> &'static str {
            match site {
                $($value => $label,)*
                _ => "unknown",
            }
        }
    };
}

sites! {
    /// No room on the payload ring for an outgoing packet: dropped or lost, as `overload` says.
    SITE_PAYLOAD_EGRESS = 1, "payload-egress";
    /// No room on the payload ring for an incoming packet.
    SITE_PAYLOAD_INGRESS = 2, "payload-ingress";
    /// No room on the lifecycle ring for a verdict.
    SITE_VERDICT = 3, "verdict";
    /// No room on the lifecycle ring for a connection's beginning or end.
    SITE_CONNECTION = 4, "connection";
    /// No room on the lifecycle ring for a process event.
    SITE_PROCESS = 5, "process";
    /// A socket's storage could not be made.
    SITE_SOCKET_STORAGE = 6, "socket-storage";
    /// A packet's headers could not be read.
    SITE_PACKET_HEADERS = 7, "packet-headers";
    /// A packet's payload could not be read.
    SITE_PACKET_PAYLOAD = 8, "packet-payload";
    /// A packet was longer than what one packet may be cut into.
    SITE_PACKET_LENGTH = 9, "packet-length";
    /// sockops could not be asked for a connection's end.
    SITE_SOCKOPS_FLAGS = 10, "sockops-flags";
    /// A packet was held because the daemon had not renewed its lease.
    SITE_LEASE = 11, "lease";
    /// There is no room to remember a task's session.
    SITE_MEMBERS = 12, "members";
    /// No room on the lifecycle ring for a process's change of session.
    SITE_MOVE = 13, "move";
    /// What the kernel keeps of a task or of its cgroup could not be read.
    SITE_TASK = 14, "task";
    /// The name of a unix socket, or the caller's root directory, could not be read: refused.
    SITE_UNIX_NAME = 20, "unix-name";
    /// A TLS secret could not be kept, or not be told of: what it protects will not be read.
    SITE_SECRET = 30, "tls-secret";
}

/// Numeric values of the errno codes that the kernel programs give themselves.
pub mod errno {
    /// No such entry.
    pub const ENOENT: u32 = 2;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// Bad address.
    pub const EFAULT: u32 = 14;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space left: a ring is full.
    pub const ENOSPC: u32 = 28;
    /// Message too long.
    pub const EMSGSIZE: u32 = 90;
    /// Timed out.
    pub const ETIMEDOUT: u32 = 110;
    /// Quota exceeded: a session has its share of a ring.
    pub const EDQUOT: u32 = 122;
}
