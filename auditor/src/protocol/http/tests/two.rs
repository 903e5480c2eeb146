use super::script::*;
use crate::protocol::Detection;
use crate::protocol::http::detect_server;

/// HEADERS of an answer.
fn answer(stream: u32, status: &str, more: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let mut all = vec![(":status", status)];
    all.extend(more);
    frame(1, 4 | flags, stream, &fields(&all, true))
}

fn told_after_hello(events: Vec<Event>) -> Vec<String> {
    told(&[hello().to_vec(), events].concat())
}

#[test]
fn streams_end_in_their_own_order() {
    let told = told_after_hello(vec![
        client([ask(1, "GET", "/1", &[], 1), ask(3, "POST", "/3", &[("content-type", "a/b")], 0)].concat()),
        server([answer(3, "100", &[], 0), answer(1, "200", &[("content-type", "c/d")], 0)].concat()),
        client([frame(0, 0, 3, b"abc"), frame(0, 8 | 1, 3, b"\x02de\0\0")].concat()),
        server([answer(3, "204", &[], 1), frame(0, 0, 1, b"hel"), frame(0, 1, 1, b"lo")].concat()),
    ]);
    assert_eq!(
        told,
        ["2 POST http://h/3 204 5/105 0/44 | type a/b", "1 GET http://h/1 200 0/60 5/63 | answered type c/d"]
    );
}

#[test]
fn fields_come_from_the_table_and_credentials_never_do() {
    let secret = [("authorization", "Bearer s3cret"), ("user-agent", "me/1")];
    let first = ask(1, "GET", "/a?key=s3cret", &secret, 1);
    // The same fields by their places: the newest is 62.
    let again: Vec<u8> = (62..=67).rev().map(|place| 0x80 | place).collect();
    let events = vec![
        client(first),
        client(frame(1, 5, 3, &again)),
        server([answer(1, "200", &[("set-cookie", "s3cret")], 1), frame(1, 5, 3, &[0xbe, 0xbf])].concat()),
    ];
    let all = replay(&[hello().to_vec(), events.clone()].concat(), LIMITS, |_| usize::MAX);
    assert!(!format!("{all:?}").contains("s3cret"));
    let told = told_after_hello(events);
    for (line, stream) in told.iter().zip(1..) {
        let expected = format!("{stream} GET http://h/a?key=*** 200 ");
        assert!(line.starts_with(&expected), "{told:?}");
        assert!(
            line.ends_with("| agent me/1 | masked header:authorization query:key header:set-cookie"),
            "{told:?}"
        );
    }
    assert_eq!(told.len(), 2);
}

#[test]
fn no_secret_outlives_a_daemon() {
    use crate::clock::Boottime;
    use crate::protocol::http::Http;
    use crate::protocol::{Dissector, Side};
    let mut dissector = Http::new(LIMITS);
    let mut out = Vec::new();
    let [preface, _] = hello();
    let Event::Bytes(_, preface) = preface else { unreachable!() };
    let secrets = [("authorization", "Bearer s3cret"), ("x-api-key", "s3cret"), ("cookie", "s3cret")];
    for bytes in [preface, ask(1, "GET", "/", &secrets, 1)] {
        dissector.bytes(Side::Client, Boottime(0), &bytes, &mut out);
    }
    let state = dissector.save().unwrap();
    assert!(!state.windows(6).any(|window| window == b"s3cret"));
    assert!(
        state.windows(2).any(|window| window == b"/h" || window == b"h"[..].repeat(2)) || !state.is_empty()
    );
}

#[test]
fn the_standards_examples_of_header_blocks() {
    // RFC 7541, C.4: requests with Huffman coding, on one connection.
    let blocks = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let asked = blocks
        .iter()
        .zip([1, 3, 5])
        .map(|(block, stream)| client(frame(1, 5, stream, &hex(block))))
        .collect();
    let told = told_after_hello(asked);
    assert!(told[0].starts_with("1 GET http://www.example.com/ None"), "{told:?}");
    assert!(told[1].starts_with("2 GET http://www.example.com/ None"), "{told:?}");
    assert!(told[2].starts_with("3 GET https://www.example.com/index.html None"), "{told:?}");
}

