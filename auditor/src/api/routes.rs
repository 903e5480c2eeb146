//! The handlers and their description. Route, parameters, answers and OpenAPI come from the same lines.
//!
//! Who may do what, beyond reaching the socket: everybody in the group may look, and open a session for himself or
//! for a process of his own. Ending a session takes an agent's bounds away, and tagging a cgroup or a stranger's process
//! changes what others may do: these are for root. See `target` for what nobody may tag.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use axum::{Extension, Json, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::{Connected, Context};
use super::records::{Reader, epoch_millis};
use super::sessions::{self, Incomplete, Known};
use super::target::target;
use super::types::{
    ErrorBody, HandOver, OpenSession, RecordFilter, Session, SessionFilter, SessionList, SessionTarget,
    Status,
};
use crate::daemon::command::{self, Command};
use crate::trail;

/// Longest free text in a request for a session: task, label key, label value.
const MAX_TEXT_BYTES: usize = 4096;
/// Labels of a session at most.
const MAX_LABELS: usize = 64;
/// How long a reader waits for what has just happened. The pipeline itself gives up a little earlier.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

#[derive(OpenApi)]
#[openapi(info(
    title = "auditor",
    description = "Host connection auditor. HTTP over the unix socket /run/auditor/auditor.sock; the caller is \
                   identified by the kernel. A caller that lives in an agent's session is refused with 403.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Description;

/// All routes, with their description.
fn described() -> OpenApiRouter<Context> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(open_session, list_sessions))
        .routes(routes!(close_session))
        .routes(routes!(list_records))
        .routes(routes!(show_records))
        .routes(routes!(status))
        .routes(routes!(reload))
        .routes(routes!(hand_over))
        .routes(routes!(describe))
}

/// The description of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// The router that serves it.
pub(super) fn router() -> Router<Context> {
    Router::from(described()).fallback(unknown_path).method_not_allowed_fallback(unknown_method)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}; GET /v1/openapi.json describes the API", uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{} does not take {method}; GET /v1/openapi.json describes the API", uri.path()),
    )
}

/// Open a session.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = OpenSession, responses(
    (status = 201, description = "The session is open: its rules are in force.", body = Session),
    (status = 400, description = "Unknown agent, or the target cannot become a session.", body = ErrorBody),
    (status = 403, description = "The caller is an agent, or the target is not the caller's to tag.", body = ErrorBody),
    (status = 409, description = "The process exited while its session was being opened.", body = ErrorBody),
    (status = 500, description = "The kernel refused.", body = ErrorBody),
))]
async fn open_session(
    State(context): State<Context>,
    Extension(connected): Extension<Connected>,
    request: Result<Json<OpenSession>, JsonRejection>,
) -> Result<(StatusCode, Json<Session>), ApiError> {
    let Json(request) = request?;
    check_texts(&request)?;
    let of_caller = request.target == SessionTarget::Caller {};
    let target = target(&context, &connected, request.target)?;
    let open = command::OpenSession {
        agent: request.agent,
        task: request.task,
        labels: request.labels,
        target,
        command: request.command,
        confines: request.confines,
        user: request.user,
        caller: connected.caller.clone(),
    };
    let state = context.commander.ask(|reply| Command::Open(Box::new(open), reply)).await?;
    if of_caller && !connected.peer.is_alive() {
        // Its process id may belong to somebody else by now, who must not find himself in an agent's cgroup.
        let id = state.session.id.clone();
        let _ = context.commander.ask(|reply| Command::Close(id, reply)).await?;
        return Err(ApiError::new(StatusCode::CONFLICT, "caller-gone", "the caller has exited"));
    }
    Ok((StatusCode::CREATED, Json(state.into())))
}

fn check_texts(request: &OpenSession) -> Result<(), ApiError> {
    let labels = request.labels.iter().flat_map(|(key, value)| [key, value]);
    if let Some(text) = request.task.iter().chain(labels).find(|text| text.len() > MAX_TEXT_BYTES) {
        let length = text.len();
        return Err(ApiError::invalid(format!(
            "a task or label of {length} bytes: at most {MAX_TEXT_BYTES} are kept, shorten it"
        )));
    }
    if request.labels.len() > MAX_LABELS {
        return Err(ApiError::invalid(format!("more than {MAX_LABELS} labels")));
    }
    if request.labels.keys().any(String::is_empty) {
        return Err(ApiError::invalid("a label without a name"));
    }
    Ok(())
}

