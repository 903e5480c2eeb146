//! One socket, several owners: copies of the descriptor, children, other programs, processes of other sessions.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::conversation::{Conversation, query, statement};
use crate::{syscall, ways};

/// Statements that each way of sharing sends from the other side.
const EACH: usize = 5;
/// Processes that use one socket at once.
const CROWD: usize = 6;
/// Statements that each of them sends.
const CROWD_EACH: usize = 30;

fn statements(mark: &str) -> impl Iterator<Item = String> {
    (0..EACH)
        .map(move |number| statement(&format!("{mark} {number}"), [8, 900, 5000, 30_000, 70_000][number]))
}

/// A descriptor and its copy, by turns.
pub(crate) fn dup(conversation: &mut Conversation) -> Result<()> {
    let copy = conversation.socket.try_clone().context("dup")?;
    for text in statements("dup") {
        conversation.ask_by(&text, ways::write)?;
        conversation.ask_by(&text, |_, bytes| ways::write(&copy, bytes))?;
    }
    Ok(())
}

/// Runs `work` in a child.
fn in_child(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: this program has one thread, so the child may do what the parent may.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = match work() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("child: {error:#}");
                    1
                }
            };
            // Without destructors: what the parent owns is the parent's to end.
            // SAFETY: ends this process and returns nowhere.
            unsafe { libc::_exit(status) }
        }
    }
}

fn succeeded(child: Pid) -> Result<()> {
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(()),
        status => bail!("a child ended with {status:?}"),
    }
}

/// Parent and child by turns.
pub(crate) fn fork(conversation: &mut Conversation) -> Result<()> {
    for text in statements("fork") {
        conversation.ask_by(&text, ways::write)?;
        conversation.ask_by(&text, |socket, bytes| succeeded(in_child(|| ways::write(socket, bytes))?))?;
    }
    Ok(())
}

/// Several processes at the same time. The kernel keeps each small message whole; their order is the server's to tell.
pub(crate) fn crowd(conversation: &mut Conversation) -> Result<()> {
    let mut children = Vec::new();
    let mut bytes = 0;
    for process in 0..CROWD {
        let messages: Vec<Vec<u8>> = (0..CROWD_EACH)
            .map(|number| query(&statement(&format!("crowd {process} {number}"), 8 * number)))
            .collect();
        bytes += messages.iter().map(Vec::len).sum::<usize>() as u64;
        let socket = &conversation.socket;
        children.push(in_child(|| messages.iter().try_for_each(|message| ways::write(socket, message)))?);
    }
    conversation.others_sent((CROWD * CROWD_EACH) as u64, bytes);
    conversation.ready(CROWD * CROWD_EACH)?;
    children.into_iter().try_for_each(succeeded)
}

/// Another program inherits the socket.
pub(crate) fn exec(conversation: &mut Conversation) -> Result<()> {
    let program = std::env::current_exe().context("own path")?;
    for text in statements("exec") {
        // The copy has no FD_CLOEXEC.
        // SAFETY: plain numbers.
        let descriptor = unsafe { libc::dup(conversation.socket.as_raw_fd()) };
        syscall::check("dup", descriptor as isize)?;
        // SAFETY: just made, and nobody else's.
        let inherited = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let status = Command::new(&program)
            .args(["sender", &descriptor.to_string(), &text])
            .status()
            .context("exec")?;
        drop(inherited);
        if !status.success() {
            bail!("the other program ended with {status}");
        }
        conversation.others_sent(1, query(&text).len() as u64);
        conversation.ready(1)?;
    }
    Ok(())
}

/// The other program: sends one statement on a socket that it inherited.
pub(crate) fn sender(descriptor: RawFd, text: &str) -> Result<()> {
    // SAFETY: the parent left it open for this program, which uses it here only and does not close it.
    let socket =
        unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().context("inherited socket")?;
    ways::write(&socket, &query(text))
}

/// The socket goes over a unix socket to a child that did not inherit it.
pub(crate) fn pass(conversation: &mut Conversation) -> Result<()> {
    let (mine, theirs) = UnixStream::pair().context("socketpair")?;
    // SAFETY: plain numbers.
    let inherited = unsafe { libc::dup(theirs.as_raw_fd()) };
    syscall::check("dup", inherited as isize)?;
    let program = std::env::current_exe().context("own path")?;
    let mut child =
        Command::new(program).args(["insider", &inherited.to_string()]).spawn().context("exec")?;
    // SAFETY: just made, the child has its own.
    drop(unsafe { OwnedFd::from_raw_fd(inherited) });
    drop(theirs);
    ask_other(conversation, &mine, "pass")?;
    drop(mine);
    let status = child.wait().context("wait")?;
    if !status.success() {
        bail!("the receiver ended with {status}");
    }
    Ok(())
}

/// The same, to a process that listens on `path`.
pub(crate) fn pass_outside(conversation: &mut Conversation, path: &str) -> Result<()> {
    let stream = UnixStream::connect(path).with_context(|| format!("connect to {path}"))?;
    ask_other(conversation, &stream, "pass-outside")
}

/// Passes the socket and has the other side send the statements, by turns with this side.
fn ask_other(conversation: &mut Conversation, mut over: &UnixStream, mark: &str) -> Result<()> {
    syscall::pass_descriptor(over.as_raw_fd(), conversation.socket.as_raw_fd())?;
    for text in statements(mark) {
        conversation.ask_by(&text, ways::write)?;
        conversation.ask_by(&text, |_, bytes| {
            over.write_all(&(bytes.len() as u32).to_be_bytes()).context("tell the other side")?;
            over.write_all(bytes).context("tell the other side")?;
            over.read_exact(&mut [0]).context("hear from the other side")
        })?;
    }
    Ok(())
}

/// The other side of it, in the session.
pub(crate) fn insider(descriptor: RawFd) -> Result<()> {
    // SAFETY: inherited for this purpose, and owned by nobody else in this process.
    serve(UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// The other side of it, outside the session: tells when it listens, and serves one.
pub(crate) fn outsider(path: &str) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {path}"))?;
    println!("listening");
    serve(listener.accept().context("accept")?.0)
}

fn serve(mut stream: UnixStream) -> Result<()> {
    let socket = syscall::take_descriptor(stream.as_raw_fd())?.context("no descriptor came")?;
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut message).context("read a message")?;
        ways::write(&socket, &message)?;
        stream.write_all(b"s").context("answer")?;
    }
    Ok(())
}
