//! `unmapped.auditor`: what OCSF has no words for, under the names that scripts rely on.
//!
//! `kind` is always there and always first. Everything else is absent where it is unknown or does not apply.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::Serializer;

use super::request::RequestFields;
use crate::policy::Confinement;
use crate::record::{
    Adopted, Agent, Application, Certificate, CloseReason, Connection, Coverage, Event, GapRange, Loss,
    Session, Tls,
};

#[derive(Default, Serialize)]
pub(super) struct Own<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<AgentFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<ConnectionFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<GapFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<FindingFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<DaemonFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<RecoveryFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<LibraryFields<'a>>,
}

impl<'a> Own<'a> {
    pub(super) fn new(session: Option<&'a Session>, event: &'a Event) -> Self {
        let mut own = Self {
            kind: kind(event),
            agent: session.map(|session| AgentFields::new(&session.agent)),
            session: session.map(SessionFields::new),
            ..Self::default()
        };
        match event {
            Event::Request { connection, application, request } => {
                own.connection = Some(ConnectionFields::new(connection, Some(application)));
                own.request = Some(RequestFields::new(connection, request));
            }
            Event::ConnectionOpened { connection } => {
                own.connection = Some(ConnectionFields::new(connection, None));
            }
            Event::ConnectionClosed {
                connection,
                application,
                coverage,
                reason,
                duration_us,
                statements,
            } => {
                let fields = ConnectionFields {
                    coverage: Some(CoverageFields::new(coverage)),
                    end: Some(match reason {
                        CloseReason::Ended => "ended",
                        CloseReason::NotEstablished => "not-established",
                    }),
                    duration_us: Some(*duration_us),
                    statements: Some(*statements),
                    ..ConnectionFields::new(connection, Some(application))
                };
                own.connection = Some(fields);
            }
            Event::ConnectionRefused { connection, call } => {
                let fields = ConnectionFields { call: Some(call), ..ConnectionFields::new(connection, None) };
                own.connection = Some(fields);
            }
            Event::SessionOpened { cgroup, command, confinement, degraded, .. } => {
                own.session = session.map(|session| SessionFields {
                    cgroup: Some(cgroup),
                    command: command.as_deref(),
                    confinement: confinement.as_ref().map(ConfinementFields::new),
                    degraded,
                    ..SessionFields::new(session)
                });
            }
            Event::SessionEnded { reason, totals, duration_us } => {
                own.session = session.map(|session| SessionFields {
                    end: Some(reason),
                    connections: Some(totals.connections),
                    statements: Some(totals.statements),
                    violations: Some(totals.violations),
                    duration_us: Some(*duration_us),
                    ..SessionFields::new(session)
                });
            }
            Event::Gap { connection, range } => {
                own.gap = Some(GapFields::new(range));
                own.connection = Some(ConnectionFields::new(connection, None));
            }
            Event::Finding { kind, connection, .. } => {
                own.finding = Some(FindingFields { kind });
                own.connection =
                    connection.as_deref().map(|connection| ConnectionFields::new(connection, None));
            }
            Event::DaemonStarted { configuration, degraded, kernel } => {
                own.daemon = Some(DaemonFields {
                    configuration: Some(configuration),
                    degraded: Some(degraded),
                    kernel: Some(kernel),
                    ..DaemonFields::default()
                });
            }
            Event::DaemonReloaded { configuration } => {
                own.daemon =
                    Some(DaemonFields { configuration: Some(configuration), ..DaemonFields::default() });
            }
            Event::DaemonTookOver { without_ms, sessions, connections } => {
                own.daemon = Some(DaemonFields {
                    without_ms: Some(*without_ms),
                    sessions: Some(*sessions),
                    connections: Some(*connections),
                    ..DaemonFields::default()
                });
            }
            Event::Heartbeat { losses, sessions } => {
                own.daemon = Some(DaemonFields {
                    losses: Some(losses.iter().map(LossFields::new).collect()),
                    sessions: Some(*sessions),
                    ..DaemonFields::default()
                });
            }
            Event::LibraryProbed { library, path, pid, pause_us, error } => {
                own.library = Some(LibraryFields {
                    name: library.as_deref(),
                    path,
                    pid: *pid,
                    pause_us: *pause_us,
                    error: error.as_deref(),
                });
            }
            Event::TrailRecovered { segment, bytes } => {
                own.recovery = Some(RecoveryFields { segment, bytes: *bytes });
            }
            // A statement's record is written by hand.
            Event::Statement { .. }
            | Event::ProcessStarted
            | Event::ProcessEnded
            | Event::DaemonStopped
            | Event::ApiAccess { .. } => {}
        }
        own
    }
}

