use super::script::*;
use crate::protocol::http::detect;
use crate::protocol::{Detection, Observation};

/// What comes of a client's bytes followed by the server's.
fn talk(asked: &str, answered: &str) -> Vec<String> {
    told(&[client(asked), server(answered)])
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn a_request_and_its_answer() {
    let told = talk(
        "POST /v1/x?a=1&token=s3cret HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: curl/8\r\nAuthorization: Bearer s3cret\r\n\
         Cookie: s3cret\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nSet-Cookie: s3cret\r\nContent-Length: 2\r\n\r\nok",
    );
    assert_eq!(
        told,
        [
            "1 POST api.example.com/v1/x?a=1&token=*** 201 5/185 2/91 | type application/json | answered type text/plain | agent \
          curl/8 | masked header:authorization header:cookie query:token header:set-cookie"
        ]
    );
}

#[test]
fn answers_belong_to_requests_by_their_place() {
    let asked = "GET /1 HTTP/1.1\r\n\r\nHEAD /2 HTTP/1.1\r\n\r\nPOST /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET /4 HTTP/1.1\r\n\r\nGET /5 HTTP/1.0\r\n\r\n";
    let answered = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
                    HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\
                    HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nHTTP/1.0 200 OK\r\n\r\nto the end";
    assert_eq!(
        talk(asked, answered),
        [
            "1 GET -/1 204 0/19 0/27",
            "2 HEAD -/2 200 0/20 0/41",
            "3 POST -/3 200 13/93 1/120",
            "4 GET -/4 304 0/19 0/48",
            "5 GET -/5 200 0/19 10/29"
        ]
    );
}

#[test]
fn whatever_servers_take_is_read() {
    for asked in [
        "\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.1\nHost: h\n\n",
        "GET  /a  HTTP/1.1\r\nhost:h\r\n\r\n",
        "GET http://h/a HTTP/1.1\r\nHost: other\r\n\r\n",
        "GET http://u:p@h/a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 0\r\n\r\n",
        "GET /a HTTP/1.1\r\nX: a\r\n folded\r\nHost: h\r\n\r\n",
    ] {
        let told = talk(asked, OK);
        assert!(told.len() == 1 && told[0].contains("h/a 200 0/"), "{asked:?}: {told:?}");
    }
}

#[test]
fn what_two_receivers_could_read_in_two_ways_is_a_violation() {
    for (head, why) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "both"),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", "twice"),
        ("Content-Length: 4, 5\r\n", "twice"),
        ("Content-Length: +4\r\n", "number"),
        ("Content-Length: 99999999999999999999\r\n", "number"),
        ("Transfer-Encoding: gzip\r\n", "does not end"),
        ("Transfer-Encoding: chunked, gzip\r\n", "after chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "after chunked"),
        ("Transfer-Encoding : chunked\r\n", "take for framing"),
        ("Transfer-Encoding\t: chunked\r\n", "take for framing"),
        ("Content_Length : 3\r\n", "take for framing"),
        ("Transfer-Encoding:\r\n chunked\r\n", "folded"),
        ("X: a\rContent-Length: 4\r\n", "control character"),
        ("X: a\0b\r\n", "control character"),
        ("no colon\r\n", "colon"),
    ] {
        let told =
            told(&[client(format!("POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\nGET /b HTTP/1.1\r\n\r\n"))]);
        let [request, violation] = &*told else { panic!("{head}: {told:?}") };
        assert!(request.starts_with("1 POST ") && request.contains("None Unknown"), "{head}: {told:?}");
        assert!(violation.starts_with("Violation") && violation.contains(why), "{head}: {told:?}");
    }
    for size in ["g\r\n", "\r\n", "-1\r\n", "0x1\r\n", "11111111111111111\r\n", "1 1\r\n", "2\r\nabc\r\n"] {
        let told = told(&[client(format!("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size}"))]);
        assert!(told.last().unwrap().starts_with("Violation"), "{size:?}: {told:?}");
    }
}

#[test]
fn chunked_framing_and_hosts_are_read_strictly() {
    let chunked = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bodies = ["1\na\r\n", "1;x\na\r\n", "1\r\na\n", "1 \x0b\r\n", "0\r\n\n", "0\r\na: b\n\r\n"];
    let twice = "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned();
    for asked in bodies.map(|body| format!("{chunked}{body}")).into_iter().chain([twice]) {
        let told = told(&[client(asked.clone())]);
        assert!(told.last().unwrap().starts_with("Violation"), "{asked:?}: {told:?}");
    }
}

