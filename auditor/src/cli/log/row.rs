//! One record as one row. What a record does not say is a dash, never a guess.

use auditor::policy::SCHEME;
use serde_json::Value;

use crate::cli::terminal::{Cell, Ink};
use crate::cli::time;

/// The text comes last because it may be long.
pub(super) const HEADER: [&str; 9] =
    ["TIME", "AGENT", "SESSION", "PROCESS", "DESTINATION", "KIND", "ROWS", "OUTCOME", "WHAT"];

/// What is usual; a column grows when something longer comes.
pub(super) const WIDTHS: [usize; 9] = [24, 14, SHORT, 14, 15, 18, 0, 9, 0];

/// Digits of a session's id that a row shows.
const SHORT: usize = 8;

/// Columns of a text that a row shows; the rest is for `auditor show` and `--json`.
const TEXT_COLUMNS: usize = 200;

/// The record's cells, in the order of [`HEADER`].
pub(super) fn row(record: &Value) -> [Cell; 9] {
    let own = &record["unmapped"]["auditor"];
    let session = own["session"]["id"].as_str().map(|id| id.get(..SHORT).unwrap_or(id));
    let ink = match record["severity_id"].as_u64() {
        Some(4..) => Ink::Bad,
        Some(3) => Ink::Warning,
        _ => Ink::Plain,
    };
    [
        Cell::or_dash(record["time"].as_u64().map(time::show)),
        Cell::or_dash(own["agent"]["name"].as_str()),
        Cell::or_dash(session),
        Cell::or_dash(process(record)),
        Cell::or_dash(destination(record)),
        Cell::or_dash(own["kind"].as_str()).with(ink),
        Cell::or_dash(own["statement"]["rows"].as_u64()),
        outcome(record, own),
        what(record, own).map_or_else(|| Cell::or_dash(None::<&str>), |text| shortened(&text, record)),
    ]
}

fn shortened(text: &str, record: &Value) -> Cell {
    Cell::cut(text, TEXT_COLUMNS, || {
        let bytes = text.len();
        match record["metadata"]["sequence"].as_u64() {
            Some(sequence) => format!("({bytes} bytes; auditor show {sequence})"),
            None => format!("({bytes} bytes)"),
        }
    })
}

fn process(record: &Value) -> Option<String> {
    let process = &record["actor"]["process"];
    let pid = process["pid"].as_u64()?;
    Some(match process["name"].as_str() {
        Some(name) => format!("{name}[{pid}]"),
        None => format!("[{pid}]"),
    })
}

