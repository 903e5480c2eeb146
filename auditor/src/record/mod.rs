//! What the trail is made of: one [`Entry`] for each thing that happened, before it is rendered.
//!
//! These are the auditor's own words (agent, session, connection, statement, verdict). How they are written down (OCSF
//! 1.8.0, one JSON object a line) is the business of [`ocsf`]; how lines are chained and kept, of [`crate::trail`].

pub mod ocsf;
pub mod verb;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Utc;
use crate::interned::Name;
use crate::policy::Confinement;
use crate::protocol::{Login, Statement, http};
use crate::statement::Meaning;

/// A named identity and what is known of it.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Agent {
    /// Name from the configuration.
    pub name: String,
    /// Labels given at the session's beginning.
    pub labels: BTreeMap<String, String>,
    /// Verified subject of an identity token, where there was one.
    pub identity: Option<String>,
}

/// One run of an agent.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Session {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Whose session.
    pub agent: Agent,
    /// What it was opened for, in its opener's words.
    pub task: Option<String>,
    /// Name of the policy in force at its beginning.
    pub policy: String,
}

/// A process of an agent. Absent fields were not learnt (it had gone before it could be asked).
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// Parent's process id.
    pub parent: Option<u32>,
    /// Name (comm).
    pub name: String,
    /// Executable's path.
    pub executable: Option<String>,
    /// Arguments, joined by single spaces.
    pub command_line: Option<String>,
    /// Real user id.
    pub uid: Option<u32>,
    /// The user's name on this host.
    pub user: Option<String>,
}

/// IP protocol of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A unix socket.
    Unix,
    /// Any other, by its IP protocol number.
    Other(u32),
}

/// One socket conversation.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Connection {
    /// Boot id, a dash, socket cookie in hexadecimal.
    pub id: String,
    /// IP protocol.
    pub transport: Transport,
    /// This end, once known.
    pub local: Option<SocketAddr>,
    /// The other end; `None` for a socket that was refused before it had one.
    pub remote: Option<SocketAddr>,
    /// Name of the unix socket at the other end, as rules write it.
    pub socket: Option<String>,
    /// The other end connected to this one.
    pub inbound: bool,
    /// Where it is older than its session: how much of it was not seen.
    pub adopted: Option<Adopted>,
    /// What was decided about it.
    pub verdict: Verdict,
}

/// What went over a connection before it was audited.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adopted {
    /// Payload bytes that this end had sent.
    pub sent: u64,
    /// Payload bytes that this end had received.
    pub received: u64,
}

/// A decision about a destination.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Whether it was let through.
    pub allowed: bool,
    /// The rule as `policy#number: text`, `None` where the policy's default decided.
    pub rule: Option<String>,
    /// Why: `rule`, `default`, `expired`, `no-session`, `socket-type`, `malformed`, `urgent-data`, `lease`,
    /// `other-root`, `unreadable-name`, `not-recorded` (it was let through, and there was no room to record by what).
    #[serde(with = "crate::interned")]
    pub reason: Name,
    /// Name of the policy that decided.
    pub policy: Option<String>,
}

/// What was learnt of the protocol that a connection speaks.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Application {
    /// Protocol name, e.g. `postgres`; `None` where it was not recognised.
    #[serde(with = "crate::interned::option")]
    pub protocol: Option<Name>,
    /// Who the client said it is.
    pub login: Option<Login>,
    /// Why the bytes could not be read, where they could not, e.g. `tls`.
    #[serde(with = "crate::interned::option")]
    pub opaque: Option<Name>,
    /// What the TLS handshake said, where there was one.
    pub tls: Option<Tls>,
    /// Name and version of the library that derived the keys of this end's TLS.
    pub library: Option<String>,
}

