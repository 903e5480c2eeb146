//! System-call filters for a command: what the hooks on its cgroup cannot see, it must not do.
//!
//! The network hooks cover internet sockets. These filters close the ways around them:
//!
//! | refused | with | because |
//! |---|---|---|
//! | socket, socketpair of families other than UNIX, INET, INET6, NETLINK | EAFNOSUPPORT | AF_VSOCK, AF_PACKET, AF_XDP, AF_ALG, AF_TIPC, AF_SMC never reach the cgroup hooks |
//! | SOCK_RAW on INET, INET6; SOCK_PACKET | EPERM | bytes outside of any connection (netlink uses SOCK_RAW and is left alone) |
//! | io_uring | EPERM | IORING_OP_SOCKET makes sockets without the system call that is filtered here |
//! | ptrace, process_vm_readv, process_vm_writev, pidfd_getfd | EPERM | acting through a process that is not in the session |
//! | bpf, perf_event_open | EPERM | meddling with, or learning from, the hooks themselves |
//! | setns; unshare and clone with CLONE_NEWUSER; the mount calls, pivot_root | EPERM | a user namespace gives capabilities back, and with them all that was dropped |
//! | kexec, modules | EPERM | another kernel, or more code in this one |
//! | userfaultfd | EPERM | stops the kernel in mid-copy, the tool of choice for racing its checks |
//! | ioctl TIOCSTI, TIOCLINUX | EPERM | typing into the terminal that the command shares with its caller, who is not in the session |
//! | clone3 | ENOSYS | its flags are behind a pointer that a filter cannot follow; libc falls back to clone |
//! | system calls of another architecture | SIGSYS | 32-bit calls have other numbers; no filter here would match |
//! | x32 calls | ENOSYS | the same architecture with numbers from 2^30 on, which a filter by number would let through |
//!
//! Integer arguments are compared by their low 32 bits, as the kernel takes them: comparing all 64 would let a caller slip
//! through with garbage in the high half.
//!
//! What is not filtered, on purpose: keyctl (Kerberos keeps its tickets there), and `/proc/<pid>/mem`, which is opened like any
//! file; there ptrace's access rules hold (`kernel.yama.ptrace_scope`, which `auditor doctor` looks at).
//!
//! Not one rule of the auditor hangs on these filters alone where a cgroup hook can see the same thing.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// The bits of a socket's type that are not flags (`SOCK_TYPE_MASK` of linux/net.h).
const SOCKET_TYPE_MASK: u64 = 0xf;
/// linux/net.h; obsolete, and still there for AF_INET.
const SOCK_PACKET: u64 = 10;

/// Families that a command may have.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_userfaultfd,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters, to be installed one after the other. A program has one refusal only, hence several.
pub(super) fn filters() -> Result<Vec<BpfProgram>, BackendError> {
    let compile = |rules, errno: libc::c_int| -> Result<BpfProgram, BackendError> {
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCHITECTURE)?.try_into()
    };
    let mut filters = vec![
        compile(refused_calls()?, libc::EPERM)?,
        compile(refused_families()?, libc::EAFNOSUPPORT)?,
        // An empty chain matches always.
        compile(Rules::from([(libc::SYS_clone3, vec![])]), libc::ENOSYS)?,
    ];
    filters.extend(x32());
    Ok(filters)
}

fn refused_families() -> Result<Rules, BackendError> {
    let unknown = || {
        let differs = FAMILIES.map(|family| argument(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
        SeccompRule::new(differs.into_iter().collect::<Result<_, _>>()?)
    };
    Ok(Rules::from([(libc::SYS_socket, vec![unknown()?]), (libc::SYS_socketpair, vec![unknown()?])]))
}

fn refused_calls() -> Result<Rules, BackendError> {
    let mut rules: Rules = REFUSED.iter().map(|call| (*call, vec![])).collect();
    let raw = |family: libc::c_int| {
        SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, family.unsigned_abs().into())?,
            argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), libc::SOCK_RAW.unsigned_abs().into())?,
        ])
    };
    let packet = one(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), SOCK_PACKET)?;
    rules.insert(libc::SYS_socket, vec![raw(libc::AF_INET)?, raw(libc::AF_INET6)?, packet]);
    let new_user = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        rules.insert(call, vec![one(0, SeccompCmpOp::MaskedEq(new_user), new_user)?]);
    }
    let ioctls = [libc::TIOCSTI, libc::TIOCLINUX];
    let requests = ioctls.map(|request| one(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, requests.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}

fn one(index: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![argument(index, comparison, value)?])
}

fn argument(index: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, value)
}

/// x32 has the architecture number of x86-64, which is all that seccompiler looks at, so this one is written by hand.
#[cfg(target_arch = "x86_64")]
fn x32() -> Option<BpfProgram> {
    use seccompiler::sock_filter;

    /// `__X32_SYSCALL_BIT` of asm/unistd.h.
    const FIRST_X32: u32 = 0x4000_0000;
    /// `offsetof(struct seccomp_data, nr)`.
    const NUMBER: u32 = 0;
    /// BPF_LD | BPF_W | BPF_ABS.
    const LOAD: u16 = 0x20;
    /// BPF_JMP | BPF_JGE | BPF_K.
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    /// BPF_RET | BPF_K.
    const RETURN: u16 = 0x06;
    let instruction = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Some(vec![
        instruction(LOAD, 0, NUMBER),
        instruction(JUMP_IF_AT_LEAST, 1, FIRST_X32),
        instruction(RETURN, 0, SeccompAction::Allow.into()),
        instruction(RETURN, 0, refuse.into()),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn x32() -> Option<BpfProgram> {
    None
}
