//! What a process has used, by the kernel's account.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// User and system time since its start, threads that have ended included.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name is in parentheses and may hold anything; fields are counted from its end: utime and stime are 14 and 15.
    let (_, rest) = text.rsplit_once(") ").with_context(|| format!("{path}: {text}"))?;
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>();
    let ticks = ticks.with_context(|| format!("{path}: {text}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK).context("sysconf")?.context("no clock tick")?;
    Ok(Duration::from_micros(ticks * 1_000_000 / u64::try_from(per_second).context("clock tick")?))
}

/// Resident memory in KiB: now, and at its peak.
pub(super) fn resident(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("{path} has no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// How often the uprobe programs that a process holds have run, and for how many nanoseconds, while the kernel counted.
pub(super) fn uprobe_runs(pid: u32) -> Result<(u64, u64)> {
    let folder = format!("/proc/{pid}/fdinfo");
    let (mut programs, mut count, mut time) = (std::collections::BTreeSet::new(), 0, 0);
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?.flatten() {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        // BPF_PROG_TYPE_KPROBE; a program may have several descriptors.
        if field("prog_type:") == Some(2) && field("prog_id:").is_some_and(|id| programs.insert(id)) {
            count += field("run_cnt:").unwrap_or_default();
            time += field("run_time_ns:").unwrap_or_default();
        }
    }
    Ok((count, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id();
        let (now, peak) = resident(pid).unwrap();
        assert!(now > 0 && peak >= now);
        assert!(cpu_time(pid).unwrap() < Duration::from_secs(3600));
        assert!(cpu_time(u32::MAX).is_err());
    }
}
