//! `sockets` and `permit` of a policy.

use std::collections::BTreeSet;

use super::diagnostic::{Report, quoted};
use super::document::{At, Section, nearest};
use crate::policy::{Confinement, Permit, SocketKind};

/// Sockets that people look for, and why they are not to be had.
const UNAUDITABLE: [&str; 6] = ["icmp", "raw", "packet", "sctp", "mptcp", "xdp"];

pub(super) fn confinement(section: &Section<'_>, report: &mut Report<'_>) -> Confinement {
    let default = Confinement::default();
    let sockets = words(section, "sockets", &SocketKind::ALL.map(|kind| (kind.name(), kind)), report);
    let permit = words(section, "permit", &Permit::ALL.map(|permit| (permit.name(), permit)), report);
    let confinement =
        Confinement { sockets: sockets.unwrap_or(default.sockets), permit: permit.unwrap_or(default.permit) };
    if confinement.permits(Permit::IoUring) && !confinement.has(SocketKind::Vsock) {
        let span = section.value("permit").map_or(0..0, |value| value.span());
        let message = "with \"io-uring\" a command can make sockets without socket(2), so that families which no hook sees (vsock) \
                       are open to it";
        report.warning(span, message);
    }
    confinement
}

/// The words of a list; `None` where there is none.
fn words<T: Copy + Ord>(
    section: &Section<'_>,
    key: &str,
    known: &[(&'static str, T)],
    report: &mut Report<'_>,
) -> Option<BTreeSet<T>> {
    let list = section.strings(key, report)?;
    let mut found = BTreeSet::new();
    for At { value: word, span } in list.value {
        if let Some((_, meaning)) = known.iter().find(|(name, _)| *name == word) {
            if !found.insert(*meaning) {
                report.warning(span, format!("`{key}` has {} already", quoted(word)));
            }
            continue;
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let hint = if key == "sockets" && UNAUDITABLE.contains(&word) {
            "what such sockets carry cannot be audited, so no policy allows them".to_owned()
        } else if let Some(meant) = nearest(word, &names) {
            format!("did you mean \"{meant}\"?")
        } else {
            format!("known are {}", names.join(", "))
        };
        report.error(span, format!("`{key}` has {}: {hint}", quoted(word)));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::clock::Utc;
    use crate::config::parse_at;
    use crate::policy::{Confinement, Permit, SocketKind};

    fn read(body: &str) -> (Option<Confinement>, Vec<String>) {
        let text = format!("agent = [{{ name = \"a\", policy = \"p\" }}]\n[[policy]]\nname = \"p\"\n{body}");
        let (settings, diagnostics) = parse_at(&text, Utc(0));
        let told = diagnostics.iter().map(|diagnostic| diagnostic.render(Path::new("f")));
        // The policy needs no rules for this.
        let told = told.filter(|line| !line.contains("has no rules")).collect();
        (settings.map(|settings| settings.policies[0].confinement.clone()), told)
    }

    #[test]
    fn without_a_word_there_are_the_usual_sockets_and_nothing_is_permitted() {
        assert_eq!(read(""), (Some(Confinement::default()), vec![]));
    }

    #[test]
    fn a_policy_may_have_fewer_sockets_and_permit_more() {
        let (found, told) = read("sockets = [\"tcp\"]\npermit = [\"ptrace\", \"user-namespaces\"]\n");
        let expected = Confinement {
            sockets: [SocketKind::Tcp].into(),
            permit: [Permit::Ptrace, Permit::UserNamespaces].into(),
        };
        assert_eq!((found, told), (Some(expected), vec![]));
        let (none, told) = read("sockets = []\n");
        assert!(none.is_some_and(|none| none.sockets.is_empty()) && told.is_empty());
    }

    #[test]
    fn what_is_not_known_is_an_error_with_its_place() {
        let (found, told) = read(
            "sockets = [\"icmp\", \"netlnk\", \"token-ring\"]\npermit = [\"bpf\", \"ptrace\", \"ptrace\"]\n",
        );
        assert_eq!(found, None);
        assert_eq!(
            told,
            [
                "f:4:12: error: `sockets` has \"icmp\": what such sockets carry cannot be audited, so no policy allows them",
                "f:4:20: error: `sockets` has \"netlnk\": did you mean \"netlink\"?",
                "f:4:30: error: `sockets` has \"token-ring\": known are tcp, udp, unix, netlink, vsock, alg",
                "f:5:11: error: `permit` has \"bpf\": known are ptrace, user-namespaces, mounts, io-uring, userfaultfd, perf-events, other-processes",
                "f:5:28: warning: `permit` has \"ptrace\" already",
            ]
        );
        let (_, told) = read("permit = [\"io-uring\"]\n");
        assert!(told.len() == 1 && told[0].contains("vsock"), "{told:?}");
    }
}
