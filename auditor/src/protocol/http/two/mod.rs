//! HTTP/2 (RFC 9113): requests on streams, all at once on one connection.
//!
//! Each direction's header blocks can be read only by who has read all before them. So after a hole in the server's bytes requests are
//! still told, without answers, and after one in the client's nothing is; but not if it fell into the payload of a frame that is
//! counted only.

mod frame;
mod hpack;
mod huffman;
mod stream;
mod table;

use std::collections::BTreeMap;

use self::frame::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, Framer, GOAWAY, HEADERS, LONGEST_BLOCK, PADDED,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, Whole,
};
use self::hpack::Decoder;
use self::stream::Stream;
use super::Violation;
use super::head::{Head, text};
use super::request::{Outcome, Request, Version};
use crate::clock::Boottime;
use crate::protocol::{Observation, Side};

/// What a client says first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams that are followed at once; most servers allow 100 to 250.
const MOST_STREAMS: usize = 1024;
/// Bytes of a path that are kept where memory is short.
const PATH_IN_NEED: usize = 1 << 10;

/// A connection from its first byte on, or from the answer that led to it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Session {
    /// Bytes of the preface that were seen.
    preface: usize,
    client: Half,
    server: Half,
    /// Those that are not at their end.
    streams: BTreeMap<u32, Stream>,
    sequence: u64,
    /// Bytes that requests keep.
    kept: usize,
    long: usize,
    /// The server's bytes are not followed any more.
    deaf: bool,
    /// It began with a request in HTTP/1, and it is not known yet what becomes of that.
    upgraded: bool,
    /// It is the server who asks.
    reversed: bool,
}

/// One direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Half {
    framer: Framer,
    decoder: Decoder,
    block: Option<Block>,
    /// SETTINGS were there, which come before all else.
    begun: bool,
    /// The last stream that this end has opened.
    last: u32,
}

/// A header block whose end has not come.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Block {
    frame: Frame,
    /// PUSH_PROMISE: the stream that is promised.
    promised: Option<u32>,
    fragments: Vec<u8>,
    /// Bytes of its frames.
    size: u64,
}

impl Session {
    pub(super) fn new(long: usize) -> Self {
        Self {
            preface: 0,
            client: Half::default(),
            server: Half::default(),
            streams: BTreeMap::new(),
            sequence: 0,
            kept: 0,
            long,
            deaf: false,
            upgraded: false,
            reversed: false,
        }
    }

    /// After a request in HTTP/1 whose answer comes in HTTP/2, on the first stream (RFC 7540, section 3.2).
    pub(super) fn upgraded(long: usize, sequence: u64, request: Box<Request>) -> Self {
        let mut session = Self { sequence, upgraded: true, ..Self::new(long) };
        session.client.last = 1;
        session.open(1, Request { outcome: Outcome::Unknown, stream: Some(1), ..*request }, true);
        session
    }

    /// Who says this, as HTTP/2 has it. After an upgrade it may be the server who asks, as Docker's does in the sessions of a build: whoever
    /// begins with the preface is the client, and the other one begins with SETTINGS.
    pub(super) fn role(&mut self, side: Side, first: u8, out: &mut Vec<Observation>) -> Side {
        let undecided =
            self.upgraded && !self.deaf && !self.reversed && self.preface == 0 && !self.server.begun;
        let preface = first == PREFACE[0];
        if undecided && self.server.framer.is_at_start() && preface != (side == Side::Client) {
            self.hijacked(out);
            self.reversed = true;
        }
        if self.reversed { side.other() } else { side }
    }

    /// Whether this is who asks.
    pub(super) fn asks(&self, side: Side) -> bool {
        (side == Side::Client) != self.reversed
    }

    /// The request that led here is not answered on the first stream: the connection was all it wanted.
    fn hijacked(&mut self, out: &mut Vec<Observation>) {
        self.upgraded = false;
        self.client.last = 0;
        if let Some(stream) = self.streams.remove(&1) {
            self.kept -= stream.cost;
            let mut request = stream.request;
            request.stream = None;
            request.status = Some(101);
            request.outcome = Outcome::Answered;
            out.push(Observation::Request(request));
        }
    }

