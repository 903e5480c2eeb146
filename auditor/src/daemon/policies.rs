//! The policies in force: their compiled form in the kernel's table, and what a verdict's numbers mean.
//!
//! Each generation's policies get table numbers of their own. A new generation is added beside the old one, sessions are
//! switched over one by one (each by a single map update, so a packet meets either the old policy or the new one), then
//! the old entries go. A generation that does not fit is refused with nothing changed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use auditor_common::control::{Control, OVERLOAD_BACKPRESSURE, OVERLOAD_RECORD_LOSS, Session};

use super::journal::Configuration;
use crate::clock::{Boottime, Clock};
use crate::config::{self, FailMode, Overload, Settings};
use crate::kernel::object::RingSizes;
use crate::kernel::tables::{CompiledName, CompiledRule, TableError, Tables};
use crate::policy::{Action, Policy};

/// The part of a ring that is filled when its reader is woken: a quarter.
const WAKE_SHARE: u32 = 4;

/// How long what agents send may leave without a sign of life from the daemon.
const LEASE: Duration = Duration::from_secs(2);

/// A policy with its number in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    pub(super) table: u32,
    pub(super) policy: Arc<Policy>,
    rules: Vec<CompiledRule>,
    names: Vec<CompiledName>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Policies {
    by_name: HashMap<String, Installed>,
    /// Policies of the last generation: verdicts that they gave may still wait in the ring.
    retired: HashMap<u32, Arc<Policy>>,
    /// Their rules, which go when no program can still be deciding by them.
    leaving: Vec<CompiledRule>,
    leaving_names: Vec<CompiledName>,
    next_table: u32,
    control: Control,
    /// Where the last generation and this one come from.
    configurations: Vec<Configuration>,
}

/// Says that the daemon is at work, also where the policies themselves are lent out.
pub(super) struct Lease(Control);

impl Lease {
    fn begin(&mut self, tables: &mut Tables) -> Result<(), TableError> {
        self.0.lease = Clock::now().0 + u64::try_from(LEASE.as_nanos()).unwrap_or(0);
        tables.set_control(self.0)
    }

    /// To be called more often than every [`LEASE`].
    pub(super) fn renew(&mut self, tables: &mut Tables) {
        if let Err(error) = self.begin(tables) {
            tracing::error!(%error, "the lease is not renewed: what agents send is held");
        }
    }
}

impl Policies {
    /// None yet.
    pub(super) fn new(rings: RingSizes) -> Self {
        Self {
            by_name: HashMap::new(),
            retired: HashMap::new(),
            leaving: Vec::new(),
            leaving_names: Vec::new(),
            next_table: 1,
            control: Control {
                generation: 0,
                overload: OVERLOAD_BACKPRESSURE,
                payload_size: u64::from(rings.payload),
                lifecycle_size: u64::from(rings.lifecycle),
                payload_wake: u64::from(rings.payload / WAKE_SHARE),
                lifecycle_wake: u64::from(rings.lifecycle / WAKE_SHARE),
                lease: 0,
                fail_open: 0,
                daemon: std::process::id(),
            },
            configurations: Vec::new(),
        }
    }

    /// Where the last generation and this one come from.
    pub(super) fn configurations(&self) -> &[Configuration] {
        &self.configurations
    }

    /// Another configuration was put in force by an earlier daemon: what its verdicts' numbers mean. Answers its settings.
    ///
    /// # Errors
    /// Its text cannot be read any more.
    pub(super) fn recall(&mut self, configuration: Configuration, clock: &Clock) -> Result<Settings, String> {
        let (settings, diagnostics) = config::parse(&configuration.text);
        let settings = settings
            .ok_or_else(|| diagnostics.first().map_or_else(String::new, |first| first.message.clone()))?;
        let old = std::mem::take(&mut self.by_name);
        self.retired = old.values().map(|old| (old.table, Arc::clone(&old.policy))).collect();
        self.leaving.clear();
        self.leaving_names.clear();
        self.next_table = configuration.first_table;
        self.by_name = self.compile(&settings, clock);
        self.keep_up_as(settings.daemon.overload, settings.daemon.fail_mode);
        self.remember(configuration);
        Ok(settings)
    }

    /// Goes on where an earlier daemon's tables are: with numbers that they have not, and one generation later.
    pub(super) fn follow(&mut self, tables: &Tables) -> Result<(), TableError> {
        let last = tables.policies()?.last().copied().unwrap_or(0);
        self.next_table = self.next_table.max(last.wrapping_add(1)).max(1);
        self.control.generation = tables.control()?.generation;
        Ok(())
    }

    /// Numbers of all compiled policies that are in use.
    pub(super) fn tables(&self) -> BTreeSet<u32> {
        self.by_name.values().map(|installed| installed.table).chain(self.retired.keys().copied()).collect()
    }

    fn remember(&mut self, configuration: Configuration) {
        if self.configurations.len() == 2 {
            self.configurations.remove(0);
        }
        self.configurations.push(configuration);
    }

