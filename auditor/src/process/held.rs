//! A socket of another process, held by a descriptor of our own (pidfd_getfd(2), Linux 5.6, with CAP_SYS_PTRACE).
//!
//! Not by its addresses through sock_diag: that works within a network namespace, and to enter an agent's takes CAP_SYS_ADMIN,
//! which the daemon has given up; and between looking a connection up and destroying it, its addresses may be another's.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

/// Index of a network interface that no host has: they are given out from 1 on.
const NO_INTERFACE: i32 = i32::MAX;
/// `tcpi_state` of struct tcp_info where there is no connection (include/net/tcp_states.h, TCP_CLOSE).
const TCP_CLOSE: u8 = 7;
/// Offsets in struct tcp_info (include/uapi/linux/tcp.h), which grows at its end only.
const BYTES_RECEIVED: usize = 128;
/// As above; Linux 4.19.
const BYTES_SENT: usize = 200;
/// As above.
const BYTES_RETRANS: usize = 208;
/// Bytes of struct tcp_info up to what is read of it.
const TCP_INFO: usize = 216;

/// Flag of pidfd_open(2): a thread's, not its process's (Linux 6.9).
const PIDFD_THREAD: i32 = libc::O_EXCL;

/// What socket(2) was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sort {
    family: i32,
    kind: i32,
    protocol: i32,
}

impl Sort {
    /// Whether it leads to this host's processes or its kernel alone.
    pub fn is_local(self) -> bool {
        matches!(self.family, libc::AF_UNIX | libc::AF_NETLINK)
    }

    /// Whether it is of an internet family.
    pub fn is_internet(self) -> bool {
        matches!(self.family, libc::AF_INET | libc::AF_INET6)
    }

    /// Whether it is a TCP socket.
    pub fn is_tcp(self) -> bool {
        self.is_internet() && self.kind == libc::SOCK_STREAM && self.protocol == libc::IPPROTO_TCP
    }

    /// Whether it is a UDP socket.
    pub fn is_udp(self) -> bool {
        self.is_internet() && self.kind == libc::SOCK_DGRAM && self.protocol == libc::IPPROTO_UDP
    }

    /// Whether it has a state as TCP has it.
    fn is_like_tcp(self) -> bool {
        self.is_tcp() || (self.is_internet() && self.protocol == libc::IPPROTO_MPTCP)
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            sort if sort.is_tcp() => f.write_str("tcp"),
            sort if sort.is_udp() => f.write_str("udp"),
            sort if sort.is_like_tcp() => f.write_str("mptcp"),
            Self { family: libc::AF_PACKET, .. } => f.write_str("packet"),
            Self { family: libc::AF_INET | libc::AF_INET6, kind: libc::SOCK_RAW, protocol } => {
                write!(f, "raw (protocol {protocol})")
            }
            Self { family, kind, protocol } => {
                write!(f, "(family {family}, type {kind}, protocol {protocol})")
            }
        }
    }
}

fn address(answer: nix::Result<SockaddrStorage>) -> Option<SocketAddr> {
    let address = answer.ok()?;
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())));
    v4.or_else(|| {
        let address = address.as_sockaddr_in6()?;
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    })
}

/// See the module.
#[derive(Debug)]
pub struct Held {
    descriptor: OwnedFd,
}