/// End a session: its cgroup is no longer watched nor bound by its policy.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "Identity of the session, or enough of its first digits.")),
    responses(
        (status = 200, description = "The session as it ended.", body = Session),
        (status = 403, description = "The caller is not root.", body = ErrorBody),
        (status = 404, description = "No such session is open.", body = ErrorBody),
    ))]
async fn close_session(
    State(context): State<Context>,
    Extension(connected): Extension<Connected>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Session>, ApiError> {
    let Path(id) = id?;
    require_root(&connected, "ending a session")?;
    let id = if sessions::is_beginning(&id) {
        let states = context.commander.ask(Command::Sessions).await?;
        let live = states.iter().filter(|state| state.ended.is_none());
        sessions::only(&id, live.map(|state| state.session.id.as_str()))
            .map_err(|error| ApiError::invalid(error.to_string()))?
    } else {
        id
    };
    let state = context.commander.ask(|reply| Command::Close(id, reply)).await?;
    Ok(Json(state.into()))
}

/// List sessions.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", params(SessionFilter), responses(
    (status = 200, description = "All sessions that the trail knows, oldest first.", body = SessionList),
    (status = 400, description = "A filter is not understood.", body = ErrorBody),
))]
async fn list_sessions(
    State(context): State<Context>,
    filter: Result<Query<SessionFilter>, QueryRejection>,
) -> Result<Json<SessionList>, ApiError> {
    let Query(filter) = filter?;
    let since = filter.since.as_deref().map(|time| epoch_millis("since", time)).transpose()?;
    let wanted = |known: &Known| {
        filter.agent.as_ref().is_none_or(|agent| known.session.agent == *agent)
            && since.is_none_or(|since| known.over.is_none_or(|over| over >= since))
            && (!filter.live || known.session.live)
    };
    settle(&context).await;
    let Reader { directory, permit, .. } = reader(&context)?;
    let trail = off_thread(move || {
        let sessions = sessions::of_trail(&directory);
        drop(permit);
        sessions
    })
    .await?
    .map_err(|error| unreadable(&error))?;
    let known = sessions::merge(trail, context.commander.ask(Command::Sessions).await?);
    let sessions = known.into_iter().filter(wanted).map(|known| known.session).collect();
    Ok(Json(SessionList { sessions }))
}

/// Does what blocks where it may.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let failed = |error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("{error}"));
    tokio::task::spawn_blocking(work).await.map_err(|error: tokio::task::JoinError| failed(error))
}

fn unreadable(error: &trail::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("the trail cannot be read: {error}"))
}

/// The whole id of the session that `id` is the beginning of.
async fn whole_id(context: &Context, id: String) -> Result<String, ApiError> {
    if !sessions::is_beginning(&id) {
        return Ok(id);
    }
    let Reader { directory, permit, .. } = reader(context)?;
    let completed = off_thread(move || {
        let completed = sessions::complete(&directory, &id);
        drop(permit);
        completed
    });
    completed.await?.map_err(|error| match error {
        Incomplete::Trail(error) => unreadable(&error),
        error @ Incomplete::Ambiguous { .. } => ApiError::invalid(error.to_string()),
    })
}

/// Read records: one JSON object a line, the bytes as they were written.
///
/// An answer that breaks off without its end is not whole.
#[utoipa::path(get, path = "/v1/records", tag = "records", params(RecordFilter), responses(
    (status = 200, description = "Records in the order of the trail.", body = String,
        content_type = "application/x-ndjson"),
    (status = 400, description = "A filter is not understood.", body = ErrorBody),
    (status = 503, description = "Too many readers.", body = ErrorBody),
))]
async fn list_records(
    State(context): State<Context>,
    filter: Result<Query<RecordFilter>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(filter) = filter?;
    let mut query = filter.query()?;
    settle(&context).await;
    if let Some(session) = query.session {
        query.session = Some(whole_id(&context, session).await?);
    }
    Ok(reader(&context)?.list(query, filter.follow))
}

