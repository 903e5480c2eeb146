//! The kernel's two rings, merged.
//!
//! Within a ring, records stand in the order of their reservation. Between the rings there is no order but time. What led
//! to a segment (the verdict, the handshake) was written before it, so the lifecycle ring is looked at again after a
//! segment was found, and whatever is older goes first.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use auditor_common::share::occupied_by;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::reader::{Look, Reader};
use super::{Event, Malformed, Source, share_of};
use crate::kernel::shares::Shares;

/// Reading ends of both rings.
pub struct Rings {
    payload: Reader,
    lifecycle: Reader,
    /// Told how much of each session's records was read.
    shares: Arc<Shares>,
    /// What was passed and is not released, on the payload ring and on the lifecycle ring.
    unreleased: (Unreleased, Unreleased),
}

/// Shares of a ring, and bytes of their records; neighbours of the same share are one.
#[derive(Default)]
struct Unreleased(Vec<(u32, u64)>);

impl Unreleased {
    /// Passes the record that the reader shows. `false`: it shows none.
    fn pass(&mut self, reader: &mut Reader) -> bool {
        let Look::Record(bytes) = reader.peek() else { return false };
        let (share, length) = (share_of(bytes), occupied_by(bytes.len() as u64));
        match self.0.last_mut() {
            Some((last, sum)) if *last == share => *sum += length,
            _ => self.0.push((share, length)),
        }
        reader.pass();
        true
    }
}

impl Unreleased {
    /// Passes what stands before a position. `false`: no record ends there.
    fn pass_until(&mut self, reader: &mut Reader, position: u64) -> bool {
        while reader.position() < position {
            let shown = reader.peek().record().is_some();
            // Only what was thrown away may have stood in between: looking for a record goes behind that.
            if reader.position() >= position {
                return true;
            }
            if !shown || !self.pass(reader) {
                return false;
            }
        }
        // What goes beyond it is no record that the journal knows.
        reader.position() == position
    }
}

/// How often counts and ring are looked at until nobody writes meanwhile.
const LOOKS: usize = 64;

/// Sets what was read of each share to what was written of it, less what is on the ring.
fn settle(reader: &Reader, written: impl Fn() -> Vec<u64>, set: impl Fn(u32, u64)) {
    for _ in 0..LOOKS {
        let counts = written();
        let mut waiting: HashMap<u32, u64> = HashMap::new();
        let whole = reader.unreleased(|record| {
            *waiting.entry(share_of(record)).or_default() += occupied_by(record.len() as u64);
        });
        // Counted before it is submitted: with the same counts and no record that is being written, both are of one moment.
        if whole && counts == written() {
            for (share, written) in (0..).zip(counts) {
                set(share, written.wrapping_sub(waiting.get(&share).copied().unwrap_or(0)));
            }
            return;
        }
    }
    tracing::debug!("agents write without a pause: what they occupy of a ring is as the last daemon left it");
}

impl Rings {
    /// Reads on where both readers are.
    pub fn new(payload: Reader, lifecycle: Reader, shares: Arc<Shares>) -> Self {
        Self { payload, lifecycle, shares, unreleased: Default::default() }
    }

    /// Bytes that wait in the payload ring and in the lifecycle ring, read or not, as long as they are not released.
    pub fn waiting(&self) -> (u64, u64) {
        (self.payload.waiting(), self.lifecycle.waiting())
    }

    /// Where the next records are, on the payload ring and on the lifecycle ring.
    pub fn positions(&self) -> (u64, u64) {
        (self.payload.position(), self.lifecycle.position())
    }

    /// The kernel's numbers for the maps.
    pub fn ids(&self) -> (u32, u32) {
        (self.payload.id(), self.lifecycle.id())
    }

    /// Passes everything before these positions. `false`: they are none of these rings'.
    pub fn skip_to(&mut self, (payload, lifecycle): (u64, u64)) -> bool {
        let Self { payload: segments, lifecycle: others, unreleased, .. } = self;
        unreleased.0.pass_until(segments, payload) && unreleased.1.pass_until(others, lifecycle)
    }

    /// Has each session occupy what there is of it on the rings. Of a daemon that was killed after it had given room back, and
    /// before it had said whose that was, somebody would be charged with it for ever. To be called before anything is passed.
    pub fn settle_shares(&self) {
        let Self { payload, lifecycle, shares, .. } = self;
        settle(payload, || shares.payload_written(), |share, bytes| shares.set_payload_read(share, bytes));
        settle(
            lifecycle,
            || shares.lifecycle_written(),
            |share, bytes| shares.set_lifecycle_read(share, bytes),
        );
    }

    /// Passes everything that is there. For whoever cannot make sense of it.
    pub fn skip_all(&mut self) {
        while self.unreleased.0.pass(&mut self.payload) {}
        while self.unreleased.1.pass(&mut self.lifecycle) {}
    }

    /// Gives back the room of what was passed. What it led to must be safe by then.
    pub fn release(&mut self) {
        self.payload.release();
        self.lifecycle.release();
        for (share, bytes) in self.unreleased.0.0.drain(..) {
            self.shares.read_payload(share, bytes);
        }
        for (share, bytes) in self.unreleased.1.0.drain(..) {
            self.shares.read_lifecycle(share, bytes);
        }
    }

