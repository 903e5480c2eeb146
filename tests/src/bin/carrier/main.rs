//! A workload: carries PostgreSQL statements over a socket by every means that the kernel has for it.
//!
//! It is no client library's work, so that each system call is exactly the one that is named, and it knows to the byte what it
//! sent. Before it closes a connection it asks the kernel (TCP_INFO) how many bytes that moved, and prints both
//! counts: what the auditor says is held against them.
//!
//! ```text
//! carrier statements ADDRESS WAY…     each way on a connection of its own
//! carrier outsider PATH               sends what it is told on descriptors that arrive on a unix socket
//! carrier relay PORT ADDRESS          accepts one connection on each loopback and relays it to ADDRESS
//! carrier datagrams ADDRESS ADDRESS   UDP to both, with and without connect(2)
//! carrier spew|swallow|half-open|one-byte|hold|listen ADDRESS [WAY|COUNT]   see `hostile`
//! ```

mod conversation;
mod datagrams;
mod hostile;
mod relay;
mod share;
mod syscall;
mod ways;

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["statements", to, ways @ ..] => {
            let to = address(to)?;
            ways.iter().try_for_each(|way| ways::carry(way, to).with_context(|| format!("{way} to {to}")))
        }
        ["outsider", path] => share::outsider(path),
        ["insider", descriptor] => share::insider(descriptor.parse().context("descriptor")?),
        ["sender", descriptor, text] => share::sender(descriptor.parse().context("descriptor")?, text),
        ["relay", port, to] => relay::relay(port.parse().context("port")?, address(to)?),
        ["spew", to, way] => hostile::spew(address(to)?, way),
        ["swallow", to] => hostile::swallow(address(to)?),
        ["half-open", to, count] => hostile::half_open(address(to)?, count.parse().context("count")?),
        ["hold", to, count] => hostile::hold(address(to)?, count.parse().context("count")?),
        ["one-byte", to, count] => hostile::one_byte(address(to)?, count.parse().context("count")?),
        ["listen", at] => hostile::listen(address(at)?),
        ["datagrams", first, second] => datagrams::exchange(address(first)?, address(second)?),
        _ => bail!("usage: see the first lines of the source"),
    }
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("{text:?} is no address with a port"))
}
