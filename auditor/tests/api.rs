//! The API over a real unix socket, with the real client, in front of a pipeline thread that only pretends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pipeline;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use auditor::api::SOCKET_NAME;
use auditor::api::client::{Client, ClientError};
use auditor::api::server::{BindError, Listener};
use auditor::api::types::{OpenSession, SessionFilter, SessionTarget};
use auditor::daemon::command::Target;
use auditor::record::Event;
use pipeline::{Daemon, session};

fn request(target: SessionTarget) -> OpenSession {
    OpenSession {
        agent: "agent-backfill".to_owned(),
        task: Some("fill the gaps".to_owned()),
        labels: [("ticket".to_owned(), "OPS-1".to_owned())].into(),
        target,
        command: Some(vec!["psql".to_owned()]),
        confines: true,
        user: None,
    }
}

fn refusal(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Refused { status, detail } => (status, detail.code),
        other => panic!("expected a refusal, got: {other}"),
    }
}

/// Sends bytes as they are and reads until the server closes.
fn raw(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A server that refuses early closes with bytes unread: the rest of the request then meets EPIPE or ECONNRESET.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[tokio::test]
async fn a_session_is_opened_for_the_caller_and_not_for_a_claimed_process() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let session = client.open_session(&request(SessionTarget::Caller {})).await.unwrap();
    assert_eq!(session.agent, "agent-backfill");
    assert_eq!(session.labels["ticket"], "OPS-1");
    let opened = daemon.opened();
    assert_eq!(opened[0].target, Target::Process(std::process::id()));
    assert_eq!(opened[0].caller.pid, std::process::id());
    assert_eq!(opened[0].task.as_deref(), Some("fill the gaps"));

    let claimed = r#"{"agent":"agent-backfill","target":{"kind":"caller","pid":1}}"#;
    let answer = raw(
        &daemon.socket(),
        &format!(
            "POST /v1/sessions HTTP/1.1\r\nhost: auditor\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{claimed}",
            claimed.len()
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(daemon.opened().len(), 1, "nothing was opened for the process that the body named");
}

#[tokio::test]
async fn what_changes_something_is_recorded_and_what_only_looks_is_not() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let session = client.open_session(&request(SessionTarget::Caller {})).await.unwrap();
    client.status().await.unwrap();
    client.sessions(&SessionFilter::default()).await.unwrap();
    client.reload().await.unwrap();
    refusal(client.close_session("no such/session").await.unwrap_err());
    let mut closing = daemon.client().await;
    if nix::unistd::geteuid().is_root() {
        closing.close_session(&session.id).await.unwrap();
    } else {
        assert_eq!(refusal(closing.close_session(&session.id).await.unwrap_err()).0, 403);
    }
    let seen: Vec<_> = daemon
        .accesses()
        .into_iter()
        .map(|entry| match entry.event {
            Event::ApiAccess { by, method, path, .. } => {
                assert_eq!(by.pid, std::process::id());
                format!("{method} {path}")
            }
            other => panic!("not an access: {other:?}"),
        })
        .collect();
    assert_eq!(
        seen,
        [
            "POST /v1/sessions".to_owned(),
            "POST /v1/reload".to_owned(),
            "DELETE /v1/sessions/no%20such%2Fsession".to_owned(),
            format!("DELETE /v1/sessions/{}", session.id),
        ]
    );
}

#[tokio::test]
async fn an_agent_is_refused_everything_and_the_attempt_is_recorded_in_its_session() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    client.status().await.unwrap();
    // The connection is older than the session: that must not help.
    daemon.pretend_cgroup("0::/auditor/1/some child\n");
    daemon.add(session("00000000000000aa", "agent-backfill", "/auditor/1"));
    assert_eq!(refusal(client.status().await.unwrap_err()), (403, "agent".to_owned()));
    for attempt in 0..6 {
        let mut client = daemon.client().await;
        let refused = match attempt {
            0 => client.status().await.map(drop),
            1 => client.sessions(&SessionFilter::default()).await.map(drop),
            2 => client.open_session(&request(SessionTarget::Caller {})).await.map(drop),
            3 => client.close_session("00000000000000aa").await.map(drop),
            _ => client.reload().await,
        };
        assert_eq!(refusal(refused.unwrap_err()), (403, "agent".to_owned()), "attempt {attempt}");
    }
    assert!(daemon.opened().is_empty());
    let accesses = daemon.accesses();
    assert_eq!(accesses.len(), 7);
    for entry in accesses {
        assert_eq!(entry.session.unwrap().id, "00000000000000aa");
        assert_eq!(entry.process.unwrap().pid, std::process::id());
        assert!(matches!(entry.event, Event::ApiAccess { status: 403, .. }));
    }
}

#[tokio::test]
async fn a_caller_whose_cgroup_is_not_known_is_refused() {
    let daemon = Daemon::start();
    daemon.forget_cgroup();
    let refused = daemon.client().await.status().await.unwrap_err();
    assert_eq!(refusal(refused), (403, "unknown-caller".to_owned()));
}

#[tokio::test]
async fn an_ended_session_of_a_tagged_cgroup_makes_nobody_an_agent() {
    let daemon = Daemon::start();
    daemon.pretend_cgroup("0::/jobs/1\n");
    let mut ended = session("00000000000000aa", "agent-backfill", "/jobs/1");
    ended.ended = Some(2_000);
    daemon.add(ended);
    daemon.client().await.status().await.unwrap();
}

