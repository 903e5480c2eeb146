//! `guarantees` and `degraded`: what is asked for beyond what the auditor needs, of the host and of sessions.

use std::collections::BTreeSet;

use super::diagnostic::{Report, quoted};
use super::document::{At, Section, Word, nearest};
use crate::posture;
use crate::posture::session::Guarantee;

/// What of `[daemon]` is about guarantees.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Guarantees {
    /// Names of the checks of `auditor doctor` that must find all well.
    pub wanted: BTreeSet<&'static str>,
    /// Whether the daemon starts, and a session begins, without what was asked for; it is recorded then. Default: no.
    pub degraded_allowed: bool,
}

/// Of the host.
pub(super) fn of_host(section: &Section<'_>, report: &mut Report<'_>) -> Guarantees {
    let known = posture::names();
    let pairs: Vec<_> = known.iter().map(|name| (*name, *name)).collect();
    let words = [("refuse", Word::Means(false)), ("allow", Word::Means(true))];
    Guarantees {
        wanted: named(section, &pairs, report),
        degraded_allowed: section.choice("degraded", &words, report).unwrap_or(false),
    }
}

/// Of each session under a policy.
pub(super) fn of_sessions(section: &Section<'_>, report: &mut Report<'_>) -> BTreeSet<Guarantee> {
    named(section, &Guarantee::ALL.map(|guarantee| (guarantee.name(), guarantee)), report)
}

fn named<T: Copy + Ord>(
    section: &Section<'_>,
    known: &[(&'static str, T)],
    report: &mut Report<'_>,
) -> BTreeSet<T> {
    let mut found = BTreeSet::new();
    let Some(list) = section.strings("guarantees", report) else { return found };
    for At { value: word, span } in list.value {
        if let Some((_, meaning)) = known.iter().find(|(name, _)| *name == word) {
            found.insert(*meaning);
            continue;
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let hint = match nearest(word, &names) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("known are {}", names.join(", ")),
        };
        report.error(span, format!("no guarantee is named {}: {hint}", quoted(word)));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::clock::Utc;
    use crate::config::parse_at;
    use crate::posture::session::Guarantee;

    const REST: &str = "[[agent]]\nname = \"a\"\npolicy = \"p\"\n[[policy]]\nname = \"p\"\n";

    #[test]
    fn what_is_asked_for_is_known_by_its_name() {
        let text = format!(
            "[daemon]\nguarantees = [\"lockdown\", \"ptrace-scope\"]\ndegraded = \"allow\"\n{REST}guarantees = [\"unprivileged\"]\n"
        );
        let (settings, _) = parse_at(&text, Utc(0));
        let settings = settings.unwrap();
        assert_eq!(settings.guarantees.wanted, ["lockdown", "ptrace-scope"].into());
        assert!(settings.guarantees.degraded_allowed);
        assert_eq!(settings.policies[0].guarantees, [Guarantee::Unprivileged].into());
        let (settings, _) = parse_at(REST, Utc(0));
        let settings = settings.unwrap();
        assert!(settings.guarantees.wanted.is_empty() && !settings.guarantees.degraded_allowed);
    }

    #[test]
    fn what_nobody_knows_is_an_error() {
        let text = format!("[daemon]\nguarantees = [\"lockdwn\"]\n{REST}guarantees = [\"peace\"]\n");
        let (_, told) = parse_at(&text, Utc(0));
        let told: Vec<_> = told.iter().map(|told| told.render(Path::new("f"))).collect();
        assert_eq!(told[0], "f:2:15: error: no guarantee is named \"lockdwn\": did you mean \"lockdown\"?");
        assert!(told.iter().any(|told| told.contains("known are confined, unprivileged")), "{told:?}");
    }
}
