//! Early segments: what arrived before the bytes in front of it.
//!
//! Follows Linux's `tcp_data_queue_ofo`, which keeps whole segments ordered by their first byte and lets them overlap:
//! - a new segment that lies within one already there is dropped;
//! - one that begins where another begins and is longer replaces it;
//! - those that lie wholly within the new one are dropped;
//! - otherwise both stay, and on reading (`tcp_ofo_queue`, `tcp_recvmsg`) the one that begins first is read first.
//!
//! So at a partial overlap the segment that begins earlier wins, whichever came first. What must stay true: starts and
//! captured ends both rise strictly from piece to piece, so that only neighbours need to be looked at.
//!
//! A segment whose copy was cut counts here as long as its copy; `reach` remembers how far it really went.

use std::collections::BTreeMap;

use super::history::{Contradiction, contradiction, span};
use crate::clock::Boottime;

/// What a piece takes beside its bytes: itself, its place in the tree, and what the allocator adds.
const PIECE: usize = 128;

/// An early segment.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Piece {
    /// What was captured.
    #[serde(serialize_with = "super::bytes")]
    pub(super) bytes: Box<[u8]>,
    /// Position up to which bytes are known to have passed without a break since this piece's start.
    pub(super) reach: u64,
    /// When it passed the hook.
    pub(super) at: Boottime,
}

/// Early segments by position.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Queue {
    pieces: BTreeMap<u64, Piece>,
    bytes: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Captured bytes held.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that it takes, roughly.
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.pieces.len() * PIECE
    }

    /// Position of the first piece.
    pub(super) fn first(&self) -> Option<u64> {
        self.pieces.keys().next().copied()
    }

    /// Position past the last byte that passed, as far as a piece held here tells; 0 where none does.
    pub(super) fn highest(&self) -> u64 {
        self.pieces.values().map(|piece| piece.reach).max().unwrap_or(0)
    }

    /// Takes in an early segment that begins at `start`.
    pub(super) fn insert(&mut self, start: u64, mut piece: Piece) {
        let end = start + piece.bytes.len() as u64;
        if let Some((before, known)) = self.pieces.range_mut(..=start).next_back()
            && end <= before + known.bytes.len() as u64
        {
            known.reach = known.reach.max(piece.reach);
            return;
        }
        while let Some((&covered, known)) = self.pieces.range(start..=end).next() {
            if covered + known.bytes.len() as u64 > end {
                break;
            }
            if let Some(known) = self.remove(covered) {
                piece.reach = piece.reach.max(known.reach);
            }
        }
        self.bytes += piece.bytes.len();
        self.pieces.insert(start, piece);
    }

    /// Takes out the first piece, if it begins at or before `position`.
    pub(super) fn take_until(&mut self, position: u64) -> Option<(u64, Piece)> {
        let first = self.first().filter(|first| *first <= position)?;
        self.remove(first).map(|piece| (first, piece))
    }

    /// Drops everything from position `end` on; returns how many captured bytes that were.
    pub(super) fn cut(&mut self, end: u64) -> u64 {
        let before = self.bytes;
        for (_, piece) in self.pieces.split_off(&end) {
            self.bytes -= piece.bytes.len();
        }
        for (start, piece) in self.pieces.iter_mut().rev() {
            piece.reach = piece.reach.min(end);
            let keep = usize::try_from(end - start).unwrap_or(usize::MAX);
            if let Some(beyond) = piece.bytes.len().checked_sub(keep).filter(|beyond| *beyond > 0) {
                piece.bytes = piece.bytes[..keep].into();
                self.bytes -= beyond;
            }
        }
        (before - self.bytes) as u64
    }

    /// Where `seen`, which begins at `start`, differs from what is held.
    pub(super) fn contradiction(&self, start: u64, seen: &[u8]) -> Option<Contradiction> {
        let end = start + seen.len() as u64;
        let mut found = None;
        for (&begin, piece) in self.pieces.range(..end).rev() {
            if begin + (piece.bytes.len() as u64) <= start {
                break;
            }
            let from = begin.max(start);
            let (Ok(known_skip), Ok(seen_skip)) =
                (usize::try_from(from - begin), usize::try_from(from - start))
            else {
                break;
            };
            found = span(found, contradiction(from, &piece.bytes[known_skip..], &seen[seen_skip..]));
        }
        found
    }

    fn remove(&mut self, start: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&start)?;
        self.bytes -= piece.bytes.len();
        Some(piece)
    }
}
