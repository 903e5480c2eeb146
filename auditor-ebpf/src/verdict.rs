//! The verdict on a destination: two look-ups in the rule table, weighed by `auditor_common::rule::decide`, and the
//! record of it.

use core::mem::MaybeUninit;

use auditor_common::counter::SITE_VERDICT;
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{Decision, HOOK_EGRESS, KIND_DECISION};
use auditor_common::rule::{
    ANY_PORT, KEY_PREFIX_BITS, REASON_NO_SESSION, RuleKey, RuleValue, Verdict, decide,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LpmTrie;
use aya_ebpf::maps::lpm_trie::Key;

use crate::emit::{self, Wake};
use crate::session::{self, SocketState};

/// All policies' rules. Never an LRU: what is not found is decided by the policy's default. Written by the daemon only.
#[map]
static RULES: LpmTrie<RuleKey, RuleValue> = LpmTrie::with_max_entries(65536, 0);

const WHOLE_KEY: u32 = KEY_PREFIX_BITS + 128;

/// Decides a destination for a socket and remembers the verdict with it. Answers the verdict and the compiled policy.
#[inline(always)]
pub(crate) fn on(
    state: &mut SocketState,
    transport: u8,
    remote: Endpoint,
    generation: u32,
) -> (Verdict, u32) {
    let (verdict, table) = match session::by_cgroup(state.cgroup) {
        Some(session) => {
            let destination = remote.as_destination();
            let exact = RULES.get(Key::new(
                WHOLE_KEY,
                RuleKey::new(session.table, transport, destination.port(), destination.address()),
            ));
            let any = RULES.get(Key::new(
                WHOLE_KEY,
                RuleKey::new(session.table, transport, ANY_PORT, destination.address()),
            ));
            (decide(exact, any, session.default_action, emit::now()), session.table)
        }
        None => (Verdict::refuse(REASON_NO_SESSION), 0),
    };
    state.generation = generation;
    state.action = verdict.action;
    state.expires = verdict.expires;
    state.remote = remote;
    (verdict, table)
}

/// What a decision was about.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) session: u64,
    pub(crate) cookie: u64,
    pub(crate) remote: Endpoint,
    pub(crate) table: u32,
    pub(crate) family: u32,
    pub(crate) socket_type: u32,
    pub(crate) protocol: u32,
    pub(crate) hook: u8,
}

/// Records a decision.
#[inline(always)]
pub(crate) fn record(subject: &Subject, verdict: &Verdict) {
    emit::lifecycle(
        SITE_VERDICT,
        Wake::InTime,
        #[inline(always)]
        |place: &mut MaybeUninit<Decision>| {
            // SAFETY: every field of the record is written below before the reservation is submitted; integers and byte
            // arrays have no invalid values in the meantime.
            let decision = unsafe { place.assume_init_mut() };
            decision.header = emit::header(KIND_DECISION, subject.session);
            decision.cookie = subject.cookie;
            if subject.hook == HOOK_EGRESS {
                decision.task.pid = 0;
                decision.task.tid = 0;
                decision.task.uid = 0;
                decision.task.gid = 0;
                decision.task.comm = [0; 16];
            } else {
                emit::current_task(&mut decision.task);
            }
            decision.verdict = *verdict;
            decision.remote = subject.remote;
            decision.table = subject.table;
            decision.family = subject.family;
            decision.socket_type = subject.socket_type;
            decision.protocol = subject.protocol;
            decision.hook = subject.hook;
            decision._padding = [0; 3];
        },
    );
}