    pub(super) fn client(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        while self.preface < PREFACE.len() {
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            if *first != PREFACE[self.preface] {
                return Err("not the preface of HTTP/2".into());
            }
            self.preface += 1;
            bytes = rest;
        }
        while let Some(whole) = self.client.framer.step(&mut bytes, at) {
            self.frame(Side::Client, whole, at, out)?;
        }
        Ok(())
    }

    pub(super) fn server(
        &mut self,
        mut bytes: &[u8],
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        while !self.deaf
            && let Some(whole) = self.server.framer.step(&mut bytes, at)
        {
            self.frame(Side::Server, whole, at, out)?;
        }
        Ok(())
    }

    /// Whether it can be read on.
    pub(super) fn client_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<bool, Violation> {
        match self.client.framer.gap(length) {
            Ok(Some(whole)) => self.frame(Side::Client, whole, at, out).map(|()| true),
            Ok(None) => Ok(true),
            Err(()) => Ok(false),
        }
    }

    pub(super) fn server_gap(
        &mut self,
        length: u64,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if self.deaf {
            return Ok(());
        }
        match self.server.framer.gap(length) {
            Ok(Some(whole)) => self.frame(Side::Server, whole, at, out),
            Ok(None) => Ok(()),
            Err(()) => {
                self.go_deaf(at, out);
                Ok(())
            }
        }
    }

