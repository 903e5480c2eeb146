//! Sockets of container engines: whoever may write to one may start processes outside of any session, as root.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Check, Host};
use crate::policy::CONTAINERS;

pub(super) fn sockets(host: &Host) -> Check {
    const NAME: &str = "container-sockets";
    const MEANING: &str = "an agent that reaches one of them can start processes outside of its session";
    let present: Vec<_> = CONTAINERS.iter().filter_map(|name| reach(host, &host.run.join(name))).collect();
    let open: Vec<_> =
        present.iter().filter(|socket| socket.reachable).map(|socket| &*socket.description).collect();
    if !open.is_empty() {
        return Check::degraded(
            NAME,
            MEANING,
            open.join("; "),
            "take agents' users out of these groups, and do not run agents as root",
        );
    }
    if present.is_empty() {
        return Check::ok(NAME, MEANING, "none found");
    }
    let all: Vec<_> = present.iter().map(|socket| &*socket.description).collect();
    Check::ok(NAME, MEANING, all.join("; "))
}

struct Socket {
    description: String,
    reachable: bool,
}

fn reach(host: &Host, path: &Path) -> Option<Socket> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    let path = path.display();
    if metadata.mode() & 0o002 != 0 {
        return Some(Socket { description: format!("{path}: open to everybody"), reachable: true });
    }
    let (group, members) = group(host, metadata.gid());
    let in_group = metadata.mode() & 0o020 != 0 && metadata.gid() != 0;
    Some(if in_group && !members.is_empty() {
        Socket { description: format!("{path}: open to {group} ({})", members.join(", ")), reachable: true }
    } else {
        Socket { description: format!("{path}: for root only"), reachable: false }
    })
}

/// Groups of a user by number: what the databases of users and groups say.
pub(super) fn groups_of(host: &Host, uid: u32) -> Vec<u32> {
    let users = fs::read_to_string(&host.users).unwrap_or_default();
    let number = uid.to_string();
    let of_user = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = of_user.into_iter().find(|fields| fields.get(2) == Some(&number.as_str()));
    let Some((name, gid)) = found.and_then(|fields| Some((*fields.first()?, fields.get(3)?.parse().ok()?)))
    else {
        return Vec::new();
    };
    let groups = fs::read_to_string(&host.groups).unwrap_or_default();
    let of_name = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter_map(|fields| {
        let members = fields.get(3)?;
        members.split(',').any(|member| member == name).then(|| fields.get(2)?.parse().ok())?
    });
    std::iter::once(gid).chain(of_name).collect()
}

/// The first engine's socket that a user may write to.
pub(super) fn within_reach(host: &Host, uid: u32, groups: &[u32]) -> Option<String> {
    let paths = CONTAINERS.iter().map(|name| host.run.join(name));
    let mut sockets = paths.filter_map(|path| {
        Some((fs::metadata(&path).ok().filter(|found| found.file_type().is_socket())?, path))
    });
    let reached = sockets.find(|(metadata, _)| {
        let mode = metadata.mode();
        uid == 0
            || mode & 0o002 != 0
            || (metadata.uid() == uid && mode & 0o200 != 0)
            || (groups.contains(&metadata.gid()) && mode & 0o020 != 0)
    });
    reached.map(|(_, path)| path.display().to_string())
}

/// Name and members of a group. Users whose primary group it is are not listed there.
fn group(host: &Host, gid: u32) -> (String, Vec<String>) {
    let text = fs::read_to_string(&host.groups).unwrap_or_default();
    let number = gid.to_string();
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [name, _, id, members] if *id == number => {
                let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned);
                Some((format!("group {name}"), members.collect()))
            }
            _ => None,
        })
        .unwrap_or_else(|| (format!("group {gid}"), vec!["unknown members".to_owned()]))
}
