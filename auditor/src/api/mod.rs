//! The HTTP+JSON API on the unix socket: server and client.
//!
//! HTTP because every engineer can speak it with `curl --unix-socket`, and a unix socket because the kernel then says who
//! is calling: no passwords, no tokens, nothing to steal. The API owns no state; it asks the pipeline thread through
//! [`crate::daemon::command`] and reads the trail's files.
//!
//! What it assumes: the socket's mode (0660, root:auditor) keeps strangers out, and `/proc` is the host's own.
//!
//! What it refuses, and where:
//! - a caller that lives in a session's cgroup, whatever its user id: [`guard`]. An agent must neither read what is known
//!   of it nor open, end or approve anything;
//! - a process id claimed in a request body for `run`: the caller is who the kernel says it is ([`peer`]);
//! - requests without end: sizes, times and numbers are bounded in [`server`].
//!
//! Every use that changes something, reads records or was refused becomes a record itself.
//!
//! The paths, their parameters and their answers are described beside the handlers in [`routes`]; `GET /v1/openapi.json` is
//! generated from there.

pub mod client;
mod error;
mod guard;
pub mod peer;
pub mod records;
mod routes;
pub mod server;
pub mod sessions;
mod target;
pub mod types;

pub use routes::openapi;

/// Name of the socket in the runtime directory.
pub const SOCKET_NAME: &str = "auditor.sock";
