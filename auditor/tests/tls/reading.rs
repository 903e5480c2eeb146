//! What the auditor makes of what passed a relay.

use auditor::clock::Boottime;
use auditor::protocol::Side;
use auditor::record::Tls;
use auditor::tls::{Connection, Counted, Event, Hash, Keyring, Secret, SecretKind};

use crate::peers::Wire;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Reading {
    pub(crate) client: Vec<u8>,
    pub(crate) server: Vec<u8>,
    /// Who spoke, in order, without repetitions.
    pub(crate) turns: Vec<Side>,
    pub(crate) facts: Tls,
    pub(crate) bound: Vec<(Side, u64)>,
    pub(crate) released: Vec<u64>,
    pub(crate) failed: usize,
    pub(crate) gaps: Vec<Side>,
    pub(crate) violations: Vec<&'static str>,
    pub(crate) opaque: Option<&'static str>,
    pub(crate) counted: [Counted; 2],
}

impl Reading {
    pub(crate) fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Plaintext { side, bytes, .. } => {
                assert!(!bytes.is_empty());
                let said = if *side == Side::Client { &mut self.client } else { &mut self.server };
                said.extend_from_slice(bytes);
                if self.turns.last() != Some(side) {
                    self.turns.push(*side);
                }
            }
            Event::Gap { side, .. } => self.gaps.push(*side),
            Event::Facts(facts) => self.facts = (*facts).clone(),
            Event::Bound { side, secret } => self.bound.push((*side, *secret)),
            Event::Released { secret } => self.released.push(*secret),
            Event::Failed { .. } => self.failed += 1,
            Event::Violation { what, .. } => self.violations.push(what),
            Event::Opaque { reason } => {
                assert_eq!(self.opaque, None, "told once");
                self.opaque = Some(reason);
            }
        }
    }

    pub(crate) fn of(wire: &Wire, keyring: &dyn Keyring) -> Self {
        let mut connection = Connection::new();
        let mut reading = Self::default();
        for (index, (side, bytes)) in wire.0.iter().enumerate() {
            connection
                .bytes(*side, Boottime(index as u64), bytes, keyring, &mut |event| reading.take(&event));
        }
        reading.finish(connection, wire)
    }

    pub(crate) fn finish(mut self, mut connection: Connection, wire: &Wire) -> Self {
        connection.close(&mut |event| self.take(&event));
        for (index, side) in [Side::Client, Side::Server].into_iter().enumerate() {
            self.counted[index] = connection.counted(side);
            assert_eq!(self.counted[index].read + self.counted[index].opaque, wire.length(side), "{side:?}");
        }
        let mut released = self.released.clone();
        released.sort_unstable();
        released.dedup();
        let mut bound: Vec<u64> = self.bound.iter().map(|(_, secret)| *secret).collect();
        bound.sort_unstable();
        bound.dedup();
        assert_eq!(released, bound, "what was claimed is released");
        self
    }
}

/// Secrets of others: as a busy host has them.
pub(crate) fn foreign(count: u64) -> Vec<Secret> {
    foreign_from(0, count)
}

/// The same, numbered from `first` on.
pub(crate) fn foreign_from(first: u64, count: u64) -> Vec<Secret> {
    (first..first + count)
        .map(|id| {
            let bytes: Vec<u8> =
                (0..48_u64).map(|at| (id.wrapping_mul(31) ^ at.wrapping_mul(7)) as u8).collect();
            let (kind, length) = match id % 3 {
                0 => (SecretKind::Traffic { hash: Hash::Sha256 }, 32),
                1 => (SecretKind::Traffic { hash: Hash::Sha384 }, 48),
                _ => (SecretKind::Master { client_random: None, server_random: None }, 48),
            };
            Secret::new(id, kind, &bytes[..length]).unwrap()
        })
        .collect()
}
