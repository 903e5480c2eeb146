//! System calls that the standard library has no words for, each with the errno in its error.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};

/// The result of a call that answers -1 on failure.
pub(crate) fn check(call: &str, result: isize) -> Result<usize> {
    match usize::try_from(result) {
        Ok(result) => Ok(result),
        Err(_) => Err(io::Error::last_os_error()).with_context(|| call.to_owned()),
    }
}

/// A TCP socket of an address family.
pub(crate) fn tcp_socket(family: i32) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check("socket", result as isize)?;
    // SAFETY: a descriptor that was just made and that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// An address as the kernel wants it; an IPv4 address for an IPv6 socket becomes its IPv4-mapped form (RFC 4291 2.5.5.2).
pub(crate) fn socket_address(to: SocketAddr, family: i32) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid value of this type.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match (to, family) {
        (SocketAddr::V4(to), libc::AF_INET) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is larger than any address and aligned for it.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(address) };
            size_of::<libc::sockaddr_in>()
        }
        (to, _) => {
            let ip = match to {
                SocketAddr::V4(to) => to.ip().to_ipv6_mapped(),
                SocketAddr::V6(to) => *to.ip(),
            };
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(address) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

/// Sets a whole-number socket option.
pub(crate) fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check("setsockopt", result as isize).map(drop)
}

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TcpInfo {
    /// TCP_ESTABLISHED and so on.
    pub(crate) state: u8,
    /// Payload bytes acknowledged, and one for SYN on the side that connected (RFC 4898).
    pub(crate) bytes_acked: u64,
    /// Payload bytes received in order, and one for FIN.
    pub(crate) bytes_received: u64,
}

/// TCP_INFO. libc's struct ends before the byte counts, which have their place since Linux 4.1 (include/uapi/linux/tcp.h).
pub(crate) fn tcp_info(socket: &OwnedFd) -> Result<TcpInfo> {
    const BYTES_ACKED: usize = 120;
    const BYTES_RECEIVED: usize = 128;
    let mut info = [0_u8; 136];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the buffer is as long as its length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    check("TCP_INFO", result as isize)?;
    if (length as usize) < info.len() {
        bail!("TCP_INFO has only {length} bytes");
    }
    let count = |offset: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[offset..offset + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok(TcpInfo { state: info[0], bytes_acked: count(BYTES_ACKED), bytes_received: count(BYTES_RECEIVED) })
}

/// Bytes that were written and not acknowledged yet (SIOCOUTQ).
pub(crate) fn unacknowledged(socket: &OwnedFd) -> Result<u32> {
    let mut bytes: i32 = 0;
    // SAFETY: the call writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    check("SIOCOUTQ", result as isize)?;
    u32::try_from(bytes).context("SIOCOUTQ")
}

/// Sends one byte and a descriptor over a unix socket.
pub(crate) fn pass_descriptor(over: RawFd, passed: RawFd) -> Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let data = [io::IoSlice::new(b"d")];
    let control = [ControlMessage::ScmRights(&[passed])];
    sendmsg::<()>(over, &data, &control, MsgFlags::empty(), None).context("SCM_RIGHTS").map(drop)
}

/// Takes a descriptor off a unix socket; `None` at its end.
pub(crate) fn take_descriptor(over: RawFd) -> Result<Option<OwnedFd>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(over, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .context("take a descriptor")?;
    for control in message.cmsgs().context("control messages")? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just installed it for this process, and nobody else knows of it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    Ok(None)
}
