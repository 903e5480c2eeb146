//! Rows that were counted elsewhere instead of being handed over: nothing that is told may differ.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::script::*;
use crate::clock::Boottime;
use crate::protocol::postgres::Postgres;
use crate::protocol::{Dissector, Observation, Opaque, Side, Within};
use crate::stream::Skip;

/// What the kernel programs know between two segments.
#[derive(Default)]
struct Walk {
    /// Body bytes of the message under way that are still to come, and its type.
    remaining: usize,
    kind: u8,
    /// The beginning of a header.
    header: Vec<u8>,
}

impl Walk {
    /// The rows that a side's segment begins with, byte by byte: another way than the programs take.
    fn rows(&mut self, side: Side, segment: &[u8]) -> (usize, Skip) {
        let is_row = |kind: u8| kind == b'd' || kind == b'D' && side == Side::Server;
        let mut skip = Skip { length: 0, first: 0, messages: 0, body: 0, remaining: 0, message: 0 };
        let (mut end, mut open) = (0, self.header.is_empty());
        let mut own = self.remaining == 0;
        for (place, byte) in segment.iter().enumerate() {
            if self.remaining > 0 {
                self.remaining -= 1;
                if open && is_row(self.kind) {
                    skip.message = self.kind;
                    skip.first += u32::from(!own);
                    end = place + 1;
                    skip.remaining = u32::try_from(self.remaining).unwrap();
                } else {
                    open = false;
                }
                continue;
            }
            own = true;
            self.header.push(*byte);
            if self.header.len() < 5 {
                continue;
            }
            self.kind = self.header[0];
            self.remaining = u32::from_be_bytes(self.header[1..].try_into().unwrap()) as usize - 4;
            self.header.clear();
            open &= is_row(self.kind) && (skip.message == 0 || skip.message == self.kind);
            if open {
                skip.message = self.kind;
                skip.messages += 1;
                skip.body = u32::try_from(self.remaining).unwrap();
                skip.remaining = skip.body;
                end = place + 1;
            }
        }
        skip.length = u32::try_from(end).unwrap();
        (end, skip)
    }
}

/// Plays both sides in segments of these lengths, with their rows counted where `counted` says so. Where they are is what the dissector
/// says.
fn play(said: &[(Side, Vec<u8>)], lengths: &[usize], counted: &[bool]) -> Vec<Observation> {
    let mut dissector = Postgres::new(LIMITS);
    let mut out = Vec::new();
    let mut walks = [None, None];
    let mut segment = 0;
    for (side, bytes) in said {
        let walk = &mut walks[usize::from(*side == Side::Server)];
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(lengths[segment % lengths.len()].clamp(1, rest.len()));
            rest = later;
            let counts = counted[segment % counted.len()];
            segment += 1;
            let mut copied = now;
            let place = dissector.place(*side);
            if let (None, Some(Within { remaining, kind })) = (&walk, place) {
                *walk = Some(Walk { remaining: remaining as usize, kind, header: Vec::new() });
            } else if let (Some(walk), Some(place)) = (&walk, place) {
                assert_eq!((place.remaining as usize, walk.header.len()), (walk.remaining, 0));
                assert!(place.remaining == 0 || place.kind == walk.kind);
            }
            if let Some(walk) = walk {
                let (end, skip) = walk.rows(*side, now);
                if counts && end > 0 && dissector.counts_rows() {
                    dissector.skipped(*side, Boottime(1), &skip, &mut out);
                    copied = &now[end..];
                }
            }
            dissector.bytes(*side, Boottime(1), copied, &mut out);
        }
    }
    dissector.close(Boottime(2), &mut out);
    out
}

