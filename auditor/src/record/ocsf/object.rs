//! The OCSF objects that records are made of, as borrowed views of the domain model.
//!
//! Member order is the order of appearance in the record. What is not known is left out; where OCSF insists on an
//! attribute, the value is [`UNKNOWN`], never a guess.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use serde_json::value::RawValue;

use super::text::Verbatim;
use crate::record::{
    Application, Caller, Certificate, Connection, Coverage, Entry, Process, Tls, Transport, Verdict,
};

/// For attributes that OCSF requires and nobody knows.
pub(super) const UNKNOWN: &str = "unknown";

#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    pub(super) version: &'static str,
    pub(super) uid: &'a str,
    pub(super) sequence: u64,
    pub(super) product: &'a RawValue,
    pub(super) profiles: [&'static str; 2],
}

/// A user of this host, or the agent as whom a session is opened.
#[derive(Serialize)]
pub(super) struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    type_id: Option<u8>,
}

impl<'a> User<'a> {
    fn of_host(uid: Option<u32>, name: Option<&'a str>) -> Option<Self> {
        (uid.is_some() || name.is_some()).then_some(Self {
            uid: uid.map(Decimal),
            name,
            r#type: None,
            type_id: None,
        })
    }

    pub(super) fn agent(name: &'a str) -> Self {
        Self { uid: None, name: Some(name), r#type: Some("agent"), type_id: Some(99) }
    }
}

/// OCSF wants user ids as strings.
#[derive(Clone, Copy)]
struct Decimal(u32);

impl Serialize for Decimal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    path: &'a str,
    type_id: u8,
}

#[derive(Serialize)]
struct Parent {
    pid: u32,
}

#[derive(Serialize)]
pub(super) struct ProcessObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<File<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd_line: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_process: Option<Parent>,
}

impl<'a> ProcessObject<'a> {
    pub(super) fn new(process: &'a Process) -> Self {
        Self {
            pid: Some(process.pid),
            uid: None,
            name: Some(process.name.as_str()).filter(|name| !name.is_empty()),
            file: process.executable.as_deref().map(|path| File {
                name: path.rsplit('/').next().unwrap_or(path),
                path,
                type_id: 8, // Executable File
            }),
            cmd_line: process.command_line.as_deref(),
            user: User::of_host(process.uid, process.user.as_deref()),
            parent_process: process.parent.map(|pid| Parent { pid }),
        }
    }

    fn bare(pid: u32) -> Self {
        Self { pid: Some(pid), ..Self::unknown() }
    }

