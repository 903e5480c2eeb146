//! The kernel's two rings, merged.
//!
//! Within a ring, records stand in the order of their reservation. Between the rings there is no order but time. What led
//! to a segment (the verdict, the handshake) was written before it, so the lifecycle ring is looked at again after a
//! segment was found, and whatever is older goes first.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::reader::Reader;
use super::{Event, Malformed, Source};

/// Reading ends of both rings.
pub struct Rings {
    /// Segments.
    pub payload: Reader,
    /// Verdicts, connections, processes.
    pub lifecycle: Reader,
}

impl Rings {
    /// Bytes that wait in the payload ring and in the lifecycle ring, read or not, as long as they are not released.
    pub fn waiting(&self) -> (u64, u64) {
        (self.payload.waiting(), self.lifecycle.waiting())
    }

    /// Gives back the room of what was handed out. What it led to must be safe by then.
    pub fn release(&mut self) {
        self.payload.release();
        self.lifecycle.release();
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
            self.lifecycle.pass();
            return Ok(true);
        };
        let event = Event::decode(segment)?;
        // Again: what led to this segment may have been written between the two looks.
        if let Some(bytes) = self.lifecycle.peek() {
            let earlier = Event::decode(bytes)?;
            if earlier.time() <= event.time() {
                on(earlier, bytes);
                self.lifecycle.pass();
                return Ok(true);
            }
        }
        on(event, segment);
        self.payload.pass();
        Ok(true)
    }
}

impl Source for Rings {
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
