//! The order in which what is known, the journal, the trail and the rings move: see [`crate::daemon::journal`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::{Parts, PipelineError, write};
use crate::clock::Clock;
use crate::daemon::journal::{Item, Position};
use crate::record::Event as Recorded;
use crate::source::Event;
use crate::source::ring::Next;

/// How long a generation's end may wait for the disk when the daemon hands over.
const HAND_OVER: Duration = Duration::from_secs(5);

impl Parts {
    /// Something that is not an event of the kernel's: into the journal, and into what is known.
    pub(in crate::daemon) fn record(&mut self, item: Item) {
        self.note(&item);
        if let Err(error) = self.attribution.apply(item) {
            tracing::error!(%error, "what was decided could not be applied");
        }
    }

    /// Into the journal only: it is known already.
    pub(in crate::daemon) fn note(&mut self, item: &Item) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.item(item)
        {
            self.give_up_journal(&error);
        }
    }

    /// A record of the daemon's own.
    pub(in crate::daemon) fn enter_now(&mut self, session: u64, event: Recorded) {
        self.record(Item::Entered(session, Clock::now(), event));
    }

    /// Takes the next event in, if one can be read.
    pub(super) fn next_event(&mut self) -> Result<Next, PipelineError> {
        let Self { rings, recorder, attribution, journal, .. } = self;
        let mut failed = None;
        let mut take = |event: Event<'_>, bytes: &[u8]| {
            if let Some(recorder) = recorder {
                recorder.event(&event, &attribution.sessions);
            }
            attribution.on(event);
            if let Some(journal) = journal {
                journal.event(bytes);
            }
            for looked in attribution.take_looked() {
                if let Some(journal) = journal
                    && let Err(error) = journal.item(&Item::Looked(looked))
                {
                    failed = Some(error);
                }
            }
        };
        // What is thrown goes on being thrown; nothing is used afterwards but the rings' positions.
        let given = catch_unwind(AssertUnwindSafe(|| rings.next(&mut take)));
        let Ok(Ok(given)) = given else {
            // Else the next daemon would end at the same record, and the one after it.
            rings.skip_all();
            rings.release();
            return match given {
                Ok(result) => Ok(result?),
                Err(panic) => resume_unwind(panic),
            };
        };
        if let Some(error) = failed {
            self.give_up_journal(&error);
        }
        Ok(given)
    }

    /// Makes what was gathered safe: in the journal, then in the trail; then its room in the rings is given back.
    pub(in crate::daemon) fn commit(&mut self) -> Result<(), PipelineError> {
        let position = self.position();
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.commit(position)
        {
            self.give_up_journal(&error);
        }
        write(&mut self.attribution, &self.trail)?;
        self.rings.release();
        self.count_rows();
        self.turn_journal();
        Ok(())
    }

    /// Tells the kernel programs whose rows to count. Where that fails they are copied, which is no loss.
    pub(super) fn count_rows(&mut self) {
        let Self { attribution, tables, .. } = self;
        for (cookie, counts) in attribution.take_counting() {
            if let Err(error) = tables.count_rows(cookie, counts) {
                tracing::warn!(%error, counts, "count rows instead of copying them");
            }
        }
    }

    /// Behind all that was taken in, and the records that come of it.
    fn position(&self) -> Position {
        Position {
            rings: self.rings.positions(),
            sequence: self.trail.last() + self.attribution.waiting() as u64,
        }
    }

    fn turn_journal(&mut self) {
        let position = self.position();
        let Some(journal) = &mut self.journal else {
            self.attribution.keyrings.turned();
            self.attribution.keyrings.settled();
            return;
        };
        let mut turned = Ok(());
        if journal.is_long() || journal.may_turn() && self.attribution.keyrings.are_long() {
            turned = journal.next(position, &self.attribution.saved());
            self.attribution.keyrings.turned();
        }
        match turned.and_then(|()| journal.settle(self.trail.durable())) {
            Ok(()) if journal.may_turn() => self.attribution.keyrings.settled(),
            Ok(()) => {}
            Err(error) => self.give_up_journal(&error),
        }
    }

    /// Writes down everything for the next daemon.
    pub(super) fn hand_over(&mut self) -> Result<(), PipelineError> {
        self.commit()?;
        self.trail.flush(HAND_OVER)?;
        let position = self.position();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let turned = journal
            .next(position, &self.attribution.saved())
            .and_then(|()| journal.settle(self.trail.durable()));
        if let Err(error) = turned {
            self.give_up_journal(&error);
        }
        Ok(())
    }

    /// Goes on without a journal, and says so.
    pub(in crate::daemon) fn give_up_journal(&mut self, error: &std::io::Error) {
        let directory = self.runtime_dir.display().to_string();
        tracing::error!(%error, directory, "the journal cannot be written");
        let finding = Recorded::Finding {
            kind: "journal-failed",
            message: format!(
                "the journal in {directory} cannot be written ({error}): a daemon that is started after this one ends without \
                 notice cannot go on with its sessions; stop this one in good order to begin a new journal"
            ),
            connection: None,
        };
        // An incomplete journal must not be taken for a whole one.
        if let Some(journal) = self.journal.take()
            && let Err(error) = journal.remove()
        {
            tracing::error!(%error, directory, "remove the journal");
        }
        self.attribution.enter_now(0, finding);
    }
}
