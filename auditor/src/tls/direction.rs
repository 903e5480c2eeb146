//! One direction of a connection: what has arrived, and what the next record is protected with.

use std::ops::RangeInclusive;

use zeroize::Zeroizing;

use super::connection::Counted;
use super::message::Messages;
use super::protection::Protection;
use super::record::{self, Buffer};
use super::resync::Resync;
use super::schedule;
use super::secret::{LONGEST_SECRET, Secret};
use super::stack;
use super::suite::Suite;
use crate::protocol::Side;

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Direction {
    pub(super) buffer: Buffer,
    pub(super) messages: Messages,
    pub(super) epoch: Epoch,
    pub(super) counted: Counted,
    /// Its own close_notify or fatal alert was read.
    pub(super) closed: bool,
    /// Bytes to come of a record that a gap has begun to take.
    pub(super) skip: usize,
    /// Behind a gap: the place of the next record is not known.
    pub(super) resync: Option<Resync>,
    /// What comes next follows a gap: it is not known whether these are still the keys.
    pub(super) unsure: bool,
    /// The traffic secret before this one: records that are sent again must not claim it.
    pub(super) spent: Option<u64>,
    #[serde(skip)]
    pub(super) live: Option<Live>,
    pub(super) tried: Tried,
}

/// What the next record is protected with.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) enum Epoch {
    #[default]
    Clear,
    Protected(Keys),
}

/// Everything about a direction's keys but the keys.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Keys {
    pub(super) stage: Stage,
    pub(super) suite: u16,
    /// Number of the secret that they are from, once a record has proven it.
    pub(super) secret: Option<u64>,
    /// Key updates since that secret.
    pub(super) updates: u32,
    /// Number of the next record.
    pub(super) sequence: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Stage {
    /// TLS 1.3: early data.
    Early,
    /// TLS 1.3: the handshake.
    Handshake,
    /// TLS 1.3: application data.
    Application,
    /// TLS 1.2, from ChangeCipherSpec on.
    Session { client_random: [u8; 32], server_random: [u8; 32], encrypt_then_mac: bool },
}

impl Stage {
    /// Whether the first record of a stage can be of this type.
    pub(super) const fn may_hold(self, kind: u8) -> bool {
        match self {
            Self::Handshake | Self::Session { .. } => matches!(kind, record::HANDSHAKE | record::ALERT),
            Self::Early | Self::Application => {
                matches!(kind, record::HANDSHAKE | record::ALERT | record::APPLICATION_DATA)
            }
        }
    }
}

/// Keys that are derived.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) protection: Protection,
    /// Under TLS 1.3 what the next key update is derived from.
    traffic: Option<TrafficSecret>,
}

/// Boxed, since a value that moves leaves itself behind.
pub(super) struct TrafficSecret(Box<Zeroizing<[u8; LONGEST_SECRET]>>);

impl std::fmt::Debug for TrafficSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TrafficSecret")
    }
}

/// What need not be tried again. Written down too: how much work was done decides what is found, for the next daemon as well.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Tried {
    /// Secrets from this number on,
    pub(super) from: u64,
    /// up to this one; 0: none,
    pub(super) to: u64,
    /// on so many records.
    pub(super) records: usize,
    /// There are others, for which there was no time.
    pub(super) left: bool,
}

impl Tried {
    /// The numbers of secrets that are to be tried on a record, newest first.
    pub(super) fn untried(self, record: usize) -> [Option<RangeInclusive<u64>>; 2] {
        if record >= self.records || self.to == 0 {
            return [Some(0..=u64::MAX), None];
        }
        [Some(self.to.saturating_add(1)..=u64::MAX), self.from.checked_sub(1).map(|last| 0..=last)]
    }

    /// Notes that all up to `newest` were tried on so many records.
    pub(super) fn all(&mut self, newest: u64, records: usize) {
        *self = Self { from: 0, to: newest.max(self.to), records, left: false };
    }

