//! Where events come from: the kernel's rings, or a capture that is replayed.
//!
//! A source gives events in the order in which they happened, as far as that can be known. It lends them for the length of
//! one call and keeps nothing.

pub mod capture;
pub mod reader;
pub mod ring;

use auditor_common::event::{
    Closed, Decision, Established, Exec, Exit, Fork, Header, KIND_CLOSED, KIND_DECISION, KIND_ESTABLISHED,
    KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_MOVED, KIND_PACKET, KIND_SKIPPED, KIND_UNIX, Moved, Packet,
    Skipped,
};
use auditor_common::tls::{KIND_SECRET, SecretTaken};
use auditor_common::unix::{KIND_UNIX_DATA, UnixData, UnixDecision};

use crate::clock::Boottime;

/// One event, as the kernel recorded it.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A segment, with the captured payload.
    Packet(Packet, &'a [u8]),
    /// Rows of an answer that were counted instead of copied.
    Skipped(Skipped),
    /// A destination was decided.
    Decision(Decision),
    /// A unix socket's destination was decided.
    UnixDecision(UnixDecision),
    /// Bytes passed on a stream between unix sockets, with what was copied of them.
    UnixData(UnixData, &'a [u8]),
    /// A TCP connection was established.
    Established(Established),
    /// A connection has ended.
    Closed(Closed),
    /// A program was executed.
    Exec(Exec),
    /// A process or thread was created.
    Fork(Fork),
    /// A process ended.
    Exit(Exit),
    /// A process was moved into a session's cgroup, or out of one.
    Moved(Moved),
    /// A TLS secret is in the table of secrets.
    SecretTaken(SecretTaken),
}

/// A record that is not one: shorter than its kind, or of an unknown kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a record of kind {kind} and {length} bytes: daemon and kernel programs are of different versions")]
pub struct Malformed {
    /// Its kind, 0 where it is too short to have one.
    pub kind: u32,
    /// Its length in bytes.
    pub length: usize,
}

impl<'a> Event<'a> {
    /// Reads a record from a ring.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let length = bytes.len();
        let kind = read::<Header>(bytes).ok_or(Malformed { kind: 0, length })?.kind;
        let event = match kind {
            KIND_PACKET => read::<Packet>(bytes).and_then(|packet| {
                let payload = bytes.get(size_of::<Packet>()..)?.get(..packet.captured as usize)?;
                Some(Event::Packet(packet, payload))
            }),
            KIND_SKIPPED => read(bytes).map(Event::Skipped),
            KIND_DECISION => read(bytes).map(Event::Decision),
            KIND_UNIX => read(bytes).map(Event::UnixDecision),
            KIND_UNIX_DATA => read::<UnixData>(bytes).and_then(|data| {
                let payload = bytes.get(size_of::<UnixData>()..)?.get(..data.captured as usize)?;
                Some(Event::UnixData(data, payload))
            }),
            KIND_ESTABLISHED => read(bytes).map(Event::Established),
            KIND_CLOSED => read(bytes).map(Event::Closed),
            KIND_EXEC => read(bytes).map(Event::Exec),
            KIND_FORK => read(bytes).map(Event::Fork),
            KIND_EXIT => read(bytes).map(Event::Exit),
            KIND_MOVED => read(bytes).map(Event::Moved),
            KIND_SECRET => read(bytes).map(Event::SecretTaken),
            _ => None,
        };
        event.ok_or(Malformed { kind, length })
    }

    /// Appends the record as the kernel wrote it, without the slack of its slot in the ring: [`Event::decode`]'s inverse.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Event::Packet(event, payload) => {
                out.extend_from_slice(bytes(event));
                out.extend_from_slice(payload);
            }
            Event::Skipped(event) => out.extend_from_slice(bytes(event)),
            Event::Decision(event) => out.extend_from_slice(bytes(event)),
            Event::UnixDecision(event) => out.extend_from_slice(bytes(event)),
            Event::UnixData(event, payload) => {
                out.extend_from_slice(bytes(event));
                out.extend_from_slice(payload);
            }
            Event::Established(event) => out.extend_from_slice(bytes(event)),
            Event::Closed(event) => out.extend_from_slice(bytes(event)),
            Event::Exec(event) => out.extend_from_slice(bytes(event)),
            Event::Fork(event) => out.extend_from_slice(bytes(event)),
            Event::Exit(event) => out.extend_from_slice(bytes(event)),
            Event::Moved(event) => out.extend_from_slice(bytes(event)),
            Event::SecretTaken(event) => out.extend_from_slice(bytes(event)),
        }
    }

    /// When it happened.
    pub fn time(&self) -> Boottime {
        Boottime(self.header().time)
    }

    /// Whether a process is named in it, of which more may be known.
    pub fn tells_of_a_process(&self) -> bool {
        matches!(
            self,
            Event::Exec(_) | Event::Fork(_) | Event::Exit(_) | Event::Decision(_) | Event::UnixDecision(_)
        )
    }

    /// What all records begin with.
    pub fn header(&self) -> &Header {
        match self {
            Event::Packet(event, _) => &event.header,
            Event::Skipped(event) => &event.header,
            Event::Decision(event) => &event.header,
            Event::UnixDecision(event) => &event.decision.header,
            Event::UnixData(event, _) => &event.header,
            Event::Established(event) => &event.header,
            Event::Closed(event) => &event.header,
            Event::Exec(event) => &event.header,
            Event::Fork(event) => &event.header,
            Event::Exit(event) => &event.header,
            Event::Moved(event) => &event.header,
            Event::SecretTaken(event) => &event.header,
        }
    }
}

