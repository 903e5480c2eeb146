//! What scripts rely on, by name. Validity against the schema is tested with `tests/ocsf_validate.py`.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Host, Identity, Renderer};
use crate::clock::{Boottime, Utc};
use crate::protocol::{
    CommandResult, Login, Outcome, Parameter, ServerError, Side, Statement, StatementKind, http,
};
use crate::record::{
    Application, Certificate, CloseReason, Connection, Coverage, Entry, Event, GapRange, Tls, Transport,
    Verdict,
};

fn renderer() -> Renderer {
    Renderer::new(&Host {
        hostname: "host".to_owned(),
        machine_id: None,
        boot_id: "boot".to_owned(),
        os: "Linux".to_owned(),
        kernel: "6.12".to_owned(),
    })
    .unwrap()
}

fn render(event: Event) -> Value {
    render_with(&renderer(), &event)
}

fn render_with(renderer: &Renderer, event: &Event) -> Value {
    let event = event.clone();
    let entry = Entry { time: Utc(1_790_000_000_123_999_999), session: None, process: None, event };
    let mut line = Vec::new();
    renderer.render(&entry, Identity { sequence: 7, uid: "t-7" }, &mut line).unwrap();
    assert!(line.starts_with(b"{\"time\":1790000000123,"), "time is first");
    assert!(line.ends_with(b"}}}"), "auditor, unmapped, record");
    assert!(!line.contains(&b'\n'));
    serde_json::from_slice(&line).unwrap()
}

fn connection() -> Arc<Connection> {
    Arc::new(Connection {
        id: "boot-1f".to_owned(),
        transport: Transport::Tcp,
        local: Some("[::ffff:10.0.0.1]:40000".parse().unwrap()),
        remote: Some(SocketAddr::from(([10, 0, 0, 2], 5432))),
        socket: None,
        inbound: false,
        adopted: None,
        verdict: Verdict { allowed: true, rule: Some("p#1: x".to_owned()), reason: "rule", policy: None },
    })
}

fn statement(text: &[u8]) -> Statement {
    Statement {
        sequence: 3,
        kind: StatementKind::Prepared,
        text: text.to_vec().into(),
        text_length: u64::try_from(text.len()).unwrap(),
        name: Some(String::new()),
        portal: None,
        parameters: Vec::new(),
        results: Vec::new(),
        columns: Vec::new(),
        outcome: Outcome::Completed,
        notices: Vec::new(),
        transaction: None,
        started: Boottime(5_000),
        finished: Boottime(9_500),
        request_bytes: 1,
        response_bytes: 2,
        incomplete: false,
    }
}

fn render_statement(statement: Statement) -> Value {
    let login = Login { user: Some("u".to_owned()), database: Some("d".to_owned()), ..Login::default() };
    let application =
        Application { protocol: Some("postgres"), login: Some(login), ..Application::default() };
    render(Event::Statement {
        connection: connection(),
        application: Arc::new(application),
        statement: Box::new(statement),
        meaning: None,
    })
}

#[test]
fn what_is_only_prepared_is_no_execution() {
    let record = render_statement(Statement {
        name: Some("s".to_owned()),
        portal: Some("c".to_owned()),
        outcome: Outcome::Prepared,
        ..statement(b"delete from t")
    });
    assert_eq!((&record["activity_id"], &record["activity_name"]), (&99.into(), &"prepare".into()));
    assert_eq!((&record["type_uid"], &record["status_id"]), (&600_599.into(), &99.into()));
    assert_eq!(record["status"], "Prepared");
    let own = &record["unmapped"]["auditor"]["statement"];
    assert_eq!((&own["outcome"], &own["kind"]), (&"prepared".into(), &"prepared".into()));
    assert_eq!((&own["name"], &own["portal"], &own["verb"]), (&"s".into(), &"c".into(), &"delete".into()));
}

