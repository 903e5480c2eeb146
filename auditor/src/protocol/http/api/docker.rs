//! Docker Engine API, and Podman's dialect of it.
//!
//! Paths begin with a version (`/v1.43/containers/json`), which nobody else writes so; without one the client or the server must have
//! said that it is Docker.

use super::super::request::{Call, Service};
use super::{Asked, kept};

/// Whether a client of this name speaks to Docker.
pub(super) fn is_client(agent: &str) -> bool {
    let agent = agent.to_ascii_lowercase();
    ["docker-client/", "docker-sdk", "go-dockerclient", "docker/", "libpod/"]
        .iter()
        .any(|name| agent.starts_with(name))
}

pub(super) fn call(asked: &Asked<'_>, named: bool) -> Option<Call> {
    let (versioned, rest) = match &*asked.segments {
        [version, rest @ ..] if is_version(version) => (true, rest),
        rest => (false, rest),
    };
    let rest = match rest {
        ["libpod", rest @ ..] => rest,
        rest => rest,
    };
    if !versioned && !named {
        return None;
    }
    let call = |verb: &str, resource: &str, name: Option<String>| {
        Some(Call {
            service: Service::Docker,
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            subresource: None,
            namespace: None,
            name,
        })
    };
    match (asked.method, rest) {
        ("POST", ["build"]) => call("build", "images", asked.parameter("t")),
        ("POST", ["commit"]) => call("commit", "containers", asked.parameter("container")),
        ("POST", ["auth"]) => call("login", "system", None),
        ("GET", [word @ ("info" | "version" | "events")]) => call(word, "system", None),
        ("GET" | "HEAD", ["_ping"]) => call("ping", "system", None),
        ("GET", ["system", "df"]) => call("usage", "system", None),
        ("POST", ["session"]) => call("session", "system", None),
        (_, ["exec", id, action]) => {
            call(if *action == "json" { "inspect" } else { action }, "exec", Some(kept(id)))
        }
        (
            _,
            [
                resource @ ("containers" | "images" | "networks" | "volumes" | "services" | "tasks" | "nodes"
                | "secrets" | "configs" | "plugins" | "swarm" | "distribution" | "pods"),
                rest @ ..,
            ],
        ) => {
            let (verb, name) = thing(asked, resource, rest)?;
            call(verb, resource, name)
        }
        _ => None,
    }
}

/// `v1.43` or `v4.0.0`.
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|number| {
        number.contains('.')
            && number.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn thing<'a>(asked: &Asked<'a>, resource: &str, rest: &[&'a str]) -> Option<(&'a str, Option<String>)> {
    let named = |verb: &'a str, name: &[&str]| Some((verb, Some(kept(&name.join("/")))));
    match (asked.method, rest) {
        ("GET", [] | ["json"]) if resource != "swarm" => Some(("list", None)),
        ("GET", ["search"]) => Some(("search", asked.parameter("term"))),
        ("GET", ["get"]) => Some(("export", asked.parameter("names"))),
        ("POST", ["create"]) if resource == "images" => {
            Some(("pull", asked.parameter("fromImage").or_else(|| asked.parameter("fromSrc"))))
        }
        ("POST", ["create"]) => Some(("create", asked.parameter("name"))),
        ("POST", [verb @ ("prune" | "load" | "pull" | "import")]) => {
            Some((verb, asked.parameter("reference")))
        }
        ("POST", [verb @ ("init" | "join" | "leave" | "update" | "unlock")]) if resource == "swarm" => {
            Some((verb, None))
        }
        ("GET", []) => Some(("inspect", None)),
        ("DELETE", name) if !name.is_empty() => named("remove", name),
        ("GET", [name @ .., "json"]) => named("inspect", name),
        ("HEAD" | "GET", [name, "archive"]) => named("copy-from", &[name]),
        ("PUT", [name, "archive"]) => named("copy-to", &[name]),
        ("GET", [name]) => named("inspect", &[name]),
        // An image's name has slashes of its own.
        (_, [name @ .., action]) if !name.is_empty() => named(action, name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(method: &str, target: &str, named: bool) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path.split('/').filter(|segment| !segment.is_empty()).collect();
        call(&Asked { method, segments, query }, named).map_or("-".to_owned(), |call| {
            format!("{} {} {}", call.verb, call.resource, call.name.as_deref().unwrap_or("-"))
        })
    }

    #[test]
    fn calls_have_a_verb_a_resource_and_a_name() {
        for (method, target, expected) in [
            ("GET", "/v1.43/containers/json?all=1", "list containers -"),
            ("POST", "/v1.43/containers/create?name=web", "create containers web"),
            ("POST", "/v1.43/containers/4f/start", "start containers 4f"),
            ("GET", "/v1.43/containers/4f/json", "inspect containers 4f"),
            ("DELETE", "/v1.43/containers/4f?force=1", "remove containers 4f"),
            ("POST", "/v1.43/containers/4f/exec", "exec containers 4f"),
            ("POST", "/v1.43/exec/9a/start", "start exec 9a"),
            ("PUT", "/v1.43/containers/4f/archive?path=/etc", "copy-to containers 4f"),
            ("POST", "/v1.43/images/create?fromImage=alpine&tag=3", "pull images alpine"),
            ("POST", "/v1.43/images/registry.local/team/app/push", "push images registry.local/team/app"),
            ("POST", "/v1.43/build?t=app%3A1", "build images app:1"),
            ("POST", "/v1.43/swarm/init", "init swarm -"),
            ("POST", "/v4.0.0/libpod/pods/create", "create pods -"),
            ("GET", "/v1/containers/json", "-"),
            ("GET", "/containers/json", "-"),
            ("GET", "/v1.43/unknown", "-"),
        ] {
            assert_eq!(called(method, target, false), expected, "{method} {target}");
        }
        assert_eq!(called("GET", "/containers/json", true), "list containers -");
        assert!(is_client("Docker-Client/24.0.5 (linux)") && !is_client("curl/8"));
    }
}
