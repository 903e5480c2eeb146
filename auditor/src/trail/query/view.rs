//! What a reader of the trail looks at: a borrowed view of one line, named as the record names it.

use std::borrow::Cow;
use std::ops::Deref;

use serde::Deserialize;

/// Text of a record, borrowed from the line unless it has escapes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A record as far as searches and tables need it. Absent means that the record does not say.
#[derive(Clone, Debug, Deserialize)]
pub struct View<'a> {
    /// Milliseconds since the epoch.
    pub time: u64,
    /// OCSF class.
    pub class_uid: u32,
    /// OCSF severity, 1 (informational) to 6 (fatal).
    pub severity_id: u8,
    /// OCSF status: 1 success, 2 failure, 0 unknown, 99 other.
    pub status_id: Option<u8>,
    /// Message of a finding.
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    /// Which record it is.
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
    /// Who did it.
    #[serde(borrow)]
    pub actor: Option<Actor<'a>>,
    /// Whoever connected.
    #[serde(borrow)]
    pub src_endpoint: Option<Endpoint<'a>>,
    /// To whom.
    #[serde(borrow)]
    pub dst_endpoint: Option<Endpoint<'a>>,
    /// The statement's text.
    #[serde(borrow)]
    pub query_info: Option<QueryInfo<'a>>,
    /// A request of HTTP.
    #[serde(borrow)]
    pub http_request: Option<HttpRequest<'a>>,
    #[serde(borrow)]
    unmapped: Unmapped<'a>,
}

impl<'a> View<'a> {
    /// Reads a line; `None` where it is not a record of this program.
    pub fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Our own fields: `unmapped.auditor`.
    pub fn own(&self) -> &Own<'a> {
        &self.unmapped.auditor
    }

    /// What was decided: a statement's decision, else its connection's verdict (`allow`, `deny`).
    pub fn decision(&self) -> Option<&str> {
        let own = self.own();
        match &own.statement {
            Some(statement) => statement.decision.as_deref(),
            None => own.connection.as_ref().map(|connection| &*connection.verdict),
        }
    }
}

/// `metadata`.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata<'a> {
    /// Position in the trail.
    pub sequence: u64,
    /// Unique over all trails.
    #[serde(borrow)]
    pub uid: Text<'a>,
}

/// `actor`.
#[derive(Clone, Debug, Deserialize)]
pub struct Actor<'a> {
    /// The process.
    #[serde(borrow)]
    pub process: Option<Process<'a>>,
    /// The user.
    #[serde(borrow)]
    pub user: Option<User<'a>>,
}

/// `actor.process`.
#[derive(Clone, Debug, Deserialize)]
pub struct Process<'a> {
    /// Process id.
    pub pid: Option<u32>,
    /// Name (comm).
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `actor.user`.
#[derive(Clone, Debug, Deserialize)]
pub struct User<'a> {
    /// User id.
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    /// Name.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `src_endpoint`, `dst_endpoint`.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint<'a> {
    /// Address.
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
    /// Port.
    pub port: Option<u16>,
    /// Host name.
    #[serde(borrow)]
    pub hostname: Option<Text<'a>>,
    /// Of a unix socket, its name.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `query_info`.
#[derive(Clone, Debug, Deserialize)]
pub struct QueryInfo<'a> {
    /// The connection's id, a slash, the statement's position on it.
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    /// The text.
    #[serde(borrow)]
    pub query_string: Text<'a>,
}

/// `http_request`.
#[derive(Clone, Debug, Deserialize)]
pub struct HttpRequest<'a> {
    /// The connection's id, a slash, the request's position on it.
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Unmapped<'a> {
    #[serde(borrow)]
    auditor: Own<'a>,
}

/// `unmapped.auditor`.
#[derive(Clone, Debug, Deserialize)]
pub struct Own<'a> {
    /// What happened, e.g. `statement` or `connection-refused`.
    #[serde(borrow)]
    pub kind: Text<'a>,
    /// By which agent.
    #[serde(borrow)]
    pub agent: Option<Agent<'a>>,
    /// In which session.
    #[serde(borrow)]
    pub session: Option<Session<'a>>,
    /// On which connection.
    #[serde(borrow)]
    pub connection: Option<Connection<'a>>,
    /// The statement.
    #[serde(borrow)]
    pub statement: Option<Statement<'a>>,
    /// The request of HTTP.
    #[serde(borrow)]
    pub request: Option<Request<'a>>,
    /// The finding.
    #[serde(borrow)]
    pub finding: Option<Finding<'a>>,
}