fn destination(record: &Value) -> Option<String> {
    let endpoint = match &record["dst_endpoint"] {
        Value::Null => &record["evidences"][0]["dst_endpoint"],
        endpoint => endpoint,
    };
    let port = endpoint["port"].as_u64();
    let unix = || endpoint["name"].as_str().filter(|name| name.starts_with(SCHEME));
    let host = endpoint["ip"].as_str().or_else(|| endpoint["hostname"].as_str()).or_else(unix)?;
    Some(match port {
        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn outcome(record: &Value, own: &Value) -> Cell {
    let (statement, request) = (&own["statement"], &own["request"]);
    let told = |status: u64| match request["grpc"]["status"].as_u64() {
        Some(grpc) if grpc != 0 => format!("grpc {grpc}"),
        _ => status.to_string(),
    };
    let answered = request["status"].as_u64().filter(|_| request["outcome"] == "answered").map(told);
    let text = statement["error_code"]
        .as_str()
        .or_else(|| statement["outcome"].as_str())
        .or(answered.as_deref())
        .or_else(|| request["outcome"].as_str())
        .or_else(|| own["finding"]["kind"].as_str())
        .or_else(|| own["connection"]["verdict"].as_str())
        .map(str::to_owned)
        .or_else(|| record["http_response"]["code"].as_u64().map(|code| code.to_string()));
    let failed = record["status_id"].as_u64() == Some(2);
    Cell::or_dash(text).with(if failed { Ink::Bad } else { Ink::Plain })
}

/// The one thing that a reader wants to know of a record of this kind.
fn what(record: &Value, own: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let connection = &own["connection"];
    match own["kind"].as_str()? {
        "statement" => text(&record["query_info"]["query_string"]),
        "request" => Some(request(own)),
        "connection-opened" => text(&connection["rule"]),
        "connection-refused" => {
            let by = text(&connection["rule"]).or_else(|| text(&connection["reason"]))?;
            Some(match connection["call"].as_str() {
                Some(call) => format!("{call}: {by}"),
                None => by,
            })
        }
        "connection-closed" => Some(totals(connection)),
        "process-started" | "process-ended" => {
            text(&record["process"]["cmd_line"]).or_else(|| text(&record["process"]["file"]["path"]))
        }
        "session-opened" => text(&own["session"]["task"]),
        "session-ended" => text(&record["session"]["expiration_reason"]),
        "finding" => text(&record["message"]),
        "heartbeat" => losses(&own["daemon"]["losses"]),
        "daemon-started" | "daemon-reloaded" => {
            text(&own["daemon"]["configuration"]).map(|digest| format!("configuration sha256 {digest}"))
        }
        "library-probed" => {
            let library = &own["library"];
            let what = text(&library["name"]).unwrap_or_else(|| "code".to_owned());
            let path = library["path"].as_str()?;
            Some(match library["error"].as_str() {
                Some(error) => format!("{what} in {path} is not probed: {error}"),
                None => format!("{what} in {path}"),
            })
        }
        "trail-recovered" => {
            let bytes = own["recovery"]["bytes"].as_u64()?;
            Some(format!("{bytes} bytes of an unfinished line set aside"))
        }
        "api-access" => {
            let request = &record["http_request"];
            let path = request["url"]["path"].as_str()?;
            let query =
                request["url"]["query_string"].as_str().map_or(String::new(), |query| format!("?{query}"));
            Some(format!("{} {path}{query}", record["api"]["operation"].as_str().unwrap_or("-")))
        }
        _ => text(&record["message"]),
    }
}

/// What is asked, of whom, and for what it is known.
fn request(own: &Value) -> String {
    let request = &own["request"];
    let word = |name: &str| request[name].as_str();
    let mut text = word("method").unwrap_or("-").to_owned();
    text.push(' ');
    if let Some(authority) = word("authority") {
        text.push_str(authority);
    }
    text.push_str(word("path").unwrap_or_default());
    if let Some(upgrade) = word("upgrade") {
        text.push_str(&format!(" ({upgrade})"));
    }
    let call = &request["api"];
    if let (Some(service), Some(verb), Some(resource)) =
        (call["service"].as_str(), call["verb"].as_str(), call["resource"].as_str())
    {
        let name = [&call["namespace"], &call["name"]].into_iter().filter_map(Value::as_str);
        let name = name.collect::<Vec<_>>().join("/");
        let part = call["subresource"].as_str().map_or(String::new(), |part| format!("/{part}"));
        text.push_str(format!(" ({service}: {verb} {resource}{part} {name}").trim_end());
        text.push(')');
    }
    text
}

/// The kernel's byte counts, and what of them was audited where it is less.
fn totals(connection: &Value) -> String {
    let coverage = &connection["coverage"];
    let direction = |name: &str| {
        let (moved, audited) = (&coverage[name], coverage[format!("audited_{name}")].as_u64().unwrap_or(0));
        // Rows that were counted instead of copied: nothing is missing.
        let skipped = coverage[format!("skipped_{name}")].as_u64().unwrap_or(0);
        match moved.as_u64() {
            None => format!("{name} ? ({audited} audited)"),
            Some(moved) if moved == audited + skipped => format!("{name} {moved}"),
            Some(moved) => format!("{name} {moved} ({audited} audited)"),
        }
    };
    let (sent, received) = (direction("sent"), direction("received"));
    match connection["opaque"].as_str() {
        Some(opaque) => format!("{sent}, {received}, unreadable: {opaque}"),
        None => format!("{sent}, {received}"),
    }
}

fn losses(losses: &Value) -> Option<String> {
    let losses: Vec<_> = losses
        .as_array()?
        .iter()
        .map(|loss| {
            let word = |name: &str| loss[name].as_str().unwrap_or("?");
            format!("lost {} at {} ({})", loss["count"], word("site"), word("error"))
        })
        .collect();
    (!losses.is_empty()).then(|| losses.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::terminal::Table;

    fn shown(record: &Value) -> String {
        let mut out = Vec::new();
        Table::new(HEADER, false).write(&mut out, &[row(record)]).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        words.join(" ")
    }

    #[test]
    fn a_statement_is_shown_harmless() {
        let record = json!({
            "time": 1_790_000_000_123_u64, "severity_id": 1, "status_id": 2,
            "actor": { "process": { "pid": 7, "name": "ps\u{1b}ql" } },
            "dst_endpoint": { "ip": "2001:db8::1", "port": 5432 },
            "query_info": { "query_string": "select 1;\n\u{1b}[2Kdrop table t" },
            "unmapped": { "auditor": {
                "kind": "statement", "agent": { "name": "a" }, "session": { "id": "5b0c7e1f9a2d4c38" },
                "connection": { "verdict": "allow" },
                "statement": { "rows": 2, "outcome": "failed", "error_code": "42P01" }
            } }
        });
        assert_eq!(
            shown(&record),
            "2026-09-21T14:13:20.123Z a 5b0c7e1f ps\\u{1b}ql[7] [2001:db8::1]:5432 statement 2 42P01 \
             select 1;\\n\\u{1b}[2Kdrop table t"
        );
    }

    #[test]
    fn a_long_statement_is_one_line_that_says_how_to_read_the_rest() {
        let record = json!({
            "metadata": { "sequence": 42 },
            "query_info": { "query_string": format!("select\n{}", "x".repeat(1_000_000)) },
            "unmapped": { "auditor": { "kind": "statement" } }
        });
        let expected =
            format!("- - - - - statement - - select\\n{}… (1000007 bytes; auditor show 42)", "x".repeat(192));
        assert_eq!(shown(&record), expected);
    }

    #[test]
    fn each_kind_says_the_one_thing() {
        let own = |kind: &str, more: Value| {
            let mut own = json!({ "kind": kind });
            own.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "unmapped": { "auditor": own } })
        };
        let coverage = json!({ "sent": 10, "audited_sent": 10, "received": 20, "audited_received": 5 });
        for (record, expected) in [
            (
                own(
                    "connection-closed",
                    json!({ "connection": { "verdict": "allow", "coverage": coverage } }),
                ),
                "- - - - - connection-closed - allow sent 10, received 20 (5 audited)",
            ),
            (
                own(
                    "connection-refused",
                    json!({ "connection": { "verdict": "deny", "reason": "default", "call": "connect" } }),
                ),
                "- - - - - connection-refused - deny connect: default",
            ),
            (
                own(
                    "heartbeat",
                    json!({ "daemon": { "losses": [{ "site": "ring", "error": "ENOSPC", "count": 3 }] } }),
                ),
                "- - - - - heartbeat - - lost 3 at ring (ENOSPC)",
            ),
            (
                own(
                    "library-probed",
                    json!({ "library": { "name": "OpenSSL 3.0.19", "path": "/lib/c.so" } }),
                ),
                "- - - - - library-probed - - OpenSSL 3.0.19 in /lib/c.so",
            ),
            (
                own(
                    "request",
                    json!({ "connection": { "verdict": "allow" }, "request": {
                        "method": "POST", "authority": "docker", "path": "/v1.43/containers/4f/start", "outcome": "answered",
                        "status": 204, "api": { "service": "docker", "verb": "start", "resource": "containers", "name": "4f" }
                    } }),
                ),
                "- - - - - request - 204 POST docker/v1.43/containers/4f/start (docker: start containers 4f)",
            ),
            (own("something-new", json!({})), "- - - - - something-new - - -"),
            (json!({}), "- - - - - - - - -"),
        ] {
            assert_eq!(shown(&record), expected);
        }
    }
}
