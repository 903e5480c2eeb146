//! The API server of Kubernetes.
//!
//! `/api/v1/…` with one of the core group's resources, or `/apis/GROUP/VERSION/…` with a group that is built in or a domain. Verbs are
//! those that Kubernetes itself authorises: get, list, watch, create, update, patch, delete, deletecollection. What is no resource
//! (`/healthz`, `/openapi/v2`) is no call.

use super::super::request::{Call, Service};
use super::{Asked, kept};

/// Resources of the core group.
const CORE: [&str; 17] = [
    "bindings",
    "componentstatuses",
    "configmaps",
    "endpoints",
    "events",
    "limitranges",
    "namespaces",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "serviceaccounts",
    "services",
];
/// Groups without a domain.
const GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];

pub(super) fn call(asked: &Asked<'_>) -> Option<Call> {
    let (group, rest) = match &*asked.segments {
        ["api", "v1", rest @ ..] => (None, rest),
        ["apis", group, version, rest @ ..]
            if (GROUPS.contains(group) || group.contains('.')) && is_version(version) =>
        {
            (Some(*group), rest)
        }
        _ => return None,
    };
    let (old_watch, rest) = match rest {
        ["watch", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (namespace, resource, rest) = match rest {
        // A namespace itself, or a part of it.
        ["namespaces", name, "status" | "finalize"] | ["namespaces", name] if group.is_none() => {
            (Some(*name), "namespaces", &rest[1..])
        }
        ["namespaces", namespace, resource, rest @ ..] => (Some(*namespace), *resource, rest),
        [resource, rest @ ..] => (None, *resource, rest),
        [] => return None,
    };
    if group.is_none() && !CORE.contains(&resource) {
        return None;
    }
    let (name, sub) = match rest {
        [] => (None, None),
        [name, rest @ ..] => (Some(*name), (!rest.is_empty()).then(|| rest.join("/"))),
    };
    let watched =
        old_watch || asked.parameter("watch").is_some_and(|value| matches!(&*value, "1" | "true" | "True"));
    let verb = match (asked.method, name) {
        ("GET" | "HEAD", _) if watched => "watch",
        ("GET" | "HEAD", None) => "list",
        ("GET" | "HEAD", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", None) => "deletecollection",
        ("DELETE", Some(_)) => "delete",
        _ => return None,
    };
    Some(Call {
        service: Service::Kubernetes,
        verb: verb.to_owned(),
        resource: kept(&group.map_or_else(|| resource.to_owned(), |group| format!("{resource}.{group}"))),
        subresource: sub.as_deref().map(kept),
        namespace: namespace.map(kept),
        name: name.map(kept),
    })
}

/// `v1`, `v2beta1`.
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(method: &str, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path.split('/').filter(|segment| !segment.is_empty()).collect();
        call(&Asked { method, segments, query }).map_or("-".to_owned(), |call| {
            let part = call.subresource.map_or(String::new(), |part| format!("/{part}"));
            let or_dash = |text: Option<String>| text.unwrap_or("-".to_owned());
            format!(
                "{} {}{part} {} {}",
                call.verb,
                call.resource,
                or_dash(call.namespace),
                or_dash(call.name)
            )
        })
    }

    #[test]
    fn calls_have_a_verb_a_resource_a_namespace_and_a_name() {
        for (method, target, expected) in [
            ("GET", "/api/v1/namespaces/shop/pods?limit=500", "list pods shop -"),
            ("GET", "/api/v1/pods?watch=true", "watch pods - -"),
            ("GET", "/api/v1/namespaces/shop/secrets/db", "get secrets shop db"),
            ("POST", "/api/v1/namespaces/shop/pods/web-0/exec?command=sh", "create pods/exec shop web-0"),
            ("GET", "/api/v1/namespaces/shop/pods/web-0/log", "get pods/log shop web-0"),
            ("GET", "/api/v1/namespaces/shop", "get namespaces shop shop"),
            ("PUT", "/api/v1/namespaces/shop/finalize", "update namespaces/finalize shop shop"),
            ("GET", "/api/v1/nodes/n1/proxy/metrics/cadvisor", "get nodes/proxy/metrics/cadvisor - n1"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/shop/deployments/web/scale",
                "patch deployments.apps/scale shop web",
            ),
            (
                "DELETE",
                "/apis/example.com/v1beta1/namespaces/shop/widgets",
                "deletecollection widgets.example.com shop -",
            ),
            ("DELETE", "/api/v1/namespaces/shop", "delete namespaces shop shop"),
            ("GET", "/api/v1/users/7", "-"),
            ("GET", "/apis/users/v1/x", "-"),
            ("GET", "/healthz", "-"),
            ("GET", "/api/v1", "-"),
        ] {
            assert_eq!(called(method, target), expected, "{method} {target}");
        }
    }
}