    /// Puts a generation in force. `sessions`: cgroup id, session number, share of the rings and policy name of each open
    /// session; one whose policy is gone is denied everything. Answers what it was made from.
    pub(super) fn replace<'a>(
        &mut self,
        (settings, text): (&Settings, &str),
        tables: &mut Tables,
        clock: &Clock,
        sessions: impl Iterator<Item = (u64, u64, u32, &'a str)>,
    ) -> Result<Configuration, TableError> {
        let configuration = Configuration { text: text.to_owned(), first_table: self.next_table };
        let new = self.compile(settings, clock);
        let rules: Vec<CompiledRule> = new.values().flat_map(|installed| installed.rules.clone()).collect();
        let names: Vec<CompiledName> = new.values().flat_map(|installed| installed.names.clone()).collect();
        tables.add_rules(&rules)?;
        tables.add_names(&names).inspect_err(|_| {
            // Nothing refers to these; what could not be removed only takes room.
            let _ = tables.remove_rules(&rules);
        })?;
        let old = std::mem::replace(&mut self.by_name, new);
        for (cgroup, number, share, policy) in sessions {
            if let Err(error) = tables.set_session(cgroup, self.session(number, share, policy)) {
                // Its rules are about to go: without them it would be down to its default, which may be to allow.
                tracing::error!(%error, session = number, "a session cannot have its new policy: it is denied everything");
                tables.remove_session(cgroup)?;
            }
        }
        self.advance(settings, tables)?;
        self.retired = old.values().map(|old| (old.table, Arc::clone(&old.policy))).collect();
        for old in old.into_values() {
            self.leaving.extend(old.rules);
            self.leaving_names.extend(old.names);
        }
        self.remember(configuration.clone());
        Ok(configuration)
    }

    /// Removes the rules of generations that are over. To be called a turn after [`Self::replace`]: programs that have read a
    /// session's entry before it was switched have ended by then.
    pub(super) fn sweep(&mut self, tables: &mut Tables) {
        if self.leaving.is_empty() && self.leaving_names.is_empty() {
            return;
        }
        let removed = tables.remove_rules(&self.leaving).and(tables.remove_names(&self.leaving_names));
        if let Err(error) = removed {
            // They only take room: no session refers to them.
            tracing::warn!(%error, "rules of an earlier policy stay in the kernel's table");
        }
        self.leaving.clear();
        self.leaving_names.clear();
    }

    fn compile(&mut self, settings: &Settings, clock: &Clock) -> HashMap<String, Installed> {
        let mut installed: HashMap<String, Installed> = HashMap::new();
        for policy in &settings.policies {
            let table = self.next_table;
            self.next_table = self.next_table.wrapping_add(1).max(1);
            let rules: Vec<CompiledRule> = policy
                .compile(table, clock)
                .into_iter()
                .map(|entry| (entry.prefix_length, entry.key, entry.value))
                .collect();
            let names = policy.compile_sockets(table, clock);
            installed.insert(
                policy.name.clone(),
                Installed { table, policy: Arc::new(policy.clone()), rules, names },
            );
        }
        installed
    }

    /// Begins a new generation: every socket is decided again at its next packet.
    pub(super) fn advance(&mut self, settings: &Settings, tables: &mut Tables) -> Result<(), TableError> {
        self.control.generation = self.control.generation.wrapping_add(1).max(1);
        self.keep_up_as(settings.daemon.overload, settings.daemon.fail_mode);
        let mut lease = self.lease();
        let begun = lease.begin(tables);
        self.control = lease.0;
        begun
    }

    /// Sets what passes when the daemon does not keep up, or is not there.
    pub(super) fn keep_up_as(&mut self, overload: Overload, fail_mode: FailMode) {
        self.control.overload = match overload {
            Overload::Backpressure => OVERLOAD_BACKPRESSURE,
            Overload::RecordLoss => OVERLOAD_RECORD_LOSS,
        };
        self.control.fail_open = u32::from(fail_mode == FailMode::Open);
    }

    /// Whether segments may pass that were not copied: for want of room, or while there was no daemon.
    pub(super) fn lossy(&self) -> bool {
        self.control.overload == OVERLOAD_RECORD_LOSS || self.control.fail_open != 0
    }

    /// What renews the lease as long as no policy changes.
    pub(super) const fn lease(&self) -> Lease {
        Lease(self.control)
    }

    /// See [`Lease::renew`].
    pub(super) fn renew_lease(&mut self, tables: &mut Tables) {
        let mut lease = self.lease();
        lease.renew(tables);
        self.control = lease.0;
    }

    /// Says that the daemon has stopped in good order: nobody is to go on with anything.
    pub(super) fn end_lease(&mut self, tables: &mut Tables) -> Result<(), TableError> {
        self.control.lease = 0;
        tables.set_control(self.control)
    }

    /// How long no daemon has renewed the lease.
    pub(super) fn alone(tables: &Tables) -> Result<Duration, TableError> {
        let until = tables.control()?.lease;
        let last = until.saturating_sub(u64::try_from(LEASE.as_nanos()).unwrap_or(0));
        Ok(Clock::now().since(Boottime(last)))
    }

    /// The kernel's entry for a session under a policy.
    pub(super) fn session(&self, number: u64, share: u32, policy: &str) -> Session {
        let (table, default, sockets) = match self.by_name.get(policy) {
            Some(installed) => {
                (installed.table, installed.policy.default, installed.policy.confinement.in_kernel())
            }
            None => (0, Action::Deny, 0),
        };
        Session { id: number, table, default_action: default.code(), share, sockets, check: 0 }
    }

    /// The policy of a table number, if it is in force or was until a moment ago.
    pub(super) fn by_table(&self, table: u32) -> Option<&Policy> {
        self.by_name
            .values()
            .find(|installed| installed.table == table)
            .map(|installed| &*installed.policy)
            .or_else(|| self.retired.get(&table).map(|policy| &**policy))
    }

    /// Counts changes.
    pub(super) fn generation(&self) -> u32 {
        self.control.generation
    }
}
