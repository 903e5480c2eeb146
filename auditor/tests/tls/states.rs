//! One conversation in all the ways in which it can reach the auditor: cut anywhere, interrupted by a restart, with its
//! secrets late, false or never, with little time to look for them, damaged, and with holes.

use std::cell::Cell;
use std::ops::RangeInclusive;

use auditor::clock::Boottime;
use auditor::protocol::Side;
use auditor::tls::{Connection, Keyring, LONGEST_WAIT, Secret, Wanted};

use crate::peers::{KeyLog, Place, Wire};
use crate::reading::{Reading, foreign, foreign_from};
use crate::talk::{CERTIFICATE, EARLY, Step, Talk, talk, talks};

/// Conversations with much in little, with their secrets.
fn conversations() -> Vec<(&'static str, Talk, KeyLog)> {
    let mut all = Vec::new();
    let one = Step::Line(9);
    let mut keep = |name, place: &Place, talk| all.push((name, talk, place.secrets()));
    let place = Place::new();
    let words = ["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"];
    keep("1.3", &place, talk(&place, &words, &words, &[one, Step::Command("K\n"), one]));
    let place = Place::new();
    let words = ["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384"];
    let server = [&words[..], &["-client_renegotiation"]].concat();
    keep("1.2", &place, talk(&place, &server, &words, &[one, Step::Command("R\n"), one]));
    let place = Place::new();
    std::fs::write(place.path().join("early"), EARLY).unwrap();
    let server = [&CERTIFICATE[..], &["-tls1_3", "-early_data"]].concat();
    let first = (&["-tls1_3", "-sess_out", "session"][..], &b""[..], &[one][..]);
    let second = ["-tls1_3", "-sess_in", "session", "-early_data", "early"];
    let mut both = talks(&place, &server, &[first, (&second, EARLY, &[one])]);
    keep("0-RTT", &place, both.remove(1));
    all
}

fn feed(
    connection: &mut Connection,
    reading: &mut Reading,
    at: usize,
    side: Side,
    bytes: &[u8],
    keyring: &dyn Keyring,
) {
    connection.bytes(side, Boottime(at as u64), bytes, keyring, &mut |event| reading.take(&event));
}

/// The same bytes in pieces of other lengths.
fn cut(wire: &Wire, length: usize) -> Wire {
    let pieces =
        wire.0.iter().flat_map(|(side, bytes)| bytes.chunks(length).map(|piece| (*side, piece.to_vec())));
    Wire(pieces.collect())
}

#[test]
fn cuts_change_nothing() {
    for (name, talk, log) in conversations() {
        let secrets = log.alone();
        let whole = Reading::of(&talk.wire, &secrets);
        assert_eq!(
            (&whole.client, &whole.server, whole.opaque),
            (&talk.client, &talk.server, None),
            "{name}"
        );
        for length in [1, 2, 3, 4, 5, 6, 7, 11, 16, 21, 22, 23, 100, 1448] {
            assert_eq!(Reading::of(&cut(&talk.wire, length), &secrets), whole, "{name} in {length}");
        }
        // One cut, at each place.
        for (index, (side, bytes)) in talk.wire.0.iter().enumerate() {
            for at in 1..bytes.len() {
                let mut wire = talk.wire.clone();
                wire.0[index].1.truncate(at);
                wire.0.insert(index + 1, (*side, bytes[at..].to_vec()));
                assert_eq!(Reading::of(&wire, &secrets), whole, "{name}: piece {index} at {at}");
            }
        }
    }
}

