//! `unmapped.auditor.statement`.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::text::{Hex, Verbatim};
use crate::protocol::{Outcome, Parameter, ServerError, Statement, StatementKind};
use crate::record::Connection;
use crate::record::verb::Verbs;

#[derive(Serialize)]
pub(super) struct StatementFields<'a> {
    seq: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    verb: Option<Lower<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    verbs: Vec<Lower<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classified: Option<bool>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: Tags<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Notices::is_empty")]
    notices: Notices<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<char>,
    duration_us: u64,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Columns::is_empty")]
    columns: Columns<'a>,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    escaped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<&'static str>,
}

impl<'a> StatementFields<'a> {
    pub(super) fn new(connection: &Connection, statement: &'a Statement, verbs: &Verbs<'a>) -> Self {
        let error = match &statement.outcome {
            Outcome::Failed(error) => Some(error),
            Outcome::Completed | Outcome::Skipped | Outcome::Unknown => None,
        };
        let kept = u64::try_from(statement.text.len()).unwrap_or(u64::MAX);
        let truncated = statement.text_length > kept;
        Self {
            seq: statement.sequence,
            kind: match statement.kind {
                StatementKind::Simple => "simple",
                StatementKind::Prepared => "prepared",
                StatementKind::Copy => "copy",
                StatementKind::Function => "function",
                StatementKind::Admin => "admin",
            },
            verb: verbs.first.map(Lower),
            verbs: verbs.all.iter().copied().map(Lower).collect(),
            classified: (!verbs.classified).then_some(false),
            outcome: match &statement.outcome {
                Outcome::Completed => "completed",
                Outcome::Failed(_) => "failed",
                Outcome::Skipped => "skipped",
                Outcome::Unknown => "unknown",
            },
            name: statement.name.as_deref(),
            parameters: (!statement.parameters.is_empty()).then_some(Parameters(&statement.parameters)),
            rows: statement.rows(),
            tags: Tags(statement),
            error_code: error.map(|error| error.code.as_str()),
            error_message: error.map(|error| error.message.as_str()),
            notices: Notices(&statement.notices),
            transaction: statement.transaction,
            duration_us: u64::try_from(statement.finished.since(statement.started).as_micros())
                .unwrap_or(u64::MAX),
            request_bytes: statement.request_bytes,
            response_bytes: statement.response_bytes,
            columns: Columns(statement),
            truncated,
            text_bytes: truncated.then_some(statement.text_length),
            escaped: Verbatim::new(&statement.text).escaped(),
            incomplete: statement.incomplete.then_some(true),
            decision: connection.verdict.allowed.then_some("allowed"),
        }
    }
}

/// A keyword in lower case.
struct Lower<'a>(&'a str);

impl Serialize for Lower<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_ascii_lowercase())
    }
}

/// Bind values: text as a string, NULL as null, a binary value as `{"hex": …}`, a cut one as
/// `{"text" or "hex": what was kept, "length": bytes as sent}`.
struct Parameters<'a>(&'a [Parameter]);

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ParameterValue))
    }
}

struct ParameterValue<'a>(&'a Parameter);

impl Serialize for ParameterValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Parameter::Null => serializer.serialize_none(),
            Parameter::Text(text) => serializer.serialize_str(text),
            Parameter::Binary(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &Hex(bytes))?;
                map.end()
            }
            Parameter::Cut { head, length } => {
                let mut map = serializer.serialize_map(Some(2))?;
                match std::str::from_utf8(head) {
                    Ok(text) => map.serialize_entry("text", text)?,
                    Err(_) => map.serialize_entry("hex", &Hex(head))?,
                }
                map.serialize_entry("length", length)?;
                map.end()
            }
        }
    }
}

/// The server's command tags, in order.
struct Tags<'a>(&'a Statement);

impl Tags<'_> {
    fn is_empty(&self) -> bool {
        self.0.results.is_empty()
    }
}

impl Serialize for Tags<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.results.iter().map(|result| result.tag.as_str()))
    }
}

struct Columns<'a>(&'a Statement);

impl Columns<'_> {
    fn is_empty(&self) -> bool {
        self.0.columns.is_empty()
    }
}

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct ColumnFields<'a> {
            name: &'a str,
            r#type: &'a str,
        }
        let columns = self.0.columns.iter();
        serializer
            .collect_seq(columns.map(|column| ColumnFields { name: &column.name, r#type: &column.type_name }))
    }
}

struct Notices<'a>(&'a [ServerError]);

impl Notices<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Notices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Notice<'a> {
            severity: &'a str,
            code: &'a str,
            message: &'a str,
        }
        serializer.collect_seq(self.0.iter().map(|notice| Notice {
            severity: &notice.severity,
            code: &notice.code,
            message: &notice.message,
        }))
    }
}
