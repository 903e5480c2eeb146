//! Sockets that were there before a process or a cgroup was tagged: they are ended, or followed from where they are.
//!
//! Looked for when the session is in force, so that none is made unseen in between, and while all who live in it stand still
//! ([`super::still`]). One that a cgroup's process has made in the moment before may be ended with the older ones: which of the two came first
//! cannot be told. The client that asked for a session for its own command is not stopped: it waits for the answer.
//!
//! Only what is decided and recorded from then on may be followed: TCP, and UDP without a fixed destination, whose datagrams name
//! theirs. What is neither ended nor followed is a finding, of whatever family it is, apart from those that lead no further than
//! this host.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::Pipeline;
use super::still::Still;
use crate::clock::Clock;
use crate::config::ExistingSockets;
use crate::daemon::attribution::Joined;
use crate::daemon::command::Target;
use crate::daemon::journal::{AdoptedSocket, Item};
use crate::kernel::cgroup::Cgroup;
use crate::process::held::{Held, Sort};
use crate::process::sockets::{self, OpenSocket};
use crate::record::{Adopted, Event as Recorded, Process};

/// Sockets that are named one by one.
const NAMED: u64 = 64;
/// How often is looked for more, where nobody stands still.
const ROUNDS: usize = 8;

/// What became of a socket.
enum Fate {
    Destroyed,
    /// It is decided and recorded from here on.
    Adopted,
    /// It can neither be ended nor followed.
    Outside(io::Error),
}

/// A socket and what became of it, as it is told.
struct Seen {
    description: String,
    fate: Fate,
}

/// What is to be done with those who live in a session that has just begun, or who come into one.
pub(super) struct Look<'a> {
    pub(super) number: u64,
    pub(super) cgroup: &'a Cgroup,
    pub(super) target: &'a Target,
    pub(super) wanted: ExistingSockets,
    /// They wait for an answer and need not be stopped.
    pub(super) wait: bool,
}