#[test]
fn a_connection_goes_on_from_what_was_written_down() {
    for (name, talk, log) in conversations() {
        let secrets = log.alone();
        let whole = Reading::of(&talk.wire, &secrets);
        let mut reading = Reading::default();
        let mut connection = Connection::new();
        for (index, (side, bytes)) in cut(&talk.wire, 1).0.iter().enumerate() {
            let state = postcard::to_stdvec(&connection).unwrap();
            for (_, secret) in &log.0 {
                assert_eq!(
                    memchr::memmem::find(&state, &secret[..8]),
                    None,
                    "{name}: a secret is written down"
                );
            }
            connection = postcard::from_bytes(&state).unwrap();
            feed(&mut connection, &mut reading, index, *side, bytes, &secrets);
            if index % 97 != 0 {
                continue;
            }
            // In Debug, bytes are a list of decimal numbers.
            let shown = format!("{connection:?} {secrets:?}");
            for (_, secret) in &log.0 {
                let listed = format!("{:?}", &secret[..8]);
                assert!(!shown.contains(listed.trim_matches(['[', ']'])), "{name}: a secret is shown");
            }
        }
        assert_eq!(reading.finish(connection, &talk.wire), whole, "{name}");
    }
}

#[test]
fn secrets_may_come_late() {
    for (name, talk, log) in conversations() {
        let mut all = foreign(30);
        log.offer(&mut all);
        let whole = Reading::of(&talk.wire, &all);
        for late in 0..=talk.wire.0.len() {
            let mut connection = Connection::new();
            let mut reading = Reading::default();
            let nothing = foreign(30);
            let mut keyring = foreign(30);
            for (index, (side, bytes)) in talk.wire.0.iter().enumerate() {
                if index == late {
                    log.offer(&mut keyring);
                    connection.offer(&keyring, &mut |event| reading.take(&event));
                }
                let keyring = if index < late { &nothing } else { &keyring };
                feed(&mut connection, &mut reading, index, *side, bytes, keyring);
            }
            if late == talk.wire.0.len() {
                assert!(connection.waits(), "{name}");
                log.offer(&mut keyring);
                connection.offer(&keyring, &mut |event| reading.take(&event));
            }
            let read = reading.finish(connection, &talk.wire);
            // Also the order in which both spoke.
            assert_eq!(read, whole, "{name}: {late} pieces without");
        }
    }
}

/// A keyring with so much work left.
struct Limited {
    secrets: Vec<Secret>,
    left: Cell<u64>,
}

impl Keyring for Limited {
    fn candidates<'a>(
        &'a self,
        wanted: Wanted<'a>,
        numbers: RangeInclusive<u64>,
    ) -> Box<dyn Iterator<Item = &'a Secret> + 'a> {
        self.secrets.candidates(wanted, numbers)
    }

    fn newest(&self) -> u64 {
        self.secrets.newest()
    }

    fn affords(&self, work: u64) -> bool {
        let left = self.left.get().checked_sub(work);
        self.left.set(left.unwrap_or(self.left.get()));
        left.is_some()
    }

    fn get(&self, id: u64) -> Option<&Secret> {
        self.secrets.get(id)
    }
}

/// Feeds a conversation byte by byte, with so much work for each byte and a restart at each.
fn with_little_time(talk: &Talk, keyring: &Limited, each: u64) -> Reading {
    let (mut connection, mut reading) = (Connection::new(), Reading::default());
    for (index, (side, bytes)) in cut(&talk.wire, 1).0.iter().enumerate() {
        keyring.left.set(each);
        feed(&mut connection, &mut reading, index, *side, bytes, keyring);
        connection = postcard::from_bytes(&postcard::to_stdvec(&connection).unwrap()).unwrap();
    }
    keyring.left.set(each);
    connection.offer(keyring, &mut |event| reading.take(&event));
    reading.finish(connection, &talk.wire)
}

#[test]
fn the_search_among_many_secrets_goes_on_where_it_stopped() {
    for (name, talk, log) in conversations() {
        let whole = Reading::of(&talk.wire, &log.alone());
        // The true ones are older than all others.
        let mut secrets = log.alone();
        let first = secrets.newest() + 1;
        secrets.extend(foreign_from(first, 300));
        let keyring = Limited { secrets, left: Cell::new(0) };
        // Some ten secrets for each byte that comes.
        let reading = with_little_time(&talk, &keyring, 200 << 10);
        assert_eq!(reading, whole, "{name}");
    }
}

