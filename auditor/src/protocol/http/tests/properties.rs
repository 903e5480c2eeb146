//! What must hold for any conversation, any cuts, and any bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::script::*;
use crate::protocol::tests::properties::*;
use crate::protocol::{Observation, Protocol, Side};

/// A request with its answer in HTTP/1: what both sides say, and status and sizes of the bodies.
#[derive(Clone, Debug)]
struct Exchange {
    asked: Vec<u8>,
    answered: Vec<u8>,
    expected: (u16, u64, u64),
}

/// A body and how it is framed: the field, and the bytes.
fn body(kind: u8, body: &[u8], chunk: usize) -> (String, Vec<u8>) {
    match kind {
        0 => (String::new(), Vec::new()),
        1 => (format!("Content-Length: {}\r\n", body.len()), body.to_vec()),
        _ => {
            let mut bytes = Vec::new();
            for piece in body.chunks(chunk) {
                bytes.extend(format!("{:x};e=\"1\"\r\n", piece.len()).bytes());
                bytes.extend(piece);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
            ("Transfer-Encoding: chunked\r\n".to_owned(), bytes)
        }
    }
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let bytes = || vec(any::<u8>(), 0..60);
    (
        0..5_u8,
        0..3_u8,
        bytes(),
        1..3_u8,
        bytes(),
        1_usize..20,
        select(vec![200_u16, 204, 304, 404, 500]),
        any::<bool>(),
    )
        .prop_map(|(method, asked_kind, asked, kind, answer, chunk, status, interim)| {
            let method = ["GET", "HEAD", "POST", "DELETE", "PROPFIND"][usize::from(method)];
            let (field, sent) = body(asked_kind, &asked, chunk);
            let head = format!("{method} /x?y=z HTTP/1.1\r\nHost: h\r\n{field}\r\n");
            let bodiless = method == "HEAD" || status == 204 || status == 304;
            let (field, received) = body(kind, &answer, chunk);
            let mut answered = Vec::new();
            if interim {
                answered.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            answered.extend(format!("HTTP/1.1 {status} Any\r\n{field}\r\n").bytes());
            if !bodiless {
                answered.extend(received);
            }
            Exchange {
                asked: [head.as_bytes(), &sent].concat(),
                answered,
                expected: (
                    status,
                    if asked_kind == 0 { 0 } else { asked.len() as u64 },
                    if bodiless { 0 } else { answer.len() as u64 },
                ),
            }
        })
}

/// In pipelines of any length.
fn conversation(exchanges: &[Exchange], together: usize) -> Vec<Event> {
    let batches = exchanges.chunks(together).flat_map(|batch| {
        let asked = batch.iter().flat_map(|exchange| exchange.asked.clone()).collect::<Vec<_>>();
        let answered = batch.iter().flat_map(|exchange| exchange.answered.clone()).collect::<Vec<_>>();
        [client(asked), server(answered)]
    });
    batches.collect()
}

/// A stream in HTTP/2: frames of each side in order, and what must come out.
#[derive(Clone, Debug)]
struct Stream {
    asked: Vec<Vec<u8>>,
    answered: Vec<Vec<u8>>,
    expected: (u16, u64, u64),
}

fn stream(id: u32, asked: &[Vec<u8>], answer: &[Vec<u8>], status: u16, indexed: bool) -> Stream {
    let head = [(":method", "POST"), (":path", "/x"), (":authority", "h"), ("x-any", "some value")];
    let block = fields(&head, indexed);
    let (first, rest) = block.split_at(block.len() / 2);
    let mut sent = vec![[frame(1, 0, id, first), frame(9, 4, id, rest)].concat()];
    sent.extend(asked.iter().map(|data| frame(0, 0, id, data)));
    sent.push(frame(0, 1, id, b""));
    let mut received = vec![
        frame(1, 4, id, &fields(&[(":status", "103")], indexed)),
        frame(1, 4, id, &fields(&[(":status", &status.to_string())], indexed)),
    ];
    received.extend(answer.iter().map(|data| frame(0, 8, id, &[&[3][..], data, &[0; 3]].concat())));
    received.push(frame(1, 5, id, &fields(&[("x-trailer", "1")], indexed)));
    let length = |pieces: &[Vec<u8>]| pieces.iter().map(|piece| piece.len() as u64).sum();
    Stream { asked: sent, answered: received, expected: (status, length(asked), length(answer)) }
}

/// All streams at once, frame by frame in any order that keeps each stream's. Every answer comes after its request's head.
fn interleaved(streams: &[Stream], order: &[Index]) -> Vec<Event> {
    let mut events = hello().to_vec();
    // Heads are numbered, and their streams opened, in order.
    events.push(client(streams.iter().flat_map(|stream| stream.asked[0].clone()).collect::<Vec<_>>()));
    let mut left: Vec<(Side, &[Vec<u8>])> = Vec::new();
    for stream in streams {
        left.push((Side::Client, &stream.asked[1..]));
        left.push((Side::Server, &stream.answered));
    }
    let mut order = order.iter().cycle();
    while !left.is_empty() {
        let at = order.next().unwrap().index(left.len());
        let (side, frames) = &mut left[at];
        if let [first, rest @ ..] = frames {
            events.push(Event::Bytes(*side, first.clone()));
            *frames = rest;
        } else {
            left.swap_remove(at);
        }
    }
    events
}

/// The same whatever the cuts, each request once, and no more than what was asked for.
fn check(events: &[Event]) -> Result<(), TestCaseError> {
    let whole = bounded(Protocol::Http, events, 9, 3)?;
    let mut seen = std::collections::BTreeSet::new();
    for request in requests(&whole) {
        prop_assert!(seen.insert(request.sequence), "{} twice", request.sequence);
        prop_assert!(
            request.target.as_ref().is_none_or(|target| target.len() <= 3 * NARROW.max_statement_bytes)
        );
        prop_assert!(request.started <= request.finished);
        prop_assert!(request.request_body <= request.request_bytes);
    }
    let ends = whole.iter().filter(|one| !matches!(one, Observation::Request(_))).count();
    prop_assert!(ends <= 1);
    Ok(())
}

fn streams() -> impl Strategy<Value = Vec<Stream>> {
    let pieces = || vec(vec(any::<u8>(), 0..30), 0..4);
    vec((pieces(), pieces(), select(vec![200_u16, 404, 503]), any::<bool>()), 1..6).prop_map(|all| {
        let ids = (0..).map(|index| index * 2 + 1);
        all.iter()
            .zip(ids)
            .map(|((asked, answer, status, indexed), id)| stream(id, asked, answer, *status, *indexed))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn cuts_change_nothing_in_http_1(
        exchanges in vec(exchange(), 1..6), together in 1_usize..4, cuts in vec(1_usize..40, 1..50),
    ) {
        let events = conversation(&exchanges, together);
        let whole = replay(&events, LIMITS, |_| usize::MAX);
        prop_assert_eq!(&whole, &replay(&events, LIMITS, |_| 1));
        prop_assert_eq!(&whole, &replay(&events, LIMITS, |piece| cuts[piece % cuts.len()]));
        let found: Vec<_> = requests(&whole)
            .iter().map(|request| (request.status.unwrap(), request.request_body, request.response_body)).collect();
        prop_assert_eq!(found, exchanges.iter().map(|exchange| exchange.expected).collect::<Vec<_>>());
        let size: u64 = requests(&whole).iter().map(|request| request.request_bytes + request.response_bytes).sum();
        let said: usize = exchanges.iter().map(|exchange| exchange.asked.len() + exchange.answered.len()).sum();
        prop_assert_eq!(size, said as u64);
    }

    #[test]
    fn cuts_and_order_change_nothing_in_http_2(
        streams in streams(), order in vec(any::<Index>(), 1..40), cuts in vec(1_usize..40, 1..50),
    ) {
        let events = interleaved(&streams, &order);
        let whole = replay(&events, LIMITS, |_| usize::MAX);
        prop_assert_eq!(&whole, &replay(&events, LIMITS, |_| 1));
        prop_assert_eq!(&whole, &replay(&events, LIMITS, |piece| cuts[piece % cuts.len()]));
        let mut all = requests(&whole);
        all.sort_by_key(|request| request.sequence);
        let found: Vec<_> =
            all.iter().map(|request| (request.status.unwrap(), request.request_body, request.response_body)).collect();
        prop_assert_eq!(found, streams.iter().map(|stream| stream.expected).collect::<Vec<_>>());
    }

    #[test]
    fn damage_is_survived_in_http_1(exchanges in vec(exchange(), 1..6), together in 1_usize..4, damage in damage()) {
        check(&damaged(conversation(&exchanges, together), &damage))?;
    }

    #[test]
    fn damage_is_survived_in_http_2(streams in streams(), order in vec(any::<Index>(), 1..40), damage in damage()) {
        check(&damaged(interleaved(&streams, &order), &damage))?;
    }

    #[test]
    fn any_lines_are_survived(
        said in vec((side(), vec(select(vec![
            "GET / HTTP/1.1\r\n", "CONNECT a:1 HTTP/1.1\r\n", "POST /x HTTP/1.0\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 101 X\r\n",
            "HTTP/1.1 100 X\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Upgrade: h2c\r\n", "\r\n", "\n",
            "hello", "3\r\nabc\r\n", "0\r\n\r\n", "0\r\n", " folded\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\x04\0\0\0\0\0",
        ]), 1..8)), 1..12),
    ) {
        let events: Vec<_> = said.into_iter().map(|(side, lines)| Event::Bytes(side, lines.concat().into_bytes())).collect();
        check(&events)?;
    }

    #[test]
    fn any_frames_are_survived(
        said in vec((side(), 0_u8..11, any::<u8>(), 0_u32..6, vec(select(b"\x82\x84\xbe\xbf\x40\x01a\x01b\x20\x3f\xe1\x1f\x88\0\x05".to_vec()), 0..20)), 0..40),
    ) {
        let mut events = hello().to_vec();
        events.extend(said.into_iter().map(|(side, kind, flags, stream, body)| {
            Event::Bytes(side, frame(kind, flags, stream, &body))
        }));
        check(&events)?;
    }
}
