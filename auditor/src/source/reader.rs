//! The reading end of one ring buffer map, whose room is given back when its reader says so, not when a record was read.
//!
//! What was read and not yet [released](Reader::release) stays in the map, which outlives the daemon: the next one finds it.
//!
//! The layout is the kernel's (kernel/bpf/ringbuf.c, struct bpf_ringbuf; part of the interface, because readers map it): a page
//! with the consumer's position, a page with the producer's, then the data, mapped twice in a row so that no record is cut by
//! the end. A record is preceded by eight bytes: length with two flags, and an offset that is the kernel's business.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// BPF_RINGBUF_BUSY_BIT: reserved, and not submitted yet.
const BUSY: u32 = 1 << 31;
/// BPF_RINGBUF_DISCARD_BIT: reserved, and thrown away.
const DISCARDED: u32 = 1 << 30;
/// BPF_RINGBUF_HDR_SZ.
const HEADER: u64 = 8;

/// A mapping of a part of the ring.
struct Pages {
    address: NonNull<libc::c_void>,
    length: usize,
}

impl Pages {
    fn map(ring: BorrowedFd<'_>, offset: usize, length: usize, protection: ProtFlags) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, ring, offset) }?;
        Ok(Self { address, length })
    }

    /// The number at the beginning of the mapping.
    fn position(&self) -> &AtomicU64 {
        // SAFETY: at least a page is mapped, and a page is aligned for any number; kernel and reader use it atomically.
        unsafe { self.address.cast().as_ref() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, of which no reference is left. A failure leaves its pages mapped.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}

/// What is at the reader's position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look<'a> {
    /// A record.
    Record(&'a [u8]),
    /// A record that is still being written: what stands behind it is not to be read before it. Whoever writes it cannot sleep,
    /// but the processor that it runs on may be taken away from a virtual machine for a while.
    Busy,
    /// Nothing yet.
    Empty,
}

impl<'a> Look<'a> {
    /// The record, if it is one.
    pub fn record(self) -> Option<&'a [u8]> {
        match self {
            Self::Record(bytes) => Some(bytes),
            Self::Busy | Self::Empty => None,
        }
    }
}

/// See the module.
pub struct Reader {
    ring: OwnedFd,
    /// Stays open: programs that are loaded later refer to the map by this descriptor's number.
    _map: Option<MapData>,
    /// The kernel's number for the map.
    id: u32,
    consumer: Pages,
    /// The producer's page and the data.
    producer: Pages,
    page: usize,
    size: u64,
    /// Position of the next record to read.
    next: u64,
}

// SAFETY: the mappings are of a file, not of a thread; positions are used atomically, and data is read behind them.
unsafe impl Send for Reader {}

impl Reader {
    /// Reads from where the last reader released to.
    ///
    /// # Errors
    /// The map is not a ring buffer, or mmap(2) refused.
    pub fn new(map: MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let reader = Self::over(map.fd().as_fd().try_clone_to_owned()?, info.id(), info.max_entries())?;
        Ok(Self { _map: Some(map), ..reader })
    }

    /// Reads a file with the layout of a ring of `size` data bytes.
    fn over(ring: OwnedFd, id: u32, size: u32) -> io::Result<Self> {
        // SAFETY: a plain number in, a plain number out.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let consumer = Pages::map(ring.as_fd(), 0, page, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let length = page + 2 * usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let producer = Pages::map(ring.as_fd(), page, length, ProtFlags::PROT_READ)?;
        let next = consumer.position().load(Ordering::Acquire);
        Ok(Self { ring, _map: None, id, consumer, producer, page, size: u64::from(size), next })
    }

    /// What is at the reader's position. A record stays the next one until [`Self::pass`].
    pub fn peek(&mut self) -> Look<'_> {
        loop {
            if self.next >= self.produced() {
                return Look::Empty;
            }
            let length = self.header(self.next).load(Ordering::Acquire);
            if length & BUSY != 0 {
                return Look::Busy;
            }
            if length & DISCARDED == 0 {
                // Positions grow for ever; the ring's size is a power of two, at most 2^31.
                let start = self.page + ((self.next + HEADER) & (self.size - 1)) as usize;
                // SAFETY: the kernel submitted a record of this length here, which is never longer than the ring, whose data is
                // mapped twice in a row. It is not overwritten before the consumer's position has passed it, for which
                // `release` needs this reader exclusively.
                return Look::Record(unsafe {
                    std::slice::from_raw_parts(
                        self.producer.address.byte_add(start).cast().as_ptr(),
                        length as usize,
                    )
                });
            }
            self.next += room(length);
        }
    }

