//! connect(2) and sendto(2) of unix sockets: the verdict on the name that the caller gives.
//!
//! The hooks run after the kernel has copied the address and before it looks the name up, so what is decided is what is
//! used. bpf_sock_addr has no field for the name. Its kernel side, struct bpf_sock_addr_kern, has a pointer to the kernel's copy
//! of the address: a context is passed to bpf_probe_read_kernel as the plain pointer that it is. The daemon takes the offsets
//! from the kernel's BTF and sets them before it loads the programs (Linux 6.7).
//!
//! What is said on a stream that was let through is the matter of `unix_stream`.

use core::mem::{MaybeUninit, offset_of};
use core::ptr::{self, addr_of, read_volatile};

use auditor_common::control::OVERLOAD_RECORD_LOSS;
use auditor_common::counter::{SITE_UNIX_NAME, errno};
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{HOOK_CONNECT, HOOK_SENDMSG, KIND_UNIX};
use auditor_common::rule::{REASON_LEASE, REASON_NO_SESSION, REASON_UNREADABLE_NAME, RuleValue, Verdict};
use auditor_common::unix::{
    ABSTRACT, NAME_BYTES, NAME_KEY_BITS, NAME_SPACE, NameKey, NameLookup, PATHNAME, STREAM_CONNECTED,
    STREAM_FOLLOWED, STREAM_NONE, STREAM_NOT_FOLLOWED, UnixDecision, decide_name,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_probe_read_kernel,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::LpmTrie;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;

use crate::emit::{self, Owner, Sort, Wake};
use crate::memory::{follow, read, setting};
use crate::unix_stream::Following;
use crate::{session, unix_stream, verdict};

/// All policies' rules about unix sockets. Never an LRU; written by the daemon only.
#[map]
static NAMES: LpmTrie<NameKey, RuleValue> = LpmTrie::with_max_entries(16384, 0);

/// Datagram sockets: what was last recorded of them.
#[btf_map]
static UNIX_SOCKETS: SkStorage<LastRecorded> = SkStorage::new();

/// The destination that was recorded last. Only to write it once: a verdict is never taken from here, and what two processors make
/// of it at once is at worst recorded twice.
#[repr(C)]
struct LastRecorded {
    session: u64,
    generation: u32,
    length: u32,
    name: [u32; NAME_WORDS],
}

/// `uaddr` of struct bpf_sock_addr_kern.
#[unsafe(no_mangle)]
static UNIX_ADDRESS_OFFSET: u32 = 0;
/// `uaddrlen` of struct bpf_sock_addr_kern.
#[unsafe(no_mangle)]
static UNIX_LENGTH_OFFSET: u32 = 0;
/// `fs` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_FS_OFFSET: u32 = 0;
/// `real_cred` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_CREDENTIALS_OFFSET: u32 = 0;
/// `user_ns` of struct cred.
#[unsafe(no_mangle)]
static CREDENTIALS_USER_OFFSET: u32 = 0;
/// `ns.inum` of struct user_namespace.
#[unsafe(no_mangle)]
static USER_NUMBER_OFFSET: u32 = 0;
/// `root.mnt` of struct fs_struct.
#[unsafe(no_mangle)]
static FS_MOUNT_OFFSET: u32 = 0;
/// `root.dentry` of struct fs_struct.
#[unsafe(no_mangle)]
static FS_DENTRY_OFFSET: u32 = 0;
/// `mnt_root` of struct vfsmount.
#[unsafe(no_mangle)]
static MOUNT_ROOT_OFFSET: u32 = 0;
/// From `mnt` to `mnt_id` of struct mount, of which `mnt` is the struct vfsmount.
#[unsafe(no_mangle)]
static MOUNT_ID_OFFSET: u32 = 0;
/// The mount that is the host's root directory.
#[unsafe(no_mangle)]
static HOST_MOUNT_ID: u32 = 0;
/// The host's user namespace.
#[unsafe(no_mangle)]
static HOST_USER_NAMESPACE: u32 = 0;

/// `offsetof(struct sockaddr_un, sun_path)`.
const NAME_OFFSET: u32 = 2;

pub(crate) fn connect(context: &SockAddrContext) -> bool {
    decide(context, HOOK_CONNECT)
}

pub(crate) fn sendmsg(context: &SockAddrContext) -> bool {
    decide(context, HOOK_SENDMSG)
}

/// A key without a name.
#[inline(always)]
fn no_name(table: u32) -> NameLookup {
    NameLookup {
        prefix: NAME_KEY_BITS,
        key: NameKey {
            table: table.to_be_bytes(),
            kind: PATHNAME,
            length: 0,
            _padding: [0; 2],
            name: [0; NAME_SPACE],
        },
    }
}

/// Fills in the name that the caller gave; answers its length.
#[inline(always)]
fn read_name(context: &SockAddrContext, lookup: &mut NameLookup) -> Option<u32> {
    let kernel = context.as_ptr().cast::<u8>().cast_const();
    let address = follow(kernel, setting(&UNIX_ADDRESS_OFFSET))?;
    let length = read::<u32>(kernel, setting(&UNIX_LENGTH_OFFSET))?;
    // The kernel has checked both ends (unix_validate_addr).
    let length = length.wrapping_sub(NAME_OFFSET);
    if length == 0 || length > NAME_BYTES as u32 {
        return None;
    }
    // The compiler knows the bounds, and so leaves out or moves what would prove them to the verifier ("R2 min value is negative").
    // SAFETY: a local that was written.
    let bounded = unsafe { read_volatile(&raw const length) } & (NAME_SPACE as u32 - 1);
    // SAFETY: `name` has NAME_SPACE bytes; as in `read` otherwise.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut lookup.key.name).cast(),
            bounded,
            address.wrapping_add(NAME_OFFSET as usize).cast(),
        )
    };
    if result != 0 {
        return None;
    }
    if lookup.key.name[0] == 0 {
        lookup.key.kind = ABSTRACT;
        lookup.key.length = length as u8;
    }
    Some(length)
}

