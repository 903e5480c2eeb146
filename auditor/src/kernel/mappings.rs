//! Learning of code that is mapped: by execve(2), mmap(2), mprotect(2), however it is asked for and in whatever word size.
//!
//! By PERF_RECORD_MMAP2 of perf_event_open(2), one ring for each processor. The kernel writes a record when a mapping may be executed, and
//! a short one for each process that begins or ends; nobody else pays. Tracepoints on system calls, of whichever call, would send
//! every call of every process of the host the long way round, and would not know what else maps code.
//!
//! A ring that was too full says so; what it lost is then looked for in /proc.

use std::fs;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Bits of `struct perf_event_attr`: mmap, watermark, mmap2.
const FLAGS: u64 = 1 << 8 | 1 << 14 | 1 << 23;
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_MMAP2: u32 = 10;
/// Offsets in `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;
/// Data of a ring in pages, a power of two: some hundred records of one burst.
const PAGES: usize = 32;
const HEADER: usize = 8;
/// Header, process and thread, address and length, offset, device, inode and its generation, protection, flags.
const MAPPING: usize = 72;

/// `struct perf_event_attr` as of PERF_ATTR_SIZE_VER5.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    _rest: u32,
}

/// Code that was mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mapping {
    /// Process id.
    pub process: u32,
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Device of the file system that the file is on, as /proc/PID/mountinfo has it.
    pub device: (u32, u32),
}

/// `struct procmap_query` (linux/fs.h, Linux 6.11).
#[repr(C)]
#[derive(Default)]
struct MapQuery {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// `_IOWR('f', 17, struct procmap_query)`
const PROCMAP_QUERY: libc::c_ulong =
    3 << 30 | (size_of::<MapQuery>() as libc::c_ulong) << 16 | 0x66 << 8 | 17;
/// Executable, covering the address or the next behind it, of a file.
const CODE_FROM_HERE: u64 = 0x04 | 0x10 | 0x20;
/// How much of /proc/PID/maps is read where the kernel cannot be asked: some thousand lines.
const MOST_LISTED: u64 = 512 << 10;

impl Mapping {
    /// What is left of it: the first code of a file within its range, as it is mapped now. The dynamic linker maps a library whose first
    /// segment is code as a whole, and then other segments over its end.
    pub fn now(&self) -> Option<Self> {
        let maps = fs::File::open(format!("/proc/{}/maps", self.process)).ok()?;
        let mut query = MapQuery {
            size: size_of::<MapQuery>() as u64,
            flags: CODE_FROM_HERE,
            address: self.start,
            ..MapQuery::default()
        };
        // SAFETY: the structure has the size that it tells, outlives the call, and asks for no text.
        let answered = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) } == 0;
        let found = if answered {
            Self { start: query.start, end: query.end, device: (query.major, query.minor), ..*self }
        } else if io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY) {
            let mut listed = String::new();
            maps.take(MOST_LISTED).read_to_string(&mut listed).ok()?;
            let mut found = listed.lines().filter_map(|line| Self::listed(self.process, line));
            found.find(|mapping| mapping.end > self.start)?
        } else {
            return None;
        };
        (found.start < self.end).then_some(found)
    }

    /// A line of /proc/PID/maps (proc(5)), if it is code of a file: `start-end perms offset device inode path`.
    pub fn listed(process: u32, line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()?.contains('x');
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let inode = fields.next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let part = |text| u32::from_str_radix(text, 16).ok();
        (is_code && inode != "0").then_some(())?;
        let device = (part(major)?, part(minor)?);
        Some(Self { process, start: number(start)?, end: number(end)?, device })
    }
}

/// What a ring says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Said {
    /// Code of a file was mapped.
    Mapped(Mapping),
    /// Not everything that happened could be said.
    Lost,
}

/// The rings.
pub struct Mappings {
    rings: Vec<Ring>,
    epoll: Epoll,
}

impl Mappings {
    /// Begins to listen. `others` ends a wait when it becomes readable.
    ///
    /// # Errors
    /// The kernel refused; CAP_PERFMON is needed.
    pub fn listen(others: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(others, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let mut rings = Vec::new();
        for processor in online(&fs::read_to_string(Path::new("/sys/devices/system/cpu/online"))?) {
            let ring = Ring::open(processor)?;
            epoll.add(
                ring.descriptor.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1),
            )?;
            rings.push(ring);
        }
        Ok(Self { rings, epoll })
    }

    /// Waits until something may have been said, at most so long.
    ///
    /// # Errors
    /// epoll_wait(2)'s.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let timeout = EpollTimeout::try_from(limit).unwrap_or(EpollTimeout::ZERO);
        match self.epoll.wait(&mut [EpollEvent::empty(); 8], timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands out what was said since the last call.
    pub fn drain(&mut self, mut on: impl FnMut(Said)) {
        for ring in &mut self.rings {
            ring.drain(&mut on);
        }
    }
}

/// Numbers in a list such as `0-3,5`.
fn online(list: &str) -> Vec<i32> {
    let number = |text: &str| text.trim().parse::<i32>().ok();
    let mut processors = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Some(first), Some(last)) = (number(first), number(last)) {
            // More than any kernel can be built for.
            processors.extend((first..=last).take(1 << 16));
        }
    }
    processors
}

