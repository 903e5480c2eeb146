//! Who is asking, and the clock.

use super::{Check, Host};

/// Capabilities that the daemon needs: name and number of linux/capability.h.
const NEEDED: [(&str, u32); 6] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

pub(super) fn privileges(host: &Host) -> Check {
    const NAME: &str = "privileges";
    const MEANING: &str = "the daemon loads programs into the kernel and makes cgroups";
    let status = Host::text(&host.proc, "self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effective = field("CapEff:").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let lacking: Vec<_> =
        NEEDED.iter().filter(|(_, number)| effective & (1 << number) == 0).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return Check::ok(NAME, MEANING, "all needed capabilities are there");
    }
    let is_root = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1)) == Some("0");
    let remedy = if is_root {
        "this root has been deprived of capabilities: run outside of the container or unit that does so"
    } else {
        "run this as root"
    };
    Check::missing(NAME, MEANING, format!("lacking {}", lacking.join(", ")), remedy)
}

pub(super) fn clock(host: &Host) -> Check {
    const NAME: &str = "clock";
    const MEANING: &str = "records of several hosts can be put in order only if their clocks agree";
    match host.clock_synchronised {
        Some(true) => Check::ok(NAME, MEANING, "synchronised"),
        Some(false) => Check::degraded(
            NAME,
            MEANING,
            "not synchronised",
            "run an NTP client: `timedatectl set-ntp true`, or chrony",
        ),
        None => Check::degraded(
            NAME,
            MEANING,
            "the kernel does not tell",
            "see `timedatectl` or `chronyc tracking`",
        ),
    }
}

/// Whether the kernel says that something disciplines its clock; `None` if it does not say.
pub fn clock_synchronised() -> Option<bool> {
    // SAFETY: timex is a structure of integers, for which zero is a valid value; `modes` 0 means that nothing is changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is a valid, writable timex for the length of the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(timex.status & libc::STA_UNSYNC == 0)
}
