//! The programs that read streams between unix sockets: attached while somebody may use one, and asked whether a stream goes on.
//!
//! They are on raw tracepoints of all sockets of the host, so they are attached while a policy in force lets a unix socket through
//! or a stream is followed, and not otherwise. A raw tracepoint's link cannot be given another program (BPF_LINK_UPDATE), so for a
//! moment of an upgrade there are two daemons' programs on each; one table says whose turn it is, and changes in one step.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::bpf;

/// The programs on raw tracepoints, by the name that both have.
pub(super) const TRACEPOINTS: [&str; 2] = ["sock_send_length", "sock_recv_length"];
/// The oldest kernel that has these.
pub(super) const KERNEL: &str = "6.3";
/// The program that is asked.
pub(super) const LOOK: &str = "unix_stream_look";

/// What became of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It goes on.
    GoesOn,
    /// It has ended, which is on the ring, or it is not known any more.
    Ended,
    /// It has ended, and the ring had no room for that.
    NotRecorded,
}

/// `union bpf_attr` of BPF_PROG_RUN.
#[repr(C)]
#[derive(Default)]
struct ProgramRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _padding: u32,
}

const BPF_PROG_RUN: libc::c_long = 10;

/// Asks [`LOOK`] after a stream. `forced`: its end is recorded in any case.
///
/// # Errors
/// The kernel refused.
pub(super) fn look(program: BorrowedFd<'_>, cookie: u64, forced: bool) -> io::Result<State> {
    let context = [cookie, u64::from(forced)];
    let mut run = ProgramRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ctx_size_in: size_of_val(&context) as u32,
        ctx_in: context.as_ptr() as u64,
        ..ProgramRun::default()
    };
    // SAFETY: the structure is what the command takes; the context is as long as is said, and outlives the call.
    unsafe { bpf::call(BPF_PROG_RUN, &mut run) }?;
    Ok(match run.retval {
        0 => State::GoesOn,
        2 => State::NotRecorded,
        _ => State::Ended,
    })
}
