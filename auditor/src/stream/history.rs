//! The last delivered bytes, kept so that a retransmission can be held against them.
//!
//! A ring that grows with the stream up to its bound and then overwrites its oldest bytes: one copy of each delivered
//! byte, no allocation once it is full.

/// The first and one past the last position at which two versions differ.
pub(super) type Contradiction = (u64, u64);

/// Where `seen` differs from `known`, which begin at the same position.
pub(super) fn contradiction(position: u64, known: &[u8], seen: &[u8]) -> Option<Contradiction> {
    let length = known.len().min(seen.len());
    let (known, seen) = (&known[..length], &seen[..length]);
    if known == seen {
        return None;
    }
    let first = known.iter().zip(seen).position(|(known, seen)| known != seen)?;
    let last = known.iter().zip(seen).rposition(|(known, seen)| known != seen)?;
    Some((position + first as u64, position + last as u64 + 1))
}

/// The span of both.
pub(super) fn span(one: Option<Contradiction>, other: Option<Contradiction>) -> Option<Contradiction> {
    match (one, other) {
        (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
        (one, other) => one.or(other),
    }
}

/// A bounded ring of the bytes that precede a position.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct History {
    capacity: usize,
    /// Grows to `capacity`, then is a ring.
    #[serde(serialize_with = "super::bytes")]
    ring: Vec<u8>,
    /// Index of the oldest byte; 0 until the ring is full.
    oldest: usize,
    /// Position past the newest byte.
    end: u64,
}

impl History {
    pub(super) const fn new(capacity: usize) -> Self {
        Self { capacity, ring: Vec::new(), oldest: 0, end: 0 }
    }

    /// Bytes that it takes: of how many it holds alone, so that one that was written and read again takes the same.
    pub(super) fn memory(&self) -> usize {
        if self.ring.is_empty() { 0 } else { self.ring.len().next_power_of_two().min(self.capacity) }
    }

    /// Forgets everything, and gives its memory back; what comes next does not continue what was.
    pub(super) fn clear(&mut self) {
        self.ring = Vec::new();
        self.oldest = 0;
    }

    /// Makes room for so many bytes in all, and no more than [`Self::memory`] tells of.
    fn grow(&mut self, length: usize) {
        if self.ring.capacity() < length {
            let wanted = length.next_power_of_two().min(self.capacity);
            self.ring.reserve_exact(wanted - self.ring.len());
        }
    }

    /// Appends bytes that end at position `end` and continue what is there.
    pub(super) fn push(&mut self, bytes: &[u8], end: u64) {
        self.end = end;
        if self.capacity == 0 {
            return;
        }
        if bytes.len() >= self.capacity {
            self.grow(self.capacity);
            self.ring.clear();
            self.oldest = 0;
            self.ring.extend_from_slice(&bytes[bytes.len() - self.capacity..]);
            return;
        }
        let (grow, overwrite) = bytes.split_at(bytes.len().min(self.capacity - self.ring.len()));
        self.grow(self.ring.len() + grow.len());
        self.ring.extend_from_slice(grow);
        let (front, back) = overwrite.split_at(overwrite.len().min(self.ring.len() - self.oldest));
        self.ring[self.oldest..self.oldest + front.len()].copy_from_slice(front);
        self.ring[..back.len()].copy_from_slice(back);
        self.oldest = (self.oldest + overwrite.len()) % self.capacity;
    }

    /// Where `seen`, which begins at `start`, differs from what is remembered; older bytes cannot be compared.
    pub(super) fn contradiction(&self, start: u64, seen: &[u8]) -> Option<Contradiction> {
        let begin = self.end - self.ring.len() as u64;
        let skip = usize::try_from(begin.saturating_sub(start)).ok()?;
        let seen = seen.get(skip..)?;
        let from = start.max(begin);
        let (newer, older) = self.ring.split_at(self.oldest);
        let index = usize::try_from(from - begin).ok()?;
        if index > self.ring.len() {
            return None;
        }
        let (first, second): (&[u8], &[u8]) =
            if index < older.len() { (&older[index..], newer) } else { (&newer[index - older.len()..], &[]) };
        let rest = seen.get(first.len()..).unwrap_or_default();
        span(contradiction(from, first, seen), contradiction(from + first.len() as u64, second, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_remembers_exactly_its_last_bytes() {
        let stream: Vec<u8> = (0..100).collect();
        for chunk in 1..12 {
            let mut history = History::new(8);
            let mut end = 0;
            for bytes in stream.chunks(chunk) {
                end += bytes.len() as u64;
                history.push(bytes, end);
                assert!(history.ring.capacity() <= history.memory());
                for start in 0..end {
                    let truth = &stream[start as usize..end as usize];
                    assert_eq!(history.contradiction(start, truth), None);
                    for wrong in 0..truth.len() {
                        let mut lie = truth.to_vec();
                        lie[wrong] ^= 0x80;
                        let position = start + wrong as u64;
                        let expected = (position + 8 >= end).then_some((position, position + 1));
                        assert_eq!(history.contradiction(start, &lie), expected);
                    }
                }
            }
        }
    }
}
