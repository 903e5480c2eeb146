//! System-call filters for a command: what the hooks on its cgroup cannot see, it must not do.
//!
//! The network hooks cover internet sockets. These filters close the ways around them:
//!
//! | refused | with | because |
//! |---|---|---|
//! | socket, socketpair of families other than INET, INET6 and those that `sockets` of the policy names | EAFNOSUPPORT | AF_VSOCK, AF_PACKET, AF_XDP, AF_ALG, AF_TIPC, AF_SMC never reach the cgroup hooks |
//! | SOCK_RAW on INET, INET6; SOCK_PACKET | EPERM | bytes outside of any connection (netlink uses SOCK_RAW and is left alone) |
//! | io_uring (`io-uring`) | EPERM | IORING_OP_SOCKET makes sockets without the system call that is filtered here |
//! | ptrace, process_vm_readv, process_vm_writev, pidfd_getfd (`ptrace`) | EPERM | acting through another process |
//! | bpf, perf_event_open (`perf-events`) | EPERM | meddling with, or learning from, the hooks themselves |
//! | setns; unshare and clone with CLONE_NEWUSER (`user-namespaces`); the mount calls, pivot_root (`mounts`) | EPERM | a user namespace gives capabilities back, and with them all that was dropped |
//! | kexec, modules | EPERM | another kernel, or more code in this one |
//! | userfaultfd (`userfaultfd`) | EPERM | stops the kernel in mid-copy, the tool of choice for racing its checks |
//! | ioctl TIOCSTI, TIOCLINUX | EPERM | typing into the terminal that the command shares with its caller, who is not in the session |
//! | ioctl TUNSETIFF, TUNSETQUEUE | EPERM | packets put into a tun device leave by no socket; one that root made for a user needs no capability |
//! | clone3 (`user-namespaces`) | ENOSYS | its flags are behind a pointer that a filter cannot follow; libc falls back to clone |
//! | system calls of another architecture | SIGSYS | 32-bit calls have other numbers; no filter here would match |
//! | x32 calls | ENOSYS | the same architecture with numbers from 2^30 on, which a filter by number would let through |
//!
//! What has a word in parentheses is not refused where `permit` of the policy has that word.
//!
//! Integer arguments are compared by their low 32 bits, as the kernel takes them: comparing all 64 would let a caller slip
//! through with garbage in the high half.
//!
//! What is not filtered, on purpose: keyctl (Kerberos keeps its tickets there), and `/proc/<pid>/mem`, which is opened like any
//! file. There ptrace's access rules hold, and keep to processes of the session where the kernel has Landlock with scopes
//! ([`auditor::landlock`]); elsewhere by `kernel.yama.ptrace_scope` alone, which `auditor doctor` looks at.
//!
//! Not one rule of the auditor hangs on these filters alone where a cgroup hook can see the same thing.

use std::collections::BTreeMap;

use auditor::policy::{Confinement, Permit, SocketKind};
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

/// linux/if_tun.h: `_IOW('T', 202, int)` and `_IOW('T', 217, int)`.
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETQUEUE: u64 = 0x4004_54d9;
/// `open_tree_attr` of Linux 6.15, the same number everywhere.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Refused whatever their arguments, and whatever the policy says.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
];

/// Refused whatever their arguments, unless the policy permits it.
const REFUSED_UNLESS: &[(Permit, &[libc::c_long])] = &[
    (
        Permit::Ptrace,
        &[libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pidfd_getfd],
    ),
    (Permit::UserNamespaces, &[libc::SYS_setns]),
    (
        Permit::Mounts,
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_open_tree,
            SYS_OPEN_TREE_ATTR,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
        ],
    ),
    (Permit::IoUring, &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]),
    (Permit::Userfaultfd, &[libc::SYS_userfaultfd]),
    (Permit::PerfEvents, &[libc::SYS_perf_event_open]),
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters, to be installed one after the other. A program has one refusal only, hence several.
pub(super) fn filters(confinement: &Confinement) -> Result<Vec<BpfProgram>, BackendError> {
    let compile = |rules, errno: libc::c_int| -> Result<BpfProgram, BackendError> {
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCHITECTURE)?.try_into()
    };
    let mut filters = vec![
        compile(refused_calls(confinement)?, libc::EPERM)?,
        compile(refused_families(confinement)?, libc::EAFNOSUPPORT)?,
    ];
    if !confinement.permits(Permit::UserNamespaces) {
        // An empty chain matches always.
        filters.push(compile(Rules::from([(libc::SYS_clone3, vec![])]), libc::ENOSYS)?);
    }
    filters.extend(x32());
    Ok(filters)
}

/// Families that a command may have. Internet sockets always: the kernel programs refuse what the policy does not name of them, and
/// record it.
fn families(confinement: &Confinement) -> Vec<libc::c_int> {
    let mut families = vec![libc::AF_INET, libc::AF_INET6];
    families.extend(confinement.sockets.iter().filter_map(|kind| match kind {
        SocketKind::Tcp | SocketKind::Udp => None,
        SocketKind::Unix => Some(libc::AF_UNIX),
        SocketKind::Netlink => Some(libc::AF_NETLINK),
        SocketKind::Vsock => Some(libc::AF_VSOCK),
        SocketKind::Alg => Some(libc::AF_ALG),
    }));
    families
}

fn refused_families(confinement: &Confinement) -> Result<Rules, BackendError> {
    let unless = |families: &[libc::c_int]| {
        let differs =
            families.iter().map(|family| argument(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
        SeccompRule::new(differs.collect::<Result<_, _>>()?)
    };
    let families = families(confinement);
    // Pairs of unix sockets are pipes that go both ways, and lead nowhere.
    let pairs = [families.as_slice(), &[libc::AF_UNIX]].concat();
    Ok(Rules::from([
        (libc::SYS_socket, vec![unless(&families)?]),
        (libc::SYS_socketpair, vec![unless(&pairs)?]),
    ]))
}

fn refused_calls(confinement: &Confinement) -> Result<Rules, BackendError> {
    let unless = REFUSED_UNLESS.iter().filter(|(permit, _)| !confinement.permits(*permit));
    let calls = unless.flat_map(|(_, calls)| *calls).chain(REFUSED);
    let mut rules: Rules = calls.map(|call| (*call, vec![])).collect();
    let raw = |family: libc::c_int| {
        SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, family.unsigned_abs().into())?,
            argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), libc::SOCK_RAW.unsigned_abs().into())?,
        ])
    };
    let packet = one(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), SOCK_PACKET)?;
    rules.insert(libc::SYS_socket, vec![raw(libc::AF_INET)?, raw(libc::AF_INET6)?, packet]);
    if !confinement.permits(Permit::UserNamespaces) {
        let new_user = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        for call in [libc::SYS_clone, libc::SYS_unshare] {
            rules.insert(call, vec![one(0, SeccompCmpOp::MaskedEq(new_user), new_user)?]);
        }
    }
    let ioctls = [libc::TIOCSTI, libc::TIOCLINUX, TUNSETIFF, TUNSETQUEUE];
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
