//! A connection past its login: messages of both directions, in compressed frames or not.

use super::answer::AnswerReader;
use super::body::RequestReader;
use super::capability::Capabilities;
use super::compress::{Method, Unpacker};
use super::conversation::{Conversation, Violation};
use super::packet::{Framer, Hole, Step};
use super::request::Request;
use crate::clock::Boottime;
use crate::protocol::{Limits, Login, Observation, Opaque};

/// Commands in one compressed frame. Clients put one or a few into each; without a bound, some kilobytes that unpack to millions of
/// commands would have to be told at once.
const MAX_COMMANDS_IN_FRAME: u32 = 16 << 10;
/// What a frame may have gathered where memory is short.
const FRAME_IN_NEED: usize = 64 << 10;

/// See the module.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Session {
    client: Framer,
    requests: RequestReader,
    server: Framer,
    answers: AnswerReader,
    conversation: Conversation,
    /// The client's and the server's frames.
    frames: Option<Box<(Unpacker, Unpacker)>>,
    /// The client's frame, and commands that have begun in it.
    frame: (u64, u32),
    /// What the client is sending is no command.
    data: bool,
    terminated: bool,
}

impl Session {
    pub(super) fn new(
        limits: Limits,
        capabilities: Capabilities,
        login: Login,
        method: Option<Method>,
    ) -> Self {
        Self {
            client: Framer::default(),
            requests: RequestReader::new(limits, capabilities),
            server: Framer::default(),
            answers: AnswerReader::default(),
            conversation: Conversation::new(limits, capabilities, login),
            frames: method.map(|method| Box::new((Unpacker::new(method), Unpacker::new(method)))),
            frame: (0, 0),
            data: false,
            terminated: false,
        }
    }

    pub(super) fn client(
        &mut self,
        bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let Some(mut frames) = self.frames.take() else { return self.commands(bytes, false, at, out) };
        let result = frames.0.read(bytes, &mut |frame, piece| {
            if self.frame.0 != frame {
                self.frame = (frame, 0);
            }
            self.commands(piece, true, at, out)
        });
        self.frames = Some(frames);
        result
    }

    /// The server's side. What it answers is why nothing can be read from here on, if so.
    pub(super) fn server(
        &mut self,
        bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Opaque>, Violation> {
        if self.conversation.is_deaf() {
            return Ok(None);
        }
        let Some(mut frames) = self.frames.take() else { return self.packets(bytes, at, out) };
        let mut opaque = None;
        let result = frames.1.read(bytes, &mut |_, piece| {
            if opaque.is_none() && !self.conversation.is_deaf() {
                opaque = self.packets(piece, at, out)?;
            }
            Ok(())
        });
        self.frames = Some(frames);
        result.map(|()| opaque)
    }

    fn commands(
        &mut self,
        mut bytes: &[u8],
        compressed: bool,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        while let Some(step) = self.client.step(&mut bytes, at) {
            match step {
                Step::Start(_) if self.terminated => return Err("a packet after COM_QUIT".into()),
                Step::Start(head) => {
                    self.data = self.conversation.takes_data(head.sequence, compressed)?;
                    self.requests.start();
                    self.frame.1 += u32::from(compressed);
                    if self.frame.1 > MAX_COMMANDS_IN_FRAME {
                        return Err(format!("more than {MAX_COMMANDS_IN_FRAME} commands in one frame"));
                    }
                }
                Step::Body(_) if self.data => {}
                Step::Body(piece) => {
                    let conversation = &self.conversation;
                    self.requests.piece(piece, &|number| conversation.known(number));
                }
                Step::End(head) if self.data => self.conversation.data(head),
                Step::End(head) => {
                    let request = self.requests.end().ok_or("a command without a byte")?;
                    self.terminated |= matches!(request, Request::Quit);
                    self.conversation.request(request, head, at, out)?;
                }
            }
        }
        Ok(())
    }

    fn packets(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Opaque>, Violation> {
        while let Some(step) = self.server.step(&mut bytes, at) {
            match step {
                Step::Start(_) => self.answers.start(),
                Step::Body(piece) => self.answers.piece(piece, |first| self.conversation.keep(first)),
                Step::End(head) => {
                    let opaque = self.conversation.answer(self.answers.end(head), at, out)?;
                    if opaque.is_some() || self.conversation.is_deaf() {
                        return Ok(opaque);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Bytes of the client's were lost. `false`: the place of the next message with them.
    pub(super) fn client_gap(&mut self, length: u64) -> bool {
        let kept = self.frames.is_none() && self.client.hole(length) == Hole::InBody;
        if kept {
            self.requests.hole();
        }
        kept
    }

    /// Bytes of the server's were lost. This never ends the reading: commands are told without their answers.
    pub(super) fn server_gap(&mut self, length: u64, at: Boottime, out: &mut Vec<Observation>) {
        if self.conversation.is_deaf() {
            return;
        }
        let lost = self.frames.is_some() || self.server.hole(length) == Hole::Lost;
        if lost || self.answers.hole() {
            self.conversation.deafen(at, out);
        }
    }

    pub(super) fn memory(&self) -> usize {
        let frames = self.frames.as_ref().map_or(0, |frames| frames.0.memory() + frames.1.memory());
        frames + self.requests.memory() + self.answers.memory() + self.conversation.memory()
    }

    /// Framing goes on: the length of what is under way is known. `false`: it does not, because what was gathered of a frame of the
    /// client's is too much to be kept.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) -> bool {
        if self.frames.as_ref().is_some_and(|frames| frames.0.memory() > FRAME_IN_NEED) {
            self.partial(at, out);
            return false;
        }
        self.conversation.spare(at, out);
        self.requests.spare();
        // No answer is looked at any more.
        self.answers = AnswerReader::default();
        if let Some(frames) = &mut self.frames {
            frames.1.stop();
        }
        true
    }

    pub(super) fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        // Nothing is missing of what was said, unless a statement breaks off.
        self.conversation.give_up(false, at, out);
        self.broken_off(at, out);
    }

    /// Gives out what is under way: nothing more is read.
    pub(super) fn give_up(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.conversation.give_up(false, at, out);
        self.conversation.lose_statements(at, out);
    }

    /// The same, down to a text to be executed of which only the beginning came.
    pub(super) fn partial(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.conversation.give_up(true, at, out);
        self.broken_off(at, out);
    }

    fn broken_off(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        let Some(head) = self.client.under_way().filter(|_| !self.data && self.requests.is_query()) else {
            return;
        };
        self.requests.hole();
        let Some(request) = self.requests.end() else { return };
        // The queue is empty, so it cannot overflow.
        if self.conversation.request(request, head, at, out).is_ok() {
            self.conversation.give_up(true, at, out);
        }
    }
}
