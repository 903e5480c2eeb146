//! The verdict on a destination: two look-ups in the rule table, weighed by `auditor_common::rule::decide`, and the
//! record of it.

use core::mem::MaybeUninit;

use auditor_common::control::{REFUSALS_A_SECOND, Refusals};
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{Decision, HOOK_CONNECT, HOOK_EGRESS, KIND_DECISION, Task};
use auditor_common::packet::TCP;
use auditor_common::rule::{
    ANY_PORT, KEY_PREFIX_BITS, REASON_NO_SESSION, RuleKey, RuleValue, Verdict, decide,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{LpmTrie, PerCpuHashMap};

use crate::emit::{self, Owner, Sort, Wake};
use crate::session::{self, SocketState};

/// All policies' rules. Never an LRU: what is not found is decided by the policy's default. Written by the daemon only.
#[map]
static RULES: LpmTrie<RuleKey, RuleValue> = LpmTrie::with_max_entries(65536, 0);

/// Refusals by session. Entries are made and removed by the daemon; 0 is for what belongs to no session. Not preallocated: that
/// takes a tenth of a second, for each start.
#[map]
static REFUSALS: PerCpuHashMap<u64, Refusals> = PerCpuHashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

const WHOLE_KEY: u32 = KEY_PREFIX_BITS + 128;
const BPF_F_NO_PREALLOC: u32 = 1;
const SECOND: u64 = 1_000_000_000;

/// Decides a destination for a socket. Answers the verdict and the compiled policy; remembers nothing but the session, whose
/// number is another one when the cgroup was tagged anew.
#[inline(always)]
pub(crate) fn on(state: &mut SocketState, transport: u8, remote: Endpoint) -> (Verdict, u32) {
    let Some(session) = session::by_cgroup(state.cgroup) else {
        // Its share may be another session's by now.
        state.share = Owner::NOBODY.share;
        return (Verdict::refuse(REASON_NO_SESSION), 0);
    };
    state.session = session.id;
    state.share = session.share;
    let destination = remote.as_destination();
    let key = |port| Key::new(WHOLE_KEY, RuleKey::new(session.table, transport, port, destination.address()));
    let exact = RULES.get(key(destination.port()));
    let any = RULES.get(key(ANY_PORT));
    (decide(exact, any, session.default_action, emit::now()), session.table)
}

/// Remembers a verdict with the socket of a TCP connection, for the packets that follow.
///
/// Only a TCP socket that does not listen has one destination at a time, so only its verdict may be remembered. A UDP socket's
/// calls run at the same time on several processors: a remembered verdict would be mixed of two.
#[inline(always)]
pub(crate) fn remember(state: &mut SocketState, verdict: &Verdict, remote: Endpoint, generation: u32) {
    state.action = verdict.action;
    state.expires = verdict.expires;
    state.remote = remote;
    state.generation = generation;
}

/// What a decision was about.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) owner: Owner,
    pub(crate) cookie: u64,
    pub(crate) remote: Endpoint,
    pub(crate) table: u32,
    pub(crate) family: u32,
    pub(crate) socket_type: u32,
    pub(crate) protocol: u32,
    pub(crate) hook: u8,
}

/// Records a refusal, or counts it when its session has had its share of this second or of the ring.
#[inline(always)]
pub(crate) fn record_refusal(subject: &Subject, verdict: &Verdict) {
    let session = subject.owner.session;
    if !is_folded(session) && !record(subject, verdict) {
        fold(session);
    }
}

/// What is counted of a session's refusals. One that has ended has no entry any more; what it leaves behind is nobody's.
#[inline(always)]
fn refusals(session: u64) -> Option<*mut Refusals> {
    REFUSALS.get_ptr_mut(session).or_else(
        #[inline(always)]
        || REFUSALS.get_ptr_mut(Owner::NOBODY.session),
    )
}

/// Counts a refusal that is not recorded.
#[inline(always)]
pub(crate) fn fold(session: u64) {
    if let Some(refusals) = refusals(session) {
        // SAFETY: this processor's value, which stays mapped while the program runs.
        unsafe { (*refusals).folded += 1 };
    }
}