/// Read all records that an identity names: a record, a statement, a connection or a session.
#[utoipa::path(get, path = "/v1/records/{id}", tag = "records",
    params(("id" = String, Path, description =
        "A record's uid or sequence, a connection's id, a connection's id with `/` and a statement's position (as `%2F`), \
         or a session's id or enough of its first digits.")),
    responses(
        (status = 200, description = "Records in the order of the trail.", body = String,
            content_type = "application/x-ndjson"),
        (status = 404, description = "Nothing is named so.", body = ErrorBody),
        (status = 503, description = "Too many readers.", body = ErrorBody),
    ))]
async fn show_records(
    State(context): State<Context>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(id) = id?;
    settle(&context).await;
    let missing = || ApiError::not_found(format!("the trail names no record, connection or session {id:?}"));
    if let Some(found) = reader(&context)?.named(id.clone()).await {
        return Ok(found);
    }
    let whole = whole_id(&context, id.clone()).await?;
    if whole == id {
        return Err(missing());
    }
    reader(&context)?.named(whole).await.ok_or_else(missing)
}

/// Has everything that has happened written down, so that whoever asks after an agent's end sees its last statement. Best
/// effort: while the disk takes nothing, what is in the trail can still be read.
async fn settle(context: &Context) {
    match tokio::time::timeout(SETTLE_LIMIT, context.commander.ask(Command::Settle)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a reader may not see the last records"),
        Err(_) => tracing::warn!("a reader may not see the last records: they took too long"),
    }
}

fn reader(context: &Context) -> Result<Reader, ApiError> {
    let busy = "too many readers of the trail are at work: try again when one has ended";
    let permit = Arc::clone(&context.readers)
        .try_acquire_owned()
        .map_err(|_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", busy))?;
    Ok(Reader { directory: context.trail_dir.clone(), permit, stopping: context.stopping.clone() })
}

/// The daemon's state of health.
#[utoipa::path(get, path = "/v1/status", tag = "daemon", responses(
    (status = 200, description = "State of health.", body = Status),
))]
async fn status(State(context): State<Context>) -> Result<Json<Status>, ApiError> {
    Ok(Json(context.commander.ask(Command::State).await?.into()))
}

/// Read the configuration file again. An invalid one changes nothing.
#[utoipa::path(post, path = "/v1/reload", tag = "daemon", responses(
    (status = 204, description = "The configuration is in force."),
    (status = 400, description = "It is invalid, and the one before stays in force.", body = ErrorBody),
    (status = 403, description = "The caller is an agent.", body = ErrorBody),
))]
async fn reload(State(context): State<Context>) -> Result<StatusCode, ApiError> {
    context.commander.ask(Command::Reload).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Write down everything for the next daemon, and end. Sessions and connections live on, under the same verdicts; what happens
/// until the next daemon is there waits in the kernel.
#[utoipa::path(post, path = "/v1/hand-over", tag = "daemon", request_body = HandOver, responses(
    (status = 204, description = "The daemon is about to end."),
    (status = 400, description = "The next daemon could not go on with the sessions: this one goes on.", body = ErrorBody),
    (status = 403, description = "The caller is an agent, or not root.", body = ErrorBody),
    (status = 500, description = "The daemon goes on.", body = ErrorBody),
))]
async fn hand_over(
    State(context): State<Context>,
    Extension(connected): Extension<Connected>,
    request: Result<Json<HandOver>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    require_root(&connected, "taking over from the daemon")?;
    let Json(HandOver { journal, layout }) = request?;
    let next = command::HandOver { journal, layout, caller: connected.caller };
    context.commander.ask(|reply| Command::HandOver(Box::new(next), reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon", responses(
    (status = 200, description = "OpenAPI 3.1.", body = serde_json::Value),
))]
async fn describe() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

fn require_root(connected: &Connected, what: &str) -> Result<(), ApiError> {
    if connected.peer.uid() == 0 {
        return Ok(());
    }
    Err(ApiError::forbidden("root-required", format!("{what} is for root")))
}
