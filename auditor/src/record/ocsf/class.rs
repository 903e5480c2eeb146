//! One function an OCSF class: which attributes it sets, and to what.

use serde::Serialize;
use serde_json::value::RawValue;

use super::object::{
    Actor, Analytic, Api, ConnectionInfo, Control, Endpoint, Evidence, FindingInfo, HttpRequest,
    HttpResponse, Ja4Object, Metadata, Named, ProcessObject, Resource, SessionObject, TlsObject, Traffic,
    UNKNOWN, Url, User,
};
use super::own::Own;
use super::text::Verbatim;
use super::{Identity, Renderer, VERSION};
use crate::record::{Caller, CloseReason, Connection, Coverage, Entry, Event, Verdict};

/// `severity_id`.
pub(super) const INFORMATIONAL: u8 = 1;
const LOW: u8 = 2;
const MEDIUM: u8 = 3;
const HIGH: u8 = 4;

/// `status_id`, where the class does not say otherwise.
pub(super) const SUCCESS: u8 = 1;
pub(super) const FAILURE: u8 = 2;

/// `activity_id` of what OCSF has no word for; `activity_name` then has ours.
pub(super) const OTHER: u8 = 99;

#[derive(Serialize)]
struct Unmapped<'a> {
    auditor: Own<'a>,
}

/// All attributes that any of our classes uses. `time` stays first and `unmapped` last.
#[derive(Serialize)]
pub(super) struct Record<'a> {
    time: u64,
    class_uid: u32,
    category_uid: u32,
    activity_id: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    activity_name: Option<&'a str>,
    type_uid: u32,
    severity_id: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_id: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action_id: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disposition_id: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_alert: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Named<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall_rule: Option<Named<'a>>,
    metadata: Metadata<'a>,
    device: &'a RawValue,
    actor: Actor<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launch_type_id: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    privileges: Option<[&'a str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_info: Option<ConnectionInfo<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_protocol_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ja4_fingerprint_list: Option<[Ja4Object<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic: Option<Traffic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api: Option<Api<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_request: Option<HttpRequest<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_response: Option<HttpResponse<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding_info: Option<FindingInfo<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resources: Option<[Resource<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidences: Option<[Evidence<'a>; 1]>,
    unmapped: Unmapped<'a>,
}

impl<'a> Record<'a> {
    pub(super) fn new(renderer: &'a Renderer, entry: &'a Entry, identity: Identity<'a>) -> Self {
        let mut record = Self::base(renderer, entry, identity);
        match &entry.event {
            // 6005 Datastore Activity: see `statement`.
            Event::Statement { .. } => {}
            Event::Request { connection, request, .. } => record.request(renderer, connection, request),
            Event::ConnectionOpened { connection } => {
                record.network(1, renderer, connection);
                record.status_id = Some(SUCCESS);
            }
            Event::ConnectionClosed { connection, application, coverage, reason, duration_us, .. } => {
                record.connection_closed(renderer, connection, coverage, *reason);
                record.app_protocol_name = application.protocol;
                record.tls = application.tls.as_ref().map(TlsObject::new);
                record.ja4_fingerprint_list = application.tls.as_ref().and_then(Ja4Object::new);
                record.duration = Some(duration_us / 1000);
            }
            Event::ConnectionRefused { connection, .. } => {
                record.network(5, renderer, connection);
                record.severity_id = MEDIUM;
                record.status_id = Some(FAILURE);
                record.status_detail = Some(connection.verdict.reason);
            }
            Event::ProcessStarted => {
                record.process(1, entry);
                record.launch_type_id = Some(3); // Exec
            }
            Event::ProcessEnded => record.process(2, entry),
            Event::SessionOpened { by, .. } => {
                record.session(1, entry, None);
                record.actor = Actor::caller(by);
            }
            Event::SessionEnded { reason, duration_us, .. } => {
                record.session(OTHER, entry, Some(reason));
                record.activity_name = Some("Revoke Privileges");
                record.duration = Some(duration_us / 1000);
            }
            Event::Gap { .. } => {
                record.lifecycle(renderer, OTHER, Some("Lose Bytes"));
                record.severity_id = MEDIUM;
            }
            Event::Finding { kind, message, connection } => {
                record.finding(renderer, identity.uid, kind, message, connection.as_deref());
            }
            Event::DaemonStarted { degraded, .. } => {
                record.lifecycle(renderer, 3, None);
                record.severity_id = if degraded.is_empty() { INFORMATIONAL } else { LOW };
            }
            Event::DaemonStopped => record.lifecycle(renderer, 4, None),
            Event::DaemonTookOver { .. } => record.lifecycle(renderer, OTHER, Some("Takeover")),
            Event::DaemonReloaded { .. } => record.lifecycle(renderer, OTHER, Some("Reload")),
            Event::Heartbeat { losses, .. } => {
                record.lifecycle(renderer, OTHER, Some("Heartbeat"));
                record.severity_id = if losses.is_empty() { INFORMATIONAL } else { MEDIUM };
            }
            Event::LibraryProbed { error, .. } => {
                record.lifecycle(renderer, OTHER, Some("Probe Library"));
                record.severity_id = if error.is_none() { INFORMATIONAL } else { MEDIUM };
            }
            Event::TrailRecovered { .. } => {
                record.lifecycle(renderer, OTHER, Some("Recover Trail"));
                record.severity_id = MEDIUM;
            }
            Event::ApiAccess { by, method, path, status } => record.api(renderer, by, method, path, *status),
        }
        record
    }