/// The stable name of what happened, as `unmapped.auditor.kind` has it and `auditor log --kind` takes it.
fn kind(event: &Event) -> &'static str {
    match event {
        Event::Statement { .. } => "statement",
        Event::Request { .. } => "request",
        Event::ConnectionOpened { .. } => "connection-opened",
        Event::ConnectionClosed { .. } => "connection-closed",
        Event::ConnectionRefused { .. } => "connection-refused",
        Event::ProcessStarted => "process-started",
        Event::ProcessEnded => "process-ended",
        Event::SessionOpened { .. } => "session-opened",
        Event::SessionEnded { .. } => "session-ended",
        Event::Gap { .. } => "gap",
        Event::Finding { .. } => "finding",
        Event::DaemonStarted { .. } => "daemon-started",
        Event::DaemonStopped => "daemon-stopped",
        Event::DaemonReloaded { .. } => "daemon-reloaded",
        Event::DaemonTookOver { .. } => "daemon-took-over",
        Event::Heartbeat { .. } => "heartbeat",
        Event::LibraryProbed { .. } => "library-probed",
        Event::TrailRecovered { .. } => "trail-recovered",
        Event::ApiAccess { .. } => "api-access",
    }
}

#[derive(Serialize)]
pub(super) struct AgentFields<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
}

impl<'a> AgentFields<'a> {
    pub(super) fn new(agent: &'a Agent) -> Self {
        Self { name: &agent.name, labels: &agent.labels, identity: agent.identity.as_deref() }
    }
}

#[derive(Serialize)]
pub(super) struct SessionFields<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confinement: Option<ConfinementFields>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    degraded: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statements: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    violations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_us: Option<u64>,
}

impl<'a> SessionFields<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Self {
            id: &session.id,
            task: session.task.as_deref(),
            policy: &session.policy,
            cgroup: None,
            command: None,
            confinement: None,
            degraded: &[],
            end: None,
            connections: None,
            statements: None,
            violations: None,
            duration_us: None,
        }
    }
}

/// What a command has and has not, by the words of the configuration.
#[derive(Serialize)]
struct ConfinementFields {
    sockets: Vec<&'static str>,
    permitted: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl ConfinementFields {
    fn new(confinement: &Confinement) -> Self {
        Self {
            sockets: confinement.sockets.iter().map(|kind| kind.name()).collect(),
            permitted: confinement.permit.iter().map(|permit| permit.name()).collect(),
            refused: confinement.refused(),
        }
    }
}

#[derive(Serialize)]
struct AdoptedFields {
    sent: u64,
    received: u64,
}

#[derive(Serialize)]
pub(super) struct ConnectionFields<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opaque: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsFields<'a>>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    adopted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    adopted_at: Option<AdoptedFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statements: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<CoverageFields<'a>>,
}

impl<'a> ConnectionFields<'a> {
    pub(super) fn new(connection: &'a Connection, application: Option<&'a Application>) -> Self {
        let login = application.and_then(|application| application.login.as_ref());
        let opaque = application.and_then(|application| application.opaque);
        let tls = application.and_then(|application| application.tls.as_ref());
        Self {
            id: &connection.id,
            socket: connection.socket.as_deref(),
            protocol: application.and_then(|application| application.protocol),
            user: login.and_then(|login| login.user.as_deref()),
            database: login.and_then(|login| login.database.as_deref()),
            application: login.and_then(|login| login.application.as_deref()),
            opaque,
            tls: (tls.is_some() || opaque == Some("tls")).then(|| TlsFields {
                library: application.and_then(|application| application.library.as_deref()),
                ..TlsFields::new(tls)
            }),
            verdict: if connection.verdict.allowed { "allow" } else { "deny" },
            rule: connection.verdict.rule.as_deref(),
            reason: connection.verdict.reason,
            adopted: connection.adopted.is_some(),
            adopted_at: connection.adopted.map(|Adopted { sent, received }| AdoptedFields { sent, received }),
            call: None,
            end: None,
            statements: None,
            duration_us: None,
            coverage: None,
        }
    }
}