    pub(super) fn unknown() -> Self {
        Self {
            pid: None,
            uid: Some(UNKNOWN),
            name: None,
            file: None,
            cmd_line: None,
            user: None,
            parent_process: None,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_name: Option<&'a str>,
}

impl<'a> Actor<'a> {
    /// The process and its user; where the process is not known, the agent by name; where there is no agent either,
    /// this program.
    pub(super) fn of(entry: &'a Entry) -> Self {
        match (entry.process.as_deref(), entry.session.as_deref()) {
            (Some(process), session) => Self {
                process: Some(ProcessObject::new(process)),
                user: User::of_host(process.uid, process.user.as_deref()),
                app_name: session.map(|session| session.agent.name.as_str()),
            },
            (None, Some(session)) => {
                Self { process: None, user: None, app_name: Some(session.agent.name.as_str()) }
            }
            (None, None) => Self { process: None, user: None, app_name: Some("auditor") },
        }
    }

    pub(super) fn caller(caller: &'a Caller) -> Self {
        Self {
            process: Some(ProcessObject { uid: None, ..ProcessObject::bare(caller.pid) }),
            user: User::of_host(Some(caller.uid), caller.user.as_deref()),
            app_name: None,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> Endpoint<'a> {
    /// This host; with its name, for it is known even where the address is not.
    pub(super) fn local(address: Option<SocketAddr>, hostname: &'a str) -> Self {
        Self { hostname: Some(hostname), ..Self::at(address) }
    }

    /// A unix socket has a name only.
    fn remote(connection: &'a Connection) -> Self {
        let address = connection.remote;
        let name = connection.socket.as_deref().or(address.is_none().then_some(UNKNOWN));
        Self { name, ..Self::at(address) }
    }

    fn at(address: Option<SocketAddr>) -> Self {
        Self {
            ip: address.map(|address| address.ip().to_canonical()),
            port: address.map(|address| address.port()),
            hostname: None,
            name: None,
        }
    }

    /// Source and destination: whoever connected is the source.
    pub(super) fn both(connection: &'a Connection, hostname: &'a str) -> (Self, Self) {
        let (local, remote) = (Self::local(connection.local, hostname), Self::remote(connection));
        if connection.inbound { (remote, local) } else { (local, remote) }
    }
}

#[derive(Serialize)]
pub(super) struct ConnectionInfo<'a> {
    uid: &'a str,
    direction_id: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_num: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_ver_id: Option<u8>,
}

impl<'a> ConnectionInfo<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        let (protocol_name, protocol_num) = match connection.transport {
            Transport::Tcp => (Some("tcp"), Some(6)),
            Transport::Udp => (Some("udp"), Some(17)),
            // IANA has neither a name nor a number for it.
            Transport::Unix => (None, None),
            Transport::Other(number) => (None, Some(number)),
        };
        let ip = connection.remote.or(connection.local).map(|address| address.ip().to_canonical());
        Self {
            uid: &connection.id,
            direction_id: match (connection.transport, connection.inbound) {
                (Transport::Unix, _) => 4, // Local
                (_, true) => 1,
                (_, false) => 2,
            },
            protocol_name,
            protocol_num,
            protocol_ver_id: ip.map(|ip| if ip.is_ipv4() { 4 } else { 6 }),
        }
    }
}

/// Directions are OCSF's: out is from the source (whoever connected) to the destination.
#[derive(Serialize)]
pub(super) struct Traffic {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    bytes_missed: u64,
}

impl Traffic {
    pub(super) fn new(coverage: &Coverage, inbound: bool) -> Self {
        let (bytes_out, bytes_in) =
            if inbound { (coverage.received, coverage.sent) } else { (coverage.sent, coverage.received) };
        Self {
            bytes: bytes_in.zip(bytes_out).map(|(one, other)| one.saturating_add(other)),
            bytes_in,
            bytes_out,
            bytes_missed: coverage.gaps.iter().fold(0, |sum, gap| sum.saturating_add(gap.length)),
        }
    }
}

/// OCSF's `tls`: what the two ends agreed on.
#[derive(Serialize)]
pub(super) struct TlsObject<'a> {
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateObject<'a>>,
}

impl<'a> TlsObject<'a> {
    pub(super) fn new(tls: &'a Tls) -> Self {
        Self {
            version: tls.version.as_deref().unwrap_or(UNKNOWN),
            cipher: tls.cipher.as_deref(),
            sni: tls.sni.as_deref(),
            certificate: tls.server.as_ref().map(CertificateObject::new),
        }
    }
}

/// OCSF's `certificate`; here the server's.
#[derive(Serialize)]
struct CertificateObject<'a> {
    subject: &'a str,
    issuer: &'a str,
    serial_number: &'a str,
    fingerprints: [FingerprintObject<'a>; 1],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sans: Vec<AlternativeName<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_time: Option<i64>,
}

