//! The internet sockets that a process holds, from procfs: which of them were made before the process was tagged.
//!
//! A socket belongs to the cgroup that it was made in and stays there when its process is moved. Then the kernel programs
//! neither decide nor record it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A socket that is open in a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenSocket {
    /// Number of the descriptor in the process; of one of them, where there are several.
    pub descriptor: i32,
    /// Number of the socket on sockfs.
    pub inode: u64,
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// This end.
    pub local: SocketAddr,
    /// The other end; port 0 where there is none.
    pub remote: SocketAddr,
}

/// Lists them. `process`: /proc/PID.
///
/// # Errors
/// The process is gone, or procfs cannot be read.
pub fn of_process(process: &Path) -> io::Result<Vec<OpenSocket>> {
    let mut held: HashMap<u64, i32> = HashMap::new();
    for descriptor in fs::read_dir(process.join("fd"))? {
        let path = descriptor?.path();
        // A descriptor may have been closed meanwhile.
        let Ok(target) = fs::read_link(&path) else { continue };
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // A socket may be open under several numbers; one is enough.
        if let (Some(inode), Some(number)) = (socket_of(&target), number) {
            held.insert(inode, number);
        }
    }
    let mut sockets = Vec::new();
    for (file, transport) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
        if held.is_empty() {
            break;
        }
        // The table of the process's own network namespace.
        let table = fs::read_to_string(process.join("net").join(file))?;
        for (inode, local, remote) in table.lines().skip(1).filter_map(entry) {
            if let Some(descriptor) = held.remove(&inode) {
                sockets.push(OpenSocket { descriptor, inode, transport, local, remote });
            }
        }
    }
    Ok(sockets)
}

/// `socket:[123]`, as the links of proc_pid_fd(5) read.
fn socket_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A line of proc_pid_net(5)'s socket tables: number, local end, remote end, …, inode as the tenth field.
fn entry(line: &str) -> Option<(u64, SocketAddr, SocketAddr)> {
    let mut fields = line.split_ascii_whitespace();
    let local = endpoint(fields.nth(1)?)?;
    let remote = endpoint(fields.next()?)?;
    Some((fields.nth(6)?.parse().ok()?, local, remote))
}

/// `0100007F:1538`: the address as 32-bit words in host byte order, the port as a number, both in hexadecimal.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut octets = [0; 16];
        for (index, place) in octets.chunks_exact_mut(4).enumerate() {
            place.copy_from_slice(&word(index)?);
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn the_kernel_lists_the_sockets_of_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("[::1]:0").unwrap();
        let open = of_process(Path::new("/proc/self")).unwrap();
        let has = |transport, local: SocketAddr| {
            open.iter().any(|socket| socket.transport == transport && socket.local == local)
        };
        assert!(has("tcp", listener.local_addr().unwrap()), "{open:?}");
        assert!(has("udp", datagrams.local_addr().unwrap()), "{open:?}");
    }

    #[test]
    fn what_is_no_table_line_is_passed_over() {
        for line in
            ["", "0:", "0: 0100007F 0:0", "0: 0100007F:XX 00000000:0000 0A", "0: 01:1 02:2 a b c d e f"]
        {
            assert_eq!(entry(line), None, "{line}");
        }
    }
}