    fn base(renderer: &'a Renderer, entry: &'a Entry, identity: Identity<'a>) -> Self {
        Self {
            time: entry.time.epoch_millis(),
            class_uid: 0,
            category_uid: 0,
            activity_id: 0,
            activity_name: None,
            type_uid: 0,
            severity_id: INFORMATIONAL,
            status_id: None,
            status_code: None,
            status_detail: None,
            message: None,
            duration: None,
            action_id: None,
            disposition_id: None,
            is_alert: None,
            policy: None,
            firewall_rule: None,
            metadata: Metadata {
                version: VERSION,
                uid: identity.uid,
                sequence: identity.sequence,
                product: &renderer.product,
                profiles: ["host", "security_control"],
            },
            device: &renderer.device,
            actor: Actor::of(entry),
            process: None,
            launch_type_id: None,
            user: None,
            session: None,
            privileges: None,
            src_endpoint: None,
            dst_endpoint: None,
            connection_info: None,
            app_protocol_name: None,
            tls: None,
            ja4_fingerprint_list: None,
            traffic: None,
            api: None,
            http_request: None,
            http_response: None,
            app: None,
            finding_info: None,
            resources: None,
            evidences: None,
            unmapped: Unmapped { auditor: Own::new(entry.session.as_deref(), &entry.event) },
        }
    }

    /// `class_uid` is the category and two digits, `type_uid` the class and two digits.
    pub(super) fn class(&mut self, class_uid: u32, activity_id: u8) {
        self.class_uid = class_uid;
        self.category_uid = class_uid / 1000;
        self.activity_id = activity_id;
        self.type_uid = class_uid * 100 + u32::from(activity_id);
    }

    pub(super) fn control(&mut self, verdict: &'a Verdict) {
        let control = Control::new(verdict);
        self.action_id = Some(control.action_id);
        self.disposition_id = Some(control.disposition_id);
        self.policy = control.policy;
        self.firewall_rule = control.firewall_rule;
    }

    pub(super) fn endpoints(&mut self, renderer: &'a Renderer, connection: &'a Connection) {
        let (source, destination) = Endpoint::both(connection, &renderer.hostname);
        self.src_endpoint = Some(source);
        self.dst_endpoint = Some(destination);
    }

    /// 4001 Network Activity.
    fn network(&mut self, activity: u8, renderer: &'a Renderer, connection: &'a Connection) {
        self.class(4001, activity);
        self.control(&connection.verdict);
        self.endpoints(renderer, connection);
        self.connection_info = Some(ConnectionInfo::new(connection));
    }

