//! The ways to write to a socket. Each sends all bytes that it is given.

use std::io::{IoSlice, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use io_uring::{IoUring, opcode, types};

use crate::conversation::{Conversation, query, statement};
use crate::share;
use crate::syscall::{check, set_option};

/// A way of sending bytes.
type Way = fn(&OwnedFd, &[u8]) -> Result<()>;

/// What each way sends: from less than a segment to many super-packets.
const SIZES: [usize; 6] = [8, 1000, 5000, 40_000, 70_000, 300_000];

/// Sends statements in the way that is named, on a connection of its own, and prints what the kernel counted.
pub(crate) fn carry(name: &str, to: SocketAddr) -> Result<()> {
    let family = match to {
        SocketAddr::V4(_) if name == "mapped" => libc::AF_INET6,
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut conversation = match name {
        "fast-open" => Conversation::open_fast(to, family)?,
        _ => Conversation::open(to, family)?,
    };
    match name {
        "split" => split(&mut conversation)?,
        "many" => many(&mut conversation)?,
        "fork" => share::fork(&mut conversation)?,
        "crowd" => share::crowd(&mut conversation)?,
        "exec" => share::exec(&mut conversation)?,
        "dup" => share::dup(&mut conversation)?,
        "pass" => share::pass(&mut conversation)?,
        _ => match name.split_once(':') {
            Some(("pass-outside", path)) => share::pass_outside(&mut conversation, path)?,
            Some(("paced", pace)) => paced(&mut conversation, pace)?,
            Some(("slow", pace)) => slow(&mut conversation, pace)?,
            _ => {
                let way = way(name)?;
                for size in SIZES {
                    conversation.ask_by(&statement(name, size), way)?;
                }
            }
        },
    }
    conversation.close(name)
}

fn way(name: &str) -> Result<Way> {
    Ok(match name {
        "write" | "mapped" | "fast-open" => write,
        "writev" => writev,
        "send" => send,
        "sendto" => sendto,
        "sendmsg" => sendmsg,
        "sendmmsg" => sendmmsg,
        "sendfile" => sendfile,
        "splice" => splice,
        "vmsplice" => vmsplice,
        "zerocopy" => zerocopy,
        "uring-send" => uring_send,
        "uring-send-zc" => uring_send_zc,
        "uring-write" => uring_write,
        other => bail!("no way is called {other}"),
    })
}

/// Each message in two segments, divided at every place; then one in as many segments as it has bytes.
fn split(conversation: &mut Conversation) -> Result<()> {
    let text = statement("split", 8);
    let length = query(&text).len();
    for place in 1..length {
        conversation.ask_by(&text, |socket, bytes| {
            let (first, second) = bytes.split_at(place);
            write(socket, first)?;
            write(socket, second)
        })?;
    }
    conversation.ask_by(&text, |socket, bytes| bytes.chunks(1).try_for_each(|byte| write(socket, byte)))
}

/// `COUNT:BYTES:MILLISECONDS`: so many statements of that size, with a pause after each.
fn paced(conversation: &mut Conversation, pace: &str) -> Result<()> {
    let (count, bytes, pause) = numbers(pace)?;
    for number in 0..count {
        let text = statement(&format!("paced {number}"), usize::try_from(bytes)?);
        conversation.ask_by(&text, write)?;
        thread::sleep(Duration::from_millis(pause));
    }
    Ok(())
}

/// `BYTES:MILLISECONDS:COUNT`: one statement of that size, sent over that time; then so many small ones.
fn slow(conversation: &mut Conversation, pace: &str) -> Result<()> {
    const PARTS: usize = 100;
    let (bytes, time, count) = numbers(pace)?;
    let text = statement("slow", usize::try_from(bytes)?);
    conversation.ask_by(&text, |socket, message| {
        message.chunks(message.len().div_ceil(PARTS)).try_for_each(|part| {
            thread::sleep(Duration::from_millis(time) / PARTS as u32);
            write(socket, part)
        })
    })?;
    for number in 0..count {
        conversation.ask_by(&statement(&format!("after the slow one {number}"), 100), write)?;
    }
    Ok(())
}

/// Three numbers between colons.
fn numbers(pace: &str) -> Result<(u64, u64, u64)> {
    let numbers: Vec<u64> =
        pace.split(':').map(|number| number.parse().context("a pace")).collect::<Result<_>>()?;
    let [first, second, third] = numbers.as_slice() else { bail!("{pace} is no pace") };
    Ok((*first, *second, *third))
}

/// Hundreds of messages at once; the boundary of the writes falls into a message.
fn many(conversation: &mut Conversation) -> Result<()> {
    const COUNT: usize = 400;
    let texts: Vec<String> =
        (0..COUNT).map(|number| statement(&format!("many {number}"), number % 64)).collect();
    let bytes: Vec<u8> = texts.iter().flat_map(|text| query(text)).collect();
    conversation.others_sent(COUNT as u64, 0);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    conversation.send(first)?;
    conversation.send(second)?;
    conversation.ready(COUNT)
}

/// Repeats a call until everything is taken.
fn all(bytes: &[u8], mut call: impl FnMut(&[u8]) -> Result<usize>) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let taken = call(rest)?;
        if taken == 0 || taken > rest.len() {
            bail!("{taken} of {} bytes were taken", rest.len());
        }
        rest = &rest[taken..];
    }
    Ok(())
}

pub(crate) fn write(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        // SAFETY: the slice lives through the call.
        check("write", unsafe { libc::write(socket.as_raw_fd(), rest.as_ptr().cast(), rest.len()) })
    })
}

/// Some bytes as several buffers of uneven sizes.
fn pieces(bytes: &[u8]) -> Vec<IoSlice<'_>> {
    bytes.chunks(7919).map(IoSlice::new).collect()
}

