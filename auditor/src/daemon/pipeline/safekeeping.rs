//! The order in which what is known, the journal, the trail and the rings move: see [`crate::daemon::journal`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Parts, PipelineError, RENEW_LEASE, failed, write};
use crate::clock::Clock;
use crate::daemon::command::{CommandError, HandOver};
use crate::daemon::journal::{self, Item, Position};
use crate::kernel::object;
use crate::record::Event as Recorded;
use crate::source::Event;
use crate::source::ring::Next;

/// How often a generation's end may wait for the disk, for [`RENEW_LEASE`] each, when the daemon hands over: five seconds.
const HAND_OVER_SLICES: u32 = 25;

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
            if let Some(missed) = attribution.missed(&event) {
                if let Some(journal) = journal
                    && let Err(error) = journal.item(&missed)
                {
                    failed = Some(error);
                }
                if let Err(error) = attribution.apply(missed) {
                    tracing::error!(%error, "what was missed could not be taken in");
                }
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
        self.commit_journal();
        write(&mut self.attribution, &self.trail)?;
        self.rings.release();
        self.count_rows();
        self.turn_journal();
        Ok(())
    }

    /// The first half of [`Self::commit`].
    pub(super) fn commit_journal(&mut self) {
        let position = self.position();
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.commit(position)
        {
            self.give_up_journal(&error);
        }
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

    /// Tells the kernel programs where the rows are that they could count. Where that fails they are copied, which is no loss.
    pub(super) fn tell_places(&mut self) {
        self.count_rows();
        let Self { attribution, tables, .. } = self;
        for (way, place) in attribution.take_places(Clock::now()) {
            if let Err(error) = tables.place(way, place) {
                tracing::debug!(%error, "say where rows are to be counted");
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
            let mut lease = self.attribution.policies.lease();
            let tables = &mut self.tables;
            turned = journal.next(position, &self.attribution.saved(), &mut || lease.renew(tables));
            self.attribution.keyrings.turned();
        }
        match turned.and_then(|()| journal.settle(self.trail.durable())) {
            Ok(()) if journal.may_turn() => self.attribution.keyrings.settled(),
            Ok(()) => {}
            Err(error) => self.give_up_journal(&error),
        }
    }

    /// Writes down everything for the next daemon, if that can go on with it.
    pub(super) fn hand_over(&mut self, next: &HandOver) -> Result<(), CommandError> {
        let layout = object::layout(self.sizes);
        if (next.journal, &next.layout) != (journal::VERSION, &layout) {
            return Err(CommandError::Invalid(format!(
                "the next daemon could not go on with the sessions: it reads journals of version {} and uses tables of {}, these are \
                 of version {} and {layout}; another version of the auditor, or another ring_bytes, begins when this daemon was \
                 stopped, which ends its sessions",
                next.journal,
                next.layout,
                journal::VERSION
            )));
        }
        if self.journal.is_some() {
            // Nobody can enter it afterwards.
            self.enter_now(
                0,
                Recorded::ApiAccess {
                    by: next.caller.clone(),
                    method: "POST".to_owned(),
                    path: "/v1/hand-over".to_owned(),
                    status: 204,
                },
            );
            self.write_down().map_err(failed)?;
        }
        if self.journal.is_none() {
            return Err(failed("its journal cannot be written; stop it first"));
        }
        Ok(())
    }

    fn write_down(&mut self) -> Result<(), PipelineError> {
        self.commit()?;
        // In slices: the disk may take longer than the lease lasts, and nobody else renews it.
        let mut slices = HAND_OVER_SLICES;
        let mut lease = self.attribution.policies.lease();
        loop {
            match self.trail.flush(RENEW_LEASE) {
                Err(_) if slices > 0 => {
                    slices -= 1;
                    lease.renew(&mut self.tables);
                }
                flushed => break flushed?,
            }
        }
        let position = self.position();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let turned = journal
            .next(position, &self.attribution.saved(), &mut || lease.renew(&mut self.tables))
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
        self.journal = None;
        if let Err(error) = journal::discard(&self.runtime_dir) {
            tracing::error!(%error, directory, "remove the journal");
        }
        self.attribution.enter_now(0, finding);
    }
}
