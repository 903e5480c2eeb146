//! The socket and the connections on it.
//!
//! hyper is driven directly instead of through `axum::serve`, for three things which that does not offer: the peer's
//! credentials and pidfd for each connection, a time limit on request heads, and a bound on connections.
//!
//! Connections of root and of the group have separate bounds, so that nobody in the group can lock root out.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router, middleware};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::{Group, Uid, chown};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::guard::{Connected, Context, guard};
use super::peer::Peer;
use super::{SOCKET_NAME, routes};
use crate::daemon::command::Commander;

/// The group whose members may use the API.
const GROUP: &str = "auditor";
/// The file whose lock says that a daemon owns the runtime directory.
const LOCK_NAME: &str = "auditor.lock";
/// Connections that root may have open.
const ROOT_CONNECTIONS: usize = 32;
/// Connections that all others together may have open.
const GROUP_CONNECTIONS: usize = 32;
/// Readers of the trail at one time: each is a thread.
const TRAIL_READERS: usize = 16;
/// Longest time for a request's head to arrive, and for a connection to lie idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request head.
const HEAD_BYTES: usize = 16 * 1024;
/// Time that requests under way have when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon works in this runtime directory.
    #[error("{path}: socket in use by pid {pid}; stop that daemon, or use --runtime-dir for a second one")]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other daemon, `unknown` where it does not tell.
        pid: String,
    },
    /// Something that is no socket is in the way.
    #[error("{path} is not a socket: remove it, or use another --runtime-dir")]
    NotASocket {
        /// Its path.
        path: PathBuf,
    },
    /// A call failed.
    #[error("{call} {path}: {source}")]
    Call {
        /// Which.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// With what.
        source: io::Error,
    },
}

/// What the API serves from, besides the pipeline.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Directory of the trail.
    pub trail_dir: PathBuf,
    /// Where /proc is mounted.
    pub proc_root: PathBuf,
    /// The cgroup, as /proc/PID/cgroup has it, below which agents live.
    pub agents: String,
}

/// The socket, bound and listening: connections queue up until [`Self::serve`] takes them.
#[derive(Debug)]
pub struct Listener {
    // Before the lock: the socket file must be gone when the next daemon may begin.
    path: SocketFile,
    socket: UnixListener,
    _lock: Flock<File>,
}

impl Listener {
    /// Opens `auditor.sock` in `runtime_dir`, which is made if it is not there.
    ///
    /// The lock beside it decides who owns the directory; a socket file that is left over by a dead owner is replaced.
    ///
    /// # Errors
    /// Another daemon is at work there, or the file system refuses.
    pub fn bind(runtime_dir: &Path) -> Result<Self, BindError> {
        make_directory(runtime_dir)?;
        let path = runtime_dir.join(SOCKET_NAME);
        let lock = lock(runtime_dir, &path)?;
        remove_stale(&path)?;
        let (path, socket) = listening_socket(path)?;
        Ok(Self { path, socket, _lock: lock })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path.path
    }

    /// Serves until `shutdown` completes; requests under way then have two seconds.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime, or accept(2) fails for good.
    pub async fn serve(
        self,
        commander: Commander,
        options: ApiOptions,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(self.socket.try_clone()?)?;
        let (stopping, stopped) = watch::channel(());
        let router = router(commander, options, stopped.clone());
        let bounds = Bounds::new();
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, router.clone(), bounds.clone(), stopped.clone()));
                    }
                    Err(error) => pause_after(&error).await,
                },
            }
        }
        drop(socket);
        drop(stopping);
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, finished).await.is_err() {
            tracing::warn!("closing API connections that did not end in {GRACE:?}");
        }
        Ok(())
    }
}

fn router(commander: Commander, options: ApiOptions, stopping: watch::Receiver<()>) -> Router {
    let context = Context {
        commander,
        proc_root: options.proc_root,
        agents: options.agents.into(),
        trail_dir: options.trail_dir,
        readers: Arc::new(Semaphore::new(TRAIL_READERS)),
        stopping,
    };
    routes::router().layer(middleware::from_fn_with_state(context.clone(), guard)).with_state(context)
}

/// Connections that may still be opened.
#[derive(Clone)]
struct Bounds {
    root: Arc<Semaphore>,
    group: Arc<Semaphore>,
}

