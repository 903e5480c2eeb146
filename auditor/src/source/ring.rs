//! The kernel's two rings, merged.
//!
//! Within a ring, records stand in the order of their reservation. Between the rings there is no order but time. What led
//! to a segment (the verdict, the handshake) was written before it, so the lifecycle ring is looked at again after a
//! segment was found, and whatever is older goes first.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{Event, Malformed, Source, share_of};
use crate::kernel::shares::Shares;

/// Lifecycle records taken off their ring and not yet handed out, at most. The rest waits in the ring.
const AHEAD: usize = 1024;

/// Reading ends of both rings.
pub struct Rings {
    payload: RingBuf<MapData>,
    lifecycle: RingBuf<MapData>,
    /// Lifecycle records that wait for the segments before them.
    ahead: VecDeque<Box<[u8]>>,
    shares: Arc<Shares>,
    payload_fill: Fill,
    lifecycle_fill: Fill,
}

impl Rings {
    /// From the rings of a loaded object.
    ///
    /// # Errors
    /// The rings' positions cannot be mapped.
    pub fn new(
        payload: RingBuf<MapData>,
        lifecycle: RingBuf<MapData>,
        shares: Arc<Shares>,
    ) -> io::Result<Self> {
        let (payload_fill, lifecycle_fill) = (Fill::of(payload.as_fd())?, Fill::of(lifecycle.as_fd())?);
        Ok(Self { payload, lifecycle, ahead: VecDeque::new(), shares, payload_fill, lifecycle_fill })
    }

    /// Bytes that wait in the payload ring and in the lifecycle ring.
    pub fn waiting(&self) -> (u64, u64) {
        (self.payload_fill.bytes(), self.lifecycle_fill.bytes())
    }
}

/// Takes lifecycle records off their ring.
fn look_ahead(lifecycle: &mut RingBuf<MapData>, ahead: &mut VecDeque<Box<[u8]>>, shares: &Shares) {
    while ahead.len() < AHEAD
        && let Some(record) = lifecycle.next()
    {
        shares.read_lifecycle(share_of(&record), record.len());
        ahead.push_back(Box::from(&*record));
    }
}

impl Source for Rings {
    type Error = Malformed;

    fn drain(&mut self, most: usize, on: &mut dyn FnMut(Event<'_>)) -> Result<usize, Malformed> {
        let mut given = 0;
        while given < most {
            look_ahead(&mut self.lifecycle, &mut self.ahead, &self.shares);
            let before = self.ahead.len();
            let segment = self.payload.next();
            let Some(segment) = segment else {
                // Nothing that is older than these can still come: a segment before one of them would have been seen.
                for record in self.ahead.drain(..before) {
                    on(Event::decode(&record)?);
                    given += 1;
                }
                return Ok(given);
            };
            self.shares.read_payload(share_of(&segment), segment.len());
            let event = Event::decode(&segment)?;
            // Again: what led to this segment may have been written between the two looks.
            look_ahead(&mut self.lifecycle, &mut self.ahead, &self.shares);
            while let Some(record) = self.ahead.front() {
                let earlier = Event::decode(record)?;
                if earlier.time() > event.time() {
                    break;
                }
                on(earlier);
                given += 1;
                self.ahead.pop_front();
                if self.ahead.is_empty() {
                    // There may be more than was taken at once, and all of it before this segment.
                    look_ahead(&mut self.lifecycle, &mut self.ahead, &self.shares);
                }
            }
            on(event);
            given += 1;
        }
        Ok(given)
    }
}

/// The positions of a ring's reader and writer, mapped for reading.
///
/// A ring buffer map begins with two pages: the consumer's position, then the producer's (kernel/bpf/ringbuf.c, struct
/// bpf_ringbuf; part of the interface, because the reader maps them).
struct Fill {
    pages: NonNull<libc::c_void>,
    page: usize,
}

// SAFETY: the mapping is read with atomic loads only, and it lives until it is dropped, on whatever thread.
unsafe impl Send for Fill {}

impl Fill {
    fn of(ring: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a plain number in, a plain number out.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let Some(length) = NonZeroUsize::new(2 * page) else { return Err(io::ErrorKind::Unsupported.into()) };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let pages = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, ring, 0) }?;
        Ok(Self { pages, page })
    }

    fn bytes(&self) -> u64 {
        let position = |offset: usize| {
            // SAFETY: within the two mapped pages, aligned to a page; the kernel and the reader write it atomically.
            unsafe { self.pages.byte_add(offset).cast::<AtomicU64>().as_ref() }.load(Ordering::Acquire)
        };
        // The consumer first: what is added between the two loads only makes the answer larger.
        let consumed = position(0);
        position(self.page).saturating_sub(consumed)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, of which no reference is left. A failure leaves two pages mapped.
        let _ = unsafe { munmap(self.pages, 2 * self.page) };
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