fn writev(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        let pieces = pieces(rest);
        // SAFETY: an IoSlice is an iovec (its documentation promises so), and all live through the call.
        check("writev", unsafe {
            libc::writev(socket.as_raw_fd(), pieces.as_ptr().cast(), i32::try_from(pieces.len()).unwrap_or(1))
        })
    })
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        // SAFETY: the slice lives through the call.
        check("send", unsafe { libc::send(socket.as_raw_fd(), rest.as_ptr().cast(), rest.len(), 0) })
    })
}

fn sendto(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        // SAFETY: the slice lives through the call; a connected socket needs no address.
        check("sendto", unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                rest.as_ptr().cast(),
                rest.len(),
                libc::MSG_NOSIGNAL,
                ptr::null(),
                0,
            )
        })
    })
}

fn message(pieces: &[IoSlice<'_>]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid value of this type.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    message
}

fn sendmsg(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        let pieces = pieces(rest);
        // SAFETY: the message points to the pieces, which live through the call.
        check("sendmsg", unsafe { libc::sendmsg(socket.as_raw_fd(), &message(&pieces), 0) })
    })
}

fn sendmmsg(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    all(bytes, |rest| {
        let halves = rest.split_at(rest.len() / 2);
        let pieces = [pieces(halves.0), pieces(halves.1)];
        let mut messages = [0, 1].map(|half| libc::mmsghdr { msg_hdr: message(&pieces[half]), msg_len: 0 });
        // SAFETY: the messages point to the pieces, which live through the call.
        let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 2, 0) };
        let count = check("sendmmsg", count as isize)?;
        // What the second took counts only where the first took all.
        let taken: Vec<usize> = messages[..count].iter().map(|message| message.msg_len as usize).collect();
        match taken.as_slice() {
            [first, second] if *first < halves.0.len() && *second > 0 => bail!("sendmmsg left a hole"),
            taken => Ok(taken.iter().sum()),
        }
    })
}

fn sendfile(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile().context("a file")?;
    file.write_all(bytes).context("fill the file")?;
    file.seek(SeekFrom::Start(0)).context("rewind the file")?;
    all(bytes, |rest| {
        // SAFETY: plain numbers; the file's own position is used.
        check("sendfile", unsafe {
            libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), ptr::null_mut(), rest.len())
        })
    })
}

fn splice_pipe(socket: &OwnedFd, pipe: &OwnedFd, mut length: usize) -> Result<()> {
    while length > 0 {
        // SAFETY: plain numbers; no offsets.
        length -= check("splice", unsafe {
            libc::splice(
                pipe.as_raw_fd(),
                ptr::null_mut(),
                socket.as_raw_fd(),
                ptr::null_mut(),
                length,
                libc::SPLICE_F_MOVE,
            )
        })?;
    }
    Ok(())
}

fn splice(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let (reader, mut writer) = std::io::pipe().context("pipe")?;
    let reader = OwnedFd::from(reader);
    for chunk in bytes.chunks(32 << 10) {
        writer.write_all(chunk).context("fill the pipe")?;
        splice_pipe(socket, &reader, chunk.len())?;
    }
    Ok(())
}

/// The pages themselves go to the socket; whoever calls keeps them until the other end has them.
fn vmsplice(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    let reader = OwnedFd::from(reader);
    for chunk in bytes.chunks(16 << 10) {
        all(chunk, |rest| {
            let piece = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            // SAFETY: the pages are read only, and they live until the reply has come, which is after this function.
            let taken =
                check("vmsplice", unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const piece, 1, 0) })?;
            splice_pipe(socket, &reader, taken)?;
            Ok(taken)
        })?;
    }
    Ok(())
}

fn zerocopy(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    all(bytes, |rest| {
        // SAFETY: the pages are left as they are until the reply has come, which is after the kernel is done with them.
        check("send with MSG_ZEROCOPY", unsafe {
            libc::send(socket.as_raw_fd(), rest.as_ptr().cast(), rest.len(), libc::MSG_ZEROCOPY)
        })
    })
}

/// Submits one entry and returns its result; SEND_ZC completes twice, the second time when the pages are free again.
fn submit(entry: &io_uring::squeue::Entry, completions: usize) -> Result<usize> {
    let mut ring = IoUring::new(4).context("io_uring_setup")?;
    // SAFETY: what the entry points to lives until all completions have come, which this function waits for.
    unsafe { ring.submission().push(entry) }.context("submission queue")?;
    let mut result = None;
    let mut seen = 0;
    while seen < completions {
        ring.submit_and_wait(1).context("io_uring_enter")?;
        for completion in ring.completion() {
            seen += 1;
            result.get_or_insert(completion.result());
            // Failed before it began: nothing more comes.
            if !io_uring::cqueue::more(completion.flags()) {
                seen = completions;
            }
        }
    }
    let result = result.context("no completion")?;
    usize::try_from(result).map_err(|_| std::io::Error::from_raw_os_error(-result)).context("io_uring")
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn uring_send(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let socket = types::Fd(socket.as_raw_fd());
    all(bytes, |rest| submit(&opcode::Send::new(socket, rest.as_ptr(), length(rest)).build(), 1))
}

fn uring_send_zc(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let socket = types::Fd(socket.as_raw_fd());
    all(bytes, |rest| submit(&opcode::SendZc::new(socket, rest.as_ptr(), length(rest)).build(), 2))
}

fn uring_write(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let socket = types::Fd(socket.as_raw_fd());
    all(bytes, |rest| submit(&opcode::Write::new(socket, rest.as_ptr(), length(rest)).build(), 1))
}
