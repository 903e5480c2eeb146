//! What the kernel offers, and how it is set up.

use super::{Check, Host};
use crate::kernel::cgroup::Hierarchy;
use crate::kernel::unix;

/// Links that keep tracepoint programs attached came last of all that is needed.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn release(host: &Host) -> Check {
    const NAME: &str = "kernel";
    const MEANING: &str = "the programs that watch and decide need Linux 5.15";
    let Some(release) = Host::text(&host.proc, "sys/kernel/osrelease") else {
        return Check::missing(NAME, MEANING, "the release cannot be read", "mount procfs at /proc");
    };
    match version(&release) {
        Some(version) if version >= OLDEST => Check::ok(NAME, MEANING, release),
        Some(_) => Check::missing(NAME, MEANING, release, "boot a kernel of 5.15 or later"),
        None => Check::degraded(
            NAME,
            MEANING,
            format!("{release}, which is not understood"),
            "check that it is 5.15 or later",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn cgroup2(host: &Host) -> Check {
    const NAME: &str = "cgroup2";
    const MEANING: &str = "a session is a cgroup of version 2; the programs are attached to it";
    let mountinfo = Host::text(&host.proc, "self/mountinfo").unwrap_or_default();
    match Hierarchy::find(&mountinfo) {
        Ok(hierarchy) => {
            let layout = if host.mount_of("cgroup").is_some() { "hybrid layout" } else { "unified layout" };
            Check::ok(NAME, MEANING, format!("{} ({layout})", hierarchy.mount().display()))
        }
        Err(_) => Check::missing(
            NAME,
            MEANING,
            "not mounted",
            "`mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

pub(super) fn bpffs(host: &Host) -> Check {
    const NAME: &str = "bpffs";
    const MEANING: &str = "pinned programs stay in force when the daemon is dead";
    mounted_or_mountable(host, NAME, MEANING, "bpf", "CONFIG_BPF_SYSCALL")
}

pub(super) fn tracefs(host: &Host) -> Check {
    const NAME: &str = "tracefs";
    const MEANING: &str = "processes are followed through tracepoints, whose fields are described there";
    mounted_or_mountable(host, NAME, MEANING, "tracefs", "CONFIG_FTRACE")
}

fn mounted_or_mountable(
    host: &Host,
    name: &'static str,
    meaning: &'static str,
    filesystem: &str,
    option: &str,
) -> Check {
    match host.mount_of(filesystem) {
        Some(mount) => Check::ok(name, meaning, mount),
        None if host.knows_filesystem(filesystem) => {
            Check::ok(name, meaning, "not mounted; the daemon mounts it when it starts")
        }
        None => Check::missing(
            name,
            meaning,
            "the kernel does not know this file system",
            format!("boot a kernel built with {option}"),
        ),
    }
}

pub(super) fn lockdown(host: &Host) -> Check {
    const NAME: &str = "lockdown";
    const MEANING: &str = "lockdown=integrity keeps root from patching the kernel and is compatible with the audit; \
                           lockdown=confidentiality forbids the programs to read memory";
    let Some(text) = Host::text(&host.sys, "kernel/security/lockdown") else {
        return Check::degraded(
            NAME,
            MEANING,
            "not told (securityfs is not mounted, or the kernel has no lockdown)",
            "`mount -t securityfs none /sys/kernel/security` to see it",
        );
    };
    let mode =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(mode, _)| mode);
    match mode {
        "confidentiality" => Check::missing(NAME, MEANING, mode, "boot with lockdown=integrity instead"),
        "integrity" => Check::ok(NAME, MEANING, mode),
        _ => Check::degraded(NAME, MEANING, mode, "boot with lockdown=integrity"),
    }
}

pub(super) fn security_modules(host: &Host) -> Check {
    const NAME: &str = "lsm";
    const MEANING: &str = "where BPF may act as a security module, more ways around the socket hooks can be stopped \
                           instead of recorded";
    match Host::text(&host.sys, "kernel/security/lsm") {
        Some(modules) if modules.split(',').any(|module| module == "bpf") => {
            Check::ok(NAME, MEANING, modules)
        }
        Some(modules) => Check::degraded(
            NAME,
            MEANING,
            format!("{modules}: no bpf"),
            format!("boot with lsm={modules},bpf on a kernel built with CONFIG_BPF_LSM"),
        ),
        None => Check::degraded(
            NAME,
            MEANING,
            "not told (securityfs is not mounted)",
            "`mount -t securityfs none /sys/kernel/security` to see it",
        ),
    }
}

pub(super) fn ptrace_scope(host: &Host) -> Check {
    const NAME: &str = "ptrace-scope";
    const MEANING: &str = "without Yama an agent may write into the memory of its user's other processes, outside its \
                           session, through /proc/PID/mem";
    const REMEDY: &str = "`sysctl kernel.yama.ptrace_scope=1`, or give agents users of their own";
    match Host::text(&host.proc, "sys/kernel/yama/ptrace_scope") {
        Some(scope) if matches!(scope.as_str(), "1" | "2" | "3") => Check::ok(NAME, MEANING, scope),
        Some(scope) => Check::degraded(NAME, MEANING, scope, REMEDY),
        None => Check::degraded(
            NAME,
            MEANING,
            "the kernel has no Yama",
            "start agents with `auditor run` on Linux 6.12 or later, where Landlock keeps them to their own processes; give them users \
             of their own, or boot a kernel with CONFIG_SECURITY_YAMA",
        ),
    }
}

pub(super) fn type_information(host: &Host) -> Check {
    const NAME: &str = "btf";
    const MEANING: &str = "the kernel's own description of its types, by which the programs find a process's cgroup where it is born or moved";
    if host.sys.join("kernel/btf/vmlinux").exists() {
        return Check::ok(NAME, MEANING, "present");
    }
    Check::missing(NAME, MEANING, "absent", "boot a kernel built with CONFIG_DEBUG_INFO_BTF")
}

pub(super) fn unix_sockets(host: &Host) -> Check {
    const NAME: &str = "unix-sockets";
    const MEANING: &str =
        "agents' connections to unix sockets (docker, D-Bus, databases) are decided and recorded";
    const REMEDY: &str = "boot a kernel of 6.7 or later, built with CONFIG_DEBUG_INFO_BTF";
    // The hook and the offsets that its programs need are told by the same description.
    let types = std::fs::read(host.sys.join("kernel/btf/vmlinux")).unwrap_or_default();
    match unix::has_hooks(&types) {
        Ok(true) => Check::ok(NAME, MEANING, "the kernel has the hooks"),
        Ok(false) => Check::degraded(NAME, MEANING, "the kernel has no hook for them", REMEDY),
        Err(error) => Check::degraded(NAME, MEANING, error.to_string(), REMEDY),
    }
}

pub(super) fn unprivileged_bpf(host: &Host) -> Check {
    const NAME: &str = "unprivileged-bpf";
    const MEANING: &str = "users without privileges that load BPF programs widen the kernel's attack surface";
    match Host::text(&host.proc, "sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Check::degraded(
            NAME,
            MEANING,
            "allowed to everybody",
            "`sysctl kernel.unprivileged_bpf_disabled=1` (until the next boot it cannot be undone), or 2",
        ),
        Some(_) => Check::ok(NAME, MEANING, "forbidden"),
        None => Check::ok(NAME, MEANING, "not built in"),
    }
}

pub(super) fn terminal_injection(host: &Host) -> Check {
    const NAME: &str = "terminal-injection";
    const MEANING: &str = "a tagged agent could type commands into a terminal that it shares with a person (auditor \
                           run prevents it by itself)";
    match Host::text(&host.proc, "sys/dev/tty/legacy_tiocsti").as_deref() {
        Some("0") => Check::ok(NAME, MEANING, "TIOCSTI is off"),
        Some(_) => Check::degraded(NAME, MEANING, "TIOCSTI is on", "`sysctl dev.tty.legacy_tiocsti=0`"),
        None => Check::degraded(
            NAME,
            MEANING,
            "TIOCSTI cannot be switched off on this kernel",
            "Linux 6.2 can; until then start agents with `auditor run` or without a terminal",
        ),
    }
}