/// Types whose every bit pattern is a value, and whose every byte is one of a field.
///
/// # Safety
/// repr(C), only integers and byte arrays inside, padding spelt out as fields.
unsafe trait Record: Copy {}
// SAFETY: see `auditor_common::event`; the crate's rules say so for all of its types.
unsafe impl Record for Header {}
// SAFETY: as above.
unsafe impl Record for Packet {}
// SAFETY: as above.
unsafe impl Record for Skipped {}
// SAFETY: as above.
unsafe impl Record for Decision {}
// SAFETY: as above.
unsafe impl Record for UnixDecision {}
// SAFETY: as above.
unsafe impl Record for UnixData {}
// SAFETY: as above.
unsafe impl Record for Established {}
// SAFETY: as above.
unsafe impl Record for Closed {}
// SAFETY: as above.
unsafe impl Record for Exec {}
// SAFETY: as above.
unsafe impl Record for Fork {}
// SAFETY: as above.
unsafe impl Record for Exit {}
// SAFETY: as above.
unsafe impl Record for Moved {}
// SAFETY: as above.
unsafe impl Record for SecretTaken {}

fn read<T: Record>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, any bit pattern is a T, and the read does not ask for alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A record's bytes.
fn bytes<T: Record>(record: &T) -> &[u8] {
    // SAFETY: a Record has no padding, so all of its bytes are initialised; they are borrowed as long as it is.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

/// The share of the ring that a record takes up; what is too short to say takes nobody's.
fn share_of(bytes: &[u8]) -> u32 {
    read::<Header>(bytes).map_or(0, |header| header.share)
}

/// The kernel's word on a connection's end, in state that outlives a daemon: the record's bytes.
pub(crate) mod saved {
    use auditor_common::event::Closed;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        closed: &Option<Closed>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        closed.as_ref().map(super::bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Closed>, D::Error> {
        let Some(bytes) = Option::<Vec<u8>>::deserialize(deserializer)? else { return Ok(None) };
        super::read(&bytes).map(Some).ok_or_else(|| de::Error::custom("a record that is too short"))
    }
}

/// Gives events.
pub trait Source {
    /// Why no more can be given.
    type Error;

    /// Hands out what has happened since the last call, oldest first, and returns when there is nothing more or `most`
    /// events were given.
    ///
    /// # Errors
    /// The first record that cannot be read; what came before it was handed out.
    fn drain(&mut self, most: usize, on: &mut dyn FnMut(Event<'_>)) -> Result<usize, Self::Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_too_short_or_unknown_is_refused() {
        assert_eq!(Event::decode(&[1, 0, 0]).err(), Some(Malformed { kind: 0, length: 3 }));
        let mut packet = [0; 72];
        packet[0] = 1;
        assert!(matches!(Event::decode(&packet), Ok(Event::Packet(_, []))));
        // `captured`, at offset 64, promises more than there is.
        packet[64] = 1;
        assert_eq!(Event::decode(&packet).err(), Some(Malformed { kind: 1, length: 72 }));
        packet[0] = 99;
        assert_eq!(Event::decode(&packet).err(), Some(Malformed { kind: 99, length: 72 }));
    }
}
