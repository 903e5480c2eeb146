//! Reading the trail for a caller: filters in, raw lines out.
//!
//! The lines go out as they were written, byte for byte, because their hashes are over these bytes. The trail's files are
//! read by a thread for each reader, of which there is a bounded number; what it has read waits in a channel of a few
//! pieces, so that a slow caller slows the thread down and not the daemon's memory up.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::types::RecordFilter;
use crate::policy::{SCHEME, ambiguous};
use crate::protocol::Protocol;
use crate::trail::Error;
use crate::trail::query::{Cursor, Destination, Query, find, scan};

/// A piece of the answer is sent when it has grown so large, or when there is nothing more to read.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait for a slow caller.
const PIECES: usize = 4;
/// How often a follower looks for new records.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// What records can be about, in the order of [`crate::record::Event`].
const KINDS: &[&str] = &[
    "statement",
    "request",
    "connection-opened",
    "connection-closed",
    "connection-refused",
    "process-started",
    "process-ended",
    "session-opened",
    "session-ended",
    "gap",
    "finding",
    "daemon-started",
    "daemon-stopped",
    "daemon-reloaded",
    "daemon-took-over",
    "heartbeat",
    "library-probed",
    "trail-recovered",
    "api-access",
];
/// What connections can be recognised as.
const PROTOCOLS: &[&str] = &Protocol::NAMES;
/// What can be decided, of statements and of connections; the trail takes both forms for the same.
const DECISIONS: &[&str] = &["allowed", "denied", "allow", "deny"];

/// A filter that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A time is none.
    #[error("{parameter}: {source}; write a time like 2026-01-31T12:00:00Z")]
    Time {
        /// Which parameter.
        parameter: &'static str,
        /// Why.
        source: jiff::Error,
    },
    /// A destination is none.
    #[error(
        "to: {0:?} is no destination; write an address with or without a port: 10.20.0.9:5432, [2001:db8::1]:443"
    )]
    Destination(String),
    /// A destination that can be read in two ways.
    #[error("to: it can be read in two ways: write [{0}]:{1} for the port, [{2}] for the address")]
    Ambiguous(Ipv6Addr, u16, Ipv6Addr),
    /// A word that no record has.
    #[error("{parameter}: {value:?} is not known; known are {known}")]
    Unknown {
        /// Which parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
        /// What may be given, joined with commas.
        known: String,
    },
    /// A pattern is none.
    #[error("grep: {0}")]
    Pattern(#[source] Error),
}

impl RecordFilter {
    /// The filter in the trail's terms.
    ///
    /// # Errors
    /// A time, the destination, the pattern or a word cannot be understood, or this version cannot filter so.
    pub fn query(&self) -> Result<Query, FilterError> {
        known("kind", self.kind.as_deref(), KINDS)?;
        known("protocol", self.protocol.as_deref(), PROTOCOLS)?;
        known("decision", self.decision.as_deref(), DECISIONS)?;
        Ok(Query {
            session: self.session.clone(),
            agent: self.agent.clone(),
            to: self.to.as_deref().map(destination).transpose()?,
            protocol: self.protocol.clone(),
            verb: self.verb.clone(),
            object: self.object.clone(),
            decision: self.decision.clone(),
            kind: self.kind.clone(),
            since: self.since.as_deref().map(|time| epoch_millis("since", time)).transpose()?,
            until: self.until.as_deref().map(|time| epoch_millis("until", time)).transpose()?,
            grep: self.grep.as_deref().map(Query::pattern).transpose().map_err(FilterError::Pattern)?,
            limit: None,
        })
    }
}

/// An address or a unix socket: no record of this version has a destination's host name.
fn destination(text: &str) -> Result<Destination, FilterError> {
    if let Some((address, port, whole)) = ambiguous(text) {
        return Err(FilterError::Ambiguous(address, port, whole));
    }
    Destination::parse(text)
        .filter(|destination| {
            destination.host.starts_with(SCHEME) || destination.host.parse::<IpAddr>().is_ok()
        })
        .ok_or_else(|| FilterError::Destination(text.to_owned()))
}

fn known(parameter: &'static str, value: Option<&str>, known: &[&str]) -> Result<(), FilterError> {
    match value {
        Some(value) if !known.contains(&value) => {
            Err(FilterError::Unknown { parameter, value: value.to_owned(), known: known.join(", ") })
        }
        _ => Ok(()),
    }
}