#[test]
fn a_statement_is_verbatim_and_says_what_became_of_it() {
    let text = "INSERT INTO t VALUES ('\u{e9}\\x41', '\n')";
    let record = render_statement(Statement {
        outcome: Outcome::Failed(ServerError {
            code: "23505".to_owned(),
            severity: "ERROR".to_owned(),
            message: "duplicate key".to_owned(),
        }),
        parameters: vec![
            Parameter::Null,
            Parameter::Text("a".to_owned()),
            Parameter::Binary(vec![0, 255]),
            Parameter::Cut { head: b"ab".to_vec(), length: 9 },
            Parameter::Cut { head: vec![255], length: 9 },
        ],
        ..statement(text.as_bytes())
    });
    assert_eq!(record["query_info"]["query_string"], text);
    assert_eq!((&record["type_uid"], &record["status_id"]), (&json!(600_506), &json!(2)));
    assert_eq!(
        (&record["status_code"], &record["status_detail"]),
        (&json!("23505"), &json!("duplicate key"))
    );
    assert_eq!(
        (&record["src_endpoint"]["ip"], &record["dst_endpoint"]["port"]),
        (&json!("10.0.0.1"), &json!(5432))
    );
    let own = &record["unmapped"]["auditor"];
    assert_eq!((&own["connection"]["user"], &own["connection"]["database"]), (&json!("u"), &json!("d")));
    let statement = &own["statement"];
    assert_eq!((&statement["verb"], &statement["kind"]), (&json!("insert"), &json!("prepared")));
    assert_eq!((&statement["duration_us"], &statement["truncated"]), (&json!(4), &json!(false)));
    assert_eq!(
        statement["parameters"],
        json!([null, "a", {"hex": "00ff"}, {"text": "ab", "length": 9}, {"hex": "ff", "length": 9}])
    );
    assert_eq!(statement.get("escaped"), None);
}

#[test]
fn a_request_says_what_was_asked_and_what_became_of_it() {
    let request = http::Request {
        sequence: 4,
        version: Some(http::Version::Http2),
        stream: Some(7),
        method: Some("POST".to_owned()),
        scheme: Some("https".to_owned()),
        authority: Some("[2001:db8::1]:8443".to_owned()),
        target: Some(b"/pkg.Echo/Say?a=\xff".to_vec()),
        target_length: Some(70_000),
        status: Some(200),
        outcome: http::Outcome::Answered,
        started: Boottime(5_000),
        finished: Boottime(9_500),
        request_bytes: 30,
        request_body: 10,
        response_bytes: 50,
        response_body: 40,
        request_type: Some("application/grpc".to_owned()),
        agent: Some("me/1".to_owned()),
        grpc: Some(http::Grpc {
            service: "pkg.Echo".to_owned(),
            method: "Say".to_owned(),
            status: Some(5),
            message: Some("no such".to_owned()),
        }),
        api: Some(http::Call {
            service: http::Service::Kubernetes,
            verb: "get".to_owned(),
            resource: "pods".to_owned(),
            subresource: Some("log".to_owned()),
            namespace: Some("shop".to_owned()),
            name: Some("web-0".to_owned()),
        }),
        masked: vec!["header:cookie".to_owned()],
        ..http::Request::default()
    };
    let told = |request: http::Request| {
        let application = Application { protocol: Some("http"), ..Application::default() };
        render(Event::Request {
            connection: connection(),
            application: Arc::new(application),
            request: Box::new(request),
        })
    };
    let record = told(request.clone());
    assert_eq!((&record["type_uid"], &record["status_id"]), (&json!(600_301), &json!(2)));
    assert_eq!((&record["status_code"], &record["status_detail"]), (&json!("5"), &json!("no such")));
    assert_eq!(record["api"], json!({"operation": "pkg.Echo/Say", "service": {"name": "pkg.Echo"}}));
    assert_eq!(record["resources"], json!([{"name": "web-0", "type": "pods", "namespace": "shop"}]));
    assert_eq!(
        record["http_request"],
        json!({
            "uid": "boot-1f/4", "version": "2", "http_method": "POST",
            "url": {"scheme": "https", "hostname": "[2001:db8::1]", "port": 8443, "path": "/pkg.Echo/Say", "query_string": "a=\\xff"},
            "user_agent": "me/1", "body_length": 10, "length": 30
        })
    );
    assert_eq!(record["http_response"], json!({"code": 200, "body_length": 40, "length": 50}));
    let own = &record["unmapped"]["auditor"];
    assert_eq!((&own["kind"], &own["connection"]["protocol"]), (&json!("request"), &json!("http")));
    assert_eq!(
        own["request"],
        json!({
            "seq": 4, "version": "2", "stream": 7, "verb": "get", "method": "POST", "authority": "[2001:db8::1]:8443",
            "path": "/pkg.Echo/Say?a=\\xff", "status": 200, "outcome": "answered", "duration_us": 4,
            "request_bytes": 30, "request_body_bytes": 10, "response_bytes": 50, "response_body_bytes": 40,
            "content_type": "application/grpc", "user_agent": "me/1",
            "grpc": {"service": "pkg.Echo", "method": "Say", "status": 5, "message": "no such"},
            "api": {"service": "kubernetes", "verb": "get", "resource": "pods", "subresource": "log", "namespace": "shop", "name": "web-0"},
            "masked": ["header:cookie"], "truncated": true, "path_bytes": 70_000, "escaped": true, "decision": "allowed"
        })
    );
    let by = Side::Server;
    let reset = told(http::Request {
        outcome: http::Outcome::Reset { by, code: 7 },
        grpc: None,
        status: None,
        ..request
    });
    assert_eq!((&reset["status_id"], &reset["status_detail"]), (&json!(2), &json!("reset by the server")));
    assert_eq!(reset["unmapped"]["auditor"]["request"]["reset"], json!({"by": "server", "code": 7}));
    let nothing = told(http::Request { sequence: 1, ..http::Request::default() });
    assert_eq!((&nothing["type_uid"], &nothing["status_id"]), (&json!(600_300), &json!(0)));
    assert_eq!(nothing["api"]["operation"], "unknown");
    for absent in ["http_response", "resources", "status_code"] {
        assert_eq!(nothing.get(absent), None, "{absent}");
    }
    assert_eq!(nothing["http_request"].get("url"), None);
}