#[test]
fn secrets_are_not_told_where_a_request_is_odd() {
    let (user, host) = ("s3cret".repeat(100), "h".repeat(10));
    for asked in [
        format!("GET http://u:{user}@{host}/a HTTP/1.1\r\n\r\n"),
        format!("GET /a HTTP/1.1\r\nHost: u:{user}@{host}\r\n\r\n"),
        format!("CONNECT u:{user}@{host} HTTP/1.1\r\n\r\n"),
        "GET /a.S/M?token=s3cret HTTP/1.1\r\nContent-Type: application/grpc\r\n\r\n".into(),
        "POST /a.S/M?token=s3cret/x HTTP/1.1\r\nContent-Type: application/grpc\r\n\r\n".into(),
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\ns3cret\r\n".into(),
        "GET /a HTTP/1.1\r\n\r\ns3cret\r\n".into(),
    ] {
        let told = told(&[client(asked.clone())]);
        assert!(!told.is_empty() && !told.concat().contains("s3cret"), "{asked}: {told:?}");
    }
}

#[test]
fn an_answer_that_answers_nothing() {
    assert!(told(&[client(GET), server(OK), server(OK)])[1].starts_with("Violation"));
    // This is how servers hang up.
    let told =
        told(&[client(GET), server(OK), server("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")]);
    assert_eq!(told[1], "2 - -- 408 0/0 0/51 | incomplete");
}