/// `unmapped.auditor.agent`.
#[derive(Clone, Debug, Deserialize)]
pub struct Agent<'a> {
    /// Name.
    #[serde(borrow)]
    pub name: Text<'a>,
}

/// `unmapped.auditor.session`.
#[derive(Clone, Debug, Deserialize)]
pub struct Session<'a> {
    /// Id.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// What it was opened for.
    #[serde(borrow)]
    pub task: Option<Text<'a>>,
}

/// `unmapped.auditor.connection`.
#[derive(Clone, Debug, Deserialize)]
pub struct Connection<'a> {
    /// Id.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// Protocol.
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    /// Database user.
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
    /// Database.
    #[serde(borrow)]
    pub database: Option<Text<'a>>,
    /// `allow` or `deny`.
    #[serde(borrow)]
    pub verdict: Text<'a>,
    /// The rule that decided.
    #[serde(borrow)]
    pub rule: Option<Text<'a>>,
    /// Why.
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    /// Bytes, on close.
    pub coverage: Option<Coverage>,
}

/// `unmapped.auditor.connection.coverage`, in bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct Coverage {
    /// Moved out, by the kernel's count.
    pub sent: Option<u64>,
    /// Moved in, by the kernel's count.
    pub received: Option<u64>,
    /// Audited, outgoing.
    pub audited_sent: u64,
    /// Audited, incoming.
    pub audited_received: u64,
    /// Seen, but not to be read, outgoing.
    #[serde(default)]
    pub opaque_sent: u64,
    /// Seen, but not to be read, incoming.
    #[serde(default)]
    pub opaque_received: u64,
    /// Rows that were counted instead of copied, outgoing.
    #[serde(default)]
    pub skipped_sent: u64,
    /// Rows that were counted instead of copied, incoming.
    #[serde(default)]
    pub skipped_received: u64,
}

/// `unmapped.auditor.statement`.
#[derive(Clone, Debug, Deserialize)]
pub struct Statement<'a> {
    /// Position on the connection.
    pub seq: u64,
    /// First keyword of the text, in lower case.
    #[serde(borrow)]
    pub verb: Option<Text<'a>>,
    /// All verbs of its commands, in lower case.
    #[serde(borrow, default)]
    pub verbs: Vec<Text<'a>>,
    /// `false` where the verbs are known not to say what the statement does.
    pub classified: Option<bool>,
    /// `completed`, `failed`, `skipped`, `unknown`.
    #[serde(borrow)]
    pub outcome: Text<'a>,
    /// Rows.
    pub rows: Option<u64>,
    /// SQLSTATE.
    #[serde(borrow)]
    pub error_code: Option<Text<'a>>,
    /// Primary message.
    #[serde(borrow)]
    pub error_message: Option<Text<'a>>,
    /// Microseconds.
    pub duration_us: u64,
    /// What was decided.
    #[serde(borrow)]
    pub decision: Option<Text<'a>>,
    /// Objects that it names.
    #[serde(borrow, default)]
    pub objects: Vec<Text<'a>>,
    /// The same with a schema, in each schema that they may be in.
    #[serde(borrow, default)]
    pub resolved: Vec<Text<'a>>,
    /// Functions that are dangerous or not the server's own.
    #[serde(borrow, default)]
    pub functions: Vec<Text<'a>>,
}

/// `unmapped.auditor.request`.
#[derive(Clone, Debug, Deserialize)]
pub struct Request<'a> {
    /// What is done, in lower case: the verb of an API that is known, else the method.
    #[serde(borrow)]
    pub verb: Option<Text<'a>>,
}

/// `unmapped.auditor.finding`.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding<'a> {
    /// Short, stable name.
    #[serde(borrow)]
    pub kind: Text<'a>,
}