#[test]
fn verbs_are_what_was_completed_and_an_activity_only_where_all_are_one() {
    let told = |text: &[u8], tags: &[&str]| {
        let result = |tag: &&str| CommandResult { tag: (*tag).to_owned(), rows: None };
        let record =
            render_statement(Statement { results: tags.iter().map(result).collect(), ..statement(text) });
        let own = &record["unmapped"]["auditor"]["statement"];
        let classified = own.get("classified").cloned();
        (own["verb"].clone(), own["verbs"].clone(), classified, record["activity_id"].clone())
    };
    assert_eq!(told(b"DELETE FROM t", &["DELETE 3"]), (json!("delete"), json!(["delete"]), None, json!(7)));
    assert_eq!(
        told(b"select 1; drop table t", &["SELECT 1", "DROP TABLE"]),
        (json!("select"), json!(["select", "drop"]), None, json!(99))
    );
    assert_eq!(
        told(b"execute p", &["DELETE 3"]),
        (json!("execute"), json!(["delete"]), Some(json!(false)), json!(99))
    );
}

#[test]
fn a_change_of_the_connection_shows_in_its_next_statement() {
    let renderer = renderer();
    let mut connection = connection();
    let mut application = Arc::new(Application::default());
    let mut told = |user: &str, port: u16| {
        let login = Login { user: Some(user.to_owned()), ..Login::default() };
        Arc::make_mut(&mut application).login = Some(login);
        Arc::make_mut(&mut connection).remote = Some(SocketAddr::from(([10, 0, 0, 2], port)));
        let event = Event::Statement {
            connection: Arc::clone(&connection),
            application: Arc::clone(&application),
            statement: Box::new(statement(b"select 1")),
            meaning: None,
        };
        let records = [render_with(&renderer, &event), render_with(&renderer, &event)];
        assert_eq!(records[0], records[1]);
        let own = &records[0]["unmapped"]["auditor"]["connection"];
        assert_eq!((&own["user"], &records[0]["dst_endpoint"]["port"]), (&json!(user), &json!(port)));
    };
    // More than are kept.
    for number in 0..1000 {
        told(&format!("user-{number}"), number);
    }
}

