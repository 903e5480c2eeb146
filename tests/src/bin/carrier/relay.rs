//! An agent that listens: it accepts a connection on 127.0.0.1, then one on ::1, and relays each to another address.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::conversation::totals;

/// See the module. Prints for each connection, of both sides, what the kernel counted.
pub(crate) fn relay(port: u16, to: SocketAddr) -> Result<()> {
    let listeners = ["127.0.0.1", "::1"].map(|host| TcpListener::bind((host, port)));
    println!("listening");
    for listener in listeners {
        let (outside, peer) = listener.context("listen")?.accept().context("accept")?;
        let inside = TcpStream::connect(to).context("connect")?;
        let local = inside.local_addr().context("getsockname")?;
        let (from, onto) = (inside.try_clone().context("dup")?, outside.try_clone().context("dup")?);
        let back = thread::spawn(move || pump(from, onto));
        let asked = pump(outside.try_clone().context("dup")?, inside.try_clone().context("dup")?)?;
        let answered = back.join().map_err(|_| anyhow!("a thread has panicked"))??;
        let (sent, received) = totals_after_end(outside, 0)?;
        println!("closed accepted {peer} {answered} {asked} {sent} {received} 0");
        let (sent, received) = totals_after_end(inside, 1)?;
        println!("closed relayed {local} {asked} {answered} {sent} {received} 0");
    }
    Ok(())
}

/// Both ends have said goodbye: the kernel has counted FIN both ways, and waits for nothing.
fn totals_after_end(stream: TcpStream, counted_for_syn: u64) -> Result<(u64, u64)> {
    totals(&OwnedFd::from(stream), counted_for_syn)
}

/// Copies to the end and returns how much that was. The writing side stays open: the numbers are asked for before it ends.
fn pump(mut from: TcpStream, mut to: TcpStream) -> Result<u64> {
    let mut buffer = [0; 1 << 14];
    let mut total = 0;
    loop {
        let length = from.read(&mut buffer).context("read")?;
        if length == 0 {
            break;
        }
        to.write_all(&buffer[..length]).context("write")?;
        total += length as u64;
    }
    // The other thread reads from where this one writes: it must hear that there is an end.
    let _ = to.shutdown(Shutdown::Read);
    Ok(total)
}
