//! The daemon: one pipeline thread that owns all state, and an API in front of it.
//!
//! [`run`] starts everything in an order in which each step can still fail without a trace: configuration, socket, trail,
//! kernel programs; then it gives up the privileges that it no longer needs, and only then it serves. READY means that all
//! programs are attached and the first record is on the disk.

mod abandoned;
mod attribution;
mod by_cookie;
pub mod command;
mod conversation;
mod host;
mod journal;
mod keyrings;
mod libraries;
mod memory;
mod pipeline;
mod policies;
mod reading;
mod recorder;
pub mod replay;
mod scheduling;
mod takeover;
mod unfollowed;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::SOCKET_NAME;
use crate::api::client::{Client, ClientError};
use crate::api::server::{ApiOptions, BindError, Listener};
use crate::api::types::HandOver;
use crate::capabilities;
use crate::capabilities::number::{
    CAP_BPF, CAP_CHECKPOINT_RESTORE, CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_PTRACE,
};
use crate::clock::Clock;
use crate::config::{self, FailMode};
use crate::kernel::bpffs;
use crate::kernel::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::kernel::object::{self, KernelError, Loaded, Object, RingSizes};
use crate::kernel::secrets::Secrets;
use crate::kernel::tables::{TableError, Tables};
use crate::kernel::tracefs;
use crate::posture;
use crate::process::Processes;
use crate::record::Event as Recorded;
use crate::secrecy;
use crate::source::capture;
use crate::source::reader::Reader;
use crate::source::ring::Rings;
use crate::trail::{self, Trail};
use attribution::Attribution;
use aya::maps::MapData;
use command::{Command, Commander};
use journal::{Identity, Item, Journal, Position, StateLost};
use keyrings::Keyrings;
use libraries::Libraries;
use pipeline::{Parts, Pipeline, PipelineError};
use policies::Policies;
use recorder::Recorder;

/// The lifecycle ring, in bytes: some four thousand records.
const LIFECYCLE_RING: u32 = 1 << 20;
/// What a running daemon uses: loading and attaching programs for a cgroup that is tagged later (CAP_BPF, CAP_NET_ADMIN,
/// CAP_PERFMON), looking at processes of other users in procfs (CAP_SYS_PTRACE) and at what they have mapped
/// (CAP_CHECKPOINT_RESTORE), and removing its cgroup from the root of the
/// hierarchy, which not even its owner may write to (CAP_DAC_OVERRIDE).
const KEPT: [u32; 6] =
    [CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE];
/// Time between two looks at whether the daemon that is replaced has ended.
const HANDING_OVER: Duration = Duration::from_millis(2);
/// How long the last records may take to reach the disk when the daemon stops.
const LAST_RECORDS: Duration = Duration::from_secs(10);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration file.
    pub config: PathBuf,
    /// Directory of the trail.
    pub state_dir: PathBuf,
    /// Directory of the socket.
    pub runtime_dir: PathBuf,
    /// Directory, on a bpffs, of links that outlive the daemon.
    pub pin_dir: PathBuf,
    /// cgroup2 mount; found where `None`.
    pub cgroup_root: Option<PathBuf>,
    /// A file, to be made, that keeps what the kernel reports, and the bytes that it may grow to.
    pub capture: Option<(PathBuf, u64)>,
    /// Take over from a daemon that runs in the runtime directory.
    pub replace: bool,
}

/// Why the daemon did not start, or did not go on. Each message is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root.
    #[error("the daemon loads programs into the kernel: run it as root")]
    NotRoot,
    /// Root, but not all of it.
    #[error(
        "the daemon lacks {0}: give them to its container or unit (CapabilityBoundingSet=), or run it on the host"
    )]
    Capabilities(String),
    /// Process ids mean something else here than in the kernel programs.
    #[error(
        "the daemon runs in a PID namespace of its own, where processes have other numbers than in the kernel's records: run it in the \
         host's (docker run --pid=host; hostPID: true)"
    )]
    PidNamespace,
    /// The configuration.
    #[error(transparent)]
    Configuration(#[from] config::LoadError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] trail::Error),
    /// The cgroup hierarchy.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The programs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The tables.
    #[error(transparent)]
    Table(#[from] TableError),
    /// bpffs.
    #[error(
        "bpffs is not mounted at {path} and mounting it failed: {error}; mount it with `mount -t bpf bpf {path}`"
    )]
    Bpffs {
        /// Where it belongs.
        path: PathBuf,
        /// mount(2)'s error.
        error: nix::Error,
    },
    /// A call that failed.
    #[error("{call}: {error}")]
    Call {
        /// What was tried.
        call: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The daemon that is to be replaced goes on.
    #[error("the running daemon does not hand over: {0}")]
    HandOver(String),
    /// The pipeline stopped on its own.
    #[error(
        "the pipeline stopped: {0}; what agents do is refused or waits in the kernel until the daemon runs again"
    )]
    Pipeline(#[from] PipelineError),
    /// The pipeline has a defect.
    #[error("the pipeline panicked: this is a defect of the auditor, please report it with the log")]
    Panicked,
}