fn answers() -> impl Strategy<Value = Vec<(Side, Vec<u8>)>> {
    // Bodies that look like messages, and empty ones.
    let body = prop_oneof![
        vec(any::<u8>(), 0..40),
        Just([complete("DELETE 0"), ready(b'I')].concat()),
        Just(ready(b'I').repeat(3)),
    ];
    let rows = vec(body, 0..30);
    let noise = select(vec![
        Vec::new(),
        message(b'N', b"VNOTICE\0C00000\0Mhm\0\0"),
        message(b'S', b"TimeZone\0UTC\0"),
    ]);
    let answer = (0..6, rows.clone(), rows, noise).prop_map(|(kind, rows, more, noise)| {
        let all = |kind: u8, bodies: &[Vec<u8>]| -> Vec<u8> {
            bodies.iter().flat_map(|body| message(kind, body)).collect()
        };
        let count = |bodies: &[Vec<u8>]| complete(&format!("SELECT {}", bodies.len()));
        let run = [parse("", "X", &[]), bind("", "", &[], &[]), execute(""), execute(""), sync()].concat();
        if kind == 5 {
            let mut client = all(b'd', &rows);
            client.extend(bare("c"));
            return vec![
                (Side::Client, query("COPY IN")),
                (Side::Server, message(b'G', b"\0\0\0")),
                (Side::Client, client),
                (Side::Server, [complete(&format!("COPY {}", rows.len())), ready(b'I')].concat()),
                (Side::Client, query("F")),
                (Side::Server, [complete("DELETE 1"), ready(b'I')].concat()),
            ];
        }
        let (client, server) = match kind {
            0 => (
                query("A"),
                [all(b'D', &rows), noise, all(b'D', &more), complete("SELECT 9"), ready(b'I')].concat(),
            ),
            1 => (
                query("B; C"),
                [all(b'D', &rows), count(&rows), noise, all(b'D', &more), count(&more), ready(b'T')].concat(),
            ),
            2 => (query("D"), [all(b'D', &rows), noise, error("22012"), ready(b'E')].concat()),
            3 => (
                query("COPY; E"),
                [
                    message(b'H', b"\0\0\0"),
                    all(b'd', &rows),
                    bare("c"),
                    complete("COPY 3"),
                    all(b'D', &more),
                    count(&more),
                    ready(b'I'),
                ]
                .concat(),
            ),
            _ => (
                run,
                [bare("12"), all(b'D', &rows), bare("s"), noise, all(b'D', &more), count(&more), ready(b'I')]
                    .concat(),
            ),
        };
        vec![(Side::Client, client), (Side::Server, server)]
    });
    vec(answer, 1..6).prop_map(|answers| {
        let mut said = Script::session().said;
        said.extend(answers.into_iter().flatten());
        said
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn counted_rows_change_nothing(
        said in answers(),
        lengths in vec(1_usize..200, 1..20),
        counted in vec(any::<bool>(), 1..20),
    ) {
        let whole = play(&said, &[usize::MAX], &[false]);
        prop_assert_eq!(&whole, &play(&said, &lengths, &[true]));
        prop_assert_eq!(&whole, &play(&said, &lengths, &counted));
        // Bytes too, which are not compared above if none were told.
        prop_assert!(whole.iter().any(|observation| matches!(observation, Observation::Statement(_))));
    }

    #[test]
    fn any_count_is_survived(
        said in answers(),
        lengths in vec(1_usize..200, 1..20),
        (length, first, messages) in (1_u32..500, 0_u32..60, 0_u32..20),
        (body, remaining) in (0_u32..60, 0_u32..60),
        message in select(b"DdCZ".to_vec()),
        place: prop::sample::Index,
    ) {
        let skip = Skip { length, first, messages, body, remaining, message };
        let mut dissector = Postgres::new(LIMITS);
        let mut out = Vec::new();
        let place = place.index(said.len());
        for (index, (side, bytes)) in said.iter().enumerate() {
            if index == place {
                dissector.skipped(Side::Server, Boottime(1), &skip, &mut out);
            }
            bytes.chunks(lengths[0]).for_each(|piece| dissector.bytes(*side, Boottime(1), piece, &mut out));
        }
        dissector.close(Boottime(2), &mut out);
        // Whatever it says, each statement is told once, and with its own text: that is the client's side.
        let told = |out: &[Observation]| -> Vec<(u64, Vec<u8>)> {
            let statements = out.iter().filter_map(|observation| match observation {
                Observation::Statement(statement) => Some((statement.sequence, statement.text.to_vec())),
                _ => None,
            });
            statements.collect()
        };
        if !out.iter().any(|observation| matches!(observation, Observation::Violation(_) | Observation::Opaque(_))) {
            let whole = told(&play(&said, &[usize::MAX], &[false]));
            let found = told(&out);
            prop_assert_eq!(whole.len(), found.len());
            for ((_, text), (_, found)) in whole.iter().zip(&found) {
                prop_assert!(text == found || found.is_empty());
            }
        }
    }
}

#[test]
fn a_count_that_contradicts_what_was_read_ends_the_reading_of_answers() {
    let row = |skip: Skip, before: &[u8]| {
        let mut dissector = Postgres::new(LIMITS);
        let mut out = Vec::new();
        for (side, bytes) in Script::session().client(&[query("X")]).said {
            dissector.bytes(side, Boottime(0), &bytes, &mut out);
        }
        dissector.bytes(Side::Server, Boottime(0), before, &mut out);
        dissector.skipped(Side::Server, Boottime(1), &skip, &mut out);
        assert!(!dissector.counts_rows(), "{skip:?}");
        dissector.bytes(Side::Server, Boottime(1), &[complete("SELECT 1"), ready(b'I')].concat(), &mut out);
        dissector.close(Boottime(2), &mut out);
        let Some(Observation::Statement(statement)) = out.last() else { panic!("{out:?}") };
        assert_eq!(summary(statement), "Simple X | unknown |  | - | incomplete");
    };
    let skip = Skip { length: 20, first: 0, messages: 2, body: 5, remaining: 0, message: b'D' };
    let within = &message(b'D', &[7; 30])[..20];
    // A body under way that the count does not know of, or of another length, or of another kind.
    row(skip, within);
    row(Skip { first: 14, messages: 1, body: 1, ..skip }, within);
    row(Skip { length: 15, first: 15, messages: 0, body: 0, message: b'd', ..skip }, within);
    row(Skip { length: 10, first: 10, messages: 0, body: 0, remaining: 4, ..skip }, within);
    // One that is not under way, a header that is, and messages that cannot fit.
    row(Skip { first: 5, ..skip }, b"");
    row(skip, b"D\0\0");
    row(Skip { length: 9, ..skip }, b"");
    row(Skip { remaining: 6, ..skip }, b"");
}

#[test]
fn a_count_of_what_a_client_cannot_have_said_ends_the_reading() {
    for (message, first, before) in
        [(b'D', 0, &b""[..]), (b'd', 4, b""), (b'd', 0, b"Q\0\0"), (b'd', 3, b"Q\0\0\0\x0aSEL")]
    {
        let mut dissector = Postgres::new(LIMITS);
        let mut out = Vec::new();
        for (side, bytes) in Script::session().client(&[query("X")]).said {
            dissector.bytes(side, Boottime(0), &bytes, &mut out);
        }
        dissector.bytes(Side::Client, Boottime(0), before, &mut out);
        let skip = Skip { length: 20 + first, first, messages: 2, body: 5, remaining: 0, message };
        dissector.skipped(Side::Client, Boottime(1), &skip, &mut out);
        assert!(!dissector.counts_rows(), "{skip:?}");
        let told: Vec<&[u8]> = out
            .iter()
            .filter_map(|observation| match observation {
                Observation::Statement(statement) => Some(&statement.text[..]),
                _ => None,
            })
            .collect();
        let partial: &[&[u8]] = if before.len() > 5 { &[b"X", b"SEL"] } else { &[b"X"] };
        assert_eq!(told, partial, "what was said up to there is told");
        assert!(matches!(out.last(), Some(Observation::Opaque(Opaque::Hole))), "{out:?}");
    }
}
