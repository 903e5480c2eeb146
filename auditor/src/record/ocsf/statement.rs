//! A statement's record: 6005 Datastore Activity, and `unmapped.auditor.statement`.
//!
//! By hand, member by member in the order of all records, see [`json`].

use std::collections::HashSet;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::Identity;
use super::class::{FAILURE, INFORMATIONAL, OTHER, SUCCESS};
use super::fragment::Fragments;
use super::json::{self, Object};
use super::text::{Hex, Verbatim};
use crate::clock::Utc;
use crate::protocol::{Outcome, Parameter, ServerError, Statement, StatementKind};
use crate::record::Connection;
use crate::record::verb::Verbs;
use crate::statement::{Classes, Command, Meaning};

/// Datastore Activity.
const CLASS: u64 = 6005;

/// Appends the record. `fragments` are those of the entry's connection.
pub(super) fn render(
    time: Utc,
    identity: Identity<'_>,
    fragments: &Fragments,
    connection: &Connection,
    Said { statement, meaning }: Said<'_>,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let text = Verbatim::new(&statement.text);
    let verbs = Verbs::of(statement, meaning);
    let truncated = truncated(statement);
    let executed = statement.outcome != Outcome::Prepared;
    let activity = if executed { activity_of(&verbs) } else { OTHER };

    let mut record = Object::open(out);
    record.number("time", time.epoch_millis());
    record.number("class_uid", CLASS);
    record.number("category_uid", CLASS / 1000);
    record.number("activity_id", activity.into());
    if !executed {
        record.word("activity_name", "prepare");
    } else if activity == OTHER
        && let Some(verb) = verbs.first.or(verbs.all.first().copied())
    {
        record.string("activity_name", verb)?;
    }
    record.number("type_uid", CLASS * 100 + u64::from(activity));
    record.number("severity_id", INFORMATIONAL.into());
    match &statement.outcome {
        Outcome::Completed => record.number("status_id", SUCCESS.into()),
        Outcome::Failed(error) => {
            record.number("status_id", FAILURE.into());
            record.string("status_code", &error.code)?;
            record.string("status_detail", &error.message)?;
        }
        Outcome::Skipped => {
            record.number("status_id", OTHER.into());
            record.word("status", "Skipped");
        }
        Outcome::Prepared => {
            record.number("status_id", OTHER.into());
            record.word("status", "Prepared");
        }
        Outcome::Unknown => record.number("status_id", 0),
    }
    let took = statement.finished.since(statement.started);
    if let Ok(milliseconds) = u64::try_from(took.as_millis()) {
        record.number("duration", milliseconds);
    }
    out.extend_from_slice(&fragments.control);
    out.extend_from_slice(identity.uid.as_bytes());
    out.push(b'"');
    let mut metadata = Object::within(out);
    metadata.number("sequence", identity.sequence);
    out.extend_from_slice(&fragments.product);
    if truncated {
        let mut metadata = Object::within(out);
        metadata.flag("is_truncated", true);
        metadata.number("untruncated_size", statement.text_length);
    }
    out.extend_from_slice(&fragments.who);
    json::number(out, statement.sequence);
    out.push(b'"');
    let mut query = Object::within(out);
    match text.plain() {
        Some(text) => query.string("query_string", text)?,
        None => query.value("query_string", &text)?,
    }
    out.extend_from_slice(&fragments.own);
    own(connection, Said { statement, meaning }, &verbs, text, out)?;
    out.extend_from_slice(b"}}}");
    Ok(())
}

/// A statement and what it means.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) statement: &'a Statement,
    pub(super) meaning: Option<&'a Meaning>,
}

/// What all commands do together, and, where there are several, each on its own.
fn means(own: &mut Object<'_>, meaning: &Meaning) -> Result<(), serde_json::Error> {
    if let Some(reason) = meaning.unclassified {
        own.word("unclassified", reason);
    }
    match meaning.commands.as_slice() {
        [command] => does(own, command)?,
        commands => {
            let all = |names: fn(&Command) -> &[String]| {
                let mut seen = HashSet::new();
                let names = commands.iter().flat_map(names);
                names.filter(|name| seen.insert(name.as_str())).cloned().collect()
            };
            let together = Command {
                verbs: Vec::new(),
                objects: all(|command| &command.objects),
                functions: all(|command| &command.functions),
                classes: commands.iter().fold(Classes::NONE, |classes, command| classes | command.classes),
            };
            does(own, &together)?;
        }
    }
    let resolved = meaning.resolved();
    if !resolved.is_empty() {
        names(own, "resolved", &resolved)?;
    }
    if meaning.commands.len() > 1 {
        json::array(own.key("commands"), &meaning.commands, |out, command| {
            let mut object = Object::open(out);
            names(&mut object, "verbs", &command.verbs)?;
            does(&mut object, command)?;
            object.close();
            Ok(())
        })?;
    }
    let out = own.key("fingerprint");
    out.push(b'"');
    for shift in (0..16).rev() {
        out.push(b"0123456789abcdef"[(meaning.fingerprint >> (4 * shift) & 15) as usize]);
    }
    out.push(b'"');
    Ok(())
}

