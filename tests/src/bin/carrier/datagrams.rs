//! UDP: datagrams of many sizes to two destinations, each answered before the next is sent.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

/// From nothing to the most that an IPv4 datagram holds; the larger ones are fragmented on most networks.
const SIZES: [usize; 7] = [0, 1, 512, 1472, 1473, 9000, 65_507];

/// Prints, for each socket, bytes sent and received.
pub(crate) fn exchange(first: SocketAddr, second: SocketAddr) -> Result<()> {
    for to in [first, second] {
        let socket = open(to)?;
        socket.connect(to).context("connect")?;
        let mut received = 0;
        for size in SIZES {
            socket.send(&vec![b'c'; size]).with_context(|| format!("send {size} bytes to {to}"))?;
            received += socket.recv(&mut vec![0; 1 << 16]).context("recv")?;
        }
        println!("datagrams connected {to} {} {received}", SIZES.iter().sum::<usize>());
    }
    // One socket, both destinations where they are of one family.
    let socket = open(first)?;
    let (mut sent, mut received) = (0, 0);
    for size in SIZES {
        for to in [first, second].into_iter().filter(|to| to.is_ipv4() == first.is_ipv4()) {
            sent += socket
                .send_to(&vec![b'u'; size], to)
                .with_context(|| format!("send {size} bytes to {to}"))?;
            received += socket.recv(&mut vec![0; 1 << 16]).context("recv")?;
        }
    }
    println!("datagrams unconnected {first} {sent} {received}");
    Ok(())
}

fn open(to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).context("SO_RCVTIMEO")?;
    Ok(socket)
}