#[test]
fn what_is_under_way_is_told_at_the_end() {
    assert_eq!(told(&[client(GET)]), ["1 GET h/a None Unknown 0/28 0/0"]);
    assert_eq!(
        told(&[client("GET /a?token=xyz HT")]),
        ["1 GET -/a?token=*** None Unknown 0/19 0/0 | masked query:token | incomplete"]
    );
    assert_eq!(
        told(&[client("PUT /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")]),
        ["1 PUT -/a None Unknown 2/40 0/0 | incomplete"]
    );
    assert_eq!(
        told(&[client(GET), server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")]),
        ["1 GET h/a Some(200) Unknown 0/28 2/40 | incomplete"]
    );
    // An early answer, and a request that was never sent to its end.
    assert_eq!(
        told(&[
            client("PUT /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"),
            server("HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")
        ]),
        ["1 PUT -/a Some(413) Unknown 2/40 0/37 | incomplete"]
    );
}

#[test]
fn a_websocket_is_marked_and_opaque() {
    let asked = "GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answered = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(
        told(&[client(asked), server([answered.as_bytes(), b"\x81\x02hi"].concat()), client(b"\x81\x80")]),
        ["1 GET -/chat 101 0/63 0/56 | upgrade websocket", "Opaque(Upgraded)"]
    );
    assert!(talk(GET, answered)[1].contains("unasked"));
    // The server goes on in HTTP/1, and what the client said meanwhile was that.
    assert_eq!(
        told(&[client(asked), client(GET), server([OK, OK].concat())]),
        ["1 GET -/chat 200 0/63 2/40", "2 GET h/a 200 0/28 2/40"]
    );
}

#[test]
fn what_is_in_a_tunnel_is_told_anew() {
    let connect = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nProxy-Authorization: Basic eA==\r\n\r\n";
    assert_eq!(
        told(&[client(connect), client("early"), server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")]),
        [
            "1 CONNECT db:5432- 200 0/76 0/38 | upgrade tunnel | masked header:proxy-authorization",
            "switched early "
        ]
    );
    let all = replay(&[client(connect), server("HTTP/1.1 200 OK\r\n\r\nhello")], LIMITS, |_| usize::MAX);
    assert_eq!(line(&all[1]), "switched  hello");
    assert_eq!(
        told(&[
            client(connect),
            client(GET),
            server(["HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n", OK].concat())
        ])[1],
        "2 GET h/a 200 0/28 2/40"
    );
}

#[test]
fn h2c_goes_on_with_the_answer_to_the_first_request() {
    let asked = "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let answer = frame(1, 4, 1, &fields(&[(":status", "200")], false));
    let [preface, settings] = hello();
    let Event::Bytes(_, settings) = settings else { unreachable!() };
    let switched =
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n".to_vec(), settings, answer].concat();
    let told = told(&[
        client(asked),
        server(switched),
        preface,
        server(frame(0, 1, 1, b"hello")),
        client(ask(3, "GET", "/b", &[], 1)),
        server(frame(1, 5, 3, &[0x88])),
    ]);
    assert_eq!(told, ["1 GET h/a 200 0/105 5/86 | upgrade h2c", "2 GET http://h/b 200 0/60 0/10"]);
}

/// What Docker does to builds: the connection is taken over, and the first stream is anybody's.
#[test]
fn an_upgrade_may_be_a_new_connection_of_either_end() {
    let asked =
        |path: &str| client(format!("POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"));
    let agreed = server("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
    let [Event::Bytes(_, first), Event::Bytes(_, second)] = hello() else { unreachable!() };
    let call = ask(1, "POST", "/s/M", &[], 1);
    let answer = frame(1, 5, 1, &[0x88]);
    let forth = told(&[
        asked("/v1.43/grpc"),
        agreed.clone(),
        client(&first),
        server(&second),
        client(&call),
        server(&answer),
    ]);
    assert!(
        forth[0].starts_with("1 POST -/v1.43/grpc 101 ") && forth[0].contains("upgrade h2c"),
        "{forth:?}"
    );
    assert!(forth[1].starts_with("2 POST http://h/s/M 200 ") && forth.len() == 2, "{forth:?}");
    for server_first in [true, false] {
        let hello = [server(&first), client(&second)];
        let hello = if server_first { hello.to_vec() } else { hello.into_iter().rev().collect() };
        let events =
            [vec![asked("/v1.43/session"), agreed.clone()], hello, vec![server(&call), client(&answer)]];
        let back = told(&events.concat());
        assert!(back[0].starts_with("1 POST -/v1.43/session 101 "), "{back:?}");
        assert!(
            back[1].starts_with("2 POST http://h/s/M 200 ") && back[1].ends_with("| reversed"),
            "{back:?}"
        );
        assert_eq!(back.len(), 2);
    }
}

#[test]
fn apis_are_told_by_their_paths() {
    let told = talk(
        "GET /containers/json HTTP/1.1\r\nHost: docker\r\n\r\nGET /api/v1/namespaces/shop/secrets/db HTTP/1.1\r\nHost: k\r\n\r\n",
        "HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nServer: Docker/24\r\nContent-Length: 0\r\n\r\nHTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(told[0].ends_with("| docker list containers -"), "{told:?}");
    assert!(told[1].ends_with("| kubernetes get secrets db"), "{told:?}");
}

#[test]
fn long_paths_are_cut_and_lines_beyond_reason_refused() {
    let limits = crate::protocol::Limits { max_statement_bytes: 10, ..LIMITS };
    let events = [client(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100))), server(OK)];
    let all = replay(&events, limits, |_| usize::MAX);
    let request = requests(&all)[0];
    assert_eq!((request.target.as_deref(), request.target_length), (Some(&b"/xxxxxxxxx"[..]), Some(101)));
    let told = told(&[client(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)))]);
    assert!(told.last().unwrap().contains("longer than any"), "{:?}", told.last());
}

#[test]
fn detection_waits_for_a_whole_first_line() {
    for (first, expected) in [
        (&b""[..], Detection::Incomplete),
        (b"\r\n", Detection::Incomplete),
        (b"GE", Detection::Incomplete),
        (b"GET / HTTP/1.1", Detection::Incomplete),
        (b"GET / HTTP/1.1\r\n", Detection::Yes(())),
        (b"\r\nPROPFIND /x HTTP/1.1\n", Detection::Yes(())),
        (b"OPTIONS * HTTP/1.0\r\n", Detection::Yes(())),
        (b"CONNECT h:1 HTTP/1.1\r\n", Detection::Yes(())),
        (b"PRI * HTT", Detection::Incomplete),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detection::Yes(())),
        (b"GET key\r\n", Detection::No),
        (b"GET /key\r\n", Detection::No),
        (b"EHLO me\r\n", Detection::No),
        (b"*1\r\n$4\r\nPING\r\n", Detection::No),
        (b"\x16\x03\x01", Detection::No),
        (b"GET \x01", Detection::No),
    ] {
        assert_eq!(detect(first), expected, "{:?}", first.escape_ascii());
    }
    let long = format!("GET /{}", "x".repeat(1024));
    assert_eq!(detect(&long.as_bytes()[..1024]), Detection::Yes(()));
    let never = replay(&[client("PRI * HTTP/2.0\r\n")], LIMITS, |_| usize::MAX);
    assert!(matches!(&*never, [Observation::Violation(_)]), "{never:?}");
}
