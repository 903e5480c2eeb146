//! Unix sockets that are denied unless a rule names them: whoever reaches one has others do his work, outside of his session and mostly
//! as root. Container engines, and the managers of the system and of users' sessions.
//!
//! Neither `default = "allow"` nor a rule for a directory lets an agent through to one; a rule for its very path does. (A rule that allows a
//! directory of a user's session is refused: what is in there, nobody can list.) They are entries of
//! the kernel's table like those of rules, with [`BUILT_IN`] for a number.
//!
//! These are names, as in rules: under `default = "allow"` another name for the same socket (a link, `..`, a relative path) is met by the
//! default, and recorded. `default = "deny"` has no such gap.

use auditor_common::unix::NAME_SPACE;

/// The number that verdicts have from here, in place of a rule's.
pub(super) const BUILT_IN: u32 = u32::MAX - 1;

/// Sockets of container engines below `/run`.
pub(crate) const CONTAINERS: [&str; 12] = [
    "docker.sock",
    "docker/containerd/containerd.sock",
    "containerd/containerd.sock",
    "k3s/containerd/containerd.sock",
    "cri-dockerd.sock",
    "podman/podman.sock",
    "crio/crio.sock",
    "buildkit/buildkitd.sock",
    "lxd.socket",
    "incus/unix.socket",
    "libvirt/libvirt-sock",
    "libvirt/virtqemud-sock",
];

/// Sockets of what starts processes for others, below `/run`.
const MANAGERS: [&str; 7] = [
    "systemd/private",
    "systemd/io.systemd.Manager",
    "systemd/machine/io.systemd.Machine",
    "dbus/system_bus_socket",
    "snapd.socket",
    "supervisor.sock",
    "supervisor/supervisor.sock",
];

/// The same, elsewhere.
const ELSEWHERE: [&str; 3] =
    ["/var/lib/lxd/unix.socket", "/var/lib/incus/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

/// Directories of users' sessions, below `/run`, with all that is in them: bus, systemd, keyrings, engines without root.
const SESSIONS: &str = "user/";

/// Both names of what is below `/run`: `/var/run` is a link to it.
const RUN: [&str; 2] = ["/run/", "/var/run/"];

/// A built-in denial.
pub(super) struct Guarded {
    /// The path; of a whole tree, with its slash.
    pub(super) path: String,
    /// Bytes of the name that must match, and with [`NAME_SPACE`] as [`Self::named`], whatever comes after them.
    pub(super) prefix: usize,
    /// What the verdict takes for the part of the name that the entry stands for: slashes behind it are another name.
    pub(super) named: usize,
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Guarded> {
    let below = |run: &'static str| {
        CONTAINERS.into_iter().chain(MANAGERS).map(move |name| one(format!("{run}{name}")))
    };
    let trees = RUN.map(|run| {
        let path = format!("{run}{SESSIONS}");
        Guarded { prefix: path.len(), named: NAME_SPACE, path }
    });
    RUN.into_iter().flat_map(below).chain(ELSEWHERE.map(|path| one(path.to_owned()))).chain(trees)
}

fn one(path: String) -> Guarded {
    // With the NUL that ends it.
    let prefix = path.len() + 1;
    Guarded { path, prefix, named: prefix }
}

/// The tree that a directory is in, or is.
pub(super) fn tree_of(directory: &[u8]) -> Option<String> {
    all()
        .map(|guarded| guarded.path)
        .find(|path| path.ends_with('/') && directory.starts_with(path.as_bytes()))
}

/// The one that is met by a path.
pub(super) fn met_by(path: &[u8]) -> Option<String> {
    let meets = |guarded: &Guarded| {
        let whole = guarded.path.as_bytes();
        if guarded.named == NAME_SPACE { path.starts_with(whole) } else { path == whole }
    };
    let found = all().find(meets)?;
    let star = if found.named == NAME_SPACE { "**" } else { "" };
    Some(format!("{}{star}", found.path))
}