    /// Notes that on the first record there was no time for `secret`, after those from `newest` down to it.
    pub(super) fn stopped(&mut self, secret: u64, newest: u64) {
        let before = self.records > 0 && self.to > 0;
        if before && secret < self.from {
            *self = Self { from: secret + 1, to: newest.max(self.to), records: 1, left: true };
        } else if secret < newest {
            // What was tried before lies behind some that were not: two ranges are not kept.
            *self = Self { from: secret + 1, to: newest, records: 1, left: true };
        }
        self.left = true;
    }
}

impl Direction {
    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.buffer.memory() + self.messages.memory()
    }

    pub(super) fn suite(&self) -> Option<Suite> {
        match &self.epoch {
            Epoch::Clear => None,
            Epoch::Protected(keys) => Suite::of(keys.suite),
        }
    }
}

impl Epoch {
    pub(super) const fn secret(&self) -> Option<u64> {
        match self {
            Self::Clear => None,
            Self::Protected(keys) => keys.secret,
        }
    }
}

impl Live {
    pub(super) fn derive(
        side: Side,
        stage: Stage,
        suite: Suite,
        updates: u32,
        secret: &Secret,
    ) -> Option<Self> {
        stack::leaving_nothing(|| Self::of_secret(side, stage, suite, updates, secret))
    }

    fn of_secret(side: Side, stage: Stage, suite: Suite, updates: u32, secret: &Secret) -> Option<Self> {
        if let Stage::Session { client_random, server_random, encrypt_then_mac } = stage {
            let protection = Protection::tls12(
                suite,
                secret.bytes(),
                &client_random,
                &server_random,
                side,
                encrypt_then_mac,
            )?;
            return Some(Self { protection, traffic: None });
        }
        let mut traffic = Box::new(Zeroizing::new([0; LONGEST_SECRET]));
        traffic.get_mut(..secret.bytes().len())?.copy_from_slice(secret.bytes());
        for _ in 0..updates {
            schedule::next_traffic_secret(suite.hash, &mut traffic);
        }
        let protection = Protection::tls13(suite, &traffic[..suite.hash.length()])?;
        Some(Self { protection, traffic: Some(TrafficSecret(traffic)) })
    }

    pub(super) fn update(&mut self, suite: Suite) -> bool {
        let Some(TrafficSecret(traffic)) = &mut self.traffic else { return false };
        let next = stack::leaving_nothing(|| {
            schedule::next_traffic_secret(suite.hash, traffic);
            Protection::tls13(suite, &traffic[..suite.hash.length()])
        });
        next.is_some_and(|protection| {
            self.protection = protection;
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes on with a search among secrets 1 to `newest` that has time for so many.
    fn search(tried: &mut Tried, newest: u64, mut time: usize) -> Vec<u64> {
        let mut looked = Vec::new();
        for secret in tried
            .untried(0)
            .into_iter()
            .flatten()
            .flat_map(|numbers| (1..=newest).rev().filter(move |id| numbers.contains(id)))
        {
            if time == 0 {
                tried.stopped(secret, looked.first().copied().unwrap_or(secret));
                return looked;
            }
            time -= 1;
            looked.push(secret);
        }
        tried.all(newest, 1);
        looked
    }

    #[test]
    fn a_search_goes_on_with_what_is_new_and_then_where_it_stopped() {
        let mut tried = Tried::default();
        assert_eq!(search(&mut tried, 9, 3), [9, 8, 7]);
        assert!(tried.left);
        assert_eq!(search(&mut tried, 9, 2), [6, 5]);
        assert_eq!(search(&mut tried, 9, 0), [0; 0]);
        assert_eq!(search(&mut tried, 11, 3), [11, 10, 4]);
        // No time for all that is new: what is between is not forgotten.
        assert_eq!(search(&mut tried, 15, 2), [15, 14]);
        assert_eq!(search(&mut tried, 15, 99), [13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(!tried.left);
        assert_eq!(search(&mut tried, 16, 99), [16]);
    }
}