/// Whether the calling task resolves absolute paths as the host does, and has nobody beside it who could change that in
/// between: chroot(2) needs a capability, which in another user namespace everybody can have.
#[inline(always)]
fn at_home() -> Option<bool> {
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let credentials = follow(task, setting(&TASK_CREDENTIALS_OFFSET))?;
    let user = follow(credentials, setting(&CREDENTIALS_USER_OFFSET))?;
    if read::<u32>(user, setting(&USER_NUMBER_OFFSET))? != setting(&HOST_USER_NAMESPACE) {
        return Some(false);
    }
    let fs = follow(task, setting(&TASK_FS_OFFSET))?;
    let mount = follow(fs, setting(&FS_MOUNT_OFFSET))?;
    let directory = follow(fs, setting(&FS_DENTRY_OFFSET))?;
    let root = follow(mount, setting(&MOUNT_ROOT_OFFSET))?;
    let id = read::<u32>(mount, setting(&MOUNT_ID_OFFSET))?;
    Some(root == directory && id == setting(&HOST_MOUNT_ID))
}

/// What is decided about.
struct Subject {
    owner: Owner,
    cookie: u64,
    table: u32,
    socket_type: u32,
    length: u32,
    stream: u32,
    hook: u8,
}

#[inline(always)]
fn decide(context: &SockAddrContext, hook: u8) -> bool {
    let address = context.sock_addr;
    let Some(control) = emit::control() else { return false };
    let mut subject = Subject {
        // SAFETY: the helper takes the context.
        cookie: unsafe { bpf_get_socket_cookie(context.as_ptr()) },
        owner: Owner::NOBODY,
        table: 0,
        // SAFETY: the kernel gives a valid context; the field may be read by programs of this type.
        socket_type: unsafe { (*address).type_ },
        length: 0,
        stream: STREAM_NONE,
        hook,
    };
    // The socket was made in a cgroup of ours, but whoever uses it now need not be there.
    let session = match session::of_current() {
        Some(found) => session::by_cgroup(found.cgroup),
        None => None,
    };
    if let Some(session) = &session {
        subject.owner = Owner { session: session.id, share: session.share };
        subject.table = session.table;
    }
    let mut lookup = no_name(subject.table);
    subject.length = match read_name(context, &mut lookup) {
        Some(length) => length,
        None => {
            emit::count(SITE_UNIX_NAME, errno::EFAULT);
            0
        }
    };
    let alone = emit::now() > control.lease;
    // One way for all refusals and one place that records: each further one would be another copy for the verifier to walk through.
    let verdict = match session {
        _ if subject.length == 0 => Verdict::refuse(REASON_UNREADABLE_NAME),
        None => Verdict::refuse(REASON_NO_SESSION),
        Some(_) if alone && control.fail_open == 0 => Verdict::refuse(REASON_LEASE),
        Some(session) => on(&lookup, session.default_action),
    };
    let follows = verdict.allows() && hook == HOOK_CONNECT && subject.socket_type == SOCK_STREAM;
    if follows {
        // Before it is connected, so that its first byte is seen.
        let kernel = context.as_ptr().cast::<u8>().cast_const();
        subject.stream = match unix_stream::begin(kernel, subject.cookie, subject.owner) {
            Following::Begun => STREAM_FOLLOWED,
            Following::NoRoom => STREAM_NOT_FOLLOWED,
            Following::Connected => STREAM_CONNECTED,
        };
    }
    if !verdict.allows() {
        if verdict::is_folded(subject.owner.session) {
            return false;
        }
    } else if hook == HOOK_SENDMSG && was_recorded(context, &subject, control.generation, &lookup) {
        return true;
    }
    let recorded = record(&subject, &verdict, &lookup);
    if !verdict.allows() {
        if !recorded {
            verdict::fold(subject.owner.session);
        }
        return false;
    }
    if !recorded {
        emit::count_attempt(subject.owner);
        // What is allowed without a record would be a connection that nobody knows of.
        if control.overload != OVERLOAD_RECORD_LOSS && !alone {
            if subject.stream == STREAM_FOLLOWED {
                unix_stream::forget(subject.cookie);
            }
            return false;
        }
    }
    if recorded && hook == HOOK_SENDMSG {
        mark_recorded(context, &subject, control.generation, &lookup);
    }
    true
}