#[tokio::test]
async fn whoever_lives_below_the_daemons_cgroup_is_an_agent_without_a_session_too() {
    let daemon = Daemon::start();
    daemon.pretend_cgroup("0::/auditor/1\n");
    let mut ended = session("00000000000000aa", "agent-backfill", "/auditor/1");
    ended.ended = Some(2_000);
    daemon.add(ended);
    let refused = daemon.client().await.status().await.unwrap_err();
    assert_eq!(refusal(refused), (403, "agent".to_owned()));
    daemon.pretend_cgroup("0::/auditor/2\n");
    let refused = daemon.client().await.status().await.unwrap_err();
    assert_eq!(refusal(refused), (403, "agent".to_owned()));
}

#[tokio::test]
async fn sessions_are_filtered() {
    let daemon = Daemon::start();
    let mut early = session("00000000000000aa", "a", "/auditor/1");
    early.ended = Some(2_000);
    daemon.add(early);
    daemon.add(session("00000000000000bb", "b", "/auditor/2"));
    let mut client = daemon.client().await;
    let mut ids = async |agent: Option<&str>, since: Option<&str>, live| {
        let filter = SessionFilter { agent: agent.map(str::to_owned), since: since.map(str::to_owned), live };
        let sessions = client.sessions(&filter).await;
        sessions.map(|sessions| sessions.into_iter().map(|session| session.agent).collect::<Vec<_>>())
    };
    assert_eq!(ids(None, None, false).await.unwrap(), ["a", "b"]);
    assert_eq!(ids(Some("a"), None, false).await.unwrap(), ["a"]);
    assert_eq!(ids(None, None, true).await.unwrap(), ["b"]);
    assert_eq!(ids(None, Some("1970-01-01T00:00:02Z"), false).await.unwrap(), ["a", "b"]);
    assert_eq!(ids(None, Some("1970-01-01T00:00:03Z"), false).await.unwrap(), ["b"]);
    assert_eq!(refusal(ids(None, Some("yesterday"), false).await.unwrap_err()).0, 400);
}

#[tokio::test]
async fn tagging_respects_what_may_be_tagged() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    for path in ["/", "", "/a/../b", "/user.slice", "/user.slice/."] {
        let target = SessionTarget::Cgroup { path: path.to_owned() };
        let (status, _) = refusal(client.open_session(&request(target)).await.unwrap_err());
        assert!(matches!(status, 400 | 403), "{path:?}");
    }
    for pid in [0, 1, std::process::id(), u32::MAX] {
        let target = SessionTarget::Process { pid };
        let (status, _) = refusal(client.open_session(&request(target)).await.unwrap_err());
        assert!(matches!(status, 400 | 404), "{pid}");
    }
    assert!(daemon.opened().is_empty());
    // Of the same user as this process, and neither it nor what started it.
    daemon.pretend_process(u32::MAX - 1);
    client.open_session(&request(SessionTarget::Process { pid: u32::MAX - 1 })).await.unwrap();
}

#[tokio::test]
async fn limits_hold() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let answers = tokio::task::spawn_blocking(move || {
        let long_body = "x".repeat(65 * 1024);
        let body = raw(
            &socket,
            &format!(
                "POST /v1/sessions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{long_body}",
                long_body.len()
            ),
        );
        let head = raw(&socket, &format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20 * 1024)));
        let unknown = raw(&socket, "GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let method = raw(&socket, "PUT /v1/status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let parameter =
            raw(&socket, "GET /v1/sessions?agnet=x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let slow = raw(&socket, "GET /v1/st");
        [body, head, unknown, method, parameter, slow]
    })
    .await
    .unwrap();
    let [body, head, unknown, method, parameter, slow] = answers;
    assert!(body.starts_with("HTTP/1.1 413"), "{body}");
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");
    assert!(
        unknown.starts_with("HTTP/1.1 404") && unknown.contains(r#"{"error":{"code":"not-found""#),
        "{unknown}"
    );
    assert!(method.starts_with("HTTP/1.1 405") && method.contains("method-not-allowed"), "{method}");
    assert!(
        parameter.starts_with("HTTP/1.1 400"),
        "a misspelt filter must not select everything: {parameter}"
    );
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 408"), "{slow}");
}

#[tokio::test]
async fn a_flood_of_connections_is_bounded() {
    let daemon = Daemon::start();
    let mut held: Vec<_> = (0..64).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut open = 0;
    for stream in &mut held {
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => open += 1,
            _ => {}
        }
    }
    assert_eq!(open, 32);
    drop(held);
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.client().await.status().await.unwrap();
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(SOCKET_NAME);
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file behind, as a killed daemon does");

    let first = Listener::bind(directory.path()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let error = Listener::bind(directory.path()).unwrap_err();
    assert!(
        matches!(&error, BindError::InUse { pid, .. } if *pid == std::process::id().to_string()),
        "{error}"
    );
    assert!(error.to_string().contains("--runtime-dir"));

    drop(first);
    assert!(!path.exists());
    let _foreign = UnixListener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(directory.path()), Err(BindError::InUse { .. })));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(directory.path()), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn without_a_daemon_the_client_says_what_to_do() {
    let error = Client::connect(Path::new("/nonexistent/auditor.sock")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("auditor daemon"), "{error}");
}

#[test]
fn every_route_is_described() {
    let description = serde_json::to_value(auditor::api::openapi()).unwrap();
    let paths: Vec<_> = description["paths"].as_object().unwrap().keys().cloned().collect();
    for path in ["/v1/sessions", "/v1/sessions/{id}", "/v1/status", "/v1/reload", "/v1/openapi.json"] {
        assert!(paths.iter().any(|known| known == path), "{path} is missing in {paths:?}");
    }
    let parameters = description["paths"]["/v1/sessions"]["get"]["parameters"].as_array().unwrap();
    assert!(parameters.iter().all(|parameter| parameter["description"].is_string()), "{parameters:?}");
}