    /// Does without answers.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.long = self.long.min(PATH_IN_NEED);
        self.go_deaf(at, out);
    }

    pub(super) fn memory(&self) -> usize {
        let half = |half: &Half| {
            half.framer.memory()
                + half.decoder.memory()
                + half.block.as_ref().map_or(0, |block| block.fragments.len())
        };
        half(&self.client) + half(&self.server) + self.kept
    }

    /// Gives out what is under way as it stands.
    pub(super) fn give_up(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        for side in [Side::Client, Side::Server] {
            let Some((frame, payload)) = self.half(side).framer.unfinished() else { continue };
            if let Some(stream) = self.streams.get_mut(&frame.stream)
                && frame.kind == DATA
            {
                let partial = Frame { length: payload, ..frame };
                stream.data(side, partial, u64::from(payload), at);
                stream.request.incomplete = true;
            }
        }
        self.deaf = true;
        for (_, stream) in std::mem::take(&mut self.streams) {
            let mut request = stream.request;
            if stream.answered {
                // The client only had not ended its side.
                request.outcome = Outcome::Answered;
            }
            request.incomplete |= stream.headed && !stream.answered;
            out.push(Observation::Request(request));
        }
        self.kept = 0;
    }

    fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn go_deaf(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if self.deaf {
            return;
        }
        self.deaf = true;
        if let Some((frame, payload)) = self.server.framer.unfinished()
            && let Some(stream) = self.streams.get_mut(&frame.stream)
            && frame.kind == DATA
        {
            stream.data(Side::Server, Frame { length: payload, ..frame }, u64::from(payload), at);
        }
        // Neither its framing nor its field table is of use any more.
        self.server = Half { last: self.server.last, ..Half::default() };
        let open: Vec<u32> = self.streams.keys().copied().collect();
        for id in open {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.request.incomplete |= stream.headed && !stream.answered;
            }
            self.finish(id, None, out);
        }
    }

    fn frame(
        &mut self,
        side: Side,
        whole: Whole,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let Whole { frame, body, hole } = whole;
        let half = self.half(side);
        if !half.begun {
            let settings =
                frame.kind == SETTINGS && !frame.has(ACK) && frame.stream == 0 && frame.length % 6 == 0;
            half.begun = settings;
            return if settings { Ok(()) } else { Err("something else than SETTINGS begins HTTP/2".into()) };
        }
        if let Some(block) = &half.block
            && (frame.kind != CONTINUATION || frame.stream != block.frame.stream)
        {
            return Err("a header block is interrupted".into());
        }
        match frame.kind {
            DATA | HEADERS | PUSH_PROMISE | CONTINUATION | RST_STREAM if frame.stream == 0 => {
                Err(format!("a frame of type {} belongs to no stream", frame.kind))
            }
            DATA => self.data(side, frame, &body, hole, at, out),
            HEADERS | PUSH_PROMISE => self.headers(side, frame, body, at, out),
            CONTINUATION => {
                let Some(block) = &mut half.block else { return Err("CONTINUATION of nothing".into()) };
                block.fragments.extend_from_slice(&body);
                block.size += frame.size();
                if block.fragments.len() > LONGEST_BLOCK || frame.length as usize > LONGEST_BLOCK {
                    return Err("a header block that is longer than anybody takes".into());
                }
                if frame.has(END_HEADERS) { self.block(side, at, out) } else { Ok(()) }
            }
            RST_STREAM => {
                let code =
                    body.first_chunk().map(|code| u32::from_be_bytes(*code)).ok_or("a short RST_STREAM")?;
                self.reset(side, frame.stream, code, at, out);
                Ok(())
            }
            GOAWAY if side == Side::Server => {
                let (last, rest) = body.split_first_chunk().ok_or("a short GOAWAY")?;
                let code =
                    rest.first_chunk().map(|code| u32::from_be_bytes(*code)).ok_or("a short GOAWAY")?;
                let last = u32::from_be_bytes(*last) & 0x7fff_ffff;
                // Those after it were not and will not be looked at.
                let refused: Vec<u32> =
                    self.streams.range(last.saturating_add(1)..).map(|(id, _)| *id).collect();
                refused
                    .into_iter()
                    .filter(|id| id % 2 == 1)
                    .for_each(|id| self.reset(side, id, code, at, out));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn data(
        &mut self,
        side: Side,
        frame: Frame,
        body: &[u8],
        hole: bool,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let padding = match (frame.has(PADDED), body) {
            (false, _) => 0,
            (true, [padding, ..]) if u32::from(*padding) < frame.length => u64::from(*padding) + 1,
            (true, _) => return Err("more padding than there is of a frame".into()),
        };
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return self.known(frame.stream) };
        stream.data(side, frame, u64::from(frame.length) - padding, at);
        stream.request.incomplete |= hole;
        if frame.has(END_STREAM) {
            self.ended(side, frame.stream, at, out);
        }
        Ok(())
    }

    /// A frame on a stream that is not followed: it must be one that was.
    fn known(&self, id: u32) -> Result<(), Violation> {
        let last = if id % 2 == 1 { self.client.last } else { self.server.last };
        // What a deaf ear was promised is not known.
        if id > last && !self.deaf {
            return Err(format!("a frame on stream {id}, which nobody has opened"));
        }
        Ok(())
    }

    /// HEADERS or PUSH_PROMISE.
    fn headers(
        &mut self,
        side: Side,
        frame: Frame,
        body: Vec<u8>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if frame.length as usize > LONGEST_BLOCK {
            return Err("a header block that is longer than anybody takes".into());
        }
        const SHORT: &str = "a frame that is shorter than what it must hold";
        let mut rest = &body[..];
        let mut padding = 0;
        if frame.has(PADDED) {
            let (first, after) = rest.split_first().ok_or(SHORT)?;
            (padding, rest) = (usize::from(*first), after);
        }
        let mut promised = None;
        if frame.kind == PUSH_PROMISE {
            let (id, after) = rest.split_first_chunk().ok_or(SHORT)?;
            (promised, rest) = (Some(u32::from_be_bytes(*id) & 0x7fff_ffff), after);
        } else if frame.has(PRIORITY) {
            rest = rest.get(5..).ok_or(SHORT)?;
        }
        let length = rest.len().checked_sub(padding).ok_or("more padding than there is of a frame")?;
        let fragments = rest[..length].to_vec();
        self.half(side).block = Some(Block { frame, promised, fragments, size: frame.size() });
        if frame.has(END_HEADERS) { self.block(side, at, out) } else { Ok(()) }
    }

    /// A header block is there to its end.
    fn block(&mut self, side: Side, at: Boottime, out: &mut Vec<Observation>) -> Result<(), Violation> {
        let long = self.long;
        let half = self.half(side);
        let Some(Block { frame, promised, fragments, size }) = half.block.take() else { return Ok(()) };
        let mut head = Head::default();
        let each = &mut |field, value: &[u8], length| head.take(field, value, length);
        half.decoder.decode(&fragments, long, each)?;
        if side == Side::Client && frame.stream == 1 && self.upgraded && !self.deaf {
            // Nobody goes on with a request that was sent to its end: it is another one.
            self.hijacked(out);
        }
        match (side, promised) {
            (Side::Client, Some(_)) => return Err("a PUSH_PROMISE of the client's".into()),
            (Side::Server, Some(id)) => {
                if id % 2 == 1 || id <= self.server.last {
                    return Err(format!("a PUSH_PROMISE of stream {id}"));
                }
                self.server.last = id;
                let request = Request { pushed: true, ..self.request(&head, id, frame, at) };
                self.make_room(out);
                self.open(id, request, true);
            }
            (Side::Client, None) if frame.stream > self.client.last => {
                if frame.stream % 2 == 0 {
                    return Err(format!("the client has opened stream {}", frame.stream));
                }
                self.client.last = frame.stream;
                let request = Request { request_bytes: size, ..self.request(&head, frame.stream, frame, at) };
                self.make_room(out);
                self.open(frame.stream, request, false);
            }
            (_, None) => {
                let Some(stream) = self.streams.get_mut(&frame.stream) else {
                    return self.known(frame.stream);
                };
                stream.more(side, &head, size, at);
            }
        }
        if frame.has(END_STREAM) {
            self.ended(side, frame.stream, at, out);
        }
        Ok(())
    }

    fn request(&mut self, head: &Head, id: u32, frame: Frame, at: Boottime) -> Request {
        self.sequence += 1;
        Request {
            version: Some(Version::Http2),
            stream: Some(id),
            reversed: self.reversed,
            started: frame.since,
            finished: at,
            upgrade: head.upgrade.as_deref().filter(|_| head.method.as_deref() == Some(b"CONNECT")).map(text),
            ..head.request(self.sequence)
        }
    }

    fn open(&mut self, id: u32, request: Request, sent: bool) {
        let cost = request.memory();
        self.kept += cost;
        let stream = Stream { request: Box::new(request), sent, headed: false, answered: false, cost };
        self.streams.insert(id, stream);
    }

    /// Too many at once: the oldest is given out as it stands.
    fn make_room(&mut self, out: &mut Vec<Observation>) {
        if self.streams.len() >= MOST_STREAMS
            && let Some((_, mut stream)) = self.streams.pop_first()
        {
            self.kept -= stream.cost;
            stream.request.incomplete = true;
            out.push(Observation::Request(stream.request));
        }
    }

    fn ended(&mut self, side: Side, id: u32, at: Boottime, out: &mut Vec<Observation>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            match side {
                Side::Client => stream.sent = true,
                Side::Server => stream.answered = true,
            }
            stream.request.finished = at;
        }
        self.finish(id, None, out);
    }

    fn reset(&mut self, by: Side, id: u32, code: u32, at: Boottime, out: &mut Vec<Observation>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.request.finished = at;
        }
        self.finish(id, Some(Outcome::Reset { by, code }), out);
    }

    /// Gives a stream out, if both sides are at their end or one has `reset` it.
    fn finish(&mut self, id: u32, reset: Option<Outcome>, out: &mut Vec<Observation>) {
        let deaf = self.deaf;
        let over = |stream: &mut Stream| reset.is_some() || stream.sent && (stream.answered || deaf);
        if self.streams.get_mut(&id).is_some_and(over)
            && let Some(stream) = self.streams.remove(&id)
        {
            self.kept -= stream.cost;
            let mut request = stream.request;
            // What is reset after its answer was answered: the client need not say the rest.
            request.outcome =
                if stream.answered { Outcome::Answered } else { reset.unwrap_or(Outcome::Unknown) };
            out.push(Observation::Request(request));
        }
    }
}
