//! What is done once the programs are loaded and before READY: an earlier daemon's knowledge is taken over or a new beginning is made,
//! and the programs are attached. Each step can still fail, with nothing left behind that was not there.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::MapData;

use super::attribution::Attribution;
use super::command::{self, Commander};
use super::error::call;
use super::journal::{self, Identity, Item, Journal, Position, StateLost};
use super::keyrings::Keyrings;
use super::libraries::Libraries;
use super::pipeline::{self, Parts};
use super::policies::Policies;
use super::recorder::Recorder;
use super::service::remove_if_empty;
use super::{LAST_RECORDS, Options, StartError, abandoned, takeover};
use crate::clock::Clock;
use crate::config;
use crate::kernel::bpffs;
use crate::kernel::cgroup::{Cgroup, Hierarchy};
use crate::kernel::object::{KernelError, Loaded, Object, RingSizes};
use crate::kernel::secrets::Secrets;
use crate::kernel::tables::Tables;
use crate::process::Processes;
use crate::record::Event as Recorded;
use crate::source::reader::Reader;
use crate::source::ring::Rings;
use crate::trail::{self, Trail};

/// What is there before the kernel side is touched.
pub(super) struct Start<'a> {
    pub(super) sizes: RingSizes,
    /// Loaded already, where a running daemon was replaced.
    pub(super) kernel: Option<Loaded>,
    pub(super) recorder: Option<Recorder>,
    pub(super) options: &'a Options,
    pub(super) loaded: config::Loaded,
    pub(super) hierarchy: Hierarchy,
    pub(super) parent_name: PathBuf,
    pub(super) pins: PathBuf,
    pub(super) degraded: Vec<String>,
    pub(super) trail: Trail,
    pub(super) recovery: Option<trail::Recovery>,
}