impl StartError {
    /// Exit status: 4 where the kernel lacks something, 2 where usage, configuration or the file system is at fault, 1
    /// where a daemon that ran could not go on.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Cgroup(CgroupError::NoHierarchy)
            | Self::Kernel(_)
            | Self::Table(_)
            | Self::Capabilities(_)
            | Self::Bpffs { .. } => 4,
            Self::Pipeline(_) | Self::Panicked => 1,
            Self::NotRoot
            | Self::PidNamespace
            | Self::Configuration(_)
            | Self::Socket(_)
            | Self::Trail(_)
            | Self::HandOver(_)
            | Self::Cgroup(_)
            | Self::Call { .. } => 2,
        }
    }
}

fn call(call: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let call = call.into();
    move |error| StartError::Call { call, error }
}

/// Runs the daemon in the foreground until SIGTERM or SIGINT. Prints READY on standard output when it is.
///
/// # Errors
/// It could not start, with nothing left behind, or not go on.
pub fn run(options: &Options) -> Result<(), StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
    let lacking = capabilities::lacking(&KEPT).map_err(call("read the capabilities"))?;
    if !lacking.is_empty() {
        let names: Vec<String> = lacking.into_iter().map(capabilities::name).collect();
        return Err(StartError::Capabilities(names.join(", ")));
    }
    if !host::is_in_first_pid_namespace(Path::new("/proc")).map_err(call("stat /proc/self/ns/pid"))? {
        return Err(StartError::PidNamespace);
    }
    let loaded = config::load(&options.config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.render(&options.config));
    }
    let hierarchy = hierarchy(options.cgroup_root.as_deref())?;
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().map_err(call("start the API's runtime"))
    };
    let parent_name = parent_name(&options.runtime_dir);
    // Two daemons may have been given the same directory for pins; each has its own in it.
    let pins = options.pin_dir.join(&parent_name);
    let sizes = RingSizes { payload: loaded.settings.daemon.ring_bytes, lifecycle: LIFECYCLE_RING };
    tracefs::ensure_mounted(Path::new(tracefs::MOUNT)).map_err(KernelError::from)?;
    prepare_pins(&options.pin_dir)?;
    let replaced = match options.replace {
        // In a runtime of its own: with that ends the connection, for whose end the other daemon waits.
        true => replace(&options.runtime_dir, &pins, sizes, &runtime()?)?,
        false => None,
    };
    let runtime = runtime()?;
    let listener = patiently(
        replaced.is_some(),
        || Listener::bind(&options.runtime_dir),
        |error| matches!(error, BindError::InUse { .. }),
    )?;
    make_directory(&options.state_dir)?;
    let mut degraded = degraded(loaded.settings.daemon.fail_mode);
    degraded.extend(posture::paths::doubts(&loaded.settings));
    degraded.extend(secrecy::protect());
    libraries::may_have_many_files();
    scheduling::may_go_first();
    scheduling::give_way();
    // Before any thread is started: capabilities belong to threads.
    capabilities::set_no_new_privileges()
        .and_then(|()| capabilities::keep_only(&KEPT))
        .map_err(call("drop capabilities"))?;

    let host = host::read(Path::new("/"));
    let (boot_id, kernel_release) = (host.boot_id.clone(), host.kernel.clone());
    let trail_dir = options.state_dir.join("trail");
    let (trail, recovery) = patiently(
        replaced.is_some(),
        || Trail::open(&trail_dir, trail::Options::new(host.clone())),
        |error| matches!(error, trail::Error::Locked { .. }),
    )?;
    let recorder = options.capture.as_ref().and_then(|(path, limit)| {
        // For a service that is started again its capture is there already; that must not keep it from auditing.
        let daemon = &loaded.settings.daemon;
        let header = capture::Header::now(&boot_id, daemon.overload, daemon.fail_mode);
        let begun = Recorder::begin(path, *limit, &header);
        begun.inspect_err(|error| tracing::error!(%error, path = %path.display(), "nothing is captured")).ok()
    });
    let start = Start {
        sizes,
        kernel: replaced,
        recorder,
        options,
        loaded,
        hierarchy,
        parent_name,
        pins,
        degraded,
        trail,
        recovery,
    };
    let parts = start.parts(boot_id, kernel_release)?;
    serve(runtime, parts, listener, trail_dir)
}