#[derive(Default, Serialize)]
struct TlsFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    alpn: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ja4: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_certificate: Option<CertificateFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<CertificateFields<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    resumed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    early_data: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_alert: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_alert: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<&'a str>,
    decrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl<'a> TlsFields<'a> {
    /// `None` where both ends agreed on TLS and no handshake was seen.
    fn new(tls: Option<&'a Tls>) -> Self {
        tls.map_or_else(Self::default, |tls| Self {
            version: tls.version.as_deref(),
            cipher: tls.cipher.as_deref(),
            offered: tls.offered.as_deref(),
            sni: tls.sni.as_deref(),
            alpn: &tls.alpn,
            protocol: tls.protocol.as_deref(),
            ja4: tls.ja4.as_deref(),
            server_certificate: tls.server.as_ref().map(CertificateFields::new),
            client_certificate: tls.client.as_ref().map(CertificateFields::new),
            resumed: tls.resumed,
            early_data: tls.early_data,
            client_alert: tls.client_alert,
            server_alert: tls.server_alert,
            library: None,
            decrypted: tls.decrypted,
            reason: tls.reason,
        })
    }
}

/// Times are milliseconds, as everywhere in records.
#[derive(Serialize)]
struct CertificateFields<'a> {
    sha256: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subject: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    issuer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    serial: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    names: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<i64>,
}

impl<'a> CertificateFields<'a> {
    fn new(certificate: &'a Certificate) -> Self {
        Self {
            sha256: &certificate.sha256,
            subject: &certificate.subject,
            issuer: &certificate.issuer,
            serial: &certificate.serial,
            names: &certificate.names,
            not_before: certificate.not_before.map(|seconds| seconds.saturating_mul(1000)),
            not_after: certificate.not_after.map(|seconds| seconds.saturating_mul(1000)),
        }
    }
}

/// Always whole: a count that the kernel did not give is null here, so that nobody takes its absence for zero.
#[derive(Serialize)]
struct CoverageFields<'a> {
    sent: Option<u64>,
    received: Option<u64>,
    audited_sent: u64,
    audited_received: u64,
    opaque_sent: u64,
    opaque_received: u64,
    skipped_sent: u64,
    skipped_received: u64,
    gaps: Gaps<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<u64>,
}

impl<'a> CoverageFields<'a> {
    fn new(coverage: &'a Coverage) -> Self {
        Self {
            sent: coverage.sent,
            received: coverage.received,
            audited_sent: coverage.audited_sent,
            audited_received: coverage.audited_received,
            opaque_sent: coverage.opaque_sent,
            opaque_received: coverage.opaque_received,
            skipped_sent: coverage.skipped_sent,
            skipped_received: coverage.skipped_received,
            gaps: Gaps(&coverage.gaps),
            method: coverage.method,
            unreadable: coverage.method.map(|_| coverage.unreadable),
        }
    }
}

struct Gaps<'a>(&'a [GapRange]);

impl Serialize for Gaps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(GapFields::new))
    }
}

#[derive(Serialize)]
struct GapFields {
    direction: &'static str,
    offset: u64,
    length: u64,
}

impl GapFields {
    fn new(range: &GapRange) -> Self {
        let direction = if range.sent { "sent" } else { "received" };
        Self { direction, offset: range.offset, length: range.length }
    }
}

#[derive(Serialize)]
struct FindingFields {
    kind: &'static str,
}

#[derive(Default, Serialize)]
struct DaemonFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    losses: Option<Vec<LossFields<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    without_ms: Option<u64>,
}

#[derive(Serialize)]
struct LossFields<'a> {
    site: &'a str,
    error: &'a str,
    count: u64,
}

impl<'a> LossFields<'a> {
    fn new(loss: &'a Loss) -> Self {
        Self { site: &loss.site, error: &loss.error, count: loss.count }
    }
}

#[derive(Serialize)]
struct LibraryFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct RecoveryFields<'a> {
    segment: &'a str,
    bytes: u64,
}