/// Whether a session has had its share of refusals for this second; this one is counted then, and not to be recorded.
#[inline(always)]
pub(crate) fn is_folded(session: u64) -> bool {
    let Some(refusals) = refusals(session) else { return true };
    let now = emit::now();
    // SAFETY: this processor's value, which stays mapped while the program runs.
    unsafe {
        if now.wrapping_sub((*refusals).second) >= SECOND {
            (*refusals).second = now;
            (*refusals).recorded = 0;
        }
        (*refusals).recorded += 1;
        if (*refusals).recorded > REFUSALS_A_SECOND {
            (*refusals).folded += 1;
            return true;
        }
    }
    false
}

/// Holds back a TCP connection that is allowed and whose decision found no room: what is allowed without a record would be a
/// connection that nobody knows of, and refusing it would make the caller pay for the reader's delay. TCP sends the SYN again, and
/// each is a new attempt to record the decision ([`record_held`]).
#[inline(always)]
pub(crate) fn hold(state: &mut SocketState, subject: &Subject, verdict: &Verdict) {
    emit::current_task(&mut state.held.asker);
    state.held.time = emit::now();
    state.held.verdict = *verdict;
    state.held.table = subject.table;
    state.held.family = subject.family;
    state.held.socket_type = subject.socket_type;
    state.held.waits = 1;
    state.remote = subject.remote;
    // Policy may have changed when the SYN is sent again: it is decided anew.
    state.generation = 0;
}

/// Records the decision on a connection that was held back. `false`: there was no room.
///
/// A function of its own, which has the packet hooks' stack to itself.
#[inline(never)]
pub(crate) extern "C" fn record_held(state: &mut SocketState, cookie: u64) -> bool {
    let held = state.held;
    let subject = Subject {
        owner: state.owner(),
        cookie,
        remote: state.remote,
        table: held.table,
        family: held.family,
        socket_type: held.socket_type,
        protocol: u32::from(TCP),
        hook: HOOK_CONNECT,
    };
    let recorded = write(
        &subject,
        &held.verdict,
        held.time,
        #[inline(always)]
        |place| *place = held.asker,
    );
    if recorded {
        state.held.waits = 0;
    }
    recorded
}

/// Counts a connection that was given up before there was room for its record. Nothing of it has left.
#[inline(always)]
pub(crate) fn give_up_held(state: &mut SocketState) {
    if state.held.waits != 0 {
        state.held.waits = 0;
        emit::count_attempt(state.owner());
    }
}

/// Records a decision. `false`: there was no room.
#[inline(always)]
pub(crate) fn record(subject: &Subject, verdict: &Verdict) -> bool {
    write(
        subject,
        verdict,
        emit::now(),
        #[inline(always)]
        |place| {
            if subject.hook == HOOK_EGRESS {
                // Whoever runs there is anybody.
                place.pid = 0;
                place.tid = 0;
                place.uid = 0;
                place.gid = 0;
                place.comm = [0; 16];
            } else {
                emit::current_task(place);
            }
        },
    )
}

#[inline(always)]
fn write(subject: &Subject, verdict: &Verdict, time: u64, task: impl FnOnce(&mut Task)) -> bool {
    emit::lifecycle(
        Sort::Decision,
        Wake::InTime,
        subject.owner,
        #[inline(always)]
        |place: &mut MaybeUninit<Decision>| {
            // SAFETY: every field of the record is written below before the reservation is submitted; integers and byte
            // arrays have no invalid values in the meantime.
            let decision = unsafe { place.assume_init_mut() };
            decision.header = emit::header_at(KIND_DECISION, subject.owner, time);
            decision.cookie = subject.cookie;
            task(&mut decision.task);
            decision.verdict = *verdict;
            decision.remote = subject.remote;
            decision.table = subject.table;
            decision.family = subject.family;
            decision.socket_type = subject.socket_type;
            decision.protocol = subject.protocol;
            decision.hook = subject.hook;
            decision._padding = [0; 3];
        },
    )
}
