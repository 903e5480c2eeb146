//! One connection to PostgreSQL: as much of the frontend's simple-query protocol as it takes to be told everything.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::syscall::{self, check};

/// How long the other end may take to acknowledge.
const LIMIT: Duration = Duration::from_secs(60);
/// TCP_CLOSE_WAIT (include/net/tcp_states.h): the other end's FIN has arrived and is counted as a byte received.
const CLOSE_WAIT: u8 = 8;

/// The message `Query`.
pub(crate) fn query(text: &str) -> Vec<u8> {
    let mut message = vec![b'Q'];
    message.extend_from_slice(&(text.len() as u32 + 5).to_be_bytes());
    message.extend_from_slice(text.as_bytes());
    message.push(0);
    message
}

/// The start-up message: protocol 3.0, the superuser of the test's cluster.
pub(crate) fn startup() -> Vec<u8> {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let mut message = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
    message.extend_from_slice(&[0, 3, 0, 0]);
    message.extend_from_slice(parameters);
    message
}

/// A statement of about `bytes` bytes. Any part of it that is missing, doubled or displaced shows.
pub(crate) fn statement(mark: &str, bytes: usize) -> String {
    let digits: String = (0..bytes / 8).map(|place| format!("{place:08x}")).collect();
    format!("select length('{digits}') -- {mark}")
}

/// A connection, with what this end knows of it.
pub(crate) struct Conversation {
    pub(crate) socket: OwnedFd,
    local: SocketAddr,
    inbox: Vec<u8>,
    sent: u64,
    received: u64,
    statements: u64,
}

impl Conversation {
    /// Connects, as IPv6 socket also to an IPv4 address where that is asked for, and logs in.
    pub(crate) fn open(to: SocketAddr, family: i32) -> Result<Self> {
        let socket = syscall::tcp_socket(family)?;
        let (storage, length) = syscall::socket_address(to, family);
        // SAFETY: the storage holds an address of this length.
        let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const storage).cast(), length) };
        check("connect", result as isize)?;
        let mut conversation = Self::of(socket)?;
        conversation.send(&startup())?;
        conversation.ready(1)?;
        Ok(conversation)
    }

    /// The same with the start-up message on the SYN (RFC 7413), as far as the kernel has a cookie for it.
    pub(crate) fn open_fast(to: SocketAddr, family: i32) -> Result<Self> {
        let socket = syscall::tcp_socket(family)?;
        let (storage, length) = syscall::socket_address(to, family);
        let message = startup();
        // SAFETY: the message lives through the call; the storage holds an address of this length.
        let result = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_FASTOPEN,
                (&raw const storage).cast(),
                length,
            )
        };
        if check("sendto with MSG_FASTOPEN", result)? != message.len() {
            bail!("MSG_FASTOPEN took a part of the message");
        }
        let mut conversation = Self::of(socket)?;
        conversation.sent += message.len() as u64;
        conversation.ready(1)?;
        Ok(conversation)
    }

    fn of(socket: OwnedFd) -> Result<Self> {
        let stream = std::net::TcpStream::from(socket);
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let local = stream.local_addr().context("getsockname")?;
        Ok(Self { socket: stream.into(), local, inbox: Vec::new(), sent: 0, received: 0, statements: 0 })
    }

    /// Sends bytes with write(2), all of them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.send_by(bytes, crate::ways::write)
    }

    /// Sends bytes by some means, all of them.
    pub(crate) fn send_by(
        &mut self,
        bytes: &[u8],
        way: impl FnOnce(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<()> {
        way(&self.socket, bytes)?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Sends a statement by some means and waits until the server has executed it.
    pub(crate) fn ask_by(
        &mut self,
        text: &str,
        way: impl FnOnce(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let message = query(text);
        self.send_by(&message, way)?;
        self.statements += 1;
        let answered = self.ready(1);
        // Some ways give the kernel the pages themselves: they are left alone until the other end has them.
        drop(message);
        answered
    }

    /// Somebody else has sent statements on this connection.
    pub(crate) fn others_sent(&mut self, statements: u64, bytes: u64) {
        self.sent += bytes;
        self.statements += statements;
    }

    /// Reads until the server was ready `times` times.
    pub(crate) fn ready(&mut self, mut times: usize) -> Result<()> {
        let mut stream = File::from(self.socket.try_clone().context("dup")?);
        let mut buffer = vec![0; 1 << 16];
        while times > 0 {
            while let [kind, a, b, c, d, ..] = *self.inbox.as_slice()
                && let Some(length) =
                    self.inbox.len().checked_sub(1 + u32::from_be_bytes([a, b, c, d]) as usize)
            {
                let rest = self.inbox.split_off(self.inbox.len() - length);
                let message = std::mem::replace(&mut self.inbox, rest);
                match kind {
                    b'E' => bail!("the server says {}", String::from_utf8_lossy(&message)),
                    b'Z' => times -= 1,
                    _ => {}
                }
            }
            if times == 0 {
                break;
            }
            let length = stream.read(&mut buffer).context("read")?;
            if length == 0 {
                bail!("the server has hung up");
            }
            self.received += length as u64;
            self.inbox.extend_from_slice(&buffer[..length]);
        }
        Ok(())
    }

    /// Says goodbye and prints what the kernel counted, and what was counted here.
    pub(crate) fn close(mut self, way: &str) -> Result<()> {
        self.send(&[b'X', 0, 0, 0, 4])?;
        let (acked, received) = totals(&self.socket, 1)?;
        if !self.inbox.is_empty() {
            bail!("the server has said more than it was asked");
        }
        let Self { local, sent, received: read, statements, .. } = self;
        println!("closed {way} {local} {sent} {read} {acked} {received} {statements}");
        Ok(())
    }
}

/// Payload bytes that the kernel moved both ways, once all that was sent is acknowledged. `counted_for_syn` is 1 for the end that
/// connected.
pub(crate) fn totals(socket: &OwnedFd, counted_for_syn: u64) -> Result<(u64, u64)> {
    let start = Instant::now();
    while syscall::unacknowledged(socket)? > 0 {
        if start.elapsed() > LIMIT {
            bail!("not everything was acknowledged within {} s", LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(1));
    }
    // The kernel reads the state before it takes the socket's lock and the counts under it, so a FIN may come in between and
    // be in the count only. What is read twice the same is of one moment.
    let mut info = syscall::tcp_info(socket)?;
    loop {
        let again = syscall::tcp_info(socket)?;
        if again == info {
            break;
        }
        info = again;
    }
    let fin = u64::from(info.state == CLOSE_WAIT);
    Ok((info.bytes_acked - counted_for_syn, info.bytes_received - fin))
}