/// An RFC 3339 time in epoch milliseconds.
pub(super) fn epoch_millis(parameter: &'static str, time: &str) -> Result<u64, FilterError> {
    let time: Timestamp = time.parse().map_err(|source| FilterError::Time { parameter, source })?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// Gives the matching lines of the trail in `directory` to `line`, and with `follow` those that are written later, until it
/// breaks off. `pause` is called whenever everything has been read, and may break off too.
///
/// # Errors
/// The trail cannot be read.
pub fn read(
    directory: &Path,
    query: &Query,
    follow: bool,
    mut line: impl FnMut(&[u8]) -> ControlFlow<()>,
    mut pause: impl FnMut() -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut cursor = Cursor::default();
    loop {
        let mut flow = ControlFlow::Continue(());
        scan(directory, query, &mut cursor, |bytes, _| {
            flow = line(bytes);
            flow
        })?;
        if flow.is_break() || pause().is_break() || !follow {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

/// What a reading thread needs.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) directory: PathBuf,
    /// Held as long as the thread lives.
    pub(super) permit: OwnedSemaphorePermit,
    /// Its sender is dropped when the daemon stops.
    pub(super) stopping: watch::Receiver<()>,
}

impl Reader {
    /// Streams what matches.
    pub(super) fn list(self, query: Query, follow: bool) -> Response {
        let (mut pieces, body) = Pieces::new();
        tokio::task::spawn_blocking(move || {
            let Self { directory, permit, stopping } = self;
            let pieces = std::cell::RefCell::new(&mut pieces);
            let read = read(
                &directory,
                &query,
                follow,
                |line| pieces.borrow_mut().add(line),
                || match stopping.has_changed() {
                    Err(_) => ControlFlow::Break(()),
                    Ok(_) => pieces.borrow_mut().flush(),
                },
            );
            pieces.into_inner().end(read);
            drop(permit);
        });
        body.into_response()
    }

    /// Streams what `id` names; `None` where there is nothing.
    pub(super) async fn named(self, id: String) -> Option<Response> {
        let (mut pieces, mut body) = Pieces::new();
        tokio::task::spawn_blocking(move || {
            let found = find(&self.directory, &id, |line, _| pieces.add(line));
            pieces.end(found.map(drop));
            drop(self.permit);
        });
        body.first = body.receiver.recv().await;
        body.first.is_some().then(|| body.into_response())
    }
}

type Piece = Result<Bytes, io::Error>;

/// The writing end of an answer's body.
struct Pieces {
    sender: mpsc::Sender<Piece>,
    piece: BytesMut,
}

impl Pieces {
    fn new() -> (Self, LinesBody) {
        let (sender, receiver) = mpsc::channel(PIECES);
        (Self { sender, piece: BytesMut::new() }, LinesBody { first: None, receiver })
    }

    fn add(&mut self, line: &[u8]) -> ControlFlow<()> {
        self.piece.extend_from_slice(line);
        if self.piece.len() >= PIECE_BYTES { self.flush() } else { ControlFlow::Continue(()) }
    }

    /// Sends what is there; breaks off when the caller has gone.
    fn flush(&mut self) -> ControlFlow<()> {
        let gone = if self.piece.is_empty() {
            self.sender.is_closed()
        } else {
            self.sender.blocking_send(Ok(self.piece.split().freeze())).is_err()
        };
        if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The answer has begun, so an error can only break it off; the caller then sees that it is not whole.
    fn end(&mut self, outcome: Result<(), Error>) {
        let flow = self.flush();
        if let Err(error) = outcome {
            tracing::error!(%error, "reading the trail for the API failed");
            if flow.is_continue() {
                let _ = self.sender.blocking_send(Err(io::Error::other(error)));
            }
        }
    }
}

/// The reading end: an HTTP body.
struct LinesBody {
    first: Option<Piece>,
    receiver: mpsc::Receiver<Piece>,
}

impl hyper::body::Body for LinesBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.first.take() {
            Some(piece) => Poll::Ready(Some(piece.map(Frame::data))),
            None => self.receiver.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }
}

impl IntoResponse for LinesBody {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_can_be_asked_for() {
        // The renderer's own words, from its source: what is missing here could not be looked for.
        let source = include_str!("../record/ocsf/own.rs");
        let (_, kinds) = source.split_once("fn kind(event: &Event)").unwrap();
        let (kinds, _) = kinds.split_once("\n}").unwrap();
        let kinds: Vec<_> =
            kinds.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\",")).collect();
        assert_eq!(KINDS, kinds);
    }

    #[test]
    fn what_would_silently_find_nothing_is_refused() {
        let refusal = |filter: RecordFilter| filter.query().unwrap_err().to_string();
        let some = |text: &str| Some(text.to_owned());
        for (filter, message) in [
            (
                RecordFilter { decision: some("refused"), ..RecordFilter::default() },
                "decision: \"refused\" is not known; known are allowed, denied, allow, deny",
            ),
            (
                RecordFilter { protocol: some("smtp"), ..RecordFilter::default() },
                "protocol: \"smtp\" is not known; known are postgres, mysql, http, redis",
            ),
            (
                RecordFilter { to: some("db.internal:5432"), ..RecordFilter::default() },
                "to: \"db.internal:5432\" is no destination; write an address with or without a port: 10.20.0.9:5432, \
                 [2001:db8::1]:443",
            ),
            (
                RecordFilter { to: some("::1:5432"), ..RecordFilter::default() },
                "to: it can be read in two ways: write [::1]:5432 for the port, [::1:5432] for the address",
            ),
        ] {
            assert_eq!(refusal(filter), message);
        }
        assert!(
            refusal(RecordFilter { kind: some("statment"), ..RecordFilter::default() })
                .contains("statement,")
        );
        for to in ["10.0.0.1", "10.0.0.1:5432", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443"] {
            assert!(RecordFilter { to: some(to), ..RecordFilter::default() }.query().is_ok(), "{to}");
        }
    }
}
