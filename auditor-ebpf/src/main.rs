//! Entry points of the kernel programs, and the table from what they found to what the kernel is told.
//!
//! Nothing else stands here. Each hook's work is in the module of its name; verdicts in `verdict`, sessions and socket
//! state in `session`, rings and counters in `emit`. All programs of this object work on kernels that refuse kprobes,
//! fentry and LSM programs (lockdown=integrity).
//!
//! The crate also compiles for the host, so that the compiler and clippy see it there; it does nothing there.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "an atomic addition has no other name for this target: see `emit::add`"
    )
)]
#![expect(
    missing_docs,
    reason = "the attribute macros make a public function around each entry point without its comment"
)]
#![expect(unreachable_pub, reason = "the loader finds entry points by their symbols, which must be public")]

mod connect;
mod connection;
mod emit;
mod frames;
mod memory;
mod packet;
mod process;
mod session;
mod socket;
mod tls;
mod unix;
mod unix_stream;
mod verdict;

use auditor_common::event::{EGRESS, INGRESS};
use aya_ebpf::macros::{
    cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, raw_tracepoint, sock_ops, tracepoint, uprobe,
};
use aya_ebpf::programs::{
    ProbeContext, RawTracePointContext, SkBuffContext, SockAddrContext, SockContext, SockOpsContext,
    SockoptContext, TracePointContext,
};

/// cgroup_bpf's answers: the call fails with EPERM, or the packet is dropped; or it goes on.
const REFUSE: i32 = 0;
const PASS: i32 = 1;

const fn answer(pass: bool) -> i32 {
    if pass { PASS } else { REFUSE }
}

/// `__cgroup_bpf_run_filter_sock_addr`, BPF_CGROUP_INET4_CONNECT, Linux 4.17.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    answer(connect::connect4(&context))
}

/// BPF_CGROUP_INET6_CONNECT, Linux 4.17.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    answer(connect::connect6(&context))
}

/// BPF_CGROUP_UDP4_SENDMSG, Linux 4.18.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    answer(connect::sendmsg4(&context))
}

/// BPF_CGROUP_UDP6_SENDMSG, Linux 4.18.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    answer(connect::sendmsg6(&context))
}

/// BPF_CGROUP_UNIX_CONNECT, Linux 6.7. aya-ebpf has no word for it, so the section is connect4's; the daemon loads it with the
/// attach type that it is for.
#[cgroup_sock_addr(connect4)]
pub fn connect_unix(context: SockAddrContext) -> i32 {
    answer(unix::connect(&context))
}

/// BPF_CGROUP_UNIX_SENDMSG, Linux 6.7. As above.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg_unix(context: SockAddrContext) -> i32 {
    answer(unix::sendmsg(&context))
}

/// BPF_CGROUP_INET_SOCK_CREATE, Linux 4.10.
#[cgroup_sock(sock_create)]
pub fn sock_create(context: SockContext) -> i32 {
    answer(socket::created(&context))
}

/// BPF_CGROUP_INET_SOCK_RELEASE, Linux 5.9. Its answer is not looked at.
#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    socket::released(&context);
    PASS
}

/// BPF_CGROUP_GETSOCKOPT, Linux 5.3. Attached for the length of a question only: see `socket::is_asked_for`.
#[cgroup_sockopt(getsockopt)]
pub fn membership(context: SockoptContext) -> i32 {
    answer(!socket::is_asked_for(&context))
}

/// BPF_CGROUP_SOCK_OPS, Linux 4.13. The answer is a reply to some operations, to none of those used here.
#[sock_ops]
pub fn sock_operation(context: SockOpsContext) -> u32 {
    connection::operation(&context);
    1
}

/// BPF_CGROUP_INET_EGRESS, Linux 4.10.
#[cgroup_skb(egress)]
pub fn egress(context: SkBuffContext) -> i32 {
    answer(packet::passes::<EGRESS>(&context))
}

/// BPF_CGROUP_INET_INGRESS, Linux 4.10.
#[cgroup_skb(ingress)]
pub fn ingress(context: SkBuffContext) -> i32 {
    answer(packet::passes::<INGRESS>(&context))
}

/// TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm), Linux 3.4.
#[tracepoint]
pub fn sched_process_exec(context: TracePointContext) -> u32 {
    process::executed(&context);
    0
}

/// TP_PROTO(struct task_struct *parent, struct task_struct *child), in the parent's context, Linux 2.6.28.
#[raw_tracepoint]
pub fn sched_process_fork(context: RawTracePointContext) -> u32 {
    process::forked(&context);
    0
}