/// What is known of a connection's TLS. Absent fields were not said, or not seen.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tls {
    /// Version that the server chose, e.g. `1.3`.
    pub version: Option<String>,
    /// Cipher suite that the server chose, IANA's name or its number in hexadecimal.
    pub cipher: Option<String>,
    /// Highest version that the client offered.
    pub offered: Option<String>,
    /// Host name that the client asked for. Its word, not proven.
    pub sni: Option<String>,
    /// Application protocols that the client offered, in its order.
    pub alpn: Vec<String>,
    /// Application protocol that the server chose.
    pub protocol: Option<String>,
    /// JA4 of the client: which program it probably is.
    pub ja4: Option<String>,
    /// What the server identified itself with. Its word: the auditor verifies no chain.
    pub server: Option<Certificate>,
    /// What the client identified itself with.
    pub client: Option<Certificate>,
    /// The handshake went on from an earlier session, or from a key that both ends had; then there are no certificates.
    pub resumed: bool,
    /// Whether the server took what the client sent before the handshake (0-RTT): `accepted` or `rejected`.
    #[serde(with = "crate::interned::option")]
    pub early_data: Option<Name>,
    /// Fatal alert of the client's, by its name in RFC 8446.
    #[serde(with = "crate::interned::option")]
    pub client_alert: Option<Name>,
    /// Fatal alert of the server's.
    #[serde(with = "crate::interned::option")]
    pub server_alert: Option<Name>,
    /// Whether what is inside was read, at least from some place on.
    pub decrypted: bool,
    /// Why what is inside was not read, or not to its end.
    #[serde(with = "crate::interned::option")]
    pub reason: Option<Name>,
}

/// What an X.509 certificate says.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Certificate {
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub sha256: String,
    /// Distinguished name of whom it is for. Empty, as the rest, where it could not be parsed.
    pub subject: String,
    /// Distinguished name of who signed it.
    pub issuer: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Subject alternative names: host names, addresses, and others with their type before a colon.
    pub names: Vec<String>,
    /// Valid from here on, seconds since 1970-01-01.
    pub not_before: Option<i64>,
    /// Valid up to here, seconds since 1970-01-01.
    pub not_after: Option<i64>,
}

/// A range of a stream that the audit never saw: first byte's offset from the beginning of the direction, and length.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GapRange {
    /// `true`: sent by this host.
    pub sent: bool,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The kernel's byte counts beside the audited ones, payload bytes, without retransmissions. In each direction audited, opaque and
/// skipped bytes and gaps add up to the kernel's count.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Coverage {
    /// Moved out, by the kernel's count; `None` where the kernel did not say.
    pub sent: Option<u64>,
    /// Moved in, by the kernel's count.
    pub received: Option<u64>,
    /// Seen and read by the audit, outgoing.
    pub audited_sent: u64,
    /// Seen and read by the audit, incoming.
    pub audited_received: u64,
    /// Seen, but not to be read, outgoing: encrypted, of no known protocol, or after a hole. Not among the audited ones.
    pub opaque_sent: u64,
    /// Seen, but not to be read, incoming.
    pub opaque_received: u64,
    /// Rows that passed and were counted instead of copied, outgoing. Not among the audited ones, and no loss.
    pub skipped_sent: u64,
    /// Rows that passed and were counted instead of copied, incoming.
    pub skipped_received: u64,
    /// What is missing, where it is known.
    pub gaps: Vec<GapRange>,
    /// How the bytes were seen, where that is not in packets: `calls`, what the system calls of a unix socket's other end took and gave.
    #[serde(with = "crate::interned::option")]
    pub method: Option<Name>,
    /// Of the gaps, both directions: bytes that passed by calls whose content cannot be had.
    pub unreadable: u64,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum CloseReason {
    /// It was established and came to an end.
    Ended,
    /// It was never established: refused or unanswered.
    NotEstablished,
}

/// Totals of a session at its end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SessionTotals {
    /// Connections that were opened.
    pub connections: u64,
    /// Statements recorded.
    pub statements: u64,
    /// Refused attempts and other violations.
    pub violations: u64,
}

/// Who used the auditor's own API.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Caller {
    /// Peer's process id (SO_PEERCRED).
    pub pid: u32,
    /// Peer's user id.
    pub uid: u32,
    /// The user's name on this host.
    pub user: Option<String>,
}