impl Held {
    /// Takes hold of what is open under a number in a task of a process.
    ///
    /// # Errors
    /// The task or its descriptor is gone, the kernel does not let us (kernel.yama.ptrace_scope = 3), or the task has a table of its own
    /// and is not its process's first one (before Linux 6.9).
    pub fn take(process: u32, task: u32, number: i32) -> io::Result<Self> {
        let flags = if task == process { 0 } else { PIDFD_THREAD };
        let task = descriptor(
            // SAFETY: integers in, a descriptor out.
            unsafe { libc::syscall(libc::SYS_pidfd_open, task, flags) },
        )?;
        let descriptor = descriptor(
            // SAFETY: a descriptor that is open and integers in, a descriptor out.
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, task.as_raw_fd(), number, 0) },
        )?;
        Ok(Self { descriptor })
    }

    /// What sort of socket it is.
    ///
    /// # Errors
    /// It is none, or getsockopt(2) failed.
    pub fn sort(&self) -> io::Result<Sort> {
        Ok(Sort {
            family: self.number(libc::SO_DOMAIN)?,
            kind: self.number(libc::SO_TYPE)?,
            protocol: self.number(libc::SO_PROTOCOL)?,
        })
    }

    /// This end; `None` where it has no internet address.
    pub fn local(&self) -> Option<SocketAddr> {
        address(getsockname(self.descriptor.as_raw_fd()))
    }

    /// The other end; `None` where there is none.
    pub fn remote(&self) -> Option<SocketAddr> {
        address(getpeername(self.descriptor.as_raw_fd()))
    }

    /// Whether it waits for connections.
    ///
    /// # Errors
    /// getsockopt(2) failed.
    pub fn listens(&self) -> io::Result<bool> {
        Ok(self.number(libc::SO_ACCEPTCONN)? != 0)
    }

    fn number(&self, name: i32) -> io::Result<i32> {
        let mut number = [0; size_of::<i32>()];
        self.option(libc::SOL_SOCKET, name, &mut number)?;
        Ok(i32::from_ne_bytes(number))
    }

    /// Number of the socket on sockfs, as procfs shows it: whether what was taken is what was listed.
    ///
    /// # Errors
    /// fstat(2) failed.
    pub fn inode(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(File::from(self.descriptor.try_clone()?).metadata()?.ino())
    }

    /// Socket cookie.
    ///
    /// # Errors
    /// getsockopt(2) failed.
    pub fn cookie(&self) -> io::Result<u64> {
        let mut cookie = [0; size_of::<u64>()];
        self.option(libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
        Ok(u64::from_ne_bytes(cookie))
    }

    /// Whether the socket was made in the cgroup that `kernel::object::Object::tell_members` asks about, or below it.
    ///
    /// # Errors
    /// getsockopt(2) failed for another reason than that.
    pub fn is_member(&self) -> io::Result<bool> {
        match self.number(libc::SO_INCOMING_CPU) {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Payload bytes of a TCP connection so far: first sent, then received.
    ///
    /// # Errors
    /// It is no TCP socket, or the kernel is older than 4.19.
    pub fn bytes(&self) -> io::Result<(u64, u64)> {
        let info = self.tcp_info()?;
        let number = |offset: usize| {
            let bytes = info.get(offset..offset + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            bytes.map(u64::from_ne_bytes).ok_or(io::ErrorKind::UnexpectedEof)
        };
        Ok((number(BYTES_SENT)?.saturating_sub(number(BYTES_RETRANS)?), number(BYTES_RECEIVED)?))
    }

    /// Ends a socket for good: its connection is reset, and it can neither connect nor send again.
    ///
    /// A connection is reset by connect(2) to AF_UNSPEC (tcp_disconnect), which also ends listening. The socket would still be
    /// there to connect anew, out of reach of the hooks of a cgroup that it was not made in. So it is bound to an interface
    /// that does not exist; who wants to undo that needs CAP_NET_RAW. UDP is shut down as well, because a datagram may name its
    /// interface.
    ///
    /// # Errors
    /// It is of no internet family, or raw; one of the calls failed, or the connection is still there.
    pub fn end(&self, sort: Sort) -> io::Result<()> {
        if !sort.is_internet() {
            return Err(io::Error::other("the kernel has no way to"));
        }
        let bind = || self.set_option(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, NO_INTERFACE);
        self.disconnect()?;
        bind()?;
        // The owner may have connected in between: once more, now that nothing of it can leave.
        self.disconnect()?;
        if sort.is_like_tcp() {
            let closed = self.tcp_info()?.first() == Some(&TCP_CLOSE);
            return if closed { Ok(()) } else { Err(io::Error::other("the connection is still there")) };
        }
        // The others forget their interface with their destination (__udp_disconnect).
        bind()?;
        // SAFETY: a descriptor that is open, and an integer.
        let result = unsafe { libc::shutdown(self.descriptor.as_raw_fd(), libc::SHUT_RDWR) };
        match io::Error::last_os_error() {
            // inet_shutdown says so, and shuts down.
            error if result < 0 && error.raw_os_error() != Some(libc::ENOTCONN) => Err(error),
            _ if sort.is_udp() => Ok(()),
            // raw_sendmsg and its like do not ask whether the socket was shut down.
            _ => Err(io::Error::other("it is bound to no interface, but its packets may name one")),
        }
    }

    fn disconnect(&self) -> io::Result<()> {
        // SAFETY: all bytes zero are a value of this type, which is plain data.
        let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
        address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        // SAFETY: the address is `length` bytes long and outlives the call.
        checked(unsafe { libc::connect(self.descriptor.as_raw_fd(), &raw const address, length) })
    }

    fn tcp_info(&self) -> io::Result<Vec<u8>> {
        let mut info = vec![0; TCP_INFO];
        let length = self.option(libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
        info.truncate(length);
        Ok(info)
    }

    fn option(&self, level: i32, name: i32, place: &mut [u8]) -> io::Result<usize> {
        let mut length = libc::socklen_t::try_from(place.len()).unwrap_or(0);
        // SAFETY: `place` is `length` bytes that may be written, and the kernel writes no more than that.
        checked(unsafe {
            libc::getsockopt(
                self.descriptor.as_raw_fd(),
                level,
                name,
                place.as_mut_ptr().cast(),
                &raw mut length,
            )
        })?;
        Ok(length as usize)
    }

    fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        let length = size_of::<i32>() as libc::socklen_t;
        // SAFETY: `value` is `length` bytes and outlives the call.
        checked(unsafe {
            libc::setsockopt(self.descriptor.as_raw_fd(), level, name, (&raw const value).cast(), length)
        })
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just made it, with close-on-exec, and it is nobody else's.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn held(socket: &impl std::os::fd::AsRawFd) -> Held {
        Held::take(std::process::id(), std::process::id(), socket.as_raw_fd()).unwrap()
    }

    #[test]
    fn a_connection_is_reset_and_cannot_be_made_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"before").unwrap();
        far.read_exact(&mut [0; 6]).unwrap();
        far.write_all(b"and").unwrap();
        near.read_exact(&mut [0; 3]).unwrap();
        let held = held(&near);
        assert_eq!(held.bytes().unwrap(), (6, 3));
        held.end(held.sort().unwrap()).unwrap();
        assert_eq!(far.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        near.write_all(b"after").unwrap_err();
        let port = listener.local_addr().unwrap().port();
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: the address is `length` bytes long and outlives the call.
        checked(unsafe { libc::connect(near.as_raw_fd(), (&raw const address).cast(), length) }).unwrap_err();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_listening_socket_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = held(&listener);
        assert!(held.listens().unwrap());
        held.end(held.sort().unwrap()).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap_err();
    }

    #[test]
    fn a_datagram_socket_sends_no_more() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.send_to(b"before", far.local_addr().unwrap()).unwrap();
        assert_eq!(far.recv(&mut [0; 8]).unwrap(), 6);
        let held = held(&near);
        assert_eq!(held.sort().unwrap().to_string(), "udp");
        assert_eq!((held.local(), held.remote()), (near.local_addr().ok(), None));
        held.end(held.sort().unwrap()).unwrap();
        near.send_to(b"after", far.local_addr().unwrap()).unwrap_err();
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn raw_sockets_are_held_and_packet_sockets_are_not() {
        let socket = |family: i32, kind: i32, protocol: i32| {
            // SAFETY: integers in, a descriptor out.
            descriptor(libc::c_long::from(unsafe {
                libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol)
            }))
            .expect("this test makes raw sockets and must run as root")
        };
        let raw = held(&socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP));
        assert_eq!(raw.sort().unwrap().to_string(), "raw (protocol 1)");
        raw.end(raw.sort().unwrap()).unwrap_err();
        let to = SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        let sent = nix::sys::socket::sendto(
            raw.descriptor.as_raw_fd(),
            &echo,
            &to,
            nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
        );
        assert!(sent.is_err(), "{sent:?}");
        let packet = held(&socket(libc::AF_PACKET, libc::SOCK_RAW, 0));
        assert_eq!(packet.sort().unwrap().to_string(), "packet");
        packet.end(packet.sort().unwrap()).unwrap_err();
    }
}
