//! Replacing a running daemon (`--replace`): it is asked to write down what it knows and to end, and what it holds is waited for.
//!
//! What it knew is taken over as if it had been killed: see [`super::takeover`].

use std::io;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use super::{LAST_RECORDS, StartError, journal};
use crate::api::SOCKET_NAME;
use crate::api::client::{Client, ClientError};
use crate::api::types::HandOver;
use crate::clock::Clock;
use crate::kernel::bpffs;
use crate::kernel::object::{self, KernelError, Loaded, Object, RingSizes};

/// Time between two looks at whether the daemon that is replaced has ended.
const HANDING_OVER: Duration = Duration::from_millis(2);

/// Takes over from the daemon that runs in a runtime directory; answers the kernel side, with that daemon's tables. `None`: none
/// runs there.
///
/// Programs are loaded first, so that a daemon which cannot go on, in this kernel or with what the other one knows, ends none.
pub(super) fn replace(
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
pub(super) fn patiently<T, E>(
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