/// Something lost: named, never silent.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Loss {
    /// Site in the kernel programs or stage in the daemon.
    pub site: String,
    /// errno name or number.
    pub error: String,
    /// Events lost since the last report.
    pub count: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// A statement came to its end.
    Statement {
        /// On which connection.
        connection: Arc<Connection>,
        /// What that connection speaks.
        application: Arc<Application>,
        /// The statement.
        statement: Box<Statement>,
        /// What it means, where somebody knows its language.
        meaning: Option<Arc<Meaning>>,
    },
    /// A request of HTTP came to its end.
    Request {
        /// On which connection.
        connection: Arc<Connection>,
        /// What that connection speaks.
        application: Arc<Application>,
        /// The request.
        request: Box<http::Request>,
    },
    /// A connection was established (TCP), or a destination first used (UDP).
    ConnectionOpened {
        /// Which.
        connection: Arc<Connection>,
    },
    /// A connection has ended.
    ConnectionClosed {
        /// Which.
        connection: Arc<Connection>,
        /// What it spoke.
        application: Arc<Application>,
        /// Kernel's counts against ours.
        coverage: Coverage,
        /// How it ended.
        reason: CloseReason,
        /// Time from open to end in microseconds.
        duration_us: u64,
        /// Statements recorded on it.
        statements: u64,
    },
    /// A destination or a socket type was refused in the kernel.
    ConnectionRefused {
        /// Which; `connection.verdict` says why.
        connection: Arc<Connection>,
        /// The call: `connect`, `sendmsg`, `socket`, or `packet` for the last word in the packet hook.
        #[serde(with = "crate::interned")]
        call: Name,
    },
    /// A process executed a program.
    ProcessStarted,
    /// A process ended.
    ProcessEnded,
    /// A session began: from here on the agent has the access that its policy gives.
    SessionOpened {
        /// Who opened it.
        by: Caller,
        /// Path of its cgroup below the cgroup2 mount.
        cgroup: String,
        /// Arguments of the command, for `auditor run`.
        command: Option<Vec<String>>,
        /// What the command is left beside destinations; `None` where nothing was taken from it.
        confinement: Option<Confinement>,
        /// Guarantees that this session does not have, one sentence each.
        degraded: Vec<String>,
    },
    /// A session ended.
    SessionEnded {
        /// `empty` (its last process ended), `untag`, `shutdown`, `not-recorded` (its beginning could not be written).
        #[serde(with = "crate::interned")]
        reason: Name,
        /// What it did.
        totals: SessionTotals,
        /// Its length in microseconds.
        duration_us: u64,
    },
    /// Bytes of a connection were moved and never seen: what was said in them is not in the trail.
    Gap {
        /// On which connection.
        connection: Arc<Connection>,
        /// Which bytes.
        range: GapRange,
    },
    /// The agent did what its rules exclude, or the bytes contradict each other.
    Finding {
        /// Short, stable name, e.g. `protocol-mismatch`.
        #[serde(with = "crate::interned")]
        kind: Name,
        /// One sentence.
        message: String,
        /// Where.
        connection: Option<Arc<Connection>>,
    },
    /// The daemon started.
    DaemonStarted {
        /// SHA-256 of the configuration file's bytes in hexadecimal.
        configuration: String,
        /// Guarantees that this host does not give, one sentence each.
        degraded: Vec<String>,
        /// Kernel release.
        kernel: String,
    },
    /// The daemon stopped in good order.
    DaemonStopped,
    /// The daemon goes on where an earlier one was: with its sessions, its connections, and what waited in the kernel.
    DaemonTookOver {
        /// Time without a daemon in milliseconds, from the last sign of life of the earlier one.
        without_ms: u64,
        /// Sessions that go on.
        sessions: u64,
        /// Connections that go on.
        connections: u64,
    },
    /// Another configuration is in force.
    DaemonReloaded {
        /// SHA-256 of the configuration file's bytes in hexadecimal.
        configuration: String,
    },
    /// Regular sign of life with the losses since the last one.
    Heartbeat {
        /// What was lost, empty where nothing was.
        losses: Vec<Loss>,
        /// Sessions that are open.
        sessions: u64,
    },
    /// A TLS library was found in a session and is probed from here on; or a file with code cannot be.
    LibraryProbed {
        /// Its name and version, e.g. `OpenSSL 3.0.19`; `None` where there is nothing to probe, or it cannot be told.
        library: Option<String>,
        /// The file, as the process sees it.
        path: String,
        /// The process that mapped it first, if there was one.
        pid: Option<u32>,
        /// For how long its session was held meanwhile, in microseconds.
        pause_us: Option<u64>,
        /// Why it is not probed: what is said under TLS with it will not be read.
        error: Option<String>,
    },
    /// The trail was repaired at start: bytes of a line that was never completed were set aside.
    TrailRecovered {
        /// Name of the segment.
        segment: String,
        /// Bytes set aside.
        bytes: u64,
    },
    /// Somebody used the auditor's own API.
    ApiAccess {
        /// Who.
        by: Caller,
        /// HTTP method.
        method: String,
        /// Path and query.
        path: String,
        /// HTTP status.
        status: u16,
    },
}

/// One thing that happened, to whom and when.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// When.
    pub time: Utc,
    /// In whose session; `None` for the daemon's own.
    pub session: Option<Arc<Session>>,
    /// By which process; `None` where there is none or it is not known.
    pub process: Option<Arc<Process>>,
    /// What.
    pub event: Event,
}