#[test]
fn text_that_is_not_utf_8_is_escaped_and_marked() {
    let record = render_statement(statement(b"select '\xff\\x41'"));
    assert_eq!(record["query_info"]["query_string"], r"select '\xff\\x41'");
    assert_eq!(record["unmapped"]["auditor"]["statement"]["escaped"], true);
}

#[test]
fn a_cut_statement_says_how_long_it_was() {
    let record = render_statement(Statement { text_length: 1 << 21, ..statement(b"select 1") });
    let statement = &record["unmapped"]["auditor"]["statement"];
    assert_eq!((&statement["truncated"], &statement["text_bytes"]), (&json!(true), &json!(1 << 21)));
    assert_eq!(record["metadata"]["is_truncated"], true);
}

#[test]
fn nothing_is_guessed() {
    let record = render(Event::Statement {
        connection: connection(),
        application: Arc::new(Application::default()),
        statement: Box::new(statement(b"")),
        meaning: None,
    });
    let own = &record["unmapped"]["auditor"];
    for absent in ["agent", "session"] {
        assert_eq!(own.get(absent), None, "{absent}");
    }
    for absent in ["user", "database", "protocol", "tls"] {
        assert_eq!(own["connection"].get(absent), None, "{absent}");
    }
    for absent in ["verb", "rows", "parameters", "error_code"] {
        assert_eq!(own["statement"].get(absent), None, "{absent}");
    }
    assert_eq!(record["activity_id"], 0);
    assert_eq!(record["database"]["name"], "unknown");
    assert_eq!(record["actor"].get("process"), None);
}

#[test]
fn tls_is_told_as_far_as_it_was_seen() {
    let tls = |application| {
        let event = Event::ConnectionClosed {
            connection: connection(),
            application: Arc::new(application),
            coverage: Coverage::default(),
            reason: CloseReason::Ended,
            duration_us: 0,
            statements: 0,
        };
        render(event)["unmapped"]["auditor"]["connection"]["tls"].clone()
    };
    let opaque = Application { opaque: Some("tls"), ..Application::default() };
    assert_eq!(tls(Application::default()), Value::Null);
    assert_eq!(tls(opaque.clone()), json!({"decrypted": false}));
    let seen = Tls {
        version: Some("1.3".to_owned()),
        sni: Some("db.example.com".to_owned()),
        reason: Some("not-implemented"),
        ..Tls::default()
    };
    assert_eq!(
        tls(Application { tls: Some(seen), ..opaque }),
        json!({"version": "1.3", "sni": "db.example.com", "decrypted": false, "reason": "not-implemented"})
    );
}

