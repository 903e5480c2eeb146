//! A request's record: 6003 API Activity, and `unmapped.auditor.request`.

use serde::Serialize;

use super::Renderer;
use super::class::{FAILURE, Record, SUCCESS, known_method};
use super::object::{Api, HttpRequest, HttpResponse, Named, Resource, UNKNOWN, Url};
use super::text::Verbatim;
use crate::protocol::Side;
use crate::protocol::http::{Call, Outcome, Request};
use crate::record::Connection;

impl<'a> Record<'a> {
    pub(super) fn request(
        &mut self,
        renderer: &'a Renderer,
        connection: &'a Connection,
        request: &'a Request,
    ) {
        match request.method.as_deref() {
            Some(method) => self.method(method),
            None => self.class(6003, 0),
        }
        self.control(&connection.verdict);
        self.endpoints(renderer, connection);
        self.outcome(request);
        let took = request.finished.since(request.started);
        self.duration = u64::try_from(took.as_millis()).ok();
        let call = request.api.as_ref();
        self.api = Some(Api {
            operation: match (&request.grpc, call, &request.method) {
                (Some(grpc), ..) => format!("{}/{}", grpc.service, grpc.method).into(),
                (_, Some(call), _) => format!("{} {}", call.verb, call.resource).into(),
                (_, _, Some(method)) => method.into(),
                _ => UNKNOWN.into(),
            },
            service: match (&request.grpc, call) {
                (Some(grpc), _) => Some(Named { name: &grpc.service }),
                (_, Some(call)) => Some(Named { name: call.service.name() }),
                _ => None,
            },
        });
        self.resources = call.and_then(|call| {
            let namespace = call.namespace.as_deref();
            Some([Resource { name: call.name.as_deref()?, r#type: &call.resource, namespace }])
        });
        self.http_request = Some(HttpRequest {
            uid: Some(format!("{}/{}", connection.id, request.sequence)),
            version: request.version.map(crate::protocol::http::Version::name),
            http_method: request.method.as_deref().and_then(known_method),
            url: url(request),
            user_agent: request.agent.as_deref(),
            body_length: Some(request.request_body),
            length: Some(request.request_bytes),
        });
        self.http_response = request.status.map(|code| HttpResponse {
            code,
            content_type: request.response_type.as_deref(),
            body_length: Some(request.response_body),
            length: Some(request.response_bytes),
        });
    }

    fn outcome(&mut self, request: &'a Request) {
        let grpc = request.grpc.as_ref().and_then(|grpc| grpc.status);
        let failed =
            request.status.is_some_and(|status| status >= 400) || grpc.is_some_and(|status| status != 0);
        self.status_id = Some(match (request.outcome, request.status) {
            (Outcome::Reset { .. }, _) => FAILURE,
            _ if failed => FAILURE,
            (Outcome::Answered, Some(_)) => SUCCESS,
            _ => 0,
        });
        self.status_code =
            grpc.filter(|status| *status != 0).or(request.status.map(u32::from)).map(|code| code.to_string());
        self.status_detail = match (&request.grpc, request.outcome) {
            (Some(grpc), _) if grpc.message.is_some() => grpc.message.as_deref(),
            (_, Outcome::Reset { by: Side::Client, .. }) => Some("reset by the client"),
            (_, Outcome::Reset { by: Side::Server, .. }) => Some("reset by the server"),
            _ => None,
        };
    }
}

/// The URL as far as it was seen; OCSF insists on a path.
fn url(request: &Request) -> Option<Url<'_>> {
    let (path, query) = request.path_and_query()?;
    let (hostname, port) = match request.authority.as_deref() {
        Some(authority) => host_and_port(authority),
        None => (None, None),
    };
    Some(Url {
        scheme: request.scheme.as_deref(),
        hostname,
        port,
        path: Verbatim::new(path),
        query_string: query.map(Verbatim::new),
    })
}

fn host_and_port(authority: &str) -> (Option<&str>, Option<u16>) {
    let split = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match split {
        // An IPv6 address has colons of its own, within brackets.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (Some(host), Some(port)),
        _ => (Some(authority), None),
    }
}

/// `unmapped.auditor.request`.
#[derive(Serialize)]
pub(super) struct RequestFields<'a> {
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pushed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reversed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    verb: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Verbatim<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset: Option<ResetFields>,
    duration_us: u64,
    request_bytes: u64,
    request_body_bytes: u64,
    response_bytes: u64,
    response_body_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<GrpcFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<CallFields<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    masked: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    escaped: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    incomplete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<&'static str>,
}

#[derive(Serialize)]
struct ResetFields {
    by: &'static str,
    code: u32,
}

#[derive(Serialize)]
struct GrpcFields<'a> {
    service: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

#[derive(Serialize)]
struct CallFields<'a> {
    service: &'static str,
    verb: &'a str,
    resource: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subresource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> RequestFields<'a> {
    pub(super) fn new(connection: &Connection, request: &'a Request) -> Self {
        let path = request.target.as_deref().map(Verbatim::new);
        let took = request.finished.since(request.started);
        Self {
            seq: request.sequence,
            version: request.version.map(crate::protocol::http::Version::name),
            stream: request.stream,
            pushed: request.pushed,
            reversed: request.reversed,
            verb: match (&request.api, &request.method) {
                (Some(call), _) => Some(call.verb.to_ascii_lowercase()),
                (None, method) => method.as_ref().map(|method| method.to_ascii_lowercase()),
            },
            method: request.method.as_deref(),
            authority: request.authority.as_deref(),
            path,
            status: request.status,
            outcome: match request.outcome {
                Outcome::Answered => "answered",
                Outcome::Reset { .. } => "reset",
                Outcome::Unknown => "unknown",
            },
            reset: match request.outcome {
                Outcome::Reset { by, code } => {
                    Some(ResetFields { by: if by == Side::Client { "client" } else { "server" }, code })
                }
                _ => None,
            },
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            request_bytes: request.request_bytes,
            request_body_bytes: request.request_body,
            response_bytes: request.response_bytes,
            response_body_bytes: request.response_body,
            content_type: request.request_type.as_deref(),
            response_content_type: request.response_type.as_deref(),
            user_agent: request.agent.as_deref(),
            upgrade: request.upgrade.as_deref(),
            grpc: request.grpc.as_ref().map(|grpc| GrpcFields {
                service: &grpc.service,
                method: &grpc.method,
                status: grpc.status,
                message: grpc.message.as_deref(),
            }),
            api: request.api.as_ref().map(CallFields::new),
            masked: &request.masked,
            truncated: request.target_length.is_some(),
            path_bytes: request.target_length,
            escaped: path.is_some_and(|path| path.plain().is_none()),
            incomplete: request.incomplete,
            decision: connection.verdict.allowed.then_some("allowed"),
        }
    }
}

impl<'a> CallFields<'a> {
    fn new(call: &'a Call) -> Self {
        Self {
            service: call.service.name(),
            verb: &call.verb,
            resource: &call.resource,
            subresource: call.subresource.as_deref(),
            namespace: call.namespace.as_deref(),
            name: call.name.as_deref(),
        }
    }
}
