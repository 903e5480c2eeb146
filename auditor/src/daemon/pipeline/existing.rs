//! Sockets that were there before a process or a cgroup was tagged: they are ended, or followed from where they are.
//!
//! Looked for when the session is in force, so that none is made unseen in between. One that a cgroup's process makes in that
//! moment may be ended with the older ones: which of the two came first cannot be told.

use std::collections::HashSet;
use std::path::Path;

use super::Pipeline;
use crate::clock::Clock;
use crate::config::ExistingSockets;
use crate::daemon::attribution::Move;
use crate::daemon::command::Target;
use crate::daemon::journal::{AdoptedSocket, Item};
use crate::kernel::cgroup::Cgroup;
use crate::process::held::Held;
use crate::process::sockets::{self, OpenSocket};
use crate::record::{Adopted, Event as Recorded, Process};

/// Sockets that are named one by one.
const NAMED: u64 = 64;
/// How often processes are looked for that were forked while others were looked at.
const ROUNDS: usize = 8;

/// What became of a socket.
enum Fate {
    /// It was made after the session began, or closed meanwhile.
    NoneOfOurs,
    Destroyed,
    /// It is decided and recorded from here on.
    Adopted,
    /// It can neither be ended nor followed.
    Outside(std::io::Error),
}

impl Pipeline {
    /// Sees to the sockets of those who live in a session that has just begun.
    pub(super) fn see_to_existing_sockets(
        &mut self,
        number: u64,
        cgroup: &Cgroup,
        target: &Target,
        wanted: ExistingSockets,
    ) {
        // Held until all is done.
        let members = match self.parts.object.tell_members(cgroup) {
            Ok(members) => Some(members),
            Err(error) => {
                tracing::error!(%error, "which sockets were made in a cgroup is not known: all are ended");
                None
            }
        };
        let mut seen = HashSet::new();
        let mut told = 0;
        for _ in 0..ROUNDS {
            let pids = match target {
                Target::Process(pid) => vec![*pid],
                Target::Cgroup(_) => cgroup.all_members().unwrap_or_else(|error| {
                    tracing::error!(%error, "the sockets of a cgroup that was tagged are not known");
                    Vec::new()
                }),
            };
            let new: Vec<u32> = pids.into_iter().filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                // The tables of a busy host's sockets are long, and read for each process.
                self.renew_lease();
                let open = match sockets::of_process(&Path::new("/proc").join(pid.to_string())) {
                    Ok(open) => open,
                    Err(error) => {
                        tracing::warn!(%error, pid, "the sockets of a process that was tagged are not known");
                        continue;
                    }
                };
                for socket in open {
                    let adopt = members.is_some() && wanted == ExistingSockets::Adopt;
                    let fate = self.see_to(number, pid, &socket, matches!(target, Target::Process(_)), adopt);
                    self.tell_of_existing(number, pid, &socket, &fate, &mut told);
                }
            }
        }
        if told > NAMED {
            let message = format!("{} more sockets are older than the session and not named", told - NAMED);
            let finding = Recorded::Finding { kind: "older-socket", message, connection: None };
            self.parts.enter_now(number, finding);
        }
    }

    /// Does what the moves of processes ask for, as far as they are still true: a process may have moved on, and after a takeover
    /// its id may be another one's.
    pub(super) fn follow_moves(&mut self) {
        let moves = self.parts.attribution.moves();
        if moves.is_empty() {
            return;
        }
        for moved in moves {
            let now = self.session_of(match moved {
                Move::Left(pid) | Move::Joined { pid, .. } => pid,
            });
            match moved {
                Move::Left(pid) if now == Some(None) => {
                    if let Err(error) = self.parts.tables.remove_member(pid) {
                        tracing::error!(%error, pid, "a process that left its session is still taken for its");
                    }
                }
                Move::Joined { session, pid } if now == Some(Some(session)) => {
                    let Some(open) = self.parts.attribution.sessions.get_mut(session) else { continue };
                    open.empty_since = None;
                    let cgroup = open.cgroup.clone();
                    let target = Target::Process(pid);
                    self.see_to_existing_sockets(session, &cgroup, &target, ExistingSockets::Destroy);
                }
                Move::Left(_) | Move::Joined { .. } => {}
            }
        }
        // One that was followed and whose following is not in the journal yet is looked at again by the next daemon.
        self.parts.record(Item::Followed);
    }

    /// The session that a process lives in, by its cgroup; `None` where there is no such process any more.
    fn session_of(&self, pid: u32) -> Option<Option<u64>> {
        let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // One whose cgroup has gone is in none.
        let Ok(cgroup) = self.parts.hierarchy.of_process(&memberships) else { return Some(None) };
        let mut sessions = self.parts.attribution.sessions.iter();
        Some(
            sessions
                .find(|session| cgroup.path().starts_with(session.cgroup.path()))
                .map(|session| session.number),
        )
    }

    fn see_to(&mut self, number: u64, pid: u32, socket: &OpenSocket, own_cgroup: bool, adopt: bool) -> Fate {
        let held = match Held::take(pid, socket.descriptor) {
            Ok(held) => held,
            // Closed, or its process has ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => {
                return Fate::NoneOfOurs;
            }
            Err(error) => return Fate::Outside(error),
        };
        if held.inode().ok() != Some(socket.inode) {
            return Fate::NoneOfOurs;
        }
        let member = held.is_member().unwrap_or(false);
        if member && own_cgroup {
            // The cgroup is as old as the session.
            return Fate::NoneOfOurs;
        }
        if !(member && adopt) {
            return held.end(socket.transport == "tcp").map_or_else(Fate::Outside, |()| Fate::Destroyed);
        }
        if socket.transport == "tcp" && socket.remote.port() != 0 {
            let (sent, received) = held.bytes().unwrap_or_default();
            match held.cookie() {
                Ok(cookie) => {
                    let socket = Box::new(AdoptedSocket {
                        process: self.living(pid),
                        local: socket.local,
                        remote: socket.remote,
                        bytes: Adopted { sent, received },
                    });
                    self.parts.record(Item::Adopted { number, cookie, socket, at: Clock::now() });
                }
                Err(error) => return Fate::Outside(error),
            }
        }
        Fate::Adopted
    }

    /// A process that is there. What procfs says of it goes into the item at hand, and not into the journal by itself.
    fn living(&mut self, pid: u32) -> Option<Process> {
        let process = self.parts.attribution.living(pid);
        drop(self.parts.attribution.take_looked());
        process
    }

    fn tell_of_existing(&mut self, number: u64, pid: u32, socket: &OpenSocket, fate: &Fate, told: &mut u64) {
        let (kind, fate) = match fate {
            Fate::NoneOfOurs => return,
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
        *told += 1;
        if *told > NAMED {
            return;
        }
        let message = format!(
            "process {pid} has a {} socket from {} to {} that is older than the session: {fate}",
            socket.transport, socket.local, socket.remote
        );
        self.parts.enter_now(number, Recorded::Finding { kind, message, connection: None });
    }
}
