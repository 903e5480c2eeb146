//! What the rules of one policy say of unix sockets together.
//!
//! The same socket named twice is treated as the same network is (`overlap`). A deny is warned of: a path is a name, and whoever may
//! reach the socket by another one (a link, a relative path, a mount) is not met by a rule for this one.

use std::collections::HashMap;
use std::ops::Range;

use super::diagnostic::{Report, quoted};
use crate::policy::{Action, Policy};

pub(super) fn check(policy: &Policy, spans: &[Vec<Range<usize>>], report: &mut Report<'_>) {
    let mut first_at = HashMap::new();
    for (rule, spans) in policy.rules.iter().zip(spans) {
        for (socket, span) in rule.sockets.iter().zip(spans) {
            let text = quoted(&socket.to_string());
            let here = report.place(span).line;
            let Some((first, line)) = first_at.get(socket).copied() else {
                first_at.insert(socket, (rule, here));
                deny_by_name(policy, rule.action, socket.is_path(), &text, span, report);
                if rule.action == Action::Allow
                    && let Some(tree) = Policy::guarded_around(socket)
                {
                    let message = format!(
                        "{text} would allow managers and engines of users' sessions, which are in {tree}: name each socket by its own path"
                    );
                    report.error(span.clone(), message);
                }
                let denied =
                    if rule.action == Action::Allow { policy.guarded_within(socket) } else { Vec::new() };
                if !denied.is_empty() {
                    let denied = denied.join(", ");
                    let message = format!(
                        "{text} does not allow {denied}: name a socket of an engine or a manager by its own path"
                    );
                    report.warning(span.clone(), message);
                }
                continue;
            };
            if (first.action, first.expires) == (rule.action, rule.expires) {
                let message = format!("{text} is named on line {line} already: remove one of the two");
                report.warning(span.clone(), message);
            } else {
                let difference = if first.action == rule.action { "end of validity" } else { "action" };
                report.error(
                    span.clone(),
                    format!(
                        "overlap with a different {difference}: {text} is named by rule {} (line {line}) too: remove one of the two",
                        first.number
                    ),
                );
            }
        }
    }
}

fn deny_by_name(
    policy: &Policy,
    action: Action,
    is_path: bool,
    text: &str,
    span: &Range<usize>,
    report: &mut Report<'_>,
) {
    if action == Action::Deny && policy.default == Action::Allow && is_path {
        report.warning(
            span.clone(),
            format!(
                "{text} is denied by this name only: a link or a relative path to the same socket is another name, \
                 which the default allows; write `default = \"deny\"` and allow what is needed"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::clock::Utc;
    use crate::config::parse_at;

    fn report(default: &str, rules: &[(&str, &str)]) -> Vec<String> {
        let mut text = format!(
            "agent = [{{ name = \"a\", policy = \"p\" }}]\n[[policy]]\nname = \"p\"\ndefault = \"{default}\"\n"
        );
        for (to, action) in rules {
            text += &format!("[[policy.rule]]\nto = [{to}]\naction = \"{action}\"\n");
        }
        let (_, diagnostics) = parse_at(&text, Utc(0));
        diagnostics.iter().map(|diagnostic| diagnostic.render(Path::new("f"))).collect()
    }

    #[test]
    fn a_rule_may_name_unix_sockets_alone_or_beside_addresses() {
        assert_eq!(
            report("deny", &[("\"unix:/run/a\", \"10.0.0.1:5\"", "allow"), ("\"unix:@b\"", "allow")]),
            [""; 0]
        );
    }

    #[test]
    fn the_same_socket_twice_is_a_warning_and_with_another_action_an_error() {
        assert_eq!(
            report("deny", &[("\"unix:/a\", \"unix:/a\"", "allow")]),
            ["f:6:18: warning: \"unix:/a\" is named on line 6 already: remove one of the two"]
        );
        assert_eq!(
            report("deny", &[("\"unix:/a\"", "allow"), ("\"unix:/a\"", "deny")]),
            [
                "f:9:7: error: overlap with a different action: \"unix:/a\" is named by rule 1 (line 6) too: remove one of the two"
            ]
        );
    }

    #[test]
    fn a_directory_with_sockets_that_it_does_not_name_is_a_warning() {
        assert_eq!(
            report("deny", &[("\"unix:/run/podman/*\"", "allow")]),
            [
                "f:6:7: warning: \"unix:/run/podman/*\" does not allow /run/podman/podman.sock: name a socket of an engine or a \
                 manager by its own path"
            ]
        );
        let named = "\"unix:/run/podman/*\", \"unix:/run/podman/podman.sock\"";
        assert_eq!(report("deny", &[(named, "allow")]), [""; 0]);
    }

    #[test]
    fn a_directory_of_users_sessions_is_an_error() {
        assert_eq!(
            report("deny", &[("\"unix:/run/user/1000/*\"", "allow")]),
            [
                "f:6:7: error: \"unix:/run/user/1000/*\" would allow managers and engines of users' sessions, which are in /run/user/: \
                 name each socket by its own path"
            ]
        );
        assert_eq!(report("deny", &[("\"unix:/run/user/1000/*\"", "deny")]), [""; 0]);
    }

    #[test]
    fn a_deny_that_another_name_goes_around_is_a_warning() {
        let told = report("allow", &[("\"unix:/run/docker.sock\"", "deny")]);
        assert!(told.len() == 1 && told[0].contains("is denied by this name only"), "{told:?}");
    }
}