/// A command's classes and what it names.
fn does(object: &mut Object<'_>, command: &Command) -> Result<(), serde_json::Error> {
    if command.classes != Classes::NONE {
        json::array(object.key("classes"), command.classes.names(), json::string)?;
    }
    for (key, found) in [("objects", &command.objects), ("functions", &command.functions)] {
        if !found.is_empty() {
            names(object, key, found)?;
        }
    }
    Ok(())
}

fn names(object: &mut Object<'_>, key: &'static str, names: &[String]) -> Result<(), serde_json::Error> {
    json::array(object.key(key), names, |out, name| json::string(out, name))
}

fn truncated(statement: &Statement) -> bool {
    statement.text_length > u64::try_from(statement.text.len()).unwrap_or(u64::MAX)
}

/// `unmapped.auditor.statement`.
fn own(
    connection: &Connection,
    Said { statement, meaning }: Said<'_>,
    verbs: &Verbs<'_>,
    text: Verbatim<'_>,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let mut own = Object::open(out);
    own.number("seq", statement.sequence);
    own.word(
        "kind",
        match statement.kind {
            StatementKind::Simple => "simple",
            StatementKind::Prepared => "prepared",
            StatementKind::Copy => "copy",
            StatementKind::Function => "function",
            StatementKind::Admin => "admin",
        },
    );
    if let Some(verb) = verbs.first {
        lower(own.key("verb"), verb);
    }
    if !verbs.all.is_empty() {
        json::array(own.key("verbs"), &verbs.all, |out, verb| {
            lower(out, verb);
            Ok(())
        })?;
    }
    if !verbs.classified {
        own.flag("classified", false);
    }
    if let Some(meaning) = meaning {
        means(&mut own, meaning)?;
    }
    own.word(
        "outcome",
        match &statement.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed(_) => "failed",
            Outcome::Skipped => "skipped",
            Outcome::Unknown => "unknown",
            Outcome::Prepared => "prepared",
        },
    );
    if let Some(name) = &statement.name {
        own.string("name", name)?;
    }
    if let Some(portal) = &statement.portal {
        own.string("portal", portal)?;
    }
    if !statement.parameters.is_empty() {
        own.value("parameters", &Parameters(&statement.parameters))?;
    }
    if let Some(rows) = statement.rows() {
        own.number("rows", rows);
    }
    // MySQL has none.
    if statement.results.iter().any(|result| !result.tag.is_empty()) {
        json::array(own.key("tags"), &statement.results, |out, result| json::string(out, &result.tag))?;
    }
    if let Outcome::Failed(error) = &statement.outcome {
        own.string("error_code", &error.code)?;
        own.string("error_message", &error.message)?;
    }
    if !statement.notices.is_empty() {
        own.value("notices", &Notices(&statement.notices))?;
    }
    if let Some(state) = statement.transaction {
        own.value("transaction", &state)?;
    }
    let took = statement.finished.since(statement.started);
    own.number("duration_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    own.number("request_bytes", statement.request_bytes);
    own.number("response_bytes", statement.response_bytes);
    if !statement.columns.is_empty() {
        json::array(own.key("columns"), &statement.columns, |out, column| {
            let mut object = Object::open(out);
            object.string("name", &column.name)?;
            object.string("type", &column.type_name)?;
            object.close();
            Ok(())
        })?;
    }
    let truncated = truncated(statement);
    own.flag("truncated", truncated);
    if truncated {
        own.number("text_bytes", statement.text_length);
    }
    if text.plain().is_none() {
        own.flag("escaped", true);
    }
    if statement.incomplete {
        own.flag("incomplete", true);
    }
    if connection.verdict.allowed {
        own.word("decision", "allowed");
    }
    own.close();
    Ok(())
}

/// Appends a keyword, which needs no escapes, in lower case.
fn lower(out: &mut Vec<u8>, keyword: &str) {
    out.push(b'"');
    out.extend(keyword.bytes().map(|byte| byte.to_ascii_lowercase()));
    out.push(b'"');
}

/// The activity that all of a statement's verbs are, Other where they differ.
fn activity_of(verbs: &Verbs<'_>) -> u8 {
    let mut activities = verbs.first.iter().chain(&verbs.all).map(|verb| activity_of_verb(verb));
    let first = activities.next().unwrap_or(0);
    if activities.all(|activity| activity == first) { first } else { OTHER }
}

/// OCSF's activities are about data records, so DDL is none of them.
fn activity_of_verb(keyword: &str) -> u8 {
    const ACTIVITIES: [(&str, u8); 8] = [
        ("select", 4), // Query
        ("table", 4),
        ("values", 4),
        ("fetch", 4),
        ("insert", 6), // Create
        ("update", 2),
        ("delete", 7),
        ("truncate", 7),
    ];
    ACTIVITIES
        .iter()
        .find(|(verb, _)| verb.eq_ignore_ascii_case(keyword))
        .map_or(OTHER, |(_, activity)| *activity)
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

struct Notices<'a>(&'a [ServerError]);

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