#[test]
fn a_tls_connection_has_ocsfs_words_and_ours() {
    let certificate = Certificate {
        sha256: "ab".repeat(32),
        subject: "CN=db.example.com".to_owned(),
        issuer: "CN=Example CA".to_owned(),
        serial: "01".to_owned(),
        names: ["db.example.com", "10.0.0.1", "email:dba@example.com"].map(str::to_owned).to_vec(),
        not_before: Some(1_700_000_000),
        not_after: Some(1_800_000_000),
    };
    let unparsed = Certificate { sha256: "cd".repeat(32), ..Certificate::default() };
    let tls = Tls {
        version: Some("1.3".to_owned()),
        cipher: Some("TLS_AES_128_GCM_SHA256".to_owned()),
        sni: Some("db.example.com".to_owned()),
        ja4: Some("t13d1516h2_8daaf6152771_e5627efa2ab1".to_owned()),
        server: Some(certificate),
        client: Some(unparsed),
        early_data: Some("rejected"),
        decrypted: true,
        ..Tls::default()
    };
    let record = render(Event::ConnectionClosed {
        connection: connection(),
        application: Arc::new(Application { tls: Some(tls), ..Application::default() }),
        coverage: Coverage::default(),
        reason: CloseReason::Ended,
        duration_us: 0,
        statements: 0,
    });
    assert_eq!(
        record["tls"],
        json!({
            "version": "1.3", "cipher": "TLS_AES_128_GCM_SHA256", "sni": "db.example.com",
            "certificate": {
                "subject": "CN=db.example.com", "issuer": "CN=Example CA", "serial_number": "01",
                "fingerprints": [{"value": "ab".repeat(32), "algorithm_id": 3}],
                "sans": [
                    {"name": "db.example.com", "type": "dns"},
                    {"name": "10.0.0.1", "type": "ip"},
                    {"name": "dba@example.com", "type": "email"}
                ],
                "created_time": 1_700_000_000_000_u64, "expiration_time": 1_800_000_000_000_u64
            }
        })
    );
    assert_eq!(
        record["ja4_fingerprint_list"],
        json!([{"value": "t13d1516h2_8daaf6152771_e5627efa2ab1", "type_id": 1}])
    );
    let own = &record["unmapped"]["auditor"]["connection"]["tls"];
    assert_eq!(own["client_certificate"], json!({"sha256": "cd".repeat(32)}));
    assert_eq!(own["server_certificate"]["not_after"], 1_800_000_000_000_u64);
    assert_eq!((&own["decrypted"], &own["early_data"]), (&json!(true), &json!("rejected")));
    assert_eq!(own.get("resumed"), None);
}

#[test]
fn coverage_keeps_the_directions_of_this_host_and_traffic_those_of_the_connection() {
    let closed = |inbound| {
        render(Event::ConnectionClosed {
            connection: Arc::new(Connection { inbound, ..Connection::clone(&connection()) }),
            application: Arc::new(Application::default()),
            coverage: Coverage {
                sent: Some(10),
                received: None,
                audited_sent: 4,
                audited_received: 20,
                opaque_sent: 1,
                opaque_received: 3,
                skipped_sent: 0,
                skipped_received: 7,
                gaps: vec![GapRange { sent: true, offset: 4, length: 6 }],
                ..Coverage::default()
            },
            reason: CloseReason::Ended,
            duration_us: 1500,
            statements: 2,
        })
    };
    for (inbound, known, unknown) in [(false, "bytes_out", "bytes_in"), (true, "bytes_in", "bytes_out")] {
        let record = closed(inbound);
        assert_eq!(record["traffic"][known], 10);
        assert_eq!(record["traffic"].get(unknown), None);
        assert_eq!(record["traffic"]["bytes_missed"], 6);
        assert_eq!(
            record["unmapped"]["auditor"]["connection"]["coverage"],
            json!({
                "sent": 10, "received": null, "audited_sent": 4, "audited_received": 20,
                "opaque_sent": 1, "opaque_received": 3,
                "skipped_sent": 0, "skipped_received": 7,
                "gaps": [{"direction": "sent", "offset": 4, "length": 6}]
            })
        );
    }
}

#[test]
fn a_refusal_says_who_decided() {
    let verdict =
        Verdict { allowed: false, rule: None, reason: "default", policy: Some("backfill".to_owned()) };
    let refused = Connection { verdict, remote: None, ..Connection::clone(&connection()) };
    let record = render(Event::ConnectionRefused { connection: Arc::new(refused), call: "socket" });
    assert_eq!((&record["type_uid"], &record["action_id"]), (&json!(400_105), &json!(2)));
    assert_eq!(
        (&record["policy"]["name"], &record["status_detail"]),
        (&json!("backfill"), &json!("default"))
    );
    assert_eq!(record["dst_endpoint"], json!({"name": "unknown"}));
    let own = &record["unmapped"]["auditor"]["connection"];
    assert_eq!((&own["verdict"], &own["call"]), (&json!("deny"), &json!("socket")));
}