/// TP_PROTO(struct task_struct *p, bool group_dead), in the context of the task that ends, Linux 2.6.28.
#[tracepoint]
pub fn sched_process_exit(context: TracePointContext) -> u32 {
    process::exited(&context);
    0
}

/// TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup), in the context of whoever moves
/// the task, when it has been moved, Linux 4.13.
#[raw_tracepoint]
pub fn cgroup_attach_task(context: RawTracePointContext) -> u32 {
    process::moved(&context);
    0
}

/// TP_PROTO(struct sock *sk, int ret, int flags), in the caller's context, Linux 6.3.
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn sock_send_length(context: RawTracePointContext) -> i32 {
    unix_stream::put_in(&context);
    0
}

/// TP_PROTO(struct sock *sk, int ret, int flags), in the caller's context, Linux 6.3.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn sock_recv_length(context: RawTracePointContext) -> i32 {
    unix_stream::took_out(&context);
    0
}

/// Attached to nothing: the daemon runs it (BPF_PROG_RUN, Linux 5.10) with a cookie and 1 or 0, see `unix_stream::look`.
#[raw_tracepoint]
pub fn unix_stream_look(context: RawTracePointContext) -> i32 {
    unix_stream::look(&context)
}

/// `int EVP_KDF_derive(EVP_KDF_CTX *ctx, unsigned char *key, size_t keylen, const OSSL_PARAM params[])`, OpenSSL 3.0. Sleepable
/// uprobes: Linux 6.0.
#[uprobe(sleepable)]
pub fn evp_kdf_derive(context: ProbeContext) -> u32 {
    tls::openssl_derives(&context);
    0
}

/// `int EVP_PKEY_derive(EVP_PKEY_CTX *ctx, unsigned char *key, size_t *pkeylen)`, OpenSSL 1.1.
#[uprobe(sleepable)]
pub fn evp_pkey_derive(context: ProbeContext) -> u32 {
    tls::openssl_11_derives(&context);
    0
}

/// `int gnutls_hkdf_expand(gnutls_mac_algorithm_t mac, const gnutls_datum_t *key, const gnutls_datum_t *info, void *output, size_t
/// length)`, GnuTLS 3.6.13.
#[uprobe(sleepable)]
pub fn gnutls_hkdf_expand(context: ProbeContext) -> u32 {
    tls::gnutls_expands(&context);
    0
}

/// `int _gnutls_prf_raw(gnutls_mac_algorithm_t mac, size_t master_size, const void *master, size_t label_size, const char *label,
/// size_t seed_size, const uint8_t *seed, size_t outsize, char *out)`, GnuTLS 3.6.13, for its own tests.
#[uprobe(sleepable)]
pub fn gnutls_prf_raw(context: ProbeContext) -> u32 {
    tls::gnutls_prf(&context);
    0
}

/// `func (c *cipherSuiteTLS13) trafficKey(trafficSecret []byte) (key, iv []byte)`, Go 1.17 (whose calls use registers).
#[uprobe(sleepable)]
pub fn go_traffic_key(context: ProbeContext) -> u32 {
    tls::go_traffic_key(&context);
    0
}

/// `func keysFromMasterSecret(version uint16, suite *cipherSuite, masterSecret, clientRandom, serverRandom []byte, macLen, keyLen, ivLen int)
/// (…)`, Go 1.17.
#[uprobe(sleepable)]
pub fn go_master_secret(context: ProbeContext) -> u32 {
    tls::go_master_secret(&context);
    0
}

/// `ssl_log_secret(ssl, label, secret, length)`: BoringSSL (where the last two are one, a Span) and OpenSSL 1.1.1.
#[uprobe(sleepable)]
pub fn ssl_log_secret(context: ProbeContext) -> u32 {
    tls::logs_secret(&context);
    0
}

/// `fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander>` of `rustls::crypto::tls13::Hkdf`, rustls 0.22. Its answer is two
/// registers, so no argument is in front of these.
#[uprobe(sleepable)]
pub fn rustls_expander(context: ProbeContext) -> u32 {
    tls::rustls_expands(&context);
    0
}

/// `fn for_secret(&self, output: &mut [u8], secret: &[u8], label: &[u8], seed: &[u8])` of `rustls::crypto::tls12::Prf`, rustls 0.22. A slice is
/// an address and a length.
#[uprobe(sleepable)]
pub fn rustls_prf(context: ProbeContext) -> u32 {
    tls::rustls_prf(&context);
    0
}

/// The licence that GPL-only helpers ask for. Apache-2.0 alone is not among the kernel's compatible ones.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
