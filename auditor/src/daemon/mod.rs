//! The daemon: one pipeline thread that owns all state, and an API in front of it.
//!
//! [`run`] starts everything in an order in which each step can still fail without a trace: configuration, socket, trail,
//! kernel programs; then it gives up the privileges that it no longer needs, and only then it serves. READY means that all
//! programs are attached and the first record is on the disk.

mod attribution;
pub mod command;
mod conversation;
mod host;
mod pipeline;
mod policies;

use std::fs;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::server::{ApiOptions, BindError, Listener};
use crate::capabilities;
use crate::capabilities::number::{CAP_BPF, CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_PTRACE};
use crate::clock::Clock;
use crate::config::{self, FailMode};
use crate::kernel::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::kernel::object::{self, Attachment, KernelError, Loaded, Object, RingSizes};
use crate::kernel::tables::TableError;
use crate::kernel::tracefs;
use crate::posture;
use crate::process::Processes;
use crate::record::{self, Entry, Event as Recorded};
use crate::source::ring::Rings;
use crate::trail::{self, Trail};
use attribution::Attribution;
use command::{Command, Commander};
use pipeline::{Parts, Pipeline, PipelineError};
use policies::Policies;

/// Room for some ten milliseconds at 800 MiB/s, which is more than two processors move over loopback.
const RINGS: RingSizes = RingSizes { payload: 8 << 20, lifecycle: 1 << 20 };
/// What a running daemon uses: loading and attaching programs for a cgroup that is tagged later (CAP_BPF, CAP_NET_ADMIN,
/// CAP_PERFMON), looking at processes of other users in procfs (CAP_SYS_PTRACE), and removing its cgroup from the root of the
/// hierarchy, which not even its owner may write to (CAP_DAC_OVERRIDE).
const KEPT: [u32; 5] = [CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF];
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
}

/// Why the daemon did not start, or did not go on. Each message is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root.
    #[error("the daemon loads programs into the kernel: run it as root")]
    NotRoot,
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
            | Self::Bpffs { .. } => 4,
            Self::Pipeline(_) | Self::Panicked => 1,
            Self::NotRoot
            | Self::Configuration(_)
            | Self::Socket(_)
            | Self::Trail(_)
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
    let loaded = config::load(&options.config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.render(&options.config));
    }
    let hierarchy = hierarchy(options.cgroup_root.as_deref())?;
    let listener = Listener::bind(&options.runtime_dir)?;
    let parent_name = parent_name(&options.runtime_dir);
    // Two daemons may have been given the same directory for pins; each has its own in it.
    let pins = options.pin_dir.join(&parent_name);
    tracefs::ensure_mounted(Path::new(tracefs::MOUNT)).map_err(KernelError::from)?;
    prepare_pins(&options.pin_dir)?;
    make_directory(&options.state_dir)?;
    let mut degraded = degraded(loaded.settings.daemon.fail_mode);
    // Before any thread is started: capabilities belong to threads.
    capabilities::set_no_new_privileges()
        .and_then(|()| capabilities::keep_only(&KEPT))
        .map_err(call("drop capabilities"))?;

    let host = host::read(Path::new("/"));
    let (boot_id, kernel_release) = (host.boot_id.clone(), host.kernel.clone());
    let trail_dir = options.state_dir.join("trail");
    let (trail, recovery) = Trail::open(&trail_dir, trail::Options::new(host))?;
    let Loaded { mut object, mut tables, payload, lifecycle } = Object::load(RINGS)?;
    if let Some(error) = object.unix_unsupported() {
        if loaded.settings.names_unix_sockets() {
            return Err(KernelError::UnixRules(error.to_string()).into());
        }
        degraded.push(format!("unix sockets are neither decided nor recorded: {error}"));
    }
    degraded.extend(posture::paths::doubts(&loaded.settings));
    let clock = Clock::read();
    let policies = Policies::install(&loaded.settings, &mut tables, &clock, RINGS)?;
    let parent = hierarchy.make(&parent_name)?;
    let abandoned = sweep(&hierarchy, &parent);
    let attachment = match object.attach(&parent) {
        Ok(attachment) => attachment,
        Err(error) => {
            remove_if_empty(&parent);
            return Err(error.into());
        }
    };
    let (commander, commands) = command::channel().map_err(|error| call("eventfd")(error.into()))?;
    let processes = Processes::new(PathBuf::from("/proc"), PathBuf::from("/etc/passwd"));
    let limits = loaded.settings.capture.limits();
    let mut attribution = Attribution::new(boot_id, clock, policies, processes, limits);
    if let Some(recovery) = recovery {
        let event = Recorded::TrailRecovered { segment: recovery.segment, bytes: recovery.bytes };
        attribution.enter_now(0, event);
    }
    attribution.enter_now(
        0,
        Recorded::DaemonStarted {
            configuration: loaded.digest,
            degraded: degraded.clone(),
            kernel: kernel_release,
        },
    );
    for session in abandoned {
        report_abandoned(&mut attribution, &trail_dir, &session);
    }
    let parts = Parts {
        configuration: options.config.clone(),
        settings: loaded.settings,
        hierarchy,
        parent,
        attachment,
        object,
        tables,
        rings: Rings::new(payload, lifecycle).map_err(call("map the rings"))?,
        sizes: RINGS,
        attribution,
        trail,
        commands,
        degraded,
    };
    serve(parts, &pins, listener, commander, trail_dir)
}