    fn connection_closed(
        &mut self,
        renderer: &'a Renderer,
        connection: &'a Connection,
        coverage: &Coverage,
        reason: CloseReason,
    ) {
        let (activity, status) = match reason {
            CloseReason::Ended => (2, SUCCESS),
            CloseReason::NotEstablished => (4, FAILURE),
        };
        self.network(activity, renderer, connection);
        self.status_id = Some(status);
        self.traffic = Some(Traffic::new(coverage, connection.inbound));
        if !coverage.gaps.is_empty() {
            self.severity_id = MEDIUM;
        }
    }

    /// 1007 Process Activity.
    fn process(&mut self, activity: u8, entry: &'a Entry) {
        self.class(1007, activity);
        self.process = Some(entry.process.as_deref().map_or_else(ProcessObject::unknown, ProcessObject::new));
    }

    /// 3003 Authorize Session: the agent is who is authorised, its policy what it is given.
    fn session(&mut self, activity: u8, entry: &'a Entry, reason: Option<&'static str>) {
        self.class(3003, activity);
        self.status_id = Some(SUCCESS);
        let session = entry.session.as_deref();
        self.user = Some(User::agent(session.map_or(UNKNOWN, |session| &session.agent.name)));
        self.privileges = Some([session.map_or(UNKNOWN, |session| &session.policy)]);
        self.session = session.map(|session| SessionObject { uid: &session.id, expiration_reason: reason });
    }

    /// 2004 Detection Finding. Its uid is the record's: each finding is reported once.
    fn finding(
        &mut self,
        renderer: &'a Renderer,
        uid: &'a str,
        kind: &'static str,
        message: &'a str,
        connection: Option<&'a Connection>,
    ) {
        self.class(2004, 1);
        self.severity_id = HIGH;
        self.status_id = Some(1); // New
        self.is_alert = Some(true);
        self.message = Some(message);
        self.finding_info = Some(FindingInfo {
            uid,
            title: kind,
            desc: message,
            types: [kind],
            created_time: self.time,
            analytic: Analytic { name: kind, type_id: 1 }, // Rule
        });
        self.evidences = connection.map(|connection| {
            let (src_endpoint, dst_endpoint) = Endpoint::both(connection, &renderer.hostname);
            [Evidence { src_endpoint, dst_endpoint, connection_info: ConnectionInfo::new(connection) }]
        });
    }

    /// 6002 Application Lifecycle.
    fn lifecycle(&mut self, renderer: &'a Renderer, activity: u8, name: Option<&'static str>) {
        self.class(6002, activity);
        self.activity_name = name;
        self.app = Some(&renderer.product);
    }

    /// 6003 API Activity, by its method.
    pub(super) fn method(&mut self, method: &'a str) {
        let activity = match method {
            "POST" => 1,
            "GET" | "HEAD" => 2,
            "PUT" | "PATCH" => 3,
            "DELETE" => 4,
            _ => OTHER,
        };
        self.class(6003, activity);
        self.activity_name = (activity == OTHER).then_some(method);
    }

    /// The same of the auditor's own API. It is on a unix socket, so its source is this host.
    fn api(&mut self, renderer: &'a Renderer, by: &'a Caller, method: &'a str, path: &'a str, status: u16) {
        self.method(method);
        self.status_id = Some(if status < 400 { SUCCESS } else { FAILURE });
        self.actor = Actor::caller(by);
        self.src_endpoint = Some(Endpoint::local(None, &renderer.hostname));
        let (bare, query) = path.split_once('?').map_or((path, None), |(bare, query)| (bare, Some(query)));
        self.api = Some(Api { operation: method.into(), service: Some(Named { name: "auditor" }) });
        let verbatim = |text: &'a str| Verbatim::new(text.as_bytes());
        let (path, query_string) = (verbatim(bare), query.map(verbatim));
        self.http_request = Some(HttpRequest {
            http_method: known_method(method),
            url: Some(Url { scheme: None, hostname: None, port: None, path, query_string }),
            ..HttpRequest::default()
        });
        self.http_response =
            Some(HttpResponse { code: status, content_type: None, body_length: None, length: None });
    }
}

/// A method, if OCSF's enumeration has it.
pub(super) fn known_method(method: &str) -> Option<&str> {
    HTTP_METHODS.contains(&method).then_some(method)
}

/// The methods that OCSF's enumeration has.
const HTTP_METHODS: [&str; 9] =
    ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH"];