/// The verdict on a name in a session.
#[inline(always)]
fn on(lookup: &NameLookup, default_action: u32) -> Verdict {
    // SAFETY: the map is of this key's layout (Key is the prefix length and the key); its values are RuleValue, which the daemon
    // replaces whole.
    let found = unsafe {
        bpf_map_lookup_elem(addr_of!(NAMES).cast_mut().cast(), ptr::from_ref(lookup).cast())
            .cast::<RuleValue>()
            .as_ref()
    };
    decide_name(
        found,
        &lookup.key,
        default_action,
        emit::now(),
        #[inline(always)]
        || {
            let home = at_home();
            if home.is_none() {
                emit::count(SITE_UNIX_NAME, errno::EFAULT);
            }
            home == Some(true)
        },
    )
}
const _: () = assert!(size_of::<NameLookup>() == size_of::<Key<NameKey>>());

/// Whether the last thing that was recorded of a datagram socket is this destination.
#[inline(always)]
fn was_recorded(context: &SockAddrContext, subject: &Subject, generation: u32, lookup: &NameLookup) -> bool {
    // SAFETY: the storage is this program's type's; a null initial value means zeros.
    let last = unsafe { UNIX_SOCKETS.get_ptr_mut(context).as_ref() };
    let Some(last) = last else { return false };
    if last.session != subject.owner.session || last.generation != generation || last.length != subject.length
    {
        return false;
    }
    let mut index = 0;
    while index < NAME_WORDS {
        if last.name[index] != word(lookup, index) {
            return false;
        }
        index += 1;
    }
    true
}

/// Four bytes of the name. Byte by byte it would be four times as much for the verifier.
#[inline(always)]
fn word(lookup: &NameLookup, index: usize) -> u32 {
    // SAFETY: all callers count to NAME_WORDS; the structure is aligned to four bytes, and the name stands at a multiple of four.
    unsafe { ptr::from_ref(&lookup.key.name).cast::<u32>().add(index).read() }
}
const NAME_WORDS: usize = NAME_SPACE / 4;
const _: () = assert!(offset_of!(NameLookup, key) + offset_of!(NameKey, name) == 12);

#[inline(always)]
fn mark_recorded(context: &SockAddrContext, subject: &Subject, generation: u32, lookup: &NameLookup) {
    // SAFETY: as above. Without memory it is recorded again next time.
    let last = unsafe { UNIX_SOCKETS.get_or_insert_ptr_mut(context, None).as_mut() };
    let Some(last) = last else { return };
    last.session = subject.owner.session;
    last.generation = generation;
    last.length = subject.length;
    let mut index = 0;
    while index < NAME_WORDS {
        last.name[index] = word(lookup, index);
        index += 1;
    }
}

/// Records a decision. `false`: there was no room.
#[inline(always)]
fn record(subject: &Subject, verdict: &Verdict, lookup: &NameLookup) -> bool {
    emit::lifecycle(
        Sort::Decision,
        Wake::InTime,
        subject.owner,
        #[inline(always)]
        |place: &mut MaybeUninit<UnixDecision>| {
            // SAFETY: every field of the record is written below before the reservation is submitted; integers and byte
            // arrays have no invalid values in the meantime.
            let record = unsafe { place.assume_init_mut() };
            let decision = &mut record.decision;
            decision.header = emit::header(KIND_UNIX, subject.owner);
            decision.cookie = subject.cookie;
            emit::current_task(&mut decision.task);
            decision.verdict = *verdict;
            decision.remote = Endpoint::v6([0; 16], 0);
            decision.table = subject.table;
            decision.family = AF_UNIX;
            decision.socket_type = subject.socket_type;
            decision.protocol = 0;
            decision.hook = subject.hook;
            decision._padding = [0; 3];
            record.length = subject.length;
            record.stream = subject.stream;
            let name = (&raw mut record.name).cast::<u32>();
            let mut index = 0;
            while index < NAME_WORDS {
                // SAFETY: within the name, which stands at a multiple of four in a record that is aligned to eight.
                unsafe { name.add(index).write(word(lookup, index)) };
                index += 1;
            }
        },
    )
}

const AF_UNIX: u32 = 1;
const SOCK_STREAM: u32 = 1;