#[test]
fn a_block_may_come_in_pieces() {
    let block = fields(&[(":method", "GET"), (":path", "/long"), ("x", "y")], false);
    let (first, rest) = block.split_at(5);
    let (second, third) = rest.split_at(7);
    let padded = [&[3, 0, 0, 0, 0, 9][..], first, &[0; 3]].concat();
    let pieces = [frame(1, 1 | 8 | 0x20, 1, &padded), frame(9, 0, 1, second), frame(9, 4, 1, third)];
    let told = told_after_hello(vec![client(pieces.concat()), server(frame(1, 5, 1, &[0x88]))]);
    assert_eq!(told, ["1 GET -/long 200 0/67 0/10"]);
}

#[test]
fn grpc_says_how_it_went_in_trailers() {
    let asked =
        ask(1, "POST", "/pkg.Echo/Say", &[("content-type", "application/grpc+proto"), ("te", "trailers")], 0);
    let failed = [("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "no%20such")];
    let told = told_after_hello(vec![
        client([asked.clone(), frame(0, 1, 1, b"\0\0\0\0\x02hi")].concat()),
        server(answer(1, "200", &[("content-type", "application/grpc")], 0)),
        server(frame(0, 0, 1, b"\0\0\0\0\x02ho")),
        server(frame(1, 5, 1, &fields(&[("grpc-status", "0")], false))),
        client(ask(3, "POST", "/pkg.Echo/Say", &[("content-type", "application/grpc")], 1)),
        server(answer(3, "200", &failed, 1)),
    ]);
    assert!(told[0].contains("7/") && told[0].contains("| grpc pkg.Echo Say Some(0)"), "{told:?}");
    assert!(told[1].ends_with("| grpc pkg.Echo Say Some(5) no such"), "{told:?}");
}

#[test]
fn resets_and_goaways_are_outcomes() {
    let told = told_after_hello(vec![
        client([1, 3, 5, 7].map(|stream| ask(stream, "GET", "/", &[], u8::from(stream != 7))).concat()),
        client(frame(3, 0, 1, &8_u32.to_be_bytes())),
        server(frame(3, 0, 3, &7_u32.to_be_bytes())),
        server([answer(7, "413", &[], 1), frame(3, 0, 7, &[0; 4])].concat()),
        server(frame(7, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 2])),
        // On a stream that is over.
        server(frame(0, 1, 3, b"late")),
    ]);
    assert!(told[0].contains("None Reset { by: Client, code: 8 }"), "{told:?}");
    assert!(told[1].contains("None Reset { by: Server, code: 7 }"), "{told:?}");
    assert!(told[2].starts_with("4 GET http://h/ 413 "), "{told:?}");
    assert!(told[3].contains("None Reset { by: Server, code: 2 }"), "{told:?}");
    assert_eq!(told.len(), 4);
}

#[test]
fn a_pushed_answer_has_its_request() {
    let promise =
        [&2_u32.to_be_bytes()[..], &fields(&[(":method", "GET"), (":path", "/style")], false)].concat();
    let told = told_after_hello(vec![
        client(ask(1, "GET", "/", &[], 1)),
        server(
            [
                frame(5, 4, 1, &promise),
                answer(1, "200", &[], 1),
                answer(2, "200", &[], 0),
                frame(0, 1, 2, b"x"),
            ]
            .concat(),
        ),
    ]);
    assert!(told[0].starts_with("1 GET http://h/ 200"), "{told:?}");
    assert!(told[1].starts_with("2 GET -/style 200 0/0 1/") && told[1].ends_with("| pushed"), "{told:?}");
}

#[test]
fn a_websocket_on_a_stream_is_marked() {
    let told = told_after_hello(vec![
        client(ask(1, "CONNECT", "/chat", &[(":protocol", "websocket")], 0)),
        server(answer(1, "200", &[], 0)),
        client(frame(0, 1, 1, b"frames")),
        server(frame(0, 1, 1, b"frames")),
    ]);
    assert!(
        told[0].starts_with("1 CONNECT http://h/chat 200 6/") && told[0].ends_with("| upgrade websocket"),
        "{told:?}"
    );
}

#[test]
fn what_does_not_follow_the_protocol_is_a_violation() {
    let bad: [(&str, Vec<u8>); 14] = [
        ("belongs to no stream", frame(0, 0, 0, b"x")),
        ("nobody has opened", frame(0, 0, 9, b"x")),
        ("opened stream 2", ask(2, "GET", "/", &[], 1)),
        ("CONTINUATION of nothing", frame(9, 4, 1, b"")),
        ("interrupted", [frame(1, 0, 1, b""), frame(6, 0, 0, &[0; 8])].concat()),
        ("interrupted", [frame(1, 0, 1, b""), frame(9, 4, 3, b"")].concat()),
        ("PUSH_PROMISE of the client", frame(5, 4, 1, &[0, 0, 0, 2])),
        ("more padding", frame(1, 4 | 8, 1, b"\x05ab")),
        ("shorter", frame(1, 4 | 0x20, 1, b"ab")),
        ("holds nothing", frame(1, 4, 1, &[0xbe])),
        ("larger than anybody's", frame(1, 4, 1, &[0x3f, 0xff, 0xff, 0x7f])),
        ("ends within a field", frame(1, 4, 1, &[0x40, 0x05, b'a'])),
        ("longer than anybody", frame(1, 4, 1, &vec![0x82; (128 << 10) + 1])),
        ("short RST_STREAM", frame(3, 0, 1, b"x")),
    ];
    for (why, bytes) in bad {
        let told = told_after_hello(vec![client(bytes)]);
        let last = told.last().unwrap();
        assert!(last.starts_with("Violation") && last.contains(why), "{why}: {told:?}");
    }
    let told = told(&[client([PREFACE, &ask(1, "GET", "/", &[], 1)].concat())]);
    assert!(told[0].contains("something else than SETTINGS"), "{told:?}");
}

#[test]
fn the_table_follows_its_size() {
    // A table of nothing, then one of 4096 again: what was in it is gone.
    let resize = [0x20, 0x3f, 0xe1, 0x1f];
    let block = [&resize[..], &fields(&[(":path", "/a")], true)].concat();
    let told = told_after_hello(vec![
        client([frame(1, 5, 1, &block), frame(1, 5, 3, &[0xbe])].concat()),
        client(frame(1, 5, 5, &[0xbf])),
    ]);
    assert!(told[0].starts_with("1 - -/a") && told[1].starts_with("2 - -/a"), "{told:?}");
    assert!(told[2].contains("holds nothing"), "{told:?}");
}

#[test]
fn many_streams_at_once_are_bounded() {
    let mut events = hello().to_vec();
    events.extend((0..1030).map(|index| client(ask(index * 2 + 1, "GET", "/", &[], 1))));
    let all = replay(&events, LIMITS, |_| usize::MAX);
    let all = requests(&all);
    assert_eq!((all.len(), all.iter().filter(|request| request.incomplete).count()), (1030, 6));
}

#[test]
fn a_server_that_speaks_first_is_told() {
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    assert_eq!(detect_server(&settings), Detection::Yes(()));
    assert_eq!(detect_server(&settings[..5]), Detection::Incomplete);
    assert_eq!(detect_server(b"HTTP/1.1 "), Detection::No);
    // A MySQL server's greeting.
    assert_eq!(detect_server(b"\x4a\0\0\0\x0a8.0.36"), Detection::No);
    let [preface, answer] = hello();
    let told = told(&[answer, preface, client(ask(1, "GET", "/", &[], 1)), server(frame(1, 5, 1, &[0x88]))]);
    assert_eq!(told, ["1 GET http://h/ 200 0/59 0/10"]);
}
