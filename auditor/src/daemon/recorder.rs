//! Keeps what comes off the rings in a capture file, while auditing goes on.
//!
//! The pipeline only copies: a thread of its own writes. If the disk falls behind, or fails, or the capture reaches its limit,
//! recording ends with a warning; auditing does not wait for it and does not end with it. What is in the file by then is
//! the beginning of what happened, without a hole.

use std::collections::HashSet;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use crate::session::Sessions;
use crate::source::Event;
use crate::source::capture::{self, Header, Writer, Written};

/// Handed over to the writing thread as a whole.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that may wait for the disk: with them the memory is bounded.
const WAITING_CHUNKS: usize = 8;

/// A capture that is being written. Dropping it writes what waits.
pub(super) struct Recorder {
    chunk: Vec<u8>,
    /// Sessions whose frame was written.
    known: HashSet<u64>,
    /// `None` once recording has ended.
    chunks: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins a capture of at most `limit` bytes in a new file.
    pub(super) fn begin(path: &Path, limit: u64, header: &Header) -> io::Result<Self> {
        let writer = Writer::begin(capture::create(path)?, header, limit)?;
        let (sender, receiver) = sync_channel(WAITING_CHUNKS);
        let thread =
            thread::Builder::new().name("capture".to_owned()).spawn(move || write(writer, &receiver))?;
        Ok(Self { chunk: Vec::new(), known: HashSet::new(), chunks: Some(sender), thread: Some(thread) })
    }

    /// Adds an event, and before it whose session it is, if that is not in the capture yet.
    pub(super) fn event(&mut self, event: &Event<'_>, sessions: &Sessions) {
        if self.chunks.is_none() {
            return;
        }
        let number = event.header().session;
        if number != 0
            && !self.known.contains(&number)
            && let Some(session) = sessions.record(number)
        {
            self.known.insert(number);
            capture::write_session(number, &session, &mut self.chunk);
        }
        capture::write_event(event, &mut self.chunk);
        if self.chunk.len() >= CHUNK_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let chunk = mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8));
        let Some(chunks) = &self.chunks else { return };
        match chunks.try_send(chunk) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("the disk is too slow for the capture: it ends here, auditing goes on");
            }
            // The thread has said why.
            Err(TrySendError::Disconnected(_)) => {}
        }
        self.chunks = None;
        self.chunk = Vec::new();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.chunk.is_empty() {
            self.hand_over();
        }
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, the capture is cut, as its reader will say.
            let _ = thread.join();
        }
    }
}

fn write(mut writer: Writer<std::fs::File>, chunks: &Receiver<Vec<u8>>) {
    for chunk in chunks {
        match writer.append(&chunk) {
            Ok(Written::Whole) => {}
            Ok(Written::Full) => {
                tracing::warn!("the capture has reached its limit: it ends here, auditing goes on");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the capture cannot be written: it ends here, auditing goes on");
                return;
            }
        }
    }
}