/// Takes over from the daemon that runs in a runtime directory; answers the kernel side, with that daemon's tables. `None`: none
/// runs there.
///
/// Programs are loaded first, so that a daemon which cannot go on, in this kernel or with what the other one knows, ends none.
fn replace(
    runtime_dir: &Path,
    pins: &Path,
    sizes: RingSizes,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<Loaded>, StartError> {
    bpffs::make_directory(pins).map_err(|error| KernelError::Pins { path: pins.to_owned(), error })?;
    let layout = object::layout(sizes);
    let loaded = Object::load(sizes, pins)?;
    let next = HandOver { journal: journal::VERSION, layout: layout.clone() };
    let replaced = runtime.block_on(ask_to_hand_over(runtime_dir, &next));
    if !loaded.found && !matches!(replaced, Ok(true)) {
        // Its own tables, which nobody uses. The directory may hold the other daemon's.
        let _ = bpffs::remove_all(&pins.join(layout));
        let _ = fs::remove_dir(pins);
    }
    Ok(replaced?.then_some(loaded))
}

/// Has the daemon that runs in a runtime directory write down everything and end. `false`: none runs there.
async fn ask_to_hand_over(runtime_dir: &Path, next: &HandOver) -> Result<bool, StartError> {
    let refused = |error: ClientError| StartError::HandOver(error.to_string());
    let mut client = match Client::connect(&runtime_dir.join(SOCKET_NAME)).await {
        Ok(client) => client,
        Err(ClientError::Unreachable { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(refused(error)),
    };
    client.hand_over(next).await.map_err(refused)?;
    Ok(true)
}

/// Tries again while the daemon that has handed over is about to end.
fn patiently<T, E>(
    replaced: bool,
    mut step: impl FnMut() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let began = Clock::now();
    loop {
        match step() {
            Err(error) if replaced && is_busy(&error) && Clock::now().since(began) < LAST_RECORDS => {
                thread::sleep(HANDING_OVER);
            }
            result => return result,
        }
    }
}

/// What is there before the kernel side is touched.
struct Start<'a> {
    sizes: RingSizes,
    /// Loaded already, where a running daemon was replaced.
    kernel: Option<Loaded>,
    recorder: Option<Recorder>,
    options: &'a Options,
    loaded: config::Loaded,
    hierarchy: Hierarchy,
    parent_name: PathBuf,
    pins: PathBuf,
    degraded: Vec<String>,
    trail: Trail,
    recovery: Option<trail::Recovery>,
}

impl Start<'_> {
    /// Takes over what an earlier daemon left, or begins anew.
    fn parts(mut self, boot_id: String, kernel_release: String) -> Result<(Parts, Commander), StartError> {
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

/// From READY to the end.
fn serve(
    runtime: tokio::runtime::Runtime,
    (parts, commander): (Parts, Commander),
    listener: Listener,
    trail_dir: PathBuf,
) -> Result<(), StartError> {
    let (ended, pipeline_ended) = oneshot::channel();
    let agents = parts.parent.name().to_owned();
    let api = ApiOptions { trail_dir, proc_root: PathBuf::from("/proc"), agents };
    let pipeline = thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || {
            let result = Pipeline::new(parts).run();
            // The main thread may have stopped waiting.
            let _ = ended.send(());
            result
        })
        .map_err(call("start the pipeline's thread"))?;
    let result = runtime.block_on(async {
        let stop = watch_signals(commander.clone())?;
        ready();
        listener
            .serve(commander.clone(), api, async {
                tokio::select! {
                    () = stop => {}
                    _ = pipeline_ended => {}
                }
            })
            .await
            .map_err(call("serve the API"))
    });
    // Whatever ended the API: the pipeline stops in good order. If it has ended itself, there is nobody to tell.
    let _ = runtime.block_on(commander.ask(Command::Stop));
    let outcome = pipeline.join().map_err(|_| StartError::Panicked)?;
    let parts = outcome?;
    leave(parts)?;
    result
}

/// Takes everything down, except what the next daemon goes on with, and where agents still live and `fail_mode = "closed"` wants
/// them held.
fn leave(parts: Parts) -> Result<(), StartError> {
    let Parts {
        parent,
        attachment,
        object,
        libraries,
        mut tables,
        mut attribution,
        trail,
        settings,
        journal,
        pins,
        handed_over,
        ..
    } = parts;
    // Before the pins of its probes are taken down.
    drop(libraries);
    if handed_over {
        return Ok(trail.close()?);
    }
    if let Some(journal) = journal {
        journal.remove().map_err(call("remove the journal"))?;
    }
    if let Err(error) = attribution.policies.end_lease(&mut tables) {
        tracing::warn!(%error, "the next daemon will miss a journal");
    }
    let inhabited = parent.populated().unwrap_or(false);
    if inhabited && settings.daemon.fail_mode == FailMode::Closed {
        tracing::warn!(
            cgroup = parent.name(),
            "agents are still running: their network stays closed until a daemon runs again (fail_mode = \"closed\")"
        );
        drop(attachment);
    } else {
        attachment.detach().map_err(call("take down the kernel programs"))?;
        bpffs::remove_all(&pins).map_err(call("take down the kernel's tables"))?;
        remove_if_empty(&parent);
        if let Some(directory) = pins.parent() {
            // Another daemon's pins may be in it.
            let _ = fs::remove_dir(directory);
        }
    }
    drop(object);
    trail.close()?;
    Ok(())
}

/// Resolves when the daemon is told to stop. SIGHUP reloads meanwhile.
fn watch_signals(commander: Commander) -> Result<impl Future<Output = ()>, StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(call("watch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(call("watch SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(call("watch SIGHUP"))?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => match commander.ask(Command::Reload).await {
                    Ok(()) => tracing::info!("reloaded"),
                    Err(error) => tracing::error!("{error}"),
                },
            }
        }
    })
}