impl Bounds {
    fn new() -> Self {
        Self {
            root: Arc::new(Semaphore::new(ROOT_CONNECTIONS)),
            group: Arc::new(Semaphore::new(GROUP_CONNECTIONS)),
        }
    }

    fn of(&self, uid: u32) -> Arc<Semaphore> {
        Arc::clone(if uid == 0 { &self.root } else { &self.group })
    }
}

async fn serve_connection(
    stream: tokio::net::UnixStream,
    router: Router,
    bounds: Bounds,
    mut stopped: watch::Receiver<()>,
) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => Arc::new(peer),
        Err(error) => {
            tracing::warn!(%error, "an API connection was refused: its peer cannot be identified");
            return;
        }
    };
    let Ok(_slot) = bounds.of(peer.uid()).try_acquire_owned() else {
        tracing::warn!(
            pid = peer.pid(),
            uid = peer.uid(),
            "an API connection was refused: too many are open"
        );
        return;
    };
    let asked = Arc::clone(&peer);
    let Ok(caller) = tokio::task::spawn_blocking(move || asked.caller()).await else {
        return;
    };
    let service = TowerToHyperService::new(router.layer(Extension(Connected { peer, caller })));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection broke off");
    }
}

/// A failed accept(2) must not become a busy loop: without descriptors it fails at once, again and again.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accept on the API socket failed");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

fn make_directory(path: &Path) -> Result<(), BindError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(call("mkdir", path))
}

fn lock(runtime_dir: &Path, socket: &Path) -> Result<Flock<File>, BindError> {
    let path = runtime_dir.join(LOCK_NAME);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(call("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            write.map_err(call("write", &path))?;
            Ok(lock)
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.take(16).read_to_string(&mut pid);
            let pid = pid.trim().parse::<u32>().map_or_else(|_| "unknown".to_owned(), |pid| pid.to_string());
            Err(BindError::InUse { path: socket.to_owned(), pid })
        }
        Err((_, errno)) => Err(call("flock", &path)(errno.into())),
    }
}

/// Removes the socket file of a dead owner. The lock is held, so no other daemon of ours is at work; a socket that
/// answers belongs to another program, and stays.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(call("stat", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(stream) => {
            let pid = Peer::of(&stream).map_or_else(|_| "unknown".to_owned(), |peer| peer.pid().to_string());
            Err(BindError::InUse { path: path.to_owned(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(call("unlink", path))
        }
        Err(error) => Err(call("connect", path)(error)),
    }
}

/// Owner, group and mode are set between bind(2) and listen(2): until then nobody can connect. If one cannot be set, the file
/// goes again.
fn listening_socket(path: PathBuf) -> Result<(SocketFile, UnixListener), BindError> {
    let system = |name| {
        let path = path.clone();
        move |errno: Errno| call(name, &path)(errno.into())
    };
    let descriptor: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(system("socket"))?;
    let address = UnixAddr::new(&path).map_err(system("the path is too long for a socket:"))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &address).map_err(system("bind"))?;
    let file = SocketFile::of(path.clone())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).map_err(call("chmod", &path))?;
    give_to_group(&path)?;
    let backlog = Backlog::new(128).map_err(system("listen"))?;
    listen(&descriptor, backlog).map_err(system("listen"))?;
    Ok((file, descriptor.into()))
}

fn give_to_group(path: &Path) -> Result<(), BindError> {
    if !Uid::effective().is_root() {
        tracing::info!("not running as root: the API socket belongs to this user and its group");
        return Ok(());
    }
    let group = Group::from_name(GROUP).map_err(|errno| call("look up the group of", path)(errno.into()))?;
    let Some(group) = group else {
        tracing::info!(
            "there is no group `{GROUP}`: only root can use the API; `groupadd --system {GROUP}` makes one"
        );
        return Ok(());
    };
    chown(path, Some(Uid::from_raw(0)), Some(group.gid)).map_err(|errno| call("chown", path)(errno.into()))
}

fn call<'a>(call: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BindError + 'a {
    move |source| BindError::Call { call, path: path.to_owned(), source }
}

/// The socket's file, removed in the end unless somebody else's has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: PathBuf) -> Result<Self, BindError> {
        let metadata = std::fs::symlink_metadata(&path).map_err(call("stat", &path))?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()), path })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let current = std::fs::symlink_metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        if current.is_ok_and(|current| current == self.identity) {
            // Left behind, it is recognised as stale by the next daemon.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