    /// Hands out the next event with its record's bytes, as the kernel wrote them.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn next(&mut self, on: &mut dyn FnMut(Event<'_>, &[u8])) -> Result<Next, Malformed> {
        // First: what was seen before the payload ring was empty has no older segment.
        let seen = self.lifecycle.peek() != Look::Empty;
        let segment = match self.payload.peek() {
            Look::Busy => return Ok(Next::Busy),
            Look::Empty => None,
            Look::Record(segment) => Some((Event::decode(segment)?, segment)),
        };
        // Again: what led to this segment may have been written between the two looks.
        let earlier = match self.lifecycle.peek() {
            Look::Busy => return Ok(Next::Busy),
            Look::Empty => None,
            Look::Record(bytes) => Some((Event::decode(bytes)?, bytes)),
        };
        match (earlier, segment) {
            (Some((earlier, bytes)), segment)
                if segment.map_or(seen, |(segment, _)| earlier.time() <= segment.time()) =>
            {
                on(earlier, bytes);
                self.unreleased.1.pass(&mut self.lifecycle);
            }
            (_, Some((segment, bytes))) => {
                on(segment, bytes);
                self.unreleased.0.pass(&mut self.payload);
            }
            // It came after the payload ring was looked at: once more.
            (Some(_), None) => return self.next(on),
            (None, None) => return Ok(Next::Nothing),
        }
        Ok(Next::Event)
    }
}

/// What [`Rings::next`] came across.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// An event, which was handed out.
    Event,
    /// An event that is still being written, on one of the rings. Nothing can be handed out before it: what it led to might be on the
    /// other ring.
    Busy,
    /// Nothing.
    Nothing,
}

impl Source for Rings {
    type Error = Malformed;

    fn drain(&mut self, most: usize, on: &mut dyn FnMut(Event<'_>)) -> Result<usize, Malformed> {
        let mut given = 0;
        while given < most && self.next(&mut |event, _| on(event))? == Next::Event {
            given += 1;
        }
        Ok(given)
    }
}

/// Waits for a ring to ask for its reader, for a command, or for the time of the next turn.
///
/// Rings are watched edge-triggered: a ring that merely holds something does not end the wait, only a wake-up from the
/// kernel programs does. That is what lets records gather for a turn.
pub struct Waiter {
    epoll: Epoll,
}

impl Waiter {
    /// Watches the rings and a descriptor that becomes readable when a command waits.
    ///
    /// # Errors
    /// epoll(7) refused.
    pub fn new(rings: &Rings, commands: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(rings.payload.as_fd(), edge)?;
        epoll.add(rings.lifecycle.as_fd(), edge)?;
        epoll.add(commands, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self { epoll })
    }

    /// Waits at most `turn`.
    ///
    /// # Errors
    /// epoll_wait(2) failed for another reason than a signal.
    pub fn wait(&self, turn: Duration) -> io::Result<()> {
        let timeout = EpollTimeout::try_from(turn).unwrap_or(EpollTimeout::ZERO);
        match self.epoll.wait(&mut [EpollEvent::empty(); 3], timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use auditor_common::event::{Closed, KIND_CLOSED, KIND_PACKET, Packet};

    use super::super::reader::written::Ring;
    use super::*;

    /// A record with nothing in it but its kind and time.
    fn record<const LENGTH: usize>(kind: u32, time: u64) -> [u8; LENGTH] {
        let mut record = [0; LENGTH];
        record[..4].copy_from_slice(&kind.to_ne_bytes());
        let place = std::mem::offset_of!(auditor_common::event::Header, time);
        record[place..place + 8].copy_from_slice(&time.to_ne_bytes());
        record
    }

    fn segment(time: u64) -> [u8; size_of::<Packet>()] {
        record(KIND_PACKET, time)
    }

    fn end(time: u64) -> [u8; size_of::<Closed>()] {
        record(KIND_CLOSED, time)
    }

    fn times(rings: &mut Rings) -> (Vec<u64>, Next) {
        let mut times = Vec::new();
        loop {
            let next = rings.next(&mut |event, _| times.push(event.time().0)).unwrap();
            if next != Next::Event {
                return (times, next);
            }
        }
    }

    #[test]
    fn the_rings_are_merged_by_time() {
        let ((mut segments, payload), (mut others, lifecycle)) = (Ring::new(), Ring::new());
        let mut rings = Rings::new(payload, lifecycle, Arc::new(Shares::detached().unwrap()));
        [2, 4, 9].iter().for_each(|time| segments.write(&segment(*time)));
        [1, 4, 10, 11].iter().for_each(|time| others.write(&end(*time)));
        assert_eq!(times(&mut rings), (vec![1, 2, 4, 4, 9, 10, 11], Next::Nothing));
    }

    #[test]
    fn nothing_overtakes_a_record_that_is_being_written() {
        let ((mut segments, payload), (mut others, lifecycle)) = (Ring::new(), Ring::new());
        let mut rings = Rings::new(payload, lifecycle, Arc::new(Shares::detached().unwrap()));
        // The connection's end must wait for its last segment.
        let place = segments.reserve(&segment(5));
        others.write(&end(6));
        assert_eq!(times(&mut rings), (vec![], Next::Busy));
        segments.submit(place, &segment(5));
        assert_eq!(times(&mut rings), (vec![5, 6], Next::Nothing));
        // And a segment for what led to it.
        let place = others.reserve(&end(7));
        segments.write(&segment(8));
        assert_eq!(times(&mut rings), (vec![], Next::Busy));
        others.submit(place, &end(7));
        assert_eq!(times(&mut rings), (vec![7, 8], Next::Nothing));
    }
}