/// From READY to the end.
fn serve(
    mut parts: Parts,
    pins: &Path,
    listener: Listener,
    commander: Commander,
    trail_dir: PathBuf,
) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(call("start the API's runtime"))?;
    // The first record: a trail that cannot be written is found out before anything is promised.
    for entry in parts.attribution.take_entries() {
        parts.trail.append(&entry)?;
    }
    parts.trail.flush(LAST_RECORDS)?;
    parts.attachment = hold(parts.attachment, parts.settings.daemon.fail_mode, pins)?;
    let (ended, pipeline_ended) = oneshot::channel();
    let pipeline = thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || {
            let result = Pipeline::new(parts).run();
            // The main thread may have stopped waiting.
            let _ = ended.send(());
            result
        })
        .map_err(call("start the pipeline's thread"))?;
    let api = ApiOptions { trail_dir, proc_root: PathBuf::from("/proc") };
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
    leave(parts, pins)?;
    result
}

/// With `fail_mode = "closed"`, makes the programs outlive the daemon. What an earlier daemon left in force is taken down.
fn hold(attachment: Attachment, fail_mode: FailMode, pins: &Path) -> Result<Attachment, StartError> {
    match fail_mode {
        FailMode::Closed => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(pins).map_err(call(format!(
                "make {}; name a directory on a bpffs with --pin-dir",
                pins.display()
            )))?;
            Ok(attachment.pin(pins)?)
        }
        FailMode::Open => {
            object::remove_pins(pins).map_err(call(format!(
                "take down the programs of an earlier daemon in {}",
                pins.display()
            )))?;
            Ok(attachment)
        }
    }
}

/// Takes everything down, except where agents still live and `fail_mode = "closed"` wants them held.
fn leave(parts: Parts, pins: &Path) -> Result<(), StartError> {
    let Parts { parent, attachment, object, trail, settings, .. } = parts;
    let inhabited = parent.populated().unwrap_or(false);
    if inhabited && settings.daemon.fail_mode == FailMode::Closed {
        tracing::warn!(
            cgroup = parent.name(),
            "agents are still running: their network stays closed until a daemon runs again (fail_mode = \"closed\")"
        );
        drop(attachment);
    } else {
        attachment.detach().map_err(call("take down the kernel programs"))?;
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
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(b"READY=1\n", &address)
            }
            None => socket.send_to(b"READY=1\n", &path),
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

/// Removes what sessions of an earlier daemon left, where nobody lives in it any more. Answers the ids of these sessions: that
/// daemon did not end them.
fn sweep(hierarchy: &Hierarchy, parent: &Cgroup) -> Vec<String> {
    let Ok(entries) = fs::read_dir(parent.path()) else { return Vec::new() };
    let mut abandoned = Vec::new();
    for entry in entries.flatten() {
        let Ok(cgroup) = hierarchy.existing(&entry.path()) else { continue };
        abandoned.push(entry.file_name().to_string_lossy().into_owned());
        match cgroup.populated() {
            Ok(true) => tracing::warn!(
                cgroup = cgroup.name(),
                "processes of a session that an earlier daemon opened are still running: what they send is refused"
            ),
            _ => remove_if_empty(&cgroup),
        }
    }
    abandoned
}

/// Records that a session's history has no end, with what the trail knows of the session.
fn report_abandoned(attribution: &mut Attribution, trail: &Path, id: &str) {
    let mut session = record::Session { id: id.to_owned(), ..record::Session::default() };
    let found = trail::query::find(trail, id, |_, view| {
        if let Some(agent) = &view.own().agent {
            session.agent.name = str::to_owned(&agent.name);
        }
        session.task =
            view.own().session.as_ref().and_then(|session| session.task.as_deref()).map(str::to_owned);
        ControlFlow::Break(())
    });
    if let Err(error) = found {
        tracing::warn!(%error, session = id, "the trail does not tell whose session this was");
    }
    attribution.enter_made(Entry {
        time: Clock::now_utc(),
        session: Some(Arc::new(session)),
        process: None,
        event: Recorded::Finding {
            kind: "session-abandoned",
            message: "the daemon that audited this session ended without notice: what the session did after its last \
                      record is not in the trail, and what it does from here on is refused"
                .to_owned(),
            connection: None,
        },
    });
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
    let bpffs = Path::new("/sys/fs/bpf");
    if directory.starts_with(bpffs) {
        object::ensure_bpffs(bpffs).map_err(|error| StartError::Bpffs { path: bpffs.to_owned(), error })?;
    }
    Ok(())
}

/// What is asked for and not given, by this version or by this host, one sentence each.
fn degraded(fail_mode: FailMode) -> Vec<String> {
    let mut sentences = vec![
        "what is said under TLS is not read".to_owned(),
        "what is said on unix sockets is not read, and their end is not recorded".to_owned(),
        "a socket that was made outside of a session and handed to an agent is neither decided nor recorded"
            .to_owned(),
    ];
    match fail_mode {
        FailMode::Closed => sentences
            .push("a cgroup that was tagged is no longer held once the daemon has stopped".to_owned()),
        FailMode::Open => sentences.push("nothing is held once the daemon has stopped".to_owned()),
    }
    sentences.extend(posture::examine(&posture::Host::default()).iter().filter_map(posture::Check::loss));
    sentences
}