    /// Shows all records that are not released, oldest first. `false`: one is being written, or was added meanwhile.
    pub fn unreleased(&self, mut on: impl FnMut(&[u8])) -> bool {
        let produced = self.produced();
        let mut at = self.consumer.position().load(Ordering::Acquire);
        while at < produced {
            let length = self.header(at).load(Ordering::Acquire);
            if length & BUSY != 0 {
                return false;
            }
            if length & DISCARDED == 0 {
                let start = self.page + ((at + HEADER) & (self.size - 1)) as usize;
                // SAFETY: as in `peek`; nothing is released while this reader is borrowed.
                on(unsafe {
                    std::slice::from_raw_parts(
                        self.producer.address.byte_add(start).cast().as_ptr(),
                        length as usize,
                    )
                });
            }
            at += room(length);
        }
        self.produced() == produced
    }

    /// Goes behind the record that [`Self::peek`] showed.
    pub fn pass(&mut self) {
        if self.next < self.produced() {
            let length = self.header(self.next).load(Ordering::Acquire);
            if length & BUSY == 0 {
                self.next += room(length);
            }
        }
    }

    /// Gives the room of all that was passed back to the kernel programs.
    pub fn release(&mut self) {
        self.consumer.position().store(self.next, Ordering::Release);
    }

    /// Position of the next record.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Bytes that are not released.
    pub fn waiting(&self) -> u64 {
        let consumed = self.consumer.position().load(Ordering::Acquire);
        self.produced().saturating_sub(consumed)
    }

    /// The kernel's number for the map.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn produced(&self) -> u64 {
        self.producer.position().load(Ordering::Acquire)
    }

    fn header(&self, position: u64) -> &AtomicU32 {
        let offset = self.page + (position & (self.size - 1)) as usize;
        // SAFETY: within the mapped data; records begin at multiples of eight; the kernel writes it atomically.
        unsafe { self.producer.address.byte_add(offset).cast().as_ref() }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// What a record takes: header and data, rounded up.
fn room(length: u32) -> u64 {
    (u64::from(length & !(BUSY | DISCARDED)) + HEADER).next_multiple_of(HEADER)
}

/// A ring that a test writes: a file with the kernel's layout. Its data is there once, so records must not reach its end.
#[cfg(test)]
pub(super) mod written {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt as _;

    use super::{BUSY, DISCARDED, HEADER, Reader, room};

    const SIZE: u32 = 1 << 16;

    pub(in crate::source) struct Ring {
        file: File,
        page: u64,
        produced: u64,
    }

    impl Ring {
        pub(in crate::source) fn new() -> (Self, Reader) {
            let file = tempfile::tempfile().unwrap();
            // SAFETY: a plain number in, a plain number out.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
            file.set_len(2 * page + 2 * u64::from(SIZE)).unwrap();
            let reader = Reader::over(OwnedFd::from(file.try_clone().unwrap()), 7, SIZE).unwrap();
            (Self { file, page, produced: 0 }, reader)
        }

        /// Reserves a record and answers its place.
        pub(in crate::source) fn reserve(&mut self, bytes: &[u8]) -> u64 {
            let (place, length) = (self.produced, bytes.len() as u32);
            self.head(place, length | BUSY);
            self.file.write_all_at(bytes, 2 * self.page + place + HEADER).unwrap();
            self.produced += room(length);
            self.file.write_all_at(&self.produced.to_ne_bytes(), self.page).unwrap();
            place
        }

        pub(in crate::source) fn submit(&self, place: u64, bytes: &[u8]) {
            self.head(place, bytes.len() as u32);
        }

        pub(in crate::source) fn discard(&self, place: u64, bytes: &[u8]) {
            self.head(place, bytes.len() as u32 | DISCARDED);
        }

        pub(in crate::source) fn write(&mut self, bytes: &[u8]) {
            let place = self.reserve(bytes);
            self.submit(place, bytes);
        }

        fn head(&self, place: u64, head: u32) {
            self.file.write_all_at(&head.to_ne_bytes(), 2 * self.page + place).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::written::Ring;
    use super::*;

    #[test]
    fn a_record_that_is_being_written_is_neither_a_record_nor_nothing() {
        let (mut ring, mut reader) = Ring::new();
        assert_eq!(reader.peek(), Look::Empty);
        let place = ring.reserve(b"first");
        ring.write(b"second");
        assert_eq!(reader.peek(), Look::Busy);
        reader.pass();
        assert_eq!(reader.peek(), Look::Busy, "nothing was passed");
        ring.submit(place, b"first");
        assert_eq!(reader.peek(), Look::Record(b"first"));
        reader.pass();
        assert_eq!(reader.peek(), Look::Record(b"second"));
        reader.pass();
        let place = ring.reserve(b"third");
        ring.discard(place, b"third");
        assert_eq!(reader.peek(), Look::Empty);
    }
}
