//! What stands in front of every handler: who may call at all, how large a request may be, and what is written down.
//!
//! An agent must not use the API, whatever its user id, because the API tells what is known of it, opens sessions and ends
//! them. Being an agent is a matter of the cgroup, so the peer's cgroup is read anew for each request: a connection
//! may be older than the session that its owner has been put into (`auditor run` is exactly this case). Below the daemon's own cgroup
//! live agents only, also those whose session has ended or is not known any more: none of them may.
//!
//! It fails closed: a caller whose cgroup cannot be read, or a pipeline that does not say which sessions exist, is a refusal.
//!
//! A request runs in a task of its own, so that a caller that hangs up in the middle cannot cancel the record of
//! what it did.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio::sync::{Semaphore, watch};

use super::error::ApiError;
use super::peer::{Peer, is_within};
use crate::clock::Clock;
use crate::daemon::command::{Command, Commander};
use crate::record::{Caller, Entry, Event, Process, Session};

/// Longest request body.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Longest time for a request body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What handlers share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) commander: Commander,
    pub(super) proc_root: PathBuf,
    /// The cgroup below which agents live.
    pub(super) agents: Arc<str>,
    pub(super) trail_dir: PathBuf,
    /// Readers of the trail that may still begin.
    pub(super) readers: Arc<Semaphore>,
    /// Its sender is dropped when the daemon stops.
    pub(super) stopping: watch::Receiver<()>,
}

/// Who calls, for handlers.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    pub(super) peer: Arc<Peer>,
    pub(super) caller: Caller,
}

/// Whether a request is allowed to reach its handler.
enum Admission {
    Admitted,
    /// The caller lives in this session.
    Agent(Arc<Session>),
    /// It cannot be told who the caller is, or it is an agent of whose session nothing is known.
    Unknown(ApiError),
}

/// The middleware around all handlers.
pub(super) async fn guard(
    State(context): State<Context>,
    Extension(connected): Extension<Connected>,
    request: Request,
    next: Next,
) -> Response {
    let handled = tokio::spawn(admit_and_record(context, connected, request, next));
    handled.await.unwrap_or_else(|failure| {
        tracing::error!(%failure, "a request's handler failed; please report this");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the request's handler failed")
            .into_response()
    })
}

async fn admit_and_record(context: Context, connected: Connected, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let mut session = None;
    let response = match admission(&context, &connected).await {
        Admission::Admitted => match with_whole_body(request).await {
            Ok(request) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        },
        Admission::Agent(found) => {
            session = Some(found);
            hang_up(refused_agent())
        }
        Admission::Unknown(refusal) => hang_up(refusal),
    };
    if is_recorded(&method, &path, response.status()) {
        let process = session.is_some().then(|| Arc::new(process(&context, &connected)));
        let event = Event::ApiAccess {
            by: connected.caller,
            method: method.to_string(),
            path,
            status: response.status().as_u16(),
        };
        context
            .commander
            .tell(Command::Access(Entry { time: Clock::now_utc(), session, process, event }))
            .await;
    }
    response
}

async fn admission(context: &Context, connected: &Connected) -> Admission {
    let sessions = match context.commander.ask(Command::Sessions).await {
        Ok(sessions) => sessions,
        Err(error) => {
            return Admission::Unknown(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                error.to_string(),
            ));
        }
    };
    // The cgroup is read after the list: a caller that is being moved into a session meanwhile is either found in its new
    // cgroup here, or its session began after this request did.
    let cgroup = match connected.peer.cgroup(&context.proc_root) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            return Admission::Unknown(ApiError::forbidden(
                "unknown-caller",
                format!("the caller cannot be identified: {error}"),
            ));
        }
    };
    let session =
        sessions.into_iter().find(|state| state.ended.is_none() && is_within(&cgroup, &state.cgroup));
    match session {
        Some(state) => Admission::Agent(state.session),
        None if is_within(&cgroup, &context.agents) => Admission::Unknown(refused_agent()),
        None => Admission::Admitted,
    }
}

fn refused_agent() -> ApiError {
    ApiError::forbidden("agent", "an agent may not use the auditor's API: call it from outside the session")
}

/// Reads the body before any handler runs: one place for its limits in size and time.
async fn with_whole_body(request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let late =
        || ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not arrive in time");
    let read =
        tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await.map_err(|_| late())?;
    let bytes = read.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("the request's body is incomplete or longer than {MAX_BODY_BYTES} bytes"),
        )
    })?;
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// An answer after which the connection is closed.
fn hang_up(refusal: ApiError) -> Response {
    let mut response = refusal.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What changes something, reads records, or was refused.
fn is_recorded(method: &Method, path: &str, status: StatusCode) -> bool {
    method != Method::GET || path.starts_with("/v1/records") || status == StatusCode::FORBIDDEN
}

/// The calling process, for the record of a refused agent. Best effort: it may exit while it is looked at.
fn process(context: &Context, connected: &Connected) -> Process {
    let directory = context.proc_root.join(connected.peer.pid().to_string());
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    let executable = std::fs::read_link(directory.join("exe")).ok();
    let (name, executable) = if connected.peer.is_alive() {
        (name.trim_end().to_owned(), executable.map(|path| path.to_string_lossy().into_owned()))
    } else {
        (String::new(), None)
    };
    Process {
        pid: connected.caller.pid,
        name,
        executable,
        uid: Some(connected.caller.uid),
        user: connected.caller.user.clone(),
        ..Process::default()
    }
}