impl<'a> CertificateObject<'a> {
    fn new(certificate: &'a Certificate) -> Self {
        let told = |text: &'a str| if text.is_empty() { UNKNOWN } else { text };
        let names = certificate.names.iter().map(|name| match name.split_once(':') {
            Some((kind @ ("uri" | "email" | "dn" | "ip" | "other"), name)) => {
                AlternativeName { name, r#type: kind }
            }
            _ if name.parse::<IpAddr>().is_ok() => AlternativeName { name, r#type: "ip" },
            _ => AlternativeName { name, r#type: "dns" },
        });
        Self {
            subject: told(&certificate.subject),
            issuer: told(&certificate.issuer),
            serial_number: told(&certificate.serial),
            fingerprints: [FingerprintObject { value: &certificate.sha256, algorithm_id: 3 }], // SHA-256
            sans: names.collect(),
            created_time: certificate.not_before.map(|seconds| seconds.saturating_mul(1000)),
            expiration_time: certificate.not_after.map(|seconds| seconds.saturating_mul(1000)),
        }
    }
}

#[derive(Serialize)]
struct FingerprintObject<'a> {
    value: &'a str,
    algorithm_id: u8,
}

#[derive(Serialize)]
struct AlternativeName<'a> {
    name: &'a str,
    r#type: &'a str,
}

/// OCSF's `ja4_fingerprint`, of the client.
#[derive(Serialize)]
pub(super) struct Ja4Object<'a> {
    value: &'a str,
    type_id: u8,
}

impl<'a> Ja4Object<'a> {
    pub(super) fn new(tls: &'a Tls) -> Option<[Self; 1]> {
        Some([Self { value: tls.ja4.as_deref()?, type_id: 1 }]) // JA4
    }
}

/// OCSF's `policy`, `firewall_rule`, `api.service` and the like: a name.
#[derive(Serialize)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
}

/// What the security_control profile says of a decision.
pub(super) struct Control<'a> {
    pub(super) action_id: u8,
    pub(super) disposition_id: u8,
    pub(super) policy: Option<Named<'a>>,
    pub(super) firewall_rule: Option<Named<'a>>,
}

impl<'a> Control<'a> {
    pub(super) fn new(verdict: &'a Verdict) -> Self {
        Self {
            action_id: if verdict.allowed { 1 } else { 2 },
            disposition_id: if verdict.allowed { 1 } else { 2 },
            policy: verdict.policy.as_deref().map(|name| Named { name }),
            firewall_rule: verdict.rule.as_deref().map(|name| Named { name }),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Database<'a> {
    name: &'a str,
    type_id: u8,
}

impl<'a> Database<'a> {
    pub(super) fn of(application: &'a Application) -> Self {
        Self {
            name: application.login.as_ref().and_then(|login| login.database.as_deref()).unwrap_or(UNKNOWN),
            type_id: match application.protocol {
                Some("postgres" | "mysql") => 1, // Relational
                Some("redis") => 6,              // NoSQL
                _ => 0,
            },
        }
    }
}

#[derive(Serialize)]
pub(super) struct SessionObject<'a> {
    pub(super) uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expiration_reason: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct Api<'a> {
    pub(super) operation: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<Named<'a>>,
}

/// OCSF's `resource_details`: what a call of an API is about.
#[derive(Serialize)]
pub(super) struct Resource<'a> {
    pub(super) name: &'a str,
    pub(super) r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<&'a str>,
}

#[derive(Default, Serialize)]
pub(super) struct HttpRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Url<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Url<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scheme: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    pub(super) path: Verbatim<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) query_string: Option<Verbatim<'a>>,
}

#[derive(Serialize)]
pub(super) struct HttpResponse<'a> {
    pub(super) code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct FindingInfo<'a> {
    pub(super) uid: &'a str,
    pub(super) title: &'a str,
    pub(super) desc: &'a str,
    pub(super) types: [&'a str; 1],
    pub(super) created_time: u64,
    pub(super) analytic: Analytic<'a>,
}

#[derive(Serialize)]
pub(super) struct Analytic<'a> {
    pub(super) name: &'a str,
    pub(super) type_id: u8,
}

#[derive(Serialize)]
pub(super) struct Evidence<'a> {
    pub(super) src_endpoint: Endpoint<'a>,
    pub(super) dst_endpoint: Endpoint<'a>,
    pub(super) connection_info: ConnectionInfo<'a>,
}
