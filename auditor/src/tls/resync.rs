//! Behind a gap: where the next record begins, and which one it is.
//!
//! Where a gap ends within a record whose header was seen, both are known. Elsewhere neither is, and both are guessed: each
//! place where a header can be, each number that the record can have. The record's authentication is the proof, so a guess
//! that is taken is right. The work is bounded, for each search and by what the keyring affords; what is not found within it is opaque.

use super::connection::{Connection, Event, Output};
use super::direction::{Epoch, Stage};
use super::message::Messages;
use super::record::{self, HEADER, Header, LONGEST};
use super::secret::Keyring;
use crate::clock::Boottime;
use crate::protocol::Side;

/// Bytes that may be decrypted in vain.
const MOST_WORK: u64 = 64 << 20;
/// Numbers that are tried at one place.
const MOST_NUMBERS: u64 = 4096;
/// The shortest record under any protection: a type or an explicit nonce, and a tag of eight bytes.
const SHORTEST: usize = HEADER + 9;

/// A search under way.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Resync {
    /// Bytes of records that are not known.
    lost: u64,
    /// Bytes behind the gap that begin no record.
    scanned: usize,
    work: u64,
}

impl Connection {
    /// A gap in a direction that is not opaque.
    pub(super) fn lost(&mut self, side: Side, at: Boottime, length: u64, out: &mut Output<'_>) {
        let direction = self.direction(side);
        let carries = matches!(
            &direction.epoch,
            Epoch::Protected(keys) if keys.secret.is_some() && matches!(keys.stage, Stage::Application | Stage::Session { .. })
        );
        // What waits for something else is in front of the gap, and a handshake cannot go on without a part of it.
        if !carries || !matches!(direction.buffer.record(), Ok(None)) || !direction.messages.is_empty() {
            self.go_opaque("gap", out);
            return;
        }
        direction.unsure = true;
        if let Some(resync) = &mut direction.resync {
            resync.lost = resync.lost.saturating_add(length).saturating_add(direction.buffer.len() as u64);
            resync.scanned = 0;
            direction.counted.opaque += direction.buffer.clear() as u64;
            return;
        }
        let left = direction.skip as u64;
        if left > 0 {
            // A second gap in the same record.
            direction.skip = usize::try_from(left.saturating_sub(length)).unwrap_or(0);
            if length > left {
                direction.resync = Some(Resync { lost: length - left, ..Resync::default() });
            }
            return;
        }
        let waiting = direction.buffer.len();
        let header = direction.buffer.header();
        direction.counted.opaque += direction.buffer.clear() as u64;
        let Some(header) = header else {
            direction.resync =
                Some(Resync { lost: length.saturating_add(waiting as u64), ..Resync::default() });
            return;
        };
        if let Epoch::Protected(keys) = &mut direction.epoch {
            keys.sequence += 1;
        }
        let left = (HEADER + usize::from(header.length) - waiting) as u64;
        if length > left {
            direction.resync = Some(Resync { lost: length - left, ..Resync::default() });
        } else {
            direction.skip = usize::try_from(left - length).unwrap_or(0);
        }
        out(Event::Gap { side, at, most: u64::from(header.length) });
    }

    /// Goes on with a search in what has arrived since.
    pub(super) fn find_record(&mut self, side: Side, keyring: &dyn Keyring, out: &mut Output<'_>) {
        if self.direction_ref(side).resync.is_none() {
            return;
        }
        if let Err(reason) = self.revive(side, keyring) {
            self.go_opaque(reason, out);
            return;
        }
        let tls13 = self.handshake.tls13;
        let direction = self.direction(side);
        let (Some(mut search), Epoch::Protected(keys), Some(live)) =
            (direction.resync, &mut direction.epoch, &direction.live)
        else {
            return;
        };
        let mut copy = Vec::new();
        let found = loop {
            let waiting = direction.buffer.waiting();
            let Some(rest) = waiting.get(search.scanned..).filter(|rest| !rest.is_empty()) else {
                break None;
            };
            let header = match Header::read(rest) {
                Ok(Some(header)) if is_protected(header, tls13) => header,
                // It may become one.
                Ok(None) => break None,
                _ => {
                    search.scanned += 1;
                    if search.scanned > 2 * LONGEST {
                        search.work = MOST_WORK;
                        break None;
                    }
                    continue;
                }
            };
            let Some(body) = rest.get(HEADER..HEADER + usize::from(header.length)) else { break None };
            let lost = search.lost.saturating_add(search.scanned as u64);
            let (fewest, most) = (lost.div_ceil((HEADER + LONGEST) as u64), lost / SHORTEST as u64);
            let mut number = None;
            for candidate in fewest..=most.min(fewest + MOST_NUMBERS) {
                let work = body.len() as u64;
                search.work = if keyring.affords(work) { search.work + work } else { MOST_WORK };
                if search.work >= MOST_WORK {
                    break;
                }
                copy.clear();
                copy.extend_from_slice(body);
                let sequence = keys.sequence.saturating_add(candidate);
                if live.protection.open(sequence, header, &mut copy).is_ok() {
                    number = Some(sequence);
                    break;
                }
            }
            if let Some(sequence) = number {
                break Some((sequence, lost));
            }
            if search.work >= MOST_WORK {
                break None;
            }
            search.scanned += 1;
        };
        zeroize::Zeroize::zeroize(&mut copy);
        match found {
            Some((sequence, most)) => {
                keys.sequence = sequence;
                direction.resync = None;
                direction.unsure = false;
                direction.messages = Messages::default();
                direction.counted.opaque += direction.buffer.drop_front(search.scanned) as u64;
                let at = direction.buffer.front_time();
                out(Event::Gap { side, at, most });
            }
            None if search.work >= MOST_WORK => self.go_opaque("gap", out),
            None => direction.resync = Some(search),
        }
    }
}

/// Whether a record of application data or of a closing alert can have this header.
fn is_protected(header: Header, tls13: bool) -> bool {
    let kind = match header.kind {
        record::APPLICATION_DATA => true,
        record::ALERT => !tls13,
        _ => false,
    };
    kind && header.version == [3, 3] && HEADER + usize::from(header.length) >= SHORTEST
}