impl Pipeline {
    /// Sees to the sockets of those who live in a session that has just begun.
    pub(super) fn see_to_existing_sockets(&mut self, look: &Look<'_>) {
        // Held until all is done.
        let members = match self.parts.object.tell_members(look.cgroup) {
            Ok(members) => Some(members),
            Err(error) => {
                tracing::error!(%error, "which sockets were made in a cgroup is not known: all are ended");
                None
            }
        };
        let still = if look.wait {
            None
        } else {
            Still::begin(look.cgroup, &self.parts.runtime_dir)
                .inspect_err(|error| {
                    let message = format!(
                        "while older sockets were looked for, the processes should have stood still: {error}; some may not have been found"
                    );
                    self.tell_of_older(look.number, message);
                })
                .ok()
        };
        let rounds = if still.is_some() { 1 } else { ROUNDS };
        let adopt = members.is_some() && look.wanted == ExistingSockets::Adopt;
        let (mut processes, mut inodes) = (HashSet::new(), HashSet::new());
        let mut told = 0;
        for _ in 0..rounds {
            let pids = match look.target {
                Target::Process(pid) => vec![*pid],
                Target::Cgroup(_) => look.cgroup.all_members().unwrap_or_else(|error| {
                    let message = format!("which processes live in the cgroup is not known: {error}");
                    self.tell_of_older(look.number, message);
                    Vec::new()
                }),
            };
            let (mut more, mut new) = (false, Vec::new());
            for pid in pids {
                if processes.insert(pid) {
                    more = true;
                    new.push(pid);
                }
                // There may be many.
                self.renew_lease();
                let open = match sockets::of_process(Path::new("/proc"), pid) {
                    Ok(open) => open,
                    // It has ended.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                        continue;
                    }
                    Err(error) => {
                        self.tell_of_older(
                            look.number,
                            format!("the sockets of process {pid} are not known: {error}"),
                        );
                        continue;
                    }
                };
                for socket in open {
                    if !inodes.insert(socket.inode) {
                        continue;
                    }
                    more = true;
                    if let Some(seen) = self.see_to(look, pid, socket, adopt) {
                        told += 1;
                        self.tell_of_existing(look.number, pid, &seen, told);
                    }
                }
            }
            if let Some(libraries) = &self.parts.libraries {
                libraries.look_at(new);
            }
            if !more {
                break;
            }
        }
        drop(still);
        if told > NAMED {
            let message = format!("{} more sockets are older than the session and not named", told - NAMED);
            let finding = Recorded::Finding { kind: "older-socket", message, connection: None };
            self.parts.enter_now(look.number, finding);
        }
    }

    /// Does what the moves of processes ask for, as far as they are still true: a process may have moved on, and after a takeover
    /// its id may be another one's.
    pub(super) fn follow_moves(&mut self) {
        let joined = self.parts.attribution.joined();
        if joined.is_empty() {
            return;
        }
        for Joined { session, pid } in joined {
            if self.session_of(pid) != Some(session) {
                continue;
            }
            let Some(open) = self.parts.attribution.sessions.get_mut(session) else { continue };
            open.empty_since = None;
            let cgroup = open.cgroup.clone();
            self.see_to_existing_sockets(&Look {
                number: session,
                cgroup: &cgroup,
                target: &Target::Process(pid),
                wanted: ExistingSockets::Destroy,
                wait: false,
            });
        }
        // One that was followed and whose following is not in the journal yet is looked at again by the next daemon.
        self.parts.record(Item::Followed);
    }

    /// The session that a process lives in, by its cgroup.
    fn session_of(&self, pid: u32) -> Option<u64> {
        let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let cgroup = self.parts.hierarchy.of_process(&memberships).ok()?;
        let mut sessions = self.parts.attribution.sessions.iter();
        sessions
            .find(|session| cgroup.path().starts_with(session.cgroup.path()))
            .map(|session| session.number)
    }

    /// `None`: it was made after the session began, closed meanwhile, or leads nowhere.
    fn see_to(&mut self, look: &Look<'_>, pid: u32, socket: OpenSocket, adopt: bool) -> Option<Seen> {
        let outside = |error| Some(Seen { description: "socket".to_owned(), fate: Fate::Outside(error) });
        let held = match Held::take(pid, socket.task, socket.descriptor) {
            Ok(held) => held,
            // Closed, or its process has ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => return None,
            Err(error) => return outside(error),
        };
        if held.inode().ok() != Some(socket.inode) {
            return None;
        }
        let sort = match held.sort() {
            Ok(sort) if sort.is_local() => return None,
            Ok(sort) => sort,
            Err(error) => return outside(error),
        };
        let (local, remote) = (held.local(), held.remote());
        let fate = self.decide_on(look, pid, &held, sort, (local, remote), adopt)?;
        let end = |address: Option<SocketAddr>| {
            address.map_or_else(|| "nowhere".to_owned(), |address| address.to_string())
        };
        let description = if sort.is_internet() {
            format!("{sort} socket from {} to {}", end(local), end(remote))
        } else {
            format!("{sort} socket")
        };
        Some(Seen { description, fate })
    }

    fn decide_on(
        &mut self,
        look: &Look<'_>,
        pid: u32,
        held: &Held,
        sort: Sort,
        (local, remote): (Option<SocketAddr>, Option<SocketAddr>),
        adopt: bool,
    ) -> Option<Fate> {
        let member = held.is_member().unwrap_or(false);
        // A process's cgroup is as old as the session.
        if member && matches!(look.target, Target::Process(_)) {
            return None;
        }
        let idle = sort.is_tcp() && remote.is_none() && !held.listens().unwrap_or(true);
        if member && idle {
            // It is decided when it connects.
            return None;
        }
        // A datagram to a destination that was fixed before passes no hook in which it could be recorded.
        if !(member && adopt && (sort.is_tcp() || sort.is_udp() && remote.is_none())) {
            return Some(held.end(sort).map_or_else(Fate::Outside, |()| Fate::Destroyed));
        }
        if let (true, Some(local), Some(remote)) = (sort.is_tcp(), local, remote) {
            let (sent, received) = held.bytes().unwrap_or_default();
            let cookie = match held.cookie() {
                Ok(cookie) => cookie,
                Err(error) => return Some(Fate::Outside(error)),
            };
            let process = self.living(pid);
            let socket =
                Box::new(AdoptedSocket { process, local, remote, bytes: Adopted { sent, received } });
            self.parts.record(Item::Adopted { number: look.number, cookie, socket, at: Clock::now() });
        }
        Some(Fate::Adopted)
    }

    /// A process that is there. What procfs says of it goes into the item at hand, and not into the journal by itself.
    fn living(&mut self, pid: u32) -> Option<Process> {
        let process = self.parts.attribution.living(pid);
        drop(self.parts.attribution.take_looked());
        process
    }

    /// Tells of sockets that could not be looked for.
    fn tell_of_older(&mut self, number: u64, message: String) {
        tracing::warn!("{message}");
        if let Some(session) = self.parts.attribution.sessions.get_mut(number) {
            session.totals.violations += 1;
        }
        self.parts.enter_now(number, Recorded::Finding { kind: "older-socket", message, connection: None });
    }

    fn tell_of_existing(&mut self, number: u64, pid: u32, seen: &Seen, told: u64) {
        let (kind, fate) = match &seen.fate {
            Fate::Destroyed => ("older-socket-destroyed", "it was ended".to_owned()),
            Fate::Adopted => ("older-socket-adopted", "it is decided and recorded from here on".to_owned()),
            Fate::Outside(error) => (
                "older-socket",
                format!("it could not be ended ({error}), and is neither decided nor recorded"),
            ),
        };
        if let Some(session) = self.parts.attribution.sessions.get_mut(number) {
            session.totals.violations += 1;
        }
        if told > NAMED {
            return;
        }
        let message =
            format!("process {pid} has a {} that is older than the session: {fate}", seen.description);
        self.parts.enter_now(number, Recorded::Finding { kind, message, connection: None });
    }
}
