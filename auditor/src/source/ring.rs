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

use super::reader::Reader;
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
        let Some(bytes) = reader.peek() else { return false };
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
            let shown = reader.peek().is_some();
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
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ids(&self) -> io::Result<(u32, u32)> {
        Ok((self.payload.id()?, self.lifecycle.id()?))
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

    /// Hands out the next event with its record's bytes, as the kernel wrote them; `false` when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn next(&mut self, on: &mut dyn FnMut(Event<'_>, &[u8])) -> Result<bool, Malformed> {
        let waiting = self.lifecycle.peek().map(Event::decode).transpose()?.map(|event| event.time());
        let Some(segment) = self.payload.peek() else {
            // What was seen before the payload ring was empty has no older segment.
            if waiting.is_none() {
                return Ok(false);
            }
            if let Some(bytes) = self.lifecycle.peek() {
                on(Event::decode(bytes)?, bytes);
            }
            self.unreleased.1.pass(&mut self.lifecycle);
            return Ok(true);
        };
        let event = Event::decode(segment)?;
        // Again: what led to this segment may have been written between the two looks.
        if let Some(bytes) = self.lifecycle.peek() {
            let earlier = Event::decode(bytes)?;
            if earlier.time() <= event.time() {
                on(earlier, bytes);
                self.unreleased.1.pass(&mut self.lifecycle);
                return Ok(true);
            }
        }
        on(event, segment);
        self.unreleased.0.pass(&mut self.payload);
        Ok(true)
    }
}

impl Source for Rings {
    type Error = Malformed;

    fn drain(&mut self, most: usize, on: &mut dyn FnMut(Event<'_>)) -> Result<usize, Malformed> {
        let mut given = 0;
        while given < most && self.next(&mut |event, _| on(event))? {
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
