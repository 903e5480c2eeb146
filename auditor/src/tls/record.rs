//! Record framing (RFC 8446 §5.1) of one direction: bytes in as they arrive, whole records out.
//!
//! What has arrived is kept until its record is opened, with the time and the order of arrival of its pieces, so that
//! records that had to wait for a secret can be given out as if they had not. Nothing is kept of a direction that is idle
//! between two records.

use std::collections::VecDeque;
use std::ops::Range;

use crate::clock::Boottime;

pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;
pub(super) const HEARTBEAT: u8 = 24;

/// Bytes of a record's header.
pub(super) const HEADER: usize = 5;
/// The longest body of TLS 1.2; that of 1.3 is shorter.
pub(super) const LONGEST: usize = (1 << 14) + 2048;
/// An empty buffer of this size is kept.
const SMALL: usize = 512;
/// Pieces whose times are kept apart. Beyond, those that wait count as arrived with the last.
const MOST_ARRIVALS: usize = 1024;

/// `struct { ContentType type; ProtocolVersion legacy_record_version; uint16 length; … } TLSPlaintext`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) version: [u8; 2],
    pub(super) length: u16,
}

impl Header {
    pub(super) fn bytes(self) -> [u8; HEADER] {
        let [high, low] = self.length.to_be_bytes();
        [self.kind, self.version[0], self.version[1], high, low]
    }

    /// `Err` as soon as a byte cannot be part of one.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, NotTls> {
        let fits = |at: usize, fits: fn(u8) -> bool| bytes.get(at).is_none_or(|byte| fits(*byte));
        if !fits(0, |kind| (CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&kind)) || !fits(1, |major| major == 3) {
            return Err(NotTls);
        }
        let &[kind, major, minor, high, low, ..] = bytes else { return Ok(None) };
        let length = u16::from_be_bytes([high, low]);
        if usize::from(length) > LONGEST {
            return Err(NotTls);
        }
        Ok(Some(Self { kind, version: [major, minor], length }))
    }
}

/// No record can begin with these bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NotTls;

/// A record that is there as a whole.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) header: Header,
    /// Where its body is.
    pub(super) body: Range<usize>,
    /// When its last byte arrived, and as which piece of the connection.
    pub(super) at: Boottime,
    pub(super) order: u64,
}

/// Bytes of one direction that wait for the rest of their record, or for a secret.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Records before it were taken.
    start: usize,
    arrivals: VecDeque<Arrival>,
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Arrival {
    /// Where in `bytes` it ends.
    end: usize,
    order: u64,
    at: Boottime,
}

impl Buffer {
    /// Bytes that it has room for.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.arrivals.capacity() * size_of::<Arrival>()
    }

    pub(super) fn push(&mut self, order: u64, at: Boottime, bytes: &[u8]) {
        self.compact();
        self.bytes.extend_from_slice(bytes);
        let arrival = Arrival { end: self.bytes.len(), order, at };
        let full = self.arrivals.len() >= MOST_ARRIVALS;
        match self.arrivals.back_mut() {
            Some(last) if last.order == order => *last = arrival,
            Some(last) if full => *last = arrival,
            _ => self.arrivals.push_back(arrival),
        }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// What waits.
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The header of the next record, if it is there.
    pub(super) fn header(&self) -> Option<Header> {
        Header::read(self.waiting()).ok().flatten()
    }

    /// When the next byte arrived.
    pub(super) fn front_time(&self) -> Boottime {
        self.arrivals.front().map_or_else(Boottime::default, |arrival| arrival.at)
    }

    /// These bytes begin no record.
    pub(super) fn drop_front(&mut self, count: usize) -> usize {
        let count = count.min(self.len());
        self.start += count;
        self.forget_arrivals();
        count
    }

    fn forget_arrivals(&mut self) {
        while self.arrivals.front().is_some_and(|arrival| arrival.end <= self.start) {
            self.arrivals.pop_front();
        }
    }

    /// The next record, `None` while it is not there as a whole.
    pub(super) fn record(&self) -> Result<Option<Record>, NotTls> {
        self.record_at(self.start)
    }

    /// The record that begins at `start`, which is a place of this buffer.
    pub(super) fn record_at(&self, start: usize) -> Result<Option<Record>, NotTls> {
        let rest = self.bytes.get(start..).unwrap_or_default();
        let Some(header) = Header::read(rest)? else { return Ok(None) };
        let end = HEADER + usize::from(header.length);
        if rest.len() < end {
            return Ok(None);
        }
        let end = start + end;
        let arrival = self.arrivals.iter().find(|arrival| arrival.end >= end);
        let (at, order) = arrival.map_or_else(Default::default, |arrival| (arrival.at, arrival.order));
        Ok(Some(Record { header, body: start + HEADER..end, at, order }))
    }

    /// The first records that are there as a whole, not more than `most`.
    pub(super) fn whole_records(&self, most: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let mut start = self.start;
        while records.len() < most
            && let Ok(Some(record)) = self.record_at(start)
        {
            start = record.body.end;
            records.push(record);
        }
        records
    }

    pub(super) fn body(&self, record: &Record) -> &[u8] {
        self.bytes.get(record.body.clone()).unwrap_or_default()
    }

    pub(super) fn body_mut(&mut self, record: &Record) -> &mut [u8] {
        self.bytes.get_mut(record.body.clone()).unwrap_or_default()
    }

    /// What comes before the end of this record is done with.
    pub(super) fn take(&mut self, record: &Record) -> usize {
        let taken = record.body.end.saturating_sub(self.start);
        self.start = record.body.end.min(self.bytes.len());
        self.forget_arrivals();
        taken
    }

    /// Everything is done with.
    pub(super) fn clear(&mut self) -> usize {
        let length = self.len();
        *self = Self::default();
        length
    }

    /// Gives room back.
    pub(super) fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        if self.start == self.bytes.len() {
            self.bytes.clear();
            if self.bytes.capacity() > SMALL {
                self.bytes = Vec::new();
            }
        } else {
            self.bytes.drain(..self.start);
        }
        for arrival in &mut self.arrivals {
            arrival.end -= self.start;
        }
        self.start = 0;
    }
}
