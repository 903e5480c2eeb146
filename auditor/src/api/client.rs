//! The client's end: one connection to the daemon, one method for each endpoint.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::{
    ErrorBody, ErrorDetail, HandOver, OpenSession, RecordFilter, Session, SessionFilter, SessionList, Status,
};

/// Longest answer that is read as a whole.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// What stays as it is in a path's segment: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a request was not answered as wished.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no daemon at the socket, or it may not be reached.
    #[error("cannot reach the daemon at {path}: {source}; {}", advice(source))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the conversation with the daemon at {path} broke off: {message}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// The daemon refused.
    #[error("{}", .detail.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// Code and sentence.
        detail: ErrorDetail,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start it with `auditor daemon`, or name its socket with --socket"
        }
        io::ErrorKind::PermissionDenied => "run this as root or as a member of the group `auditor`",
        _ => "name its socket with --socket",
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects. Must be called inside a tokio runtime, which drives the connection.
    ///
    /// # Errors
    /// There is no daemon at `path`, or it may not be reached.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).await.map_err(unreachable)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::Broken { path: path.to_owned(), message: error.to_string() })?;
        // How the connection ends shows at the request that it breaks.
        drop(tokio::spawn(connection));
        Ok(Self { path: path.to_owned(), sender })
    }

    /// Opens a session.
    ///
    /// # Errors
    /// Refused, or the conversation broke off: then it is not known whether the session exists.
    pub async fn open_session(&mut self, request: &OpenSession) -> Result<Session, ClientError> {
        self.exchange(Method::POST, "/v1/sessions", Some(request)).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// Refused, or the conversation broke off.
    pub async fn close_session(&mut self, id: &str) -> Result<Session, ClientError> {
        let path = format!("/v1/sessions/{}", utf8_percent_encode(id, SEGMENT));
        self.exchange(Method::DELETE, &path, None::<&()>).await
    }

    /// Lists sessions.
    ///
    /// # Errors
    /// Refused, or the conversation broke off.
    pub async fn sessions(&mut self, filter: &SessionFilter) -> Result<Vec<Session>, ClientError> {
        let path = self.with_query("/v1/sessions", filter)?;
        let list: SessionList = self.exchange(Method::GET, &path, None::<&()>).await?;
        Ok(list.sessions)
    }

    /// Reads records; with `follow`, without end.
    ///
    /// # Errors
    /// Refused, or the conversation broke off.
    pub async fn records(&mut self, filter: &RecordFilter) -> Result<Lines, ClientError> {
        let path = self.with_query("/v1/records", filter)?;
        self.lines(&path).await
    }

    /// Reads all records that `id` names.
    ///
    /// # Errors
    /// Refused (there is none), or the conversation broke off.
    pub async fn records_of(&mut self, id: &str) -> Result<Lines, ClientError> {
        self.lines(&format!("/v1/records/{}", utf8_percent_encode(id, SEGMENT))).await
    }

    async fn lines(&mut self, path: &str) -> Result<Lines, ClientError> {
        let response = self.request(Method::GET, path, None::<&()>).await?;
        Ok(Lines { path: self.path.clone(), body: response.into_body(), read: BytesMut::new() })
    }

    /// The daemon's state of health.
    ///
    /// # Errors
    /// Refused, or the conversation broke off.
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        self.exchange(Method::GET, "/v1/status", None::<&()>).await
    }

    /// Has the configuration read again.
    ///
    /// # Errors
    /// Refused (it is invalid), or the conversation broke off.
    pub async fn reload(&mut self) -> Result<(), ClientError> {
        let response = self.request(Method::POST, "/v1/reload", None::<&()>).await?;
        self.whole(response).await.map(drop)
    }

    /// Has the daemon write down everything for the next one, and end.
    ///
    /// # Errors
    /// Refused, or the conversation broke off.
    pub async fn hand_over(&mut self, next: &HandOver) -> Result<(), ClientError> {
        let response = self.request(Method::POST, "/v1/hand-over", Some(next)).await?;
        self.whole(response).await.map(drop)
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let response = self.request(method, path, body).await?;
        let bytes = self.whole(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    /// Sends a request; an answer that is not a success is an error already.
    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(|error| self.broken(error))?),
            None => Bytes::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "auditor")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let response = self.sender.send_request(request).await.map_err(|error| self.broken(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.whole(response).await?;
        Err(ClientError::Refused { status: status.as_u16(), detail: detail(status, &bytes) })
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        Ok(body.collect().await.map_err(|error| self.broken(error))?.to_bytes())
    }

    fn with_query(&self, path: &str, query: &impl Serialize) -> Result<String, ClientError> {
        let query = serde_urlencoded::to_string(query).map_err(|error| self.broken(error))?;
        Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
    }

    fn broken(&self, error: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.path.clone(), message: error.to_string() }
    }
}

/// Lines of an answer, as they arrive.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    body: Incoming,
    read: BytesMut,
}

impl Lines {
    /// The next line without its newline; `None` at the end.
    ///
    /// # Errors
    /// The answer broke off: what was read so far is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let broken = |path: &Path, message: String| ClientError::Broken { path: path.to_owned(), message };
        let mut searched = 0;
        loop {
            if let Some(end) = self.read[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.read.split_to(searched + end + 1);
                line.truncate(searched + end);
                return Ok(Some(line.freeze()));
            }
            searched = self.read.len();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(broken(&self.path, error.to_string())),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(broken(&self.path, "a line without its end".to_owned())),
            }
        }
    }
}

fn detail(status: StatusCode, body: &[u8]) -> ErrorDetail {
    serde_json::from_slice(body).map_or_else(
        |_| ErrorDetail { code: "http".to_owned(), message: format!("the daemon answered {status}") },
        |ErrorBody { error }| error,
    )
}
