//! Rendering: an [`Entry`] as one JSON object on one line, a valid OCSF 1.8.0 event.
//!
//! Every class carries the profiles `host` (who did it, on which device) and `security_control` (what was decided).
//! All classes but one share one flat structure of optional attributes instead of a type each: what differs between them
//! is which attributes are set, and a reader can see that in one function a class. The structure borrows from the entry
//! and is written straight into the caller's buffer; what never changes (device, product) is rendered once. Statements, of
//! which there are a hundred for each other record, are written by hand ([`statement`]), around what does not change from one
//! to the next of a connection ([`fragment`]).
//!
//! | event | class | activity |
//! |---|---|---|
//! | statement | 6005 Datastore Activity | by its verbs, where all are one; DDL and the rest are Other, with the first keyword as name |
//! | request | 6003 API Activity | by the HTTP method |
//! | connection opened, closed, refused | 4001 Network Activity | Open; Close, or Fail if never established; Refuse |
//! | process started, ended | 1007 Process Activity | Launch, Terminate |
//! | session opened, ended | 3003 Authorize Session | Assign Privileges; Other (`Revoke Privileges`) |
//! | finding | 2004 Detection Finding | Create |
//! | API access | 6003 API Activity | by the HTTP method |
//! | daemon started, stopped, reloaded, heartbeat, trail recovered | 6002 Application Lifecycle | Start, Stop, Other |
//!
//! Attributes that OCSF requires and nobody knows are `unknown` (a database's name before the login was seen); our own
//! fields under `unmapped.auditor` are then absent. Statement text that is not UTF-8 is escaped and marked: see
//! `unmapped.auditor.statement.escaped`.
//!
//! `time` is the first member, so that a reader can skip a line without parsing it; `unmapped` is the last one and
//! `auditor` its last, so that the trail can put its chain at the very end of the line.

#![forbid(unsafe_code)]

mod class;
mod fragment;
mod json;
mod object;
mod own;
mod request;
mod statement;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use self::class::Record;
use self::fragment::Cache;
use super::{Entry, Event};

/// Version of OCSF that records follow.
pub const VERSION: &str = "1.8.0";

/// The host that records come from. Read once at start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// Name of the host.
    pub hostname: String,
    /// `/etc/machine-id`, where there is one.
    pub machine_id: Option<String>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Name of the operating system, e.g. `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
}

/// What makes a record this one and no other.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Position in the trail, from 1.
    pub sequence: u64,
    /// Unique over all trails.
    pub uid: &'a str,
}

/// Renders entries of one host.
#[derive(Debug)]
pub struct Renderer {
    hostname: String,
    device: Box<RawValue>,
    product: Box<RawValue>,
    cache: Cache,
}

impl Renderer {
    /// Prepares what all records of `host` share. Fails only where `host` cannot be written as JSON, which no string can
    /// cause.
    pub fn new(host: &Host) -> Result<Self, serde_json::Error> {
        #[derive(Serialize)]
        struct Device<'a> {
            type_id: u8,
            hostname: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            uid: Option<&'a str>,
            boot_uid: &'a str,
            os: Os<'a>,
        }
        #[derive(Serialize)]
        struct Os<'a> {
            name: &'a str,
            type_id: u8,
            kernel_release: &'a str,
        }
        #[derive(Serialize)]
        struct Product {
            name: &'static str,
            version: &'static str,
        }
        let os = Os { name: &host.os, type_id: 200, kernel_release: &host.kernel };
        Ok(Self {
            hostname: host.hostname.clone(),
            device: to_raw_value(&Device {
                type_id: 0,
                hostname: &host.hostname,
                uid: host.machine_id.as_deref(),
                boot_uid: &host.boot_id,
                os,
            })?,
            product: to_raw_value(&Product { name: "auditor", version: env!("CARGO_PKG_VERSION") })?,
            cache: Cache::default(),
        })
    }

    /// Appends `entry` to `out` as one JSON object, without a newline. It always ends in `}}}`: `auditor`, `unmapped`,
    /// record, and `auditor` is never empty.
    pub fn render(
        &self,
        entry: &Entry,
        identity: Identity<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), serde_json::Error> {
        match &entry.event {
            Event::Statement { connection, application, statement, meaning } => {
                let fragments = self.cache.get(entry, connection, application, self)?;
                let said = statement::Said { statement, meaning: meaning.as_deref() };
                statement::render(entry.time, identity, &fragments, connection, said, out)
            }
            _ => serde_json::to_writer(out, &Record::new(self, entry, identity)),
        }
    }
}
