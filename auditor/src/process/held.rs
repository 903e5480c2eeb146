//! A socket of another process, held by a descriptor of our own (pidfd_getfd(2), Linux 5.6, with CAP_SYS_PTRACE).
//!
//! Not by its addresses through sock_diag: that works within a network namespace, and to enter an agent's takes CAP_SYS_ADMIN,
//! which the daemon has given up; and between looking a connection up and destroying it, its addresses may be another's.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

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

/// See the module.
#[derive(Debug)]
pub struct Held {
    descriptor: OwnedFd,
}

impl Held {
    /// Takes hold of what is open in a process under a number.
    ///
    /// # Errors
    /// The process or its descriptor is gone, or the kernel does not let us (kernel.yama.ptrace_scope = 3).
    pub fn take(pid: u32, number: i32) -> io::Result<Self> {
        let process = descriptor(
            // SAFETY: integers in, a descriptor out.
            unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
        )?;
        let descriptor = descriptor(
            // SAFETY: a descriptor that is open and integers in, a descriptor out.
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) },
        )?;
        Ok(Self { descriptor })
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
        match self.option(libc::SOL_SOCKET, libc::SO_PROTOCOL, &mut [0; size_of::<i32>()]) {
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
    /// One of the calls failed, or the connection is still there.
    pub fn end(&self, tcp: bool) -> io::Result<()> {
        // The owner may connect in between: once more, now that nothing of it can leave.
        self.disconnect()?;
        self.set_option(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, NO_INTERFACE)?;
        self.disconnect()?;
        if tcp {
            let closed = self.tcp_info()?.first() == Some(&TCP_CLOSE);
            return if closed { Ok(()) } else { Err(io::Error::other("the connection is still there")) };
        }
        // SAFETY: a descriptor that is open, and an integer.
        let result = unsafe { libc::shutdown(self.descriptor.as_raw_fd(), libc::SHUT_RDWR) };
        match io::Error::last_os_error() {
            // inet_shutdown says so, and shuts down.
            error if result < 0 && error.raw_os_error() != Some(libc::ENOTCONN) => Err(error),
            _ => Ok(()),
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
        Held::take(std::process::id(), socket.as_raw_fd()).unwrap()
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
        held.end(true).unwrap();
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
        held(&listener).end(true).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap_err();
    }

    #[test]
    fn a_datagram_socket_sends_no_more() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.send_to(b"before", far.local_addr().unwrap()).unwrap();
        assert_eq!(far.recv(&mut [0; 8]).unwrap(), 6);
        held(&near).end(false).unwrap();
        near.send_to(b"after", far.local_addr().unwrap()).unwrap_err();
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
