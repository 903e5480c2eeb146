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
mod error;
mod host;
mod journal;
mod keyrings;
mod libraries;
mod memory;
mod pipeline;
mod policies;
mod reading;
mod recorder;
mod replacement;
pub mod replay;
mod scheduling;
mod service;
mod start;
mod takeover;
mod unfollowed;

pub use error::StartError;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use error::call;
use recorder::Recorder;
use replacement::{patiently, replace};
use service::serve;
use sha2::{Digest as _, Sha256};
use start::Start;

use crate::api::server::{BindError, Listener};
use crate::capabilities::number::{
    CAP_BPF, CAP_CHECKPOINT_RESTORE, CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_PTRACE,
};
use crate::config::{self, FailMode};
use crate::kernel::cgroup::Hierarchy;
use crate::kernel::object::{KernelError, RingSizes};
use crate::kernel::{bpffs, tracefs};
use crate::source::capture;
use crate::trail::seal::Sealing;
use crate::trail::{self, Trail};
use crate::{capabilities, posture, secrecy};

/// The lifecycle ring, in bytes: the ends of five thousand connections of one session, which a program that exits closes at once.
const LIFECYCLE_RING: u32 = 1 << 20;
/// What a running daemon uses: loading and attaching programs for a cgroup that is tagged later (CAP_BPF, CAP_NET_ADMIN,
/// CAP_PERFMON), looking at processes of other users in procfs (CAP_SYS_PTRACE) and at what they have mapped
/// (CAP_CHECKPOINT_RESTORE), and removing its cgroup from the root of the
/// hierarchy, which not even its owner may write to (CAP_DAC_OVERRIDE).
const KEPT: [u32; 6] =
    [CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE];
/// How long the last records may take to reach the disk when the daemon stops.
const LAST_RECORDS: Duration = Duration::from_secs(10);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration file.
    pub config: PathBuf,
    /// Directory of the trail and its keys.
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
    let checks = posture::examine(&posture::Host {
        clock_synchronised: posture::clock_synchronised(),
        ..posture::Host::default()
    });
    let not_given = posture::not_given(&checks, &loaded.settings.guarantees.wanted);
    if !not_given.is_empty() && !loaded.settings.guarantees.degraded_allowed {
        return Err(StartError::Guarantees(not_given));
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
    degraded.extend(checks.iter().filter_map(posture::Check::loss));
    degraded.extend(not_given);
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
    let sealing =
        Sealing { keys: options.state_dir.join("keys"), every: loaded.settings.trail.checkpoint_every };
    let (trail, recovery) = patiently(
        replaced.is_some(),
        || {
            Trail::open(
                &trail_dir,
                trail::Options { sealing: Some(sealing.clone()), ..trail::Options::new(host.clone()) },
            )
        },
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
        "what is said under TLS is read where its library is OpenSSL, GnuTLS, BoringSSL or Go, or rustls with its symbols; the rest is opaque, and says why"
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
    sentences
}