#[test]
fn what_there_is_no_time_for_is_opaque_and_says_so() {
    for (name, talk, log) in conversations() {
        let keyring = Limited { secrets: log.alone(), left: Cell::new(0) };
        let reading = with_little_time(&talk, &keyring, 0);
        assert_eq!(reading.opaque, Some("too-many-secrets"), "{name}");
        assert_eq!((reading.client.len(), reading.server.len()), (0, 0), "{name}");
    }
}

#[test]
fn without_secrets_what_is_in_the_clear_is_told_and_the_rest_is_opaque() {
    for (name, talk, _) in conversations() {
        let mut connection = Connection::new();
        let mut reading = Reading::default();
        for (index, (side, bytes)) in talk.wire.0.iter().enumerate() {
            feed(&mut connection, &mut reading, index, *side, bytes, &foreign(300));
        }
        assert!(connection.waits(), "{name}");
        connection.give_up("library", &Vec::new(), &mut |event| reading.take(&event));
        assert_eq!(connection.opaque(), Some("library"));
        let read = reading.finish(connection, &talk.wire);
        assert_eq!((read.client.len(), read.server.len(), read.opaque), (0, 0, Some("library")), "{name}");
        assert_eq!((read.failed, read.violations.len(), read.facts.decrypted), (0, 0, false));
        assert_eq!(read.facts.server.is_some(), name == "1.2");
        assert!(read.counted.iter().all(|counted| counted.read > 50 && counted.opaque > 50));
    }
}

#[test]
fn what_waits_is_bounded() {
    let place = Place::new();
    let talk = talk(&place, &["-tls1_3"], &["-tls1_3"], &[Step::Line(600_000)]);
    let mut connection = Connection::new();
    let mut reading = Reading::default();
    for (index, (side, bytes)) in talk.wire.0.iter().enumerate() {
        feed(&mut connection, &mut reading, index, *side, bytes, &foreign(30));
        let state = postcard::to_stdvec(&connection).unwrap();
        assert!(state.len() < 2 * LONGEST_WAIT + (64 << 10), "{}", state.len());
    }
    let read = reading.finish(connection, &talk.wire);
    assert_eq!(
        (read.client.len(), read.opaque, read.facts.reason),
        (0, Some("no-secret"), Some("no-secret"))
    );
}

/// Where the records of a direction are: first byte of the header, and length with it.
fn records(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut records = Vec::new();
    let mut at = 0;
    while let [_, _, _, high, low, ..] = bytes[at..] {
        let length = 5 + usize::from(u16::from_be_bytes([high, low]));
        records.push((at, length));
        at += length;
    }
    assert_eq!(at, bytes.len());
    records
}

/// The bytes of a direction in one piece each turn, with what `change` makes of them all.
fn changed(wire: &Wire, side: Side, change: impl Fn(&mut Vec<u8>)) -> Wire {
    let mut all: Vec<u8> =
        wire.0.iter().filter(|(of, _)| *of == side).flat_map(|(_, bytes)| bytes.clone()).collect();
    let length = all.len();
    change(&mut all);
    assert_eq!(all.len(), length);
    let mut rest = &all[..];
    let pieces = wire.0.iter().map(|(of, bytes)| {
        if *of != side {
            return (*of, bytes.clone());
        }
        let (piece, after) = rest.split_at(bytes.len());
        rest = after;
        (*of, piece.to_vec())
    });
    Wire(pieces.collect())
}

