//! Arbitrary bytes, holes and secrets on both sides of a TLS connection.
//!
//! The input begins with secrets: a byte with their number, and for each a byte with its kind and its bytes. Then comes a list
//! of events: a byte whose lowest bits say who speaks (or whether a hole follows), two bytes of length, and that many bytes.
//! Whatever they are, nothing panics; cuts, restarts and late secrets change nothing; every byte is counted once; and what is
//! kept is bounded.
#![no_main]

use auditor::clock::Boottime;
use auditor::protocol::Side;
use auditor::record::Tls;
use auditor::tls::{Connection, Event, Hash, Keyring, Secret, SecretKind};
use libfuzzer_sys::fuzz_target;

/// What does not depend on how bytes arrive.
#[derive(Debug, Default, PartialEq)]
struct Told {
    client: Vec<u8>,
    server: Vec<u8>,
    facts: Tls,
    failed: usize,
    gaps: usize,
    violation: Option<&'static str>,
    opaque: Option<&'static str>,
}

impl Told {
    fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Plaintext { side: Side::Client, bytes, .. } => self.client.extend_from_slice(bytes),
            Event::Plaintext { side: Side::Server, bytes, .. } => self.server.extend_from_slice(bytes),
            Event::Facts(facts) => self.facts = (*facts).clone(),
            Event::Failed { .. } => self.failed += 1,
            Event::Gap { .. } => self.gaps += 1,
            Event::Violation { what, .. } => assert_eq!(self.violation.replace(what), None, "told once"),
            Event::Opaque { reason } => assert_eq!(self.opaque.replace(reason), None, "told once"),
            Event::Bound { .. } | Event::Released { .. } => {}
        }
    }
}

fn secrets(input: &mut &[u8]) -> Option<Vec<Secret>> {
    let (count, mut rest) = input.split_first()?;
    let mut secrets = Vec::new();
    for id in 1..=u64::from(count % 8) {
        let (kind, after) = rest.split_first()?;
        let (kind, length) = match kind % 3 {
            0 => (SecretKind::Traffic { hash: Hash::Sha256 }, 32),
            1 => (SecretKind::Traffic { hash: Hash::Sha384 }, 48),
            _ => (SecretKind::Master { client_random: None, server_random: None }, 48),
        };
        let (bytes, after) = after.split_at_checked(length)?;
        secrets.push(Secret::new(id, kind, bytes)?);
        rest = after;
    }
    *input = rest;
    Some(secrets)
}

fn replay(mut input: &[u8], cut: usize, restart: bool, keyring: &dyn Keyring) -> Told {
    let mut connection = Connection::new();
    let mut told = Told::default();
    let mut fed = [0; 2];
    while let [head, high, low, rest @ ..] = input {
        let side = if head & 1 == 0 { Side::Client } else { Side::Server };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if head & 0b1110 == 0b1110 {
            connection.gap(side, Boottime(0), length as u64, keyring, &mut |event| told.take(&event));
            input = rest;
        } else {
            let (bytes, rest) = rest.split_at(length.min(rest.len()));
            for piece in bytes.chunks(cut) {
                connection.bytes(side, Boottime(0), piece, keyring, &mut |event| told.take(&event));
            }
            fed[usize::from(head & 1)] += bytes.len() as u64;
            input = rest;
        }
        if restart {
            let state = postcard::to_stdvec(&connection).expect("a state can be written");
            connection = postcard::from_bytes(&state).expect("a state can be read back");
        }
    }
    connection.close(&mut |event| told.take(&event));
    for (fed, side) in fed.into_iter().zip([Side::Client, Side::Server]) {
        let counted = connection.counted(side);
        assert_eq!(counted.read + counted.opaque, fed, "each byte is counted once");
    }
    told
}

fuzz_target!(|input: &[u8]| {
    let mut events = input;
    let Some(keyring) = secrets(&mut events) else { return };
    let whole = replay(events, usize::MAX, false, &keyring);
    assert_eq!(whole, replay(events, 1, false, &keyring), "cut into bytes");
    assert_eq!(whole, replay(events, 7, true, &keyring), "restarted");
    assert!(whole.client.len() + whole.server.len() <= events.len());
    // An escaped byte takes four characters; a name is in a record at most twice.
    assert!(format!("{:?}", whole.facts).len() <= 4096 + 16 * events.len());
});
