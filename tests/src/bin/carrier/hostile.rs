//! What somebody does who means to exhaust or confuse a reader of the traffic.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};

use crate::conversation::startup;
use crate::syscall;

/// Connections that are open at the same time, and descriptors that the program needs beside them.
fn allow_descriptors(count: usize) -> Result<()> {
    let limit = count as u64 + 64;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("RLIMIT_NOFILE")
}

/// A client that breaks the protocol in the way that is named.
pub(crate) fn spew(to: SocketAddr, way: &str) -> Result<()> {
    const ENDLESS: usize = 64 << 20;
    let mut stream = TcpStream::connect(to).context("connect")?;
    let start = match way {
        "startup-length" => vec![0, 0, 0, 7, 0, 3, 0, 0],
        "startup-endless" => [&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0][..], b"user\0"].concat(),
        "no-end" => startup()[..12].to_vec(),
        _ => startup(),
    };
    stream.write_all(&start).context("start-up")?;
    let message: &[u8] = match way {
        "length-too-small" => b"Q\0\0\0\x03select 1\0",
        "length-too-large" => b"Q\xff\xff\xff\xffselect 1\0",
        "endless" => b"Q\x3f\xff\xff\xffselect ",
        "endless-bind" => b"B\x3f\xff\xff\xff\0\0\0\0\xff\xff",
        "unknown-type" => b"\x01\0\0\0\x05x",
        _ => b"",
    };
    stream.write_all(message).context("message")?;
    if way.contains("endless") {
        let block = vec![b'e'; 1 << 16];
        for _ in 0..ENDLESS / block.len() {
            stream.write_all(&block).context("endless")?;
        }
    }
    // What arrives after the end of a process is seen on its way in, and taken by nobody.
    stream.shutdown(Shutdown::Write).context("shutdown")?;
    stream.read_to_end(&mut Vec::new()).context("read").map(drop)
}

/// A client that says hello, asks once and reads whatever comes.
pub(crate) fn swallow(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("connect")?;
    stream.write_all(&startup()).context("start-up")?;
    stream.write_all(b"Q\0\0\0\x0dselect 1\0").context("query")?;
    let mut buffer = vec![0; 1 << 16];
    while stream.read(&mut buffer).context("read")? > 0 {}
    Ok(())
}

/// Times that an attempt is repeated, 5 ms apart.
const REFUSALS: u32 = 1000;

/// Begins connections that nobody answers, all at once, and leaves.
pub(crate) fn half_open(to: SocketAddr, count: usize) -> Result<()> {
    allow_descriptors(count)?;
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (storage, length) = syscall::socket_address(to, family);
    let mut sockets: Vec<OwnedFd> = Vec::with_capacity(count);
    for _ in 0..count {
        let stream = TcpStream::from(syscall::tcp_socket(family)?);
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        let mut patience = REFUSALS;
        let (result, error) = loop {
            // SAFETY: the storage holds an address of this length.
            let result = unsafe { libc::connect(stream.as_raw_fd(), (&raw const storage).cast(), length) };
            let error = std::io::Error::last_os_error();
            // Faster than its attempts can be recorded, an agent is refused what it is allowed.
            if error.raw_os_error() != Some(libc::EPERM) || patience == 0 {
                break (result, error);
            }
            patience -= 1;
            std::thread::sleep(Duration::from_millis(5));
        };
        if result == 0 || error.raw_os_error() != Some(libc::EINPROGRESS) {
            bail!("connect answers {result}, {error}: somebody is there");
        }
        sockets.push(stream.into());
    }
    println!("opened {}", sockets.len());
    // Long enough to be seen all at once.
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// Connections that send a single byte each, all open at once.
pub(crate) fn one_byte(to: SocketAddr, count: usize) -> Result<()> {
    allow_descriptors(count)?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(to).context("connect")?;
        stream.write_all(&[0]).context("write")?;
        streams.push(stream);
    }
    println!("opened {}", streams.len());
    Ok(())
}

/// Connections that ask something each, and once more when all are open. They stay open until standard input ends.
pub(crate) fn hold(to: SocketAddr, count: usize) -> Result<()> {
    allow_descriptors(count)?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(to).context("connect")?;
        stream.write_all(&startup()).context("start-up")?;
        until_ready(&mut stream)?;
        ask(&mut stream)?;
        streams.push(stream);
    }
    streams.iter_mut().try_for_each(ask)?;
    println!("opened {}", streams.len());
    std::io::stdin().read(&mut [0]).context("stdin").map(drop)
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"Q\0\0\0\x0dselect 1\0").context("query")?;
    until_ready(stream)
}

/// Reads up to ReadyForQuery, which is the end of what a server says on its own.
fn until_ready(stream: &mut TcpStream) -> Result<()> {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    let (mut tail, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while !tail.ends_with(READY) {
        let length = stream.read(&mut buffer).context("read")?;
        if length == 0 {
            bail!("the server hung up");
        }
        tail.extend_from_slice(&buffer[..length]);
        tail.drain(..tail.len().saturating_sub(READY.len()));
    }
    Ok(())
}

/// Listens and takes nobody in, until its standard input ends.
pub(crate) fn listen(at: SocketAddr) -> Result<()> {
    let _listener = TcpListener::bind(at).context("listen")?;
    println!("listening");
    std::io::stdin().read(&mut [0]).context("stdin").map(drop)
}
