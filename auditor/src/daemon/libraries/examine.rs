//! Looking through a file and probing it, in a thread that may be left behind.
//!
//! Whoever owns a file decides how long it takes to read it: it may be large, or far away. So the thread that watches all sessions
//! reads none. Each session has a thread of its own for that, as long as there is something to look through.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::hold::Hold;
use super::{Identity, points_of, reach};
use crate::daemon::scheduling::go_first;
use crate::kernel::mappings::Mapping;
use crate::kernel::uprobe::Uprobes;
use crate::library::{self, Point};

/// Files of a session that wait for one that takes long.
const WAITING: usize = 1024;
/// The longest file whose version is looked for before the next file.
const NAMED_AT_ONCE: u64 = 16 << 20;

/// A file that is to be looked through.
pub(super) struct Job {
    /// Number of the job.
    pub(super) id: u64,
    /// Where it is mapped.
    pub(super) mapping: Mapping,
    /// Whom to hold meanwhile.
    pub(super) hold: Arc<Hold>,
    /// What to do with it.
    pub(super) aim: Aim,
}

/// What to do with a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Aim {
    /// Probe it.
    Probe,
    /// Only say whether there is something to probe: there is no room for another one.
    Count,
    /// Say what is in it: it is probed.
    Recognise,
}

/// What became of it.
pub(super) struct Examined {
    pub(super) id: u64,
    pub(super) outcome: io::Result<Outcome>,
    /// How long the session was held.
    pub(super) pause: Option<Duration>,
}

/// A file that was looked through.
pub(super) struct Outcome {
    pub(super) file: File,
    /// As it was then.
    pub(super) identity: Identity,
    pub(super) points: Vec<Point>,
    /// What is in it; `None` also where that takes longer to find out.
    pub(super) name: Option<String>,
    /// Why it is not probed.
    pub(super) error: Option<String>,
    /// That is so for everybody, as long as nobody writes to the file.
    pub(super) is_unreadable: bool,
}

/// A thread that looks through files, one after the other. It ends with this value, or when it comes back.
pub(super) struct Examiner(SyncSender<Job>);

impl Examiner {
    /// `None`: there is no thread to be had.
    pub(super) fn start(
        uprobes: &Arc<Uprobes>,
        results: &Sender<Examined>,
        wake: &Arc<EventFd>,
    ) -> Option<Self> {
        let (jobs, asked) = sync_channel::<Job>(WAITING);
        let (uprobes, results, wake) = (Arc::clone(uprobes), results.clone(), Arc::clone(wake));
        let thread = thread::Builder::new().name("library".to_owned()).spawn(move || {
            go_first();
            for job in asked {
                job.hold.begin();
                let outcome = examine(&uprobes, &job);
                let pause = job.hold.let_go();
                let outcome = outcome.map(named);
                if results.send(Examined { id: job.id, outcome, pause }).is_err() {
                    return;
                }
                let _ = wake.write(1);
            }
        });
        thread.inspect_err(|error| tracing::error!(%error, "no thread looks through libraries")).ok()?;
        Some(Self(jobs))
    }

    /// `false`: there are too many already.
    pub(super) fn ask(&self, job: Job) -> bool {
        self.0.try_send(job).is_ok()
    }
}

fn examine(uprobes: &Uprobes, job: &Job) -> io::Result<Outcome> {
    let (_, file) = reach(&job.mapping, |place| File::open(place))?;
    let identity = Identity::of(&file)?;
    if job.aim == Aim::Probe && library::takes_long(&file) {
        job.hold.take();
    }
    let (probes, mut error, is_unreadable) = match library::inspect(&file) {
        Ok(probes) => (probes, None, false),
        Err(unreadable) => (Vec::new(), Some(unreadable.to_string()), unreadable.lasts()),
    };
    if job.aim == Aim::Probe && !probes.is_empty() {
        job.hold.take();
        error = uprobes.attach(&file, identity.number, &probes).err().map(|error| error.to_string());
    }
    Ok(Outcome { file, identity, points: points_of(&probes), name: None, error, is_unreadable })
}

/// Nobody waits for this any more, but for the next file.
fn named(outcome: Outcome) -> Outcome {
    let is_short = outcome.file.metadata().is_ok_and(|status| status.len() <= NAMED_AT_ONCE);
    let name = is_short.then(|| library::name(&outcome.file, &outcome.points)).flatten();
    Outcome { name, ..outcome }
}
