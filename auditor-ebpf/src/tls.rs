//! TLS secrets, taken where a library derives keys from them.
//!
//! A probe fires for every process that maps the library; processes of no session leave after the look-ups of their cgroups, and
//! nothing of theirs is read. Only entries of functions are probed, never returns: what is wanted is among the arguments.
//!
//! Each traffic secret is used twice, for a key and for an initialisation vector. It is taken with the key.
//!
//! **Stack.** These programs can be preempted and can sleep. From 64 bytes of stack on (BPF_PRIV_STACK_MIN_SIZE, of each function,
//! rounded up to 16) Linux 6.13 and later give a program a stack for each processor, which two tasks on one processor then share.
//! So each function here needs 48 bytes at most, nothing is put together elsewhere than in the table's own element, and there is no
//! scratch map. A test reads the depth from the verifier's log.
//!
//! **Memory of the caller.** Names of parameters are constants of the library, on pages that may not be there yet. A read that
//! must not sleep would miss them; so what such a read does not get is read once more, by one that may.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use auditor_common::counter::{SITE_SECRET, errno};
use auditor_common::tls::{
    KIND_SECRET, MASTER_SECRET, RANDOM_BYTES, SECRETS as ENTRIES, Secret, SecretTaken, TRAFFIC_SECRET,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_copy_from_user, bpf_get_attach_cookie, bpf_get_smp_processor_id, bpf_probe_read_user,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::ProbeContext;

use crate::emit::{self, Owner, Sort, Wake};
use crate::session;

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_NOEXIST: u64 = 1;

/// See [`auditor_common::tls`].
#[map]
static SECRETS: HashMap<u64, Secret> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

/// What a new element is made of, because there is no room for one on the stack.
static BLANK: Secret = Secret::BLANK;

/// `struct ossl_param_st` (openssl/core.h, part of OpenSSL's interface): key, data type, data, size of the data, size of the answer.
const PARAMETER_BYTES: u64 = 40;
const PARAMETER_DATA: u64 = 16;
const PARAMETER_SIZE: u64 = 24;
/// More than any of OpenSSL's lists has.
const PARAMETERS: u32 = 16;

/// The first four bytes of a name, as a number: no two of the names that OpenSSL gives to a key derivation begin with the same.
const fn name(text: &[u8; 4]) -> u64 {
    u32::from_le_bytes(*text) as u64
}

/// The first eight of a text that is that long, or longer.
const fn text(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// Reads the caller's memory, see the module. `false`: it cannot be read; zeros are at the place then.
///
/// # Safety
/// `length` writable bytes are at `place`.
#[inline(always)]
unsafe fn read(place: *mut u8, length: u32, address: u64) -> bool {
    let address = address as *const c_void;
    // SAFETY: the place is the caller's promise; the helpers check the address, which is the process's to give.
    unsafe {
        bpf_probe_read_user(place.cast(), length, address.cast()) == 0
            || bpf_copy_from_user(place.cast(), length, address.cast()) == 0
    }
}

/// Eight bytes of the caller's memory, the first the lowest; 0 where they cannot be read. That is known by the zeros which a read
/// leaves that fails, so that the verifier has a case less to follow at each of many places.
#[inline(never)]
extern "C" fn word(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: eight bytes. What is read again is volatile, because a helper has written it.
    unsafe {
        let _ = read((&raw mut word).cast(), 8, address);
        read_volatile(&raw const word)
    }
}

/// Four bytes, as [`word`].
#[inline(never)]
extern "C" fn half(address: u64) -> u64 {
    let mut half = 0_u32;
    // SAFETY: four bytes, otherwise as above.
    unsafe {
        let _ = read((&raw mut half).cast(), 4, address);
        u64::from(read_volatile(&raw const half))
    }
}

/// The first parameter of one of two names in a list that ends with one without; 0: there is none.
#[inline(never)]
extern "C" fn find(list: u64, one: u64, other: u64) -> u64 {
    let mut at = list;
    let mut index = 0;
    while index < PARAMETERS {
        let key = word(at);
        if key == 0 {
            break;
        }
        let key = half(key);
        if key == one || key == other {
            return at;
        }
        at += PARAMETER_BYTES;
        index += 1;
    }
    0
}

/// The data of a parameter that has this name and is a random; 0: it is another.
#[inline(always)]
fn random(parameter: u64) -> u64 {
    if half(word(parameter)) == name(b"seed") && size(parameter) == RANDOM_BYTES as u64 {
        data(parameter)
    } else {
        0
    }
}

#[inline(always)]
fn data(parameter: u64) -> u64 {
    word(parameter + PARAMETER_DATA)
}

#[inline(always)]
fn size(parameter: u64) -> u64 {
    word(parameter + PARAMETER_SIZE)
}

/// EVP_KDF_derive. TLS 1.3 (`tls13_hkdf_expand` in OpenSSL) gives `key` and `label`; TLS 1.2 (`tls1_PRF`) gives `secret` and, each as a `seed`,
/// one behind the other, a label, the server's random and the client's.
pub(crate) fn openssl_derives(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let Some(list) = context.arg::<u64>(3) else { return };
    let told = find(list, name(b"labe"), name(b"seed"));
    if told == 0 {
        return;
    }
    let (length, label) = (size(told), data(told));
    let (mut client, mut server, mut wanted) = (0, 0, name(b"key\0"));
    if length == 3 {
        // With the NUL that stands behind it.
        if half(label) != name(b"key\0") {
            return;
        }
    } else if length == 13 {
        // "key expansion", by its first eight bytes and its length.
        if word(label) != text(b"key expa") {
            return;
        }
        server = random(told + PARAMETER_BYTES);
        client = random(told + 2 * PARAMETER_BYTES);
        if server == 0 || client == 0 {
            return;
        }
        wanted = name(b"secr");
    } else {
        return;
    }
    let secret = find(list, wanted, wanted);
    if secret != 0 {
        keep(context, cgroup, data(secret), size(secret), client, server);
    }
}

/// `struct evp_pkey_ctx_st` (include/crypto/evp.h of OpenSSL 1.1): the method, whose first field is its number, and the method's own data.
const METHOD_DATA: u64 = 40;
/// NID_hkdf and NID_tls1_prf (openssl/obj_mac.h).
const HKDF: u64 = 1036;
const TLS1_PRF: u64 = 1021;
/// `HKDF_PKEY_CTX` (crypto/kdf/hkdf.c): mode, digest, salt and its length, then these.
const HKDF_KEY: u64 = 32;
const HKDF_INFO: u64 = 48;
/// `TLS1_PRF_PKEY_CTX` (crypto/kdf/tls1_prf.c): digest, then these; seeds are one behind the other, in room for so many bytes.
const PRF_SECRET: u64 = 8;
const PRF_SEED: u64 = 24;
const PRF_SEED_ROOM: u64 = 1024;
/// "key expansion"
const PRF_LABEL: u64 = 13;

/// `struct evp_kdf_ctx_st` of RHEL 8: methods, then what in other builds of 1.1 the method's data are.
const KDF_DATA: u64 = 8;

/// EVP_PKEY_derive of OpenSSL 1.1.0 to 1.1.1, which takes everything but the key's place from what was given to its context before. These
/// structures are the library's own affair. They are the same in all releases of 1.1, of which there will be no more, and in RHEL 8's
/// one step further away. What is not as expected at every place that is looked at is another derivation, of which nothing is taken.
pub(crate) fn openssl_11_derives(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let Some(derivation) = context.arg::<u64>(0) else { return };
    let method = half(word(derivation));
    if method != HKDF && method != TLS1_PRF {
        return;
    }
    let mut state = word(derivation + METHOD_DATA);
    if derives_key(method, state) == 0 {
        state = word(state + KDF_DATA);
        if derives_key(method, state) == 0 {
            return;
        }
    }
    if method == HKDF {
        keep(context, cgroup, word(state + HKDF_KEY), word(state + HKDF_KEY + 8), 0, 0);
    } else {
        let server = state + PRF_SEED + PRF_LABEL;
        let client = server + RANDOM_BYTES as u64;
        keep(context, cgroup, word(state + PRF_SECRET), word(state + PRF_SECRET + 8), client, server);
    }
}

/// Whether this is the data of a method that derives a key of a connection. 0: it is not.
#[inline(never)]
extern "C" fn derives_key(method: u64, state: u64) -> u64 {
    let is_key = if method == HKDF {
        // A HkdfLabel, as for GnuTLS.
        let info = state + HKDF_INFO;
        word(info + 2) == text(b"\x09tls13 k") && word(info + 5) == text(b"s13 key\0")
    } else {
        let seed = state + PRF_SEED;
        word(seed) == text(b"key expa") && word(seed + PRF_SEED_ROOM) == PRF_LABEL + 2 * RANDOM_BYTES as u64
    };
    u64::from(is_key)
}

/// gnutls_hkdf_expand. For TLS 1.3, `info` is a HkdfLabel (RFC 8446, section 7.1): length of what is wanted (2 bytes), length of the
/// label, the label, an empty context.
pub(crate) fn gnutls_expands(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let (Some(key), Some(info)) = (context.arg::<u64>(1), context.arg::<u64>(2)) else { return };
    // gnutls_datum_t: a pointer, and an unsigned int.
    if half(info + 8) != 13 {
        return;
    }
    let info = word(info);
    if word(info + 2) == text(b"\x09tls13 k") && word(info + 5) == text(b"s13 key\0") {
        keep(context, cgroup, word(key), half(key + 8), 0, 0);
    }
}

/// _gnutls_prf_raw. The seed of a key expansion is the server's random and the client's, in one.
pub(crate) fn gnutls_prf(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let (Some(length), Some(master)) = (context.arg::<u64>(1), context.arg::<u64>(2)) else { return };
    let (Some(label_length), Some(label)) = (context.arg::<u64>(3), context.arg::<u64>(4)) else { return };
    let Some(seed_length) = context.arg::<u64>(5) else { return };
    if label_length != 13 || seed_length != 2 * RANDOM_BYTES as u64 || word(label) != text(b"key expa") {
        return;
    }
    let seed = seventh(context);
    if seed != 0 {
        keep(context, cgroup, master, length, seed + RANDOM_BYTES as u64, seed);
    }
}

/// The longest hash in an OkmBlock of rustls has so many bytes.
const BLOCK: u64 = 64;

/// `Hkdf::expander_for_okm` of rustls, which makes the means to derive keys from a traffic secret. The block is bytes and how many of them are
/// used, in the order that the compiler has chosen; behind 48 bytes are zeros.
pub(crate) fn rustls_expands(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let Some(block) = context.arg::<u64>(1) else { return };
    let used = word(block + BLOCK);
    if used != 0 {
        keep(context, cgroup, block, used, 0, 0);
    } else {
        keep(context, cgroup, block + 8, word(block), 0, 0);
    }
}

/// `Prf::for_secret` of rustls: four slices, of which the last is the server's random and the client's, in one.
pub(crate) fn rustls_prf(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let (Some(secret), Some(length), Some(label)) =
        (context.arg::<u64>(3), context.arg::<u64>(4), context.arg::<u64>(5))
    else {
        return;
    };
    if seventh(context) != PRF_LABEL || word(label) != text(b"key expa") {
        return;
    }
    let seed = eighth(context);
    if seed != 0 {
        keep(context, cgroup, secret, length, seed + RANDOM_BYTES as u64, seed);
    }
}

/// ssl_log_secret. The label says what it is (draft-ietf-tls-keylogfile); by its first eight bytes. That of TLS 1.2 comes without the
/// randoms that it is for.
pub(crate) fn logs_secret(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let (Some(label), Some(secret), Some(length)) =
        (context.arg::<u64>(1), context.arg::<u64>(2), context.arg::<u64>(3))
    else {
        return;
    };
    let label = word(label);
    if label == text(b"CLIENT_R") {
        keep(context, cgroup, secret, length, UNKNOWN, UNKNOWN);
    } else if label == text(b"CLIENT_H")
        || label == text(b"SERVER_H")
        || label == text(b"CLIENT_T")
        || label == text(b"SERVER_T")
        || label == text(b"CLIENT_E")
    {
        keep(context, cgroup, secret, length, 0, 0);
    }
}

/// In the place of the address of a random: there is one, and nobody says which.
const UNKNOWN: u64 = 1;

/// crypto/tls.(*cipherSuiteTLS13).trafficKey. Go has its own order of registers (cmd/compile/abi-internal.md): the receiver first, then the
/// slice's pointer, length and capacity.
pub(crate) fn go_traffic_key(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup != 0 {
        keep(context, cgroup, go_argument(context, 1), go_argument(context, 2), 0, 0);
    }
}

/// crypto/tls.keysFromMasterSecret. Version and suite are before the three slices. On x86-64 the last of these does not fit into
/// registers and is on the stack, behind the return address.
pub(crate) fn go_master_secret(context: &ProbeContext) {
    let cgroup = session::cgroup_of_current();
    if cgroup == 0 {
        return;
    }
    let (client, server) = (go_argument(context, 5), go_argument(context, 8));
    if client != 0 && server != 0 {
        keep(context, cgroup, go_argument(context, 2), go_argument(context, 3), client, server);
    }
}

/// An integer argument of Go's, by its number.
#[inline(always)]
#[expect(unexpected_cfgs, reason = "set for this target by `cargo xtask build`, as aya-ebpf wants it")]
fn go_argument(context: &ProbeContext, number: usize) -> u64 {
    // SAFETY: the registers are the program's context.
    #[cfg(bpf_target_arch = "x86_64")]
    return unsafe {
        let registers = context.regs;
        match number {
            0 => (*registers).rax,
            1 => (*registers).rbx,
            2 => (*registers).rcx,
            3 => (*registers).rdi,
            4 => (*registers).rsi,
            5 => (*registers).r8,
            6 => (*registers).r9,
            7 => (*registers).r10,
            _ => word((*registers).rsp + 8),
        }
    };
    #[cfg(not(bpf_target_arch = "x86_64"))]
    // SAFETY: as above.
    unsafe {
        let register = (context.regs as *const u64).add(number);
        register.read()
    }
}

/// The seventh argument, which x86-64 has on the stack, behind the return address.
#[inline(always)]
#[expect(unexpected_cfgs, reason = "set for this target by `cargo xtask build`, as aya-ebpf wants it")]
fn seventh(context: &ProbeContext) -> u64 {
    // SAFETY: the registers are the program's context.
    #[cfg(bpf_target_arch = "x86_64")]
    return word(unsafe { (*context.regs).rsp } + 8);
    #[cfg(not(bpf_target_arch = "x86_64"))]
    context.arg::<u64>(6).unwrap_or(0)
}

/// The one behind it.
#[inline(always)]
#[expect(unexpected_cfgs, reason = "set for this target by `cargo xtask build`, as aya-ebpf wants it")]
fn eighth(context: &ProbeContext) -> u64 {
    // SAFETY: the registers are the program's context.
    #[cfg(bpf_target_arch = "x86_64")]
    return word(unsafe { (*context.regs).rsp } + 16);
    #[cfg(not(bpf_target_arch = "x86_64"))]
    context.arg::<u64>(7).unwrap_or(0)
}

/// Bits of a secret's number that tell the processor.
const PROCESSORS: u64 = 0xff;

/// Puts a secret into the table and says so. With randoms it is a master secret.
#[inline(always)]
fn keep(
    context: &ProbeContext,
    cgroup: u64,
    secret: u64,
    length: u64,
    client_random: u64,
    server_random: u64,
) {
    if (length != 32 && length != 48) || has_room(cgroup) == 0 {
        return;
    }
    // A time, which two processors may have at once: the last bits are the processor's. None of them is here twice within so few
    // nanoseconds.
    // SAFETY: the helper takes no argument.
    let id = (emit::now() & !PROCESSORS) | (u64::from(unsafe { bpf_get_smp_processor_id() }) & PROCESSORS);
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would stand on the stack")]
    let inserted = SECRETS.insert(id, &BLANK, BPF_NOEXIST);
    if let Err(error) = inserted {
        emit::count(SITE_SECRET, error.unsigned_abs());
        return;
    }
    let Some(element) = SECRETS.get_ptr_mut(id) else { return };
    // SAFETY: an element of the map, which nobody else knows of yet; the context is the program's.
    let kept = unsafe {
        (*element).id = id;
        fill(element, secret, length, client_random, server_random) != 0
            && sign(element, cgroup) != 0
            && tell(context.as_ptr(), element) != 0
    };
    if !kept {
        let _ = SECRETS.remove(id);
    }
}

/// Whether the session of a cgroup may have another secret. 0: it may not, which has been counted, or has ended.
#[inline(never)]
extern "C" fn has_room(cgroup: u64) -> u64 {
    let Some(found) = session::by_cgroup(cgroup) else { return 0 };
    let owner = Owner { session: found.id, share: found.share };
    let has = emit::admits_secret(owner, ENTRIES);
    if !has {
        emit::count(SITE_SECRET, errno::EDQUOT);
    }
    u64::from(has)
}

/// Fills an element in its place. 0: the caller's memory cannot be read, which has been counted.
///
/// # Safety
/// `element` is an element of the table that nobody else uses.
#[inline(never)]
unsafe extern "C" fn fill(
    element: *mut Secret,
    secret: u64,
    length: u64,
    client_random: u64,
    server_random: u64,
) -> u64 {
    // SAFETY: the caller's promise; lengths are those of the fields, or less.
    let filled = unsafe {
        (*element).length = length as u8;
        (*element).kind = if client_random == 0 { TRAFFIC_SECRET } else { MASTER_SECRET };
        let bytes = (&raw mut (*element).bytes).cast();
        (if length == 48 { read(bytes, 48, secret) } else { read(bytes, 32, secret) })
            && (client_random <= UNKNOWN
                || (read((&raw mut (*element).client_random).cast(), RANDOM_BYTES as u32, client_random)
                    && read((&raw mut (*element).server_random).cast(), RANDOM_BYTES as u32, server_random)))
    };
    if !filled {
        emit::count(SITE_SECRET, errno::EFAULT);
    }
    u64::from(filled)
}

/// Writes into an element whose it is: of the session of a cgroup. 0: it has ended meanwhile.
///
/// # Safety
/// As for [`fill`].
#[inline(never)]
unsafe extern "C" fn sign(element: *mut Secret, cgroup: u64) -> u64 {
    let Some(found) = session::by_cgroup(cgroup) else { return 0 };
    // SAFETY: the caller's promise.
    unsafe {
        (*element).session = found.id;
        (*element).share = found.share;
        (*element).process = (bpf_get_current_pid_tgid() >> 32) as u32;
    }
    1
}

/// Says on the ring that an element is there. 0: that could not be said, which has been counted.
///
/// # Safety
/// As for [`fill`]; `context` is the program's.
#[inline(never)]
unsafe extern "C" fn tell(context: *mut c_void, element: *mut Secret) -> u64 {
    // SAFETY: the caller's promise.
    let owner = unsafe { Owner { session: (*element).session, share: (*element).share } };
    let told = emit::lifecycle(
        Sort::Secret,
        Wake::InTime,
        owner,
        #[inline(always)]
        |place: &mut MaybeUninit<SecretTaken>| {
            // SAFETY: every field is written below before the reservation is submitted; integers have no invalid values in the
            // meantime. The element is the caller's promise, and so is the context.
            unsafe {
                let taken = place.assume_init_mut();
                taken.header.kind = KIND_SECRET;
                taken.header.share = (*element).share;
                taken.header.time = (*element).id;
                taken.header.session = (*element).session;
                taken.id = (*element).id;
                taken.process = (*element).process;
                taken.kind = (*element).kind;
                taken.length = (*element).length;
                taken._padding = [0; 2];
                taken.library = bpf_get_attach_cookie(context);
            }
        },
    );
    if told {
        emit::count_secret(owner);
    }
    u64::from(told)
}
