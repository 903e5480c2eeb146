//! From READY to the end: the API is served, signals are heeded, and in the end everything is taken down that is not to stay.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::{fs, thread};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::StartError;
use super::command::{Command, Commander};
use super::error::call;
use super::pipeline::{Parts, Pipeline};
use crate::api::server::{ApiOptions, Listener};
use crate::config::FailMode;
use crate::kernel::bpffs;
use crate::kernel::cgroup::Cgroup;

/// From READY to the end.
pub(super) fn serve(
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

pub(super) fn remove_if_empty(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "a cgroup stays");
    }
}