#[test]
fn a_flipped_bit_is_told_and_nothing_false_is_read() {
    let suites = [
        ("-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"),
        ("-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"),
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"),
    ];
    for (version, option, suite) in suites {
        for more in [&[][..], &["-no_etm"]] {
            let place = Place::new();
            let words = [version, option, suite];
            let server = [&words[..], more].concat();
            let talk = talk(&place, &server, &words, &[Step::Line(3), Step::Line(3), Step::Line(3)]);
            let keyring = place.secrets().alone();
            let whole = Reading::of(&talk.wire, &keyring);
            let client: Vec<u8> = talk
                .wire
                .0
                .iter()
                .filter(|(of, _)| *of == Side::Client)
                .flat_map(|(_, bytes)| bytes.clone())
                .collect();
            // The last records are the three lines and an alert.
            let records = records(&client);
            let (start, length) = records[records.len() - 3];
            for bit in 0..length * 8 {
                let wire =
                    changed(&talk.wire, Side::Client, |bytes| bytes[start + bit / 8] ^= 1 << (bit % 8));
                let read = Reading::of(&wire, &keyring);
                let told = read.failed > 0 || !read.violations.is_empty() || read.opaque.is_some();
                assert!(told, "{suite}: bit {bit} of {length} bytes");
                let body = bit >= 5 * 8;
                assert!(!body || read.failed == 1, "{suite}: bit {bit}: {read:?}");
                assert!(!body || read.gaps == [Side::Client]);
                // What is read is of what was said, and in that order; the damaged line is not.
                let lines = |bytes: &[u8]| {
                    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
                };
                let said = lines(&whole.client);
                let mut left = said.iter();
                assert!(
                    lines(&read.client).iter().all(|line| left.any(|known| known == line)),
                    "{suite}: bit {bit}"
                );
                assert!(!lines(&read.client).contains(&said[1]), "{suite}: bit {bit}");
                assert!(read.counted[0].opaque >= length as u64 || !body);
            }
        }
    }
}

#[test]
fn behind_a_gap_it_goes_on_where_that_can_be_proven() {
    for (version, option, suite) in [
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"),
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384"),
    ] {
        let place = Place::new();
        let words = [version, option, suite];
        let steps = [
            Step::Line(10),
            Step::Line(200),
            Step::Line(3),
            Step::Line(50),
            Step::Line(7),
            Step::Line(90),
            Step::Line(1),
        ];
        let talk = talk(&place, &words, &words, &steps);
        let keyring = place.secrets().alone();
        let client: Vec<u8> = talk
            .wire
            .0
            .iter()
            .filter(|(of, _)| *of == Side::Client)
            .flat_map(|(_, bytes)| bytes.clone())
            .collect();
        let records = records(&client);
        // Seven lines and an alert; the first and the last line are never touched.
        let lines = &records[records.len() - 8..];
        let (from, to) = (lines[1].0, lines[6].0);
        let last: Vec<u8> = talk.client.split_inclusive(|byte| *byte == b'\n').next_back().unwrap().to_vec();
        let mut lost = 0;
        for start in (from..to).step_by(11) {
            for end in (start + 1..to).step_by(29) {
                let mut connection = Connection::new();
                let mut reading = Reading::default();
                let mut at = 0;
                for (index, (side, bytes)) in talk.wire.0.iter().enumerate() {
                    if *side == Side::Server {
                        feed(&mut connection, &mut reading, index, *side, bytes, &keyring);
                        continue;
                    }
                    let (first, after) = (at, at + bytes.len());
                    at = after;
                    let cut = |place: usize| place.clamp(first, after) - first;
                    feed(&mut connection, &mut reading, index, *side, &bytes[..cut(start)], &keyring);
                    let gap = cut(end) - cut(start);
                    connection.gap(*side, Boottime(index as u64), gap as u64, &keyring, &mut |event| {
                        reading.take(&event)
                    });
                    feed(&mut connection, &mut reading, index, *side, &bytes[cut(end)..], &keyring);
                    lost = end - start;
                }
                connection.close(&mut |event| reading.take(&event));
                let said = format!("{suite}: {start}..{end}");
                assert_eq!(
                    (reading.opaque, reading.failed, &reading.violations),
                    (None, 0, &vec![]),
                    "{said}"
                );
                assert!(reading.client.ends_with(&last), "{said}");
                assert!(reading.client.len() < talk.client.len() && !reading.gaps.is_empty(), "{said}");
                assert_eq!(reading.server, talk.server, "{said}");
                let counted = connection.counted(Side::Client);
                assert_eq!(counted.read + counted.opaque + lost as u64, client.len() as u64, "{said}");
            }
        }
    }
}