struct Ring {
    descriptor: OwnedFd,
    pages: NonNull<libc::c_void>,
    page: usize,
    record: Vec<u8>,
}

// SAFETY: the mapping is of a file, not of a thread; positions are used atomically.
unsafe impl Send for Ring {}

impl Ring {
    fn open(processor: i32) -> io::Result<Self> {
        let attributes = Attributes {
            kind: PERF_TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: PERF_COUNT_SW_DUMMY,
            sample_period: 1,
            flags: FLAGS,
            wakeup_watermark: 1,
            ..Attributes::default()
        };
        // SAFETY: the structure has the size that it tells, and outlives the call.
        let descriptor = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                -1,
                processor,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it for us.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // SAFETY: a plain number in, a plain number out.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let length = NonZeroUsize::new((1 + PAGES) * page).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let pages = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, descriptor.as_fd(), 0) }?;
        Ok(Self { descriptor, pages, page, record: Vec::new() })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: within the first page, aligned; kernel and reader use it atomically.
        unsafe { self.pages.byte_add(offset).cast().as_ref() }
    }

    fn drain(&mut self, on: &mut impl FnMut(Said)) {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        while tail < head {
            let mut header = [0; HEADER];
            self.copy(tail, &mut header);
            let length = usize::from(u16::from_ne_bytes([header[6], header[7]]));
            if length < HEADER || length as u64 > head - tail {
                // The kernel writes no such thing; to go on would be to guess.
                on(Said::Lost);
                tail = head;
                break;
            }
            let mut record = std::mem::take(&mut self.record);
            record.resize(length.min(MAPPING), 0);
            self.copy(tail, &mut record);
            if let Some(said) = said(&record) {
                on(said);
            }
            self.record = record;
            tail += length as u64;
        }
        self.position(DATA_TAIL).store(tail, Ordering::Release);
    }

    /// Copies data from a position on; it may go over the ring's end.
    fn copy(&self, from: u64, into: &mut [u8]) {
        let size = PAGES * self.page;
        let start = (from % size as u64) as usize;
        let first = into.len().min(size - start);
        // SAFETY: both parts lie within the mapped data, which the kernel does not write before the tail has passed it.
        unsafe {
            let data = self.pages.byte_add(self.page).cast::<u8>();
            std::ptr::copy_nonoverlapping(data.add(start).as_ptr(), into.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(data.as_ptr(), into.as_mut_ptr().add(first), into.len() - first);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, of which no reference is left. A failure leaves its pages mapped.
        let _ = unsafe { munmap(self.pages, (1 + PAGES) * self.page) };
    }
}

/// What a record says that is of interest: code of a file that was mapped, or that something was lost.
fn said(record: &[u8]) -> Option<Said> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    match word(0)? {
        PERF_RECORD_LOST => Some(Said::Lost),
        PERF_RECORD_MMAP2 => {
            let (process, start, length, inode) = (word(8)?, long(16)?, long(24)?, long(48)?);
            let device = (word(40)?, word(44)?);
            // Without an inode it is no file's.
            let end = start.saturating_add(length);
            (inode != 0).then_some(Said::Mapped(Mapping { process, start, end, device }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_is_found_among_the_mappings() {
        let line = "7f3fcd177000-7f3fcd19d000 r-xp 00001000 fe:00 325843    /usr/lib/ld (deleted)";
        let mapping =
            Mapping { process: 3, start: 0x7f3f_cd17_7000, end: 0x7f3f_cd19_d000, device: (0xfe, 0) };
        assert_eq!(Mapping::listed(3, line), Some(mapping));
        for other in [
            "7f3fcd177000-7f3fcd19d000 r--p 00001000 fe:00 325843 /usr/lib/ld",
            "7f3fcd177000-7f3fcd19d000 r-xp 00000000 00:00 0 [vdso]",
            "7f3fcd177000-7f3fcd19d000",
            "",
        ] {
            assert_eq!(Mapping::listed(3, other), None, "{other}");
        }
    }

    #[test]
    fn processors_are_listed() {
        assert_eq!(online("0-1\n"), [0, 1]);
        assert_eq!(online("0,2-4"), [0, 2, 3, 4]);
        assert_eq!(online("nonsense"), [0; 0]);
    }

    #[test]
    fn records_that_are_short_or_of_no_file_say_nothing() {
        let mut record = vec![0; MAPPING];
        record[0] = 10;
        record[8] = 7;
        record[17] = 0x10;
        record[25] = 0x20;
        assert_eq!(said(&record), None);
        record[48] = 1;
        record[40] = 254;
        record[44] = 3;
        let mapping = Mapping { process: 7, start: 0x1000, end: 0x3000, device: (254, 3) };
        assert_eq!(said(&record), Some(Said::Mapped(mapping)));
        assert_eq!(said(&record[..50]), None);
        record[0] = 2;
        assert_eq!(said(&record), Some(Said::Lost));
    }
}
