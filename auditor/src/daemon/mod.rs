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
mod privileges;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::server::{ApiOptions, BindError, Listener};
use crate::clock::Clock;
use crate::config::{self, FailMode};
use crate::kernel::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::kernel::object::{self, KernelError, Loaded, Object, RingSizes};
use crate::kernel::tables::TableError;
use crate::posture;
use crate::process::Processes;
use crate::record::Event as Recorded;
use crate::source::ring::Rings;
use crate::trail::{self, Trail};
use attribution::Attribution;
use command::{Command, Commander};
use pipeline::{Parts, Pipeline, PipelineError};
use policies::Policies;

/// Room for some ten milliseconds at 800 MiB/s, which is more than two processors move over loopback.
const RINGS: RingSizes = RingSizes { payload: 8 << 20, lifecycle: 1 << 20 };
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
    let host = host::read(Path::new("/"));
    let (boot_id, kernel_release) = (host.boot_id.clone(), host.kernel.clone());
    let trail_dir = options.state_dir.join("trail");
    make_directory(&options.state_dir)?;
    let (trail, recovery) = Trail::open(&trail_dir, trail::Options::new(host))?;

    let Loaded { mut object, mut tables, payload, lifecycle } = Object::load(RINGS)?;
    let clock = Clock::read();
    let policies = Policies::install(&loaded.settings, &mut tables, &clock, RINGS.payload)?;
    let pins = match loaded.settings.daemon.fail_mode {
        FailMode::Closed => Some(pin_directory(&options.pin_dir)?),
        FailMode::Open => None,
    };
    let parent = hierarchy.make(&parent_name(&options.runtime_dir))?;
    sweep(&hierarchy, &parent);
    let attachment = match object.attach(&parent, pins.as_deref()) {
        Ok(attachment) => attachment,
        Err(error) => {
            remove_if_empty(&parent);
            return Err(error.into());
        }
    };
    let degraded = degraded(loaded.settings.daemon.fail_mode);
    let (commander, commands) = command::channel().map_err(|error| call("eventfd")(error.into()))?;
    let processes = Processes::new(PathBuf::from("/proc"));
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
    privileges::drop_unneeded().map_err(call("drop capabilities"))?;
    serve(parts, pins.as_deref(), listener, commander, trail_dir)
}

/// From READY to the end.
fn serve(
    mut parts: Parts,
    pins: Option<&Path>,
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

/// Takes everything down, except where agents still live and `fail_mode = "closed"` wants them held.
fn leave(parts: Parts, pins: Option<&Path>) -> Result<(), StartError> {
    let Parts { parent, attachment, object, trail, .. } = parts;
    let inhabited = parent.populated().unwrap_or(false);
    if inhabited && pins.is_some() {
        tracing::warn!(
            cgroup = parent.name(),
            "agents are still running: their network stays closed until a daemon runs again (fail_mode = \"closed\")"
        );
        drop(attachment);
    } else {
        attachment.detach().map_err(call("take down the kernel programs"))?;
        remove_if_empty(&parent);
        if let Some(pins) = pins
            && let Err(error) = fs::remove_dir(pins)
        {
            tracing::warn!(%error, path = %pins.display(), "the pin directory stays");
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

/// Removes what sessions of an earlier daemon left, where nobody lives in it any more.
fn sweep(hierarchy: &Hierarchy, parent: &Cgroup) {
    let Ok(entries) = fs::read_dir(parent.path()) else { return };
    for entry in entries.flatten() {
        let Ok(cgroup) = hierarchy.existing(&entry.path()) else { continue };
        match cgroup.populated() {
            Ok(true) => tracing::warn!(
                cgroup = cgroup.name(),
                "processes of a session that an earlier daemon opened are still running: what they send is refused"
            ),
            _ => remove_if_empty(&cgroup),
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

/// The directory for links, on a bpffs that is mounted where it is missing.
fn pin_directory(path: &Path) -> Result<PathBuf, StartError> {
    let bpffs = Path::new("/sys/fs/bpf");
    if path.starts_with(bpffs) {
        object::ensure_bpffs(bpffs).map_err(|error| StartError::Bpffs { path: bpffs.to_owned(), error })?;
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(call(format!("make {}; name a directory on a bpffs with --pin-dir", path.display())))?;
    Ok(path.to_owned())
}

/// What is asked for and not given, by this version or by this host, one sentence each.
fn degraded(fail_mode: FailMode) -> Vec<String> {
    let mut sentences = vec![
        "what is said under TLS is not read".to_owned(),
        "unix sockets are neither decided nor recorded".to_owned(),
    ];
    match fail_mode {
        FailMode::Closed => sentences
            .push("a cgroup that was tagged is no longer held once the daemon has stopped".to_owned()),
        FailMode::Open => sentences.push("nothing is held once the daemon has stopped".to_owned()),
    }
    sentences.extend(posture::examine(&posture::Host::default()).iter().filter_map(posture::Check::loss));
    sentences
}
