//! The kernel programs' tables, typed: what the daemon writes (sessions, rules, control) and what it reads (failures).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use auditor_common::bulk::{Place, Way};
use auditor_common::control::{Control, Member, Refusals, Session};
use auditor_common::counter::{Failure, errno, site_name};
use auditor_common::event::{EGRESS, INGRESS};
use auditor_common::rule::{RuleKey, RuleValue};
use auditor_common::unix::{NameKey, UnixStream};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::{Ebpf, Pod};

use super::shares::{Free, Shares};

/// A shared type as a map's key or value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared<T>(T);

// SAFETY: repr(C), integers and byte arrays only, padding explicit: any bytes are a value, and all bytes are initialised.
unsafe impl Pod for Shared<Session> {}
// SAFETY: as above.
unsafe impl Pod for Shared<RuleKey> {}
// SAFETY: as above.
unsafe impl Pod for Shared<NameKey> {}
// SAFETY: as above.
unsafe impl Pod for Shared<RuleValue> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Control> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Failure> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Refusals> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Member> {}
// SAFETY: as above.
unsafe impl Pod for Shared<UnixStream> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Way> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Place> {}

/// Why a table could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The object has no such map.
    #[error("the kernel programs have no table {0}: daemon and programs are of different versions")]
    Missing(&'static str),
    /// The kernel refused.
    #[error("table {table}: {error}")]
    Map {
        /// Which.
        table: &'static str,
        /// What aya says.
        error: MapError,
    },
    /// A table could not be mapped.
    #[error("map the table {table}: {error}")]
    Mapping {
        /// Which.
        table: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// There are as many sessions as there can be.
    #[error("there are as many sessions as the kernel programs have room for: end one first")]
    NoShare,
}

fn failed(table: &'static str) -> impl FnOnce(MapError) -> TableError {
    move |error| TableError::Map { table, error }
}

/// A compiled rule: prefix length in bits of the key, key, value.
pub type CompiledRule = (u32, RuleKey, RuleValue);

/// The same of a rule about unix sockets.
pub type CompiledName = (u32, NameKey, RuleValue);

/// Both directions of a socket.
fn ways(cookie: u64) -> [Way; 2] {
    [EGRESS, INGRESS].map(|direction| Way { cookie, direction: direction.into(), _padding: 0 })
}

/// All tables.
pub struct Tables {
    sessions: HashMap<MapData, u64, Shared<Session>>,
    rules: LpmTrie<MapData, Shared<RuleKey>, Shared<RuleValue>>,
    names: LpmTrie<MapData, Shared<NameKey>, Shared<RuleValue>>,
    control: Array<MapData, Shared<Control>>,
    failures: PerCpuHashMap<MapData, Shared<Failure>, u64>,
    refusals: PerCpuHashMap<MapData, u64, Shared<Refusals>>,
    members: HashMap<MapData, u32, Shared<Member>>,
    shares: Arc<Shares>,
    /// Programs that are loaded later name the map by this descriptor.
    _shares_map: MapData,
    free_shares: Free,
    released: HashMap<MapData, Shared<Way>, Shared<Place>>,
    unix_streams: HashMap<MapData, u64, Shared<UnixStream>>,
    unix_in_charge: Array<MapData, u32>,
}

impl Tables {
    /// Takes the tables out of a loaded object. `new`: nobody has used them yet.
    ///
    /// # Errors
    /// One is missing or of another type.
    pub fn take(object: &mut Ebpf, new: bool) -> Result<Self, TableError> {
        let mut map = |name: &'static str| object.take_map(name).ok_or(TableError::Missing(name));
        let Map::Array(shares_map) = map("SHARES")? else { return Err(TableError::Missing("SHARES")) };
        let shares = Shares::map(shares_map.fd().as_fd())
            .map_err(|error| TableError::Mapping { table: "SHARES", error })?;
        let mut tables = Self {
            sessions: map("SESSIONS")?.try_into().map_err(failed("SESSIONS"))?,
            rules: map("RULES")?.try_into().map_err(failed("RULES"))?,
            names: map("NAMES")?.try_into().map_err(failed("NAMES"))?,
            control: map("CONTROL")?.try_into().map_err(failed("CONTROL"))?,
            failures: map("FAILURES")?.try_into().map_err(failed("FAILURES"))?,
            refusals: map("REFUSALS")?.try_into().map_err(failed("REFUSALS"))?,
            members: map("MEMBERS")?.try_into().map_err(failed("MEMBERS"))?,
            shares: Arc::new(shares),
            _shares_map: shares_map,
            free_shares: Free::default(),
            released: map("RELEASED")?.try_into().map_err(failed("RELEASED"))?,
            unix_streams: map("UNIX_STREAMS")?.try_into().map_err(failed("UNIX_STREAMS"))?,
            unix_in_charge: map("UNIX_IN_CHARGE")?.try_into().map_err(failed("UNIX_IN_CHARGE"))?,
        };
        if new {
            tables.prepare_failures()?;
            tables.count_refusals(0)?;
        }
        Ok(tables)
    }

    /// Makes the entries of the failures that are likely, so that counting one does not have to allocate.
    fn prepare_failures(&mut self) -> Result<(), TableError> {
        use auditor_common::counter as site;
        let likely = [
            (site::SITE_PAYLOAD_EGRESS, errno::ENOSPC),
            (site::SITE_PAYLOAD_INGRESS, errno::ENOSPC),
            (site::SITE_VERDICT, errno::ENOSPC),
            (site::SITE_CONNECTION, errno::ENOSPC),
            (site::SITE_PROCESS, errno::ENOSPC),
            (site::SITE_PAYLOAD_EGRESS, errno::EDQUOT),
            (site::SITE_PAYLOAD_INGRESS, errno::EDQUOT),
            (site::SITE_VERDICT, errno::EDQUOT),
            (site::SITE_CONNECTION, errno::EDQUOT),
            (site::SITE_PROCESS, errno::EDQUOT),
            (site::SITE_MOVE, errno::ENOSPC),
            (site::SITE_SOCKET_STORAGE, errno::ENOMEM),
            (site::SITE_UNIX_NAME, errno::EFAULT),
        ];
        for (site, errno) in likely {
            let zero = on_each_processor(0).map_err(failed("FAILURES"))?;
            self.failures.insert(Shared(Failure { site, errno }), zero, 0).map_err(failed("FAILURES"))?;
        }
        Ok(())
    }

    /// Writes the control entry.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_control(&mut self, control: Control) -> Result<(), TableError> {
        self.control.set(0, Shared(control), 0).map_err(failed("CONTROL"))
    }

    /// The control entry, all zeroes before it was first written.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn control(&self) -> Result<Control, TableError> {
        self.control.get(&0, 0).map(|Shared(control)| control).map_err(failed("CONTROL"))
    }

    /// Takes out all sessions but those of `kept`, a list of cgroup ids. What they leave behind is refused from here on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_sessions(&mut self, kept: &[u64]) -> Result<(), TableError> {
        let found: Result<Vec<(u64, Shared<Session>)>, _> = self.sessions.iter().collect();
        for (cgroup, Shared(session)) in found.map_err(failed("SESSIONS"))? {
            if !kept.contains(&cgroup) {
                self.remove_session(cgroup)?;
                self.forget_refusals(session.id)?;
            }
        }
        Ok(())
    }

    /// Numbers of the compiled policies that have rules in the table.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn policies(&self) -> Result<BTreeSet<u32>, TableError> {
        let rules = self.rules.keys().map(|key| key.map(|key| key.data().0.table()).map_err(failed("RULES")));
        let names = self.names.keys().map(|key| key.map(|key| key.data().0.table()).map_err(failed("NAMES")));
        rules.chain(names).collect()
    }

    /// Removes the rules of all compiled policies but those of `kept`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_policies(&mut self, kept: &BTreeSet<u32>) -> Result<(), TableError> {
        let keys: Result<Vec<_>, _> = self.rules.keys().collect();
        for key in keys.map_err(failed("RULES"))? {
            if !kept.contains(&key.data().0.table()) {
                match self.rules.remove(&key) {
                    Ok(()) | Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(failed("RULES")(error)),
                }
            }
        }
        let keys: Result<Vec<_>, _> = self.names.keys().collect();
        for key in keys.map_err(failed("NAMES"))? {
            if !kept.contains(&key.data().0.table()) {
                match self.names.remove(&key) {
                    Ok(()) | Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(failed("NAMES")(error)),
                }
            }
        }
        Ok(())
    }

    /// Makes a cgroup a session's, or changes its policy.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn set_session(&mut self, cgroup: u64, session: Session) -> Result<(), TableError> {
        self.sessions.insert(cgroup, Shared(session.sealed(cgroup)), 0).map_err(failed("SESSIONS"))
    }

    /// Takes a session out. What it leaves behind is refused from here on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_session(&mut self, cgroup: u64) -> Result<(), TableError> {
        match self.sessions.remove(&cgroup) {
            Err(MapError::KeyNotFound) => Ok(()),
            result => result.map_err(failed("SESSIONS")),
        }
    }

    /// Makes a process known as a session's: one that lived in its cgroup before that was tagged.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn add_member(&mut self, process: u32, member: Member) -> Result<(), TableError> {
        self.members.insert(process, Shared(member), 0).map_err(failed("MEMBERS"))
    }

    /// The sessions' shares of the rings.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// Gives a new session its entry among the shares.
    ///
    /// # Errors
    /// All are taken.
    pub fn take_share(&mut self) -> Result<u32, TableError> {
        self.free_shares.take().ok_or(TableError::NoShare)
    }

    /// The entries of these sessions are an earlier daemon's, and taken.
    pub fn keep_shares(&mut self, taken: impl Iterator<Item = u32>) {
        self.free_shares.keep(&taken.collect());
    }

    /// Takes the entry of a session that has ended back.
    pub fn give_share_back(&mut self, share: u32) {
        self.free_shares.give_back(share);
    }

    /// Begins to limit and count the refusals of a session; 0 stands for what belongs to none.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn count_refusals(&mut self, session: u64) -> Result<(), TableError> {
        let zero = on_each_processor(Shared(Refusals::default())).map_err(failed("REFUSALS"))?;
        self.refusals.insert(session, zero, 0).map_err(failed("REFUSALS"))
    }

    /// The same for a session that may be counted already.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn resume_refusals(&mut self, session: u64) -> Result<(), TableError> {
        match self.refusals.get(&session, 0) {
            Err(MapError::KeyNotFound) => self.count_refusals(session),
            result => result.map(drop).map_err(failed("REFUSALS")),
        }
    }

    /// Refusals of a session that were counted and not recorded, since its beginning.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn folded_refusals(&self, session: u64) -> Result<u64, TableError> {
        match self.refusals.get(&session, 0) {
            Ok(refusals) => Ok(refusals.iter().map(|Shared(refusals)| refusals.folded).sum()),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(failed("REFUSALS")(error)),
        }
    }

    /// Ends what [`Self::count_refusals`] began.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn forget_refusals(&mut self, session: u64) -> Result<(), TableError> {
        match self.refusals.remove(&session) {
            Err(MapError::KeyNotFound) => Ok(()),
            result => result.map_err(failed("REFUSALS")),
        }
    }

    /// Has the rows of long transfers on a socket counted instead of copied, or copied again.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn count_rows(&mut self, cookie: u64, counts: bool) -> Result<(), TableError> {
        for way in ways(cookie) {
            let result = if counts {
                self.released.insert(Shared(way), Shared(Place::UNKNOWN), 0)
            } else {
                match self.released.remove(&Shared(way)) {
                    Err(MapError::KeyNotFound) => Ok(()),
                    result => result,
                }
            };
            result.map_err(failed("RELEASED"))?;
        }
        Ok(())
    }

    /// Says where the messages of a direction are whose rows are to be counted.
    ///
    /// # Errors
    /// Its rows are not to be counted, or the kernel refused.
    pub fn place(&mut self, way: Way, place: Place) -> Result<(), TableError> {
        const BPF_EXIST: u64 = 2;
        self.released.insert(Shared(way), Shared(place), BPF_EXIST).map_err(failed("RELEASED"))
    }

    /// Has the rows of these sockets counted, and of no others: an earlier daemon's may be gone.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn keep_counting(&mut self, cookies: &BTreeSet<u64>) -> Result<(), TableError> {
        let found: Result<BTreeSet<u64>, _> =
            self.released.keys().map(|way| way.map(|way| way.0.cookie)).collect();
        let found = found.map_err(failed("RELEASED"))?;
        for cookie in found.difference(cookies) {
            self.count_rows(*cookie, false)?;
        }
        for cookie in cookies.difference(&found) {
            self.count_rows(*cookie, true)?;
        }
        Ok(())
    }

    /// Says which object's programs read streams between unix sockets.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn put_in_charge(&mut self, program: u32) -> Result<(), TableError> {
        self.unix_in_charge.set(0, program, 0).map_err(failed("UNIX_IN_CHARGE"))
    }

    /// Cookies of the unix sockets whose streams are followed; `session`: of one session's only.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn unix_streams(&self, session: Option<u64>) -> Result<Vec<u64>, TableError> {
        let Some(session) = session else {
            let keys: Result<_, _> = self.unix_streams.keys().collect();
            return keys.map_err(failed("UNIX_STREAMS"));
        };
        let mut found = Vec::new();
        for entry in self.unix_streams.iter() {
            let (cookie, Shared(stream)) = entry.map_err(failed("UNIX_STREAMS"))?;
            if stream.session == session {
                found.push(cookie);
            }
        }
        Ok(found)
    }

    /// Adds compiled rules. Either all are in the table afterwards, or none.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn add_rules(&mut self, rules: &[CompiledRule]) -> Result<(), TableError> {
        for (index, (prefix, key, value)) in rules.iter().enumerate() {
            if let Err(error) = self.rules.insert(&Key::new(*prefix, Shared(*key)), Shared(*value), 0) {
                // What is added already is harmless: no session refers to it. Its removal is attempted all the same.
                let _ = self.remove_rules(&rules[..index]);
                return Err(failed("RULES")(error));
            }
        }
        Ok(())
    }

    /// Removes compiled rules.
    ///
    /// # Errors
    /// The kernel refused; the rest is removed all the same.
    pub fn remove_rules(&mut self, rules: &[CompiledRule]) -> Result<(), TableError> {
        let mut result = Ok(());
        for (prefix, key, _) in rules {
            match self.rules.remove(&Key::new(*prefix, Shared(*key))) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => result = Err(failed("RULES")(error)),
            }
        }
        result
    }

    /// Adds compiled rules about unix sockets. Either all are in the table afterwards, or none.
    ///
    /// # Errors
    /// The table is full, or the kernel refused.
    pub fn add_names(&mut self, names: &[CompiledName]) -> Result<(), TableError> {
        for (index, (prefix, key, value)) in names.iter().enumerate() {
            if let Err(error) = self.names.insert(&Key::new(*prefix, Shared(*key)), Shared(*value), 0) {
                // What is added already is harmless: no session refers to it. Its removal is attempted all the same.
                let _ = self.remove_names(&names[..index]);
                return Err(failed("NAMES")(error));
            }
        }
        Ok(())
    }

    /// Removes compiled rules about unix sockets.
    ///
    /// # Errors
    /// The kernel refused; the rest is removed all the same.
    pub fn remove_names(&mut self, names: &[CompiledName]) -> Result<(), TableError> {
        let mut result = Ok(());
        for (prefix, key, _) in names {
            match self.names.remove(&Key::new(*prefix, Shared(*key))) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => result = Err(failed("NAMES")(error)),
            }
        }
        result
    }

    /// Failures since the object was loaded: site, errno, count over all processors. Entries that count zero are left out.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn failures(&self) -> Result<Vec<(&'static str, u32, u64)>, TableError> {
        let mut failures = Vec::new();
        for entry in self.failures.iter() {
            let (Shared(failure), counts) = entry.map_err(failed("FAILURES"))?;
            let count: u64 = counts.iter().sum();
            if count != 0 {
                failures.push((site_name(failure.site), failure.errno, count));
            }
        }
        failures.sort_unstable();
        Ok(failures)
    }
}

/// Which session tasks are in, for a thread other than the pipeline's: read only.
pub struct Members(HashMap<MapData, u32, Shared<Member>>);

impl Members {
    /// A descriptor of its own for the pinned table.
    pub(super) fn open(path: &std::path::Path) -> Result<Self, TableError> {
        let map = MapData::from_pin(path).map_err(failed("MEMBERS"))?;
        Map::HashMap(map).try_into().map(Self).map_err(failed("MEMBERS"))
    }

    /// The session of a task; `None`: it is in none.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn get(&self, task: u32) -> Result<Option<Member>, TableError> {
        match self.0.get(&task, 0) {
            Ok(Shared(member)) => Ok(Some(member)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("MEMBERS")(error)),
        }
    }

    /// All tasks of sessions.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn tasks(&self) -> Result<Vec<u32>, TableError> {
        self.0.keys().collect::<Result<_, _>>().map_err(failed("MEMBERS"))
    }
}

fn on_each_processor<T: Pod>(value: T) -> Result<PerCpuValues<T>, MapError> {
    let processors = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    PerCpuValues::try_from(vec![value; processors]).map_err(MapError::IoError)
}
