//! What is told of one request and its answer.

use crate::clock::Boottime;
use crate::protocol::Side;

/// One HTTP request with its answer. Bodies are counted and never kept, and secrets were taken out before anything was.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// Position among the requests of this connection, from 1, in the order in which the client sent them.
    pub sequence: u64,
    /// Of the protocol; `None` for an answer to nothing.
    pub version: Option<Version>,
    /// HTTP/2: the stream.
    pub stream: Option<u32>,
    /// HTTP/2: the server has asked in the client's place.
    pub pushed: bool,
    /// HTTP/2 after an upgrade: it is the server who asks, and the client who answers.
    pub reversed: bool,
    /// As sent; `None` where it was not seen.
    pub method: Option<String>,
    /// As the client said it: `http`, `https`.
    pub scheme: Option<String>,
    /// Whom the client asks, by its own word: host, and port where it said one.
    pub authority: Option<String>,
    /// Path and query, secrets masked, byte for byte otherwise; `None` where it was not seen.
    pub target: Option<Vec<u8>>,
    /// Length of the whole target as sent, where it was longer than what is kept.
    pub target_length: Option<u64>,
    /// Of the final answer.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// When the request's first byte passed the hook.
    pub started: Boottime,
    /// When the last byte of the request or its answer passed the hook.
    pub finished: Boottime,
    /// Bytes of the request as they were sent: head, framing, body.
    pub request_bytes: u64,
    /// Bytes of its body, without framing.
    pub request_body: u64,
    /// Bytes of the answers as they were sent.
    pub response_bytes: u64,
    /// Bytes of the body of the final one, without framing.
    pub response_body: u64,
    /// Content-Type of the request.
    pub request_type: Option<String>,
    /// Content-Type of the final answer.
    pub response_type: Option<String>,
    /// User-Agent.
    pub agent: Option<String>,
    /// What the two ends have agreed to speak instead, on this stream or on all of the connection.
    pub upgrade: Option<String>,
    /// gRPC's own account.
    pub grpc: Option<Grpc>,
    /// What it asks of an API that is known.
    pub api: Option<Call>,
    /// What was there and is not told: `header:authorization`, `query:token`, `url:userinfo`, `path:token`.
    pub masked: Vec<String>,
    /// A hole in the stream fell into it, or its end was not seen: sizes may be too small, and fields missing.
    pub incomplete: bool,
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// The whole answer was seen.
    Answered,
    /// HTTP/2: one end has given it up.
    Reset {
        /// Which.
        by: Side,
        /// Error code.
        code: u32,
    },
    /// The connection ended, or the record has a hole, before the answer's end.
    #[default]
    Unknown,
}

/// What gRPC says within HTTP.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Grpc {
    /// Full name of the service.
    pub service: String,
    /// Name of the method.
    pub method: String,
    /// `grpc-status`; `None` where the server did not say.
    pub status: Option<u32>,
    /// `grpc-message`.
    pub message: Option<String>,
}

/// A call of an API that is known by its paths.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Call {
    /// Which API.
    pub service: Service,
    /// What is done: `create`, `list`, `delete`, `exec`, ….
    pub verb: String,
    /// To what kind of thing, in the API's own plural: `containers`, `pods`, `deployments.apps`.
    pub resource: String,
    /// To which part of it: `exec`, `log`, `scale`.
    pub subresource: Option<String>,
    /// In which namespace.
    pub namespace: Option<String>,
    /// To which one.
    pub name: Option<String>,
}

/// An API that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Service {
    /// Docker Engine, and what is compatible with it.
    Docker,
    /// The API server of Kubernetes.
    Kubernetes,
}

impl Service {
    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl Request {
    /// Bytes that it takes, roughly.
    pub(super) fn memory(&self) -> usize {
        let texts = [
            &self.method,
            &self.scheme,
            &self.authority,
            &self.request_type,
            &self.response_type,
            &self.agent,
            &self.upgrade,
        ];
        let grpc = self.grpc.as_ref().map_or(0, |grpc| {
            grpc.service.len() + grpc.method.len() + grpc.message.as_ref().map_or(0, String::len)
        });
        size_of::<Self>()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + self.target.as_ref().map_or(0, Vec::len)
            + self.masked.iter().map(|name| size_of::<String>() + name.len()).sum::<usize>()
            + grpc
    }

    /// Path and query, apart.
    pub fn path_and_query(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let target = self.target.as_deref()?;
        Some(match memchr::memchr(b'?', target) {
            Some(place) => (&target[..place], Some(&target[place + 1..])),
            None => (target, None),
        })
    }
}
