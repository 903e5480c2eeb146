//! What travels over the API, in both directions. Server and client share these types, so they cannot disagree.
//!
//! Requests refuse unknown fields and parameters: a misspelt filter must not silently select everything. Answers may grow
//! fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::daemon::command::{DaemonState, SessionState};
use crate::policy::Confinement;

/// A request for a session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// Name of an agent in the configuration.
    pub agent: String,
    /// What the session is for, in the opener's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Free labels; they appear in every record of the session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What becomes a session.
    pub target: SessionTarget,
    /// Arguments of the command that is about to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The caller takes from the command what the answer's `confinement` does not leave it, before it begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confines: bool,
    /// Number of the user as which the command will run; absent: the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

/// What the next daemon can go on with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// Version of the journal that it reads.
    pub journal: u32,
    /// Layout of the kernel's tables that it uses.
    pub layout: String,
}

/// What becomes a session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SessionTarget {
    /// The caller itself: it is moved into a cgroup of its own before the answer is sent.
    // Braces, because serde lets a plain unit variant swallow unknown fields, and a process id claimed here is to be refused.
    Caller {},
    /// Another process: it is moved into a cgroup of its own. For root, or for the process's own user.
    Process {
        /// Process id as the daemon sees it.
        pid: u32,
    },
    /// A cgroup that exists, with everything in it. For root.
    Cgroup {
        /// Its path, below the cgroup2 mount or as a whole.
        path: String,
    },
}

/// A session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Session {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Name of the agent.
    pub agent: String,
    /// Labels given when it was opened.
    pub labels: BTreeMap<String, String>,
    /// Verified subject of an identity token, where there was one.
    pub identity: Option<String>,
    /// What it was opened for.
    pub task: Option<String>,
    /// Name of the policy in force when it was opened.
    pub policy: String,
    /// Path of its cgroup below the cgroup2 mount.
    pub cgroup: String,
    /// Beginning, epoch milliseconds.
    pub opened: u64,
    /// Whether it is open.
    pub live: bool,
    /// End, epoch milliseconds; null while it lives, and where its end is not known.
    pub ended: Option<u64>,
    /// How it ended: `empty`, `untag`, `shutdown`, or `daemon-lost` where its daemon died before it. Null while it lives, and
    /// for a moment after its end.
    pub end: Option<String>,
    /// Connections that were opened. Null, as the next two, where nobody counted to the end.
    pub connections: Option<u64>,
    /// Statements recorded.
    pub statements: Option<u64>,
    /// Refused attempts and other violations.
    pub violations: Option<u64>,
    /// Payload bytes that the kernel moved on its connections that have closed.
    pub bytes_moved: u64,
    /// Of these, bytes that were audited, rows that were counted instead of copied included.
    pub bytes_audited: u64,
    /// What the command was left beside destinations: `sockets` and `permit` of its policy. Absent where nothing was taken from it,
    /// and once the daemon has forgotten the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub confinement: Option<Confinement>,
}

impl From<SessionState> for Session {
    fn from(state: SessionState) -> Self {
        let session = state.session;
        Self {
            id: session.id.clone(),
            agent: session.agent.name.clone(),
            labels: session.agent.labels.clone(),
            identity: session.agent.identity.clone(),
            task: session.task.clone(),
            policy: session.policy.clone(),
            cgroup: state.cgroup,
            opened: state.opened,
            live: state.ended.is_none(),
            ended: state.ended,
            end: None,
            connections: Some(state.totals.connections),
            statements: Some(state.totals.statements),
            violations: Some(state.totals.violations),
            bytes_moved: state.bytes_moved,
            bytes_audited: state.bytes_audited,
            confinement: state.confinement,
        }
    }
}

/// Which sessions to list. What is absent does not restrict.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    /// Name of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Sessions that were open at this time or later. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only sessions that are open now.
    #[serde(default)]
    pub live: bool,
}

/// Sessions, oldest first: all that the trail knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SessionList {
    /// Those that the filter lets through.
    pub sessions: Vec<Session>,
}

/// Which records to read. A record has to pass all that is given; what is absent does not restrict.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RecordFilter {
    /// Identity of the session, or enough of its first digits (four or more).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Name of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Destination: an address with or without a port; IPv6 with a port as \[IPV6\]:PORT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Protocol, e.g. `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Verb of a statement, e.g. `delete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verb: Option<String>,
    /// Table, function or key that a statement names: `shop.orders`, `orders` in whatever schema, or `shop.*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What was decided: `allowed`, `denied`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// What happened: `statement`, `connection-refused`, `finding`, ….
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Not before this time. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Before this time. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Regular expression for a statement's text, or for the line of a record that is no statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// Go on with records as they are written, until the caller hangs up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// The daemon's state of health.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Epoch milliseconds of the start.
    pub started: u64,
    /// Number of the policy generation in force; it grows with each reload.
    pub generation: u32,
    /// Kernel programs in force.
    pub programs: Vec<ProgramStatus>,
    /// Sessions open now.
    pub sessions: u64,
    /// Connections open now.
    pub connections: u64,
    /// Statements recorded since the start.
    pub statements: u64,
    /// The ring that carries packets.
    pub payload_ring: RingStatus,
    /// The ring that carries verdicts and lifecycle events.
    pub lifecycle_ring: RingStatus,
    /// Failures counted by the kernel programs since the start.
    pub failures: Vec<FailureStatus>,
    /// The trail's writing end.
    pub trail: TrailStatus,
    /// Guarantees that this host does not give, one sentence each.
    pub degraded: Vec<String>,
}

/// A kernel program.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ProgramStatus {
    /// Name.
    pub name: String,
    /// Cgroups that it is attached to, or 1 for a tracepoint.
    pub attachments: u64,
}

/// How full a ring is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RingStatus {
    /// Bytes that wait to be read.
    pub used: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A failure inside the kernel programs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FailureStatus {
    /// Where.
    pub site: String,
    /// The errno.
    pub errno: u32,
    /// How often since the start.
    pub count: u64,
}

/// The trail's writing end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TrailStatus {
    /// Sequence number of the last record.
    pub sequence: u64,
    /// Its hash.
    pub hash: String,
    /// Why nothing is written at the moment; null when all is well.
    pub blocked: Option<String>,
}

impl From<DaemonState> for Status {
    fn from(state: DaemonState) -> Self {
        let ring = |(used, size)| RingStatus { used, size };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: state.started,
            generation: state.generation,
            programs: state
                .programs
                .into_iter()
                .map(|(name, attachments)| ProgramStatus { name, attachments })
                .collect(),
            sessions: state.sessions,
            connections: state.connections,
            statements: state.statements,
            payload_ring: ring(state.payload_ring),
            lifecycle_ring: ring(state.lifecycle_ring),
            failures: state
                .failures
                .into_iter()
                .map(|(site, errno, count)| FailureStatus { site, errno, count })
                .collect(),
            trail: TrailStatus { sequence: state.head.0, hash: state.head.1, blocked: state.trail_blocked },
            degraded: state.degraded,
        }
    }
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// Short, stable name for programs.
    pub code: String,
    /// One sentence for people: what, and what to do next.
    pub message: String,
}
