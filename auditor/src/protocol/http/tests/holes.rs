use super::script::*;
use crate::protocol::Side;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";

fn hole(side: Side, length: u64) -> Event {
    Event::Hole(side, length)
}

#[test]
fn a_hole_within_a_body_harms_that_request_only() {
    let told = told(&[
        client("PUT /1 HTTP/1.1\r\nContent-Length: 10\r\n\r\nab"),
        hole(Side::Client, 5),
        client("xyzGET /2 HTTP/1.1\r\n\r\n"),
        server([OK, "01"].concat()),
        hole(Side::Server, 8),
        server([OK, "0123456789"].concat()),
    ]);
    assert_eq!(told, ["1 PUT -/1 200 10/49 10/49 | incomplete", "2 GET -/2 200 0/19 10/49"]);
}

#[test]
fn behind_any_other_hole_of_the_clients_nothing_is_told() {
    for (before, length) in
        [("GET /2 HT", 1), ("PUT /2 HTTP/1.1\r\nContent-Length: 10\r\n\r\nab", 9), ("", 5), ("", u64::MAX)]
    {
        let told = told(&[
            client("GET /1 HTTP/1.1\r\n\r\n"),
            server([OK, "0123456789"].concat()),
            client(before),
            hole(Side::Client, length),
            client("GET /3 HTTP/1.1\r\n\r\n"),
        ]);
        assert!(told[0].starts_with("1 GET -/1 200"), "{told:?}");
        assert_eq!(told.last().unwrap(), "Opaque(Hole)");
        assert!(!told.iter().any(|line| line.contains("/3")), "{told:?}");
    }
}

#[test]
fn behind_one_of_the_servers_requests_have_no_answers() {
    let told = told(&[
        client("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 2"),
        hole(Side::Server, 20),
        server("anything"),
        client("GET /3 HTTP/1.1\r\n\r\n"),
        // Whether what follows is still HTTP only the answer says.
        client("GET /4 HTTP/1.1\r\nUpgrade: websocket\r\n\r\nanything"),
    ]);
    assert!(told[0].starts_with("1 GET -/1 None Unknown 0/19 0/10"), "{told:?}");
    assert!(told[1].starts_with("2 GET -/2 None Unknown"), "{told:?}");
    assert!(told[2].starts_with("3 GET -/3 None Unknown"), "{told:?}");
    assert!(told[3].starts_with("4 GET -/4 None Unknown"), "{told:?}");
    assert_eq!(told[4], "Opaque(Hole)");
}

#[test]
fn a_hole_within_data_harms_that_stream_only() {
    let data = frame(0, 1, 1, b"0123456789");
    let told = told(
        &[
            hello().to_vec(),
            vec![
                client(ask(1, "PUT", "/", &[], 0)),
                client(&data[..12]),
                hole(Side::Client, 7),
                client(ask(3, "GET", "/", &[], 1)),
                server(frame(1, 4, 1, &[0x88])),
                server(&data[..9]),
                hole(Side::Server, 10),
                server(frame(1, 5, 3, &[0x88])),
            ],
        ]
        .concat(),
    );
    assert!(told[0].starts_with("1 PUT http://h/ 200 10/") && told[0].ends_with("| incomplete"), "{told:?}");
    assert!(told[1].starts_with("2 GET http://h/ 200") && !told[1].ends_with("incomplete"), "{told:?}");
}

#[test]
fn field_tables_do_not_survive_any_other() {
    let deaf = told(
        &[
            hello().to_vec(),
            vec![
                client(ask(1, "GET", "/1", &[], 1)),
                hole(Side::Server, 20),
                server(frame(1, 5, 1, &[0x88])),
                client(ask(3, "GET", "/3", &[], 1)),
            ],
        ]
        .concat(),
    );
    assert!(deaf.len() == 2 && deaf.iter().all(|line| line.contains("None Unknown")), "{deaf:?}");
    let lost = told(
        &[
            hello().to_vec(),
            vec![
                client(ask(1, "GET", "/1", &[], 1)),
                hole(Side::Client, 20),
                server(frame(1, 5, 1, &[0x88])),
                client(ask(3, "GET", "/3", &[], 1)),
            ],
        ]
        .concat(),
    );
    assert_eq!(lost.len(), 2);
    assert_eq!(lost[1], "Opaque(Hole)");
}