/// Says READY, on standard output and to a service manager (sd_notify(3)).
fn ready() {
    let mut out = io::stdout();
    // A closed standard output is no reason not to run.
    let _ = writeln!(out, "READY").and_then(|()| out.flush());
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    // The manager may have started another daemon, which this one has replaced.
    let message = format!("READY=1\nMAINPID={}\n", std::process::id());
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(message.as_bytes(), &address)
            }
            None => socket.send_to(message.as_bytes(), &path),
        }
    });
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager was not told that the daemon is ready");
    }
}

fn hierarchy(root: Option<&Path>) -> Result<Hierarchy, StartError> {
    match root {
        Some(root) => Ok(Hierarchy::at(root)?),
        None => {
            let mountinfo =
                fs::read_to_string("/proc/self/mountinfo").map_err(call("read /proc/self/mountinfo"))?;
            Ok(Hierarchy::find(&mountinfo)?)
        }
    }
}

/// Name of the cgroup that carries the programs: `auditor`, and for a daemon with a runtime directory of its own one that
/// is told from it, so that two daemons have two.
fn parent_name(runtime_dir: &Path) -> PathBuf {
    if runtime_dir == Path::new("/run/auditor") {
        return PathBuf::from("auditor");
    }
    let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("auditor-{digits}"))
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

fn remove_if_empty(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "a cgroup stays");
    }
}

fn make_directory(path: &Path) -> Result<(), StartError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(call(format!("make {}; name another directory with --state-dir", path.display())))
}

/// Mounts bpffs at its usual place where it is missing and links are to be kept there.
fn prepare_pins(directory: &Path) -> Result<(), StartError> {
    let mount = Path::new("/sys/fs/bpf");
    if directory.starts_with(mount) {
        bpffs::ensure_mounted(mount).map_err(|error| StartError::Bpffs { path: mount.to_owned(), error })?;
    }
    Ok(())
}

/// What is asked for and not given, by this version or by this host, one sentence each.
fn degraded(fail_mode: FailMode) -> Vec<String> {
    let mut sentences = vec![
        "what is said under TLS is read where its library is OpenSSL 3, GnuTLS or Go with its symbols; the rest is opaque"
            .to_owned(),
        "a socket that was made outside of a session and handed to an agent is neither decided nor recorded"
            .to_owned(),
    ];
    match fail_mode {
        FailMode::Closed => sentences
            .push("a cgroup that was tagged is no longer held once the daemon has stopped".to_owned()),
        FailMode::Open => sentences.push(
            "what agents do while the daemon is down is recorded as far as the rings have room; nothing is held once it was \
             stopped"
                .to_owned(),
        ),
    }
    sentences.extend(posture::examine(&posture::Host::default()).iter().filter_map(posture::Check::loss));
    sentences
}