impl Start<'_> {
    /// Takes over what an earlier daemon left, or begins anew.
    pub(super) fn parts(
        mut self,
        boot_id: String,
        kernel_release: String,
    ) -> Result<(Parts, Commander), StartError> {
        let (pins, runtime_dir) = (self.pins.clone(), self.options.runtime_dir.clone());
        bpffs::make_directory(&pins).map_err(|error| KernelError::Pins { path: pins.clone(), error })?;
        let load = || {
            Object::load(self.sizes, &pins).inspect_err(|_| {
                // Fails where an earlier daemon's are in it.
                let _ = fs::remove_dir(&pins);
            })
        };
        let Loaded { object, tables, payload, lifecycle, secrets, members, uprobes, found } =
            self.kernel.take().map_or_else(load, Ok)?;
        let parent = self.hierarchy.make(&self.parent_name)?;
        // Before anything of this daemon stops anybody.
        pipeline::release_left(&runtime_dir);
        let_all_go_on(&self.hierarchy, &parent);
        let libraries = uprobes.map_err(|error| error.to_string()).and_then(|uprobes| {
            Libraries::start(uprobes, members, self.hierarchy.clone(), &runtime_dir)
                .map_err(|error| error.to_string())
        });
        let libraries =
            libraries.inspect_err(|error| tracing::warn!(error, "what is said under TLS is not read")).ok();
        let kernel = (object, tables, Arc::new(secrets), libraries);
        let result = self.hold(kernel, (payload, lifecycle), &parent, boot_id, kernel_release);
        if result.is_err() && !found {
            // Nobody was held by this before.
            let _ = bpffs::remove_all(&pins);
            let _ = journal::discard(&runtime_dir);
            remove_if_empty(&parent);
        }
        result
    }

    fn hold(
        self,
        (mut object, mut tables, secrets, libraries): (Object, Tables, Arc<Secrets>, Option<Libraries>),
        (payload, lifecycle): (MapData, MapData),
        parent: &Cgroup,
        boot_id: String,
        kernel_release: String,
    ) -> Result<(Parts, Commander), StartError> {
        let Self { sizes, recorder, options, loaded, hierarchy, pins, mut degraded, trail, recovery, .. } =
            self;
        if let Some(error) = object.unix_unsupported() {
            if loaded.settings.names_unix_sockets() {
                return Err(KernelError::UnixRules(error.to_string()).into());
            }
            degraded.push(format!("unix sockets are neither decided nor recorded: {error}"));
        }
        let reader = |map| Reader::new(map).map_err(call("map a ring"));
        let shares = Arc::clone(tables.shares());
        let mut rings = Rings::new(reader(payload)?, reader(lifecycle)?, Arc::clone(&shares));
        rings.settle_shares();
        secrets.count().map_err(call("count TLS secrets"))?;
        let identity =
            Identity { boot_id: boot_id.clone(), trail: trail.id().to_owned(), rings: rings.ids() };
        let fresh = || {
            let processes = Processes::new(PathBuf::from("/proc"), PathBuf::from("/etc/passwd"));
            let limits = loaded.settings.capture.limits();
            let policies = Policies::new(sizes);
            let keyrings = Keyrings::new(Some(Arc::clone(&secrets)));
            let shares = Arc::clone(&shares);
            Attribution::new(boot_id.clone(), Clock::read(), policies, processes, shares, keyrings, limits)
        };
        let recalled = takeover::recall(&options.runtime_dir, &identity, fresh(), &trail, &mut rings);
        let recalled = match recalled {
            // One that has stopped in good order leaves no lease.
            Ok(None) if tables.control()?.lease != 0 => Err(StateLost::Missing),
            recalled => recalled,
        };
        let mut records = Vec::new();
        let (mut attribution, generation) = match recalled {
            Ok(Some(recalled)) => {
                records.push(takeover::record(&recalled.attribution, &tables)?);
                (recalled.attribution, recalled.generation + 1)
            }
            Ok(None) => {
                rings.skip_all();
                (fresh(), 1)
            }
            Err(lost) => {
                rings.skip_all();
                tracing::error!(error = %lost, "what an earlier daemon knew is lost");
                records.push(state_lost(&lost));
                journal::discard(&options.runtime_dir).map_err(call("remove a journal"))?;
                (fresh(), 1)
            }
        };
        records.extend(
            recovery.map(|recovery| Recorded::TrailRecovered {
                segment: recovery.segment,
                bytes: recovery.bytes,
            }),
        );
        records.push(Recorded::DaemonStarted {
            configuration: loaded.digest.clone(),
            degraded: degraded.clone(),
            kernel: kernel_release,
        });
        let mut items: Vec<Item> =
            records.into_iter().map(|event| Item::Entered(0, Clock::now(), event)).collect();
        let mut abandoned = abandoned::find((&hierarchy, parent), &pins, trail.directory(), &attribution);
        items.extend(abandoned.entries.drain(..).map(Item::Made));
        // What was recalled is on the disk before a journal begins behind it, and everything from here on is in the journal.
        trail.flush(LAST_RECORDS)?;
        let position = Position { rings: rings.positions(), sequence: trail.last() };
        let begun =
            Journal::begin(&options.runtime_dir, identity, generation, position, &attribution.saved());
        let configuration = takeover::put_in_force(&mut attribution, &loaded, &mut tables)?;
        // A journal that cannot be written is no reason not to audit: see `give_up_journal`.
        let begun = begun.and_then(|mut journal| {
            std::iter::once(&Item::Reloaded(configuration))
                .chain(&items)
                .try_for_each(|item| journal.item(item))?;
            let sequence = position.sequence + items.len() as u64;
            journal.commit(Position { sequence, ..position })?;
            Ok(journal)
        });
        let (journal, failed) = match begun {
            Ok(journal) => (Some(journal), None),
            Err(error) => (None, Some(error)),
        };
        for item in items {
            attribution.apply(item).map_err(|error| call("begin the trail")(io::Error::other(error)))?;
        }
        // A trail that cannot be written is found out before anything is promised.
        for entry in attribution.take_entries() {
            trail.append(&entry)?;
        }
        trail.flush(LAST_RECORDS)?;
        object.attach_tracepoints()?;
        // Streams of earlier sessions may go on where the configuration lets no new one begin.
        let reads = loaded.settings.allows_unix_sockets() || !tables.unix_streams(None)?.is_empty();
        object.read_streams(&mut tables, reads)?;
        let attachment = object.attach(parent, &pins)?;
        let findings = takeover::attach_sessions(&mut attribution, &mut object, &pins);
        abandoned.hold_closed(&mut object);
        if let Err(error) = object.remove_other_versions() {
            tracing::warn!(%error, "what daemons of other versions pinned stays");
        }
        let (commander, commands) = command::channel().map_err(|error| call("eventfd")(error.into()))?;
        let mut parts = Parts {
            configuration: options.config.clone(),
            settings: loaded.settings,
            hierarchy,
            parent: parent.clone(),
            attachment,
            object,
            tables,
            libraries,
            rings,
            sizes,
            recorder,
            attribution,
            journal,
            runtime_dir: options.runtime_dir.clone(),
            pins,
            trail,
            commands,
            degraded,
            handed_over: false,
        };
        if let Some(error) = failed {
            parts.give_up_journal(&error);
        }
        for (session, finding) in findings {
            parts.enter_now(session, finding);
        }
        Ok((parts, commander))
    }
}

/// The record of what cannot be known.
fn state_lost(lost: &StateLost) -> Recorded {
    Recorded::Finding {
        kind: "state-lost",
        message: format!(
            "what the daemon before this one knew is lost ({lost}): its sessions are not taken over, and what agents did after \
             its last record is not in the trail"
        ),
        connection: None,
    }
}

/// Lets sessions go on that an earlier daemon held back when it was killed.
fn let_all_go_on(hierarchy: &Hierarchy, parent: &Cgroup) {
    let Ok(entries) = fs::read_dir(parent.path()) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let Ok(cgroup) = hierarchy.existing(&entry.path()) else { continue };
        // One that has gone needs nothing.
        if cgroup.is_to_freeze().unwrap_or(false)
            && let Err(error) = cgroup.freeze(false)
        {
            tracing::error!(%error, "processes stand still: write 0 to cgroup.freeze");
        }
    }
}
