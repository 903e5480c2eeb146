//! How what is said on a connection is read: TLS where both ends speak it, the protocol inside, or neither.
//!
//! Begins with nothing known. What both ends say first tells the protocol, or that TLS comes first; a protocol may also agree on TLS
//! later. Up to then it is kept, in order, and no more of it than detection looks at. There is one layer of TLS at most, and what is inside is read as if it had been said in the clear.

use std::sync::Arc;

use crate::clock::Boottime;
use crate::protocol::{self, Detection, Dissector, First, Limits, Observation, Side, Within};
use crate::record::Application;
use crate::stream::Skip;
use crate::tls::{self, Keyring};

use super::conversation::{Findings, Notice};

/// What reading needs beside the bytes, and where it puts what it finds.
pub(super) struct Context<'a> {
    pub(super) application: &'a mut Arc<Application>,
    pub(super) limits: Limits,
    /// Secrets of the connection's session.
    pub(super) keyring: &'a dyn Keyring,
    pub(super) out: &'a mut Findings,
}

/// See the module.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Reader {
    tls: Option<Box<tls::Connection>>,
    clear: Clear,
    opaque: Opaque,
}

/// Bytes of each side that were seen and could not be read.
#[derive(Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Opaque {
    pub(super) client: u64,
    pub(super) server: u64,
}

/// How the application's bytes are read.
#[derive(serde::Serialize, serde::Deserialize)]
enum Clear {
    /// Not enough is said to tell the protocol.
    Detecting(Opening),
    /// It is told.
    Reading(#[serde(with = "protocol::saved")] Box<dyn Dissector>),
    /// It cannot be told, or not be read: bytes are counted only.
    Blind,
}

/// What both ends have said before the protocol is told.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Opening {
    client: Vec<u8>,
    server: Vec<u8>,
    /// Who said how much of it, when, in order.
    order: Vec<(Side, Boottime, usize)>,
}

/// What became of bytes.
enum Became {
    Read,
    /// Nor were so many before them.
    Unread(Opaque),
    /// They were read, and what follows is TLS; so many of them at the end are already.
    Agreed(usize),
    /// They, and these before them, are TLS.
    Tls(Vec<u8>),
    /// They were read, up to these: something else begins with them, and it is to be told what.
    Switched {
        client: (Vec<u8>, Boottime),
        server: Vec<u8>,
    },
}

impl Opening {
    fn first(&self) -> First<'_> {
        First { client: &self.client, server: &self.server }
    }

    /// Adds what detection may look at of `bytes`.
    fn say(&mut self, side: Side, at: Boottime, bytes: &[u8]) {
        let said = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let kept = bytes.len().min(protocol::DETECTION_BYTES);
        said.extend_from_slice(&bytes[..kept]);
        self.order.push((side, at, kept));
    }

    /// Takes back what was added last, by this side.
    fn unsay(&mut self, side: Side) {
        let said = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let (_, _, kept) = self.order.pop().unwrap_or((side, Boottime::default(), 0));
        said.truncate(said.len().saturating_sub(kept));
    }

    /// Tells it again; all of it was kept.
    fn replay(&self, mut tell: impl FnMut(Side, Boottime, &[u8])) {
        let (mut client, mut server) = (&self.client[..], &self.server[..]);
        for &(side, at, length) in &self.order {
            let rest = match side {
                Side::Client => &mut client,
                Side::Server => &mut server,
            };
            let (piece, after) = rest.split_at(length.min(rest.len()));
            *rest = after;
            tell(side, at, piece);
        }
    }

    /// Bytes of each side.
    fn size(&self) -> Opaque {
        Opaque { client: self.client.len() as u64, server: self.server.len() as u64 }
    }
}

impl Opaque {
    fn add(&mut self, other: Self) {
        self.client += other.client;
        self.server += other.server;
    }

    fn count(&mut self, side: Side, bytes: u64) {
        match side {
            Side::Client => self.client += bytes,
            Side::Server => self.server += bytes,
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { tls: None, clear: Clear::Detecting(Opening::default()), opaque: Opaque::default() }
    }
}

impl Reader {
    /// The next bytes.
    pub(super) fn bytes(&mut self, side: Side, at: Boottime, bytes: &[u8], context: &mut Context<'_>) {
        if let Some(tls) = &mut self.tls {
            let keyring = context.keyring;
            let (clear, opaque) = (&mut self.clear, &mut self.opaque);
            tls.bytes(side, at, bytes, keyring, &mut |event| inside(clear, opaque, at, event, context));
            return;
        }
        match self.clear.bytes(side, at, bytes, context) {
            Became::Read => {}
            Became::Unread(before) => {
                self.opaque.add(before);
                self.opaque.count(side, bytes.len() as u64);
            }
            Became::Agreed(rest) => {
                self.tls = Some(Box::default());
                if let Some(rest) = bytes.len().checked_sub(rest).and_then(|read| bytes.get(read..))
                    && !rest.is_empty()
                {
                    self.bytes(side, at, rest, context);
                }
            }
            Became::Tls(before) => {
                self.tls = Some(Box::default());
                self.bytes(side, at, &before, context);
                self.bytes(side, at, bytes, context);
            }
            Became::Switched { client: (client, since), server } => {
                self.bytes(Side::Client, since, &client, context);
                self.bytes(Side::Server, at, &server, context);
            }
        }
    }

    /// Rows that the kernel programs counted instead of copying them.
    pub(super) fn skipped(&mut self, side: Side, at: Boottime, skip: &Skip, context: &mut Context<'_>) {
        if self.tls.is_none() && matches!(self.clear, Clear::Reading(_)) {
            self.clear.step(context, |dissector, out| dissector.skipped(side, at, skip, out));
        } else {
            self.gap(side, at, u64::from(skip.length), context);
        }
    }

    /// Bytes were lost here.
    pub(super) fn gap(&mut self, side: Side, at: Boottime, length: u64, context: &mut Context<'_>) {
        let keyring = context.keyring;
        let (clear, opaque) = (&mut self.clear, &mut self.opaque);
        match &mut self.tls {
            None => opaque.add(clear.gap(side, at, length, context)),
            Some(tls) => {
                tls.gap(side, at, length, keyring, &mut |event| inside(clear, opaque, at, event, context));
            }
        }
    }

    /// Whether a record waits for a secret.
    pub(super) fn waits(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.waits())
    }

    /// The session has a new secret.
    pub(super) fn offer(&mut self, at: Boottime, context: &mut Context<'_>) {
        let keyring = context.keyring;
        let (clear, opaque) = (&mut self.clear, &mut self.opaque);
        if let Some(tls) = &mut self.tls {
            tls.offer(keyring, &mut |event| inside(clear, opaque, at, event, context));
        }
    }

    /// What this side says under TLS is there, so its keys were derived before: if their secret is not known by now, none will come.
    pub(super) fn expect_secret(&mut self, side: Side, at: Boottime, context: &mut Context<'_>) {
        let keyring = context.keyring;
        let (clear, opaque) = (&mut self.clear, &mut self.opaque);
        if let Some(tls) = &mut self.tls
            && tls.waits_for(side)
        {
            tls.give_up("no-secret", keyring, &mut |event| inside(clear, opaque, at, event, context));
        }
    }

    /// The connection has ended: gives out what is under way.
    pub(super) fn close(&mut self, at: Boottime, context: &mut Context<'_>) {
        let (clear, opaque) = (&mut self.clear, &mut self.opaque);
        let keyring = context.keyring;
        if let Some(tls) = &mut self.tls {
            // For whatever came last nothing follows that would have it looked for.
            tls.offer(keyring, &mut |event| inside(clear, opaque, at, event, context));
            tls.close(&mut |event| inside(clear, opaque, at, event, context));
        }
        if let Clear::Reading(dissector) = &mut self.clear {
            dissector.close(at, &mut context.out.observations);
        }
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        let tls = self.tls.as_ref().map_or(0, |tls| tls.memory());
        tls + match &self.clear {
            Clear::Detecting(opening) => {
                opening.client.len() + opening.server.len() + size_of_val(&opening.order[..])
            }
            Clear::Reading(dissector) => dissector.memory(),
            Clear::Blind => 0,
        }
    }

    /// Does without answers and long texts. `false`: there is nothing that could.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Findings) -> bool {
        let Clear::Reading(dissector) = &mut self.clear else { return false };
        dissector.spare(at, &mut out.observations);
        true
    }

    /// Reads no more: what is under way is given out as it stands.
    pub(super) fn stop(&mut self, at: Boottime, context: &mut Context<'_>) {
        if let Some(mut tls) = self.tls.take() {
            let (clear, opaque) = (&mut self.clear, &mut self.opaque);
            tls.close(&mut |event| inside(clear, opaque, at, event, context));
            for side in [Side::Client, Side::Server] {
                self.opaque.count(side, tls.counted(side).opaque);
            }
        }
        if let Clear::Reading(dissector) = &mut self.clear {
            let observations = &mut context.out.observations;
            let before = observations.len();
            // For it, everything that comes is lost.
            dissector.gap(Side::Client, at, u64::MAX, observations);
            let mut index = 0;
            observations.retain(|observation| {
                index += 1;
                // Why it cannot be read is not in the stream.
                index <= before || !matches!(observation, Observation::Opaque(_))
            });
        }
        self.clear = Clear::Blind;
    }

    /// Whether rows of long transfers may be counted instead of copied: nobody can under TLS.
    pub(super) fn counts_rows(&self) -> bool {
        self.tls.is_none() && matches!(&self.clear, Clear::Reading(dissector) if dissector.counts_rows())
    }

    /// Where the next byte of a side belongs, for who counts rows.
    pub(super) fn place(&self, side: Side) -> Option<Within> {
        match &self.clear {
            Clear::Reading(dissector) if self.tls.is_none() => dissector.place(side),
            _ => None,
        }
    }

    /// Bytes of each side that were seen and not read.
    pub(super) fn opaque(&self) -> Opaque {
        let mut opaque = self.opaque;
        if let Some(tls) = &self.tls {
            opaque.client += tls.counted(Side::Client).opaque;
            opaque.server += tls.counted(Side::Server).opaque;
        }
        opaque
    }
}

/// What comes out of TLS.
fn inside(
    clear: &mut Clear,
    opaque: &mut Opaque,
    now: Boottime,
    event: tls::Event<'_>,
    context: &mut Context<'_>,
) {
    match event {
        tls::Event::Plaintext { side, at, bytes } => match clear.bytes(side, at, bytes, context) {
            Became::Read => {}
            Became::Unread(before) => {
                opaque.add(before);
                opaque.count(side, bytes.len() as u64);
            }
            // TLS within TLS is nobody's protocol here.
            Became::Agreed(_) | Became::Tls(_) => {
                opaque.add(clear.unrecognised(context));
                opaque.count(side, bytes.len() as u64);
            }
            Became::Switched { client: (client, since), server } => {
                for (side, at, bytes) in [(Side::Client, since, client), (Side::Server, at, server)] {
                    let event = tls::Event::Plaintext { side, at, bytes: &bytes };
                    inside(clear, opaque, now, event, context);
                }
            }
        },
        tls::Event::Gap { side, at, most } => opaque.add(clear.gap(side, at, most, context)),
        tls::Event::Facts(facts) => Arc::make_mut(context.application).tls = Some(facts.clone()),
        tls::Event::Bound { secret, .. } => context.out.secrets.push((secret, true)),
        tls::Event::Released { secret } => context.out.secrets.push((secret, false)),
        tls::Event::Failed { side, .. } => context.out.notices.push(Notice::RecordFails(side)),
        tls::Event::Violation { what, .. } => context.out.notices.push(Notice::NotTls(what)),
        tls::Event::Opaque { .. } => {
            if let Clear::Reading(dissector) = clear {
                dissector.close(now, &mut context.out.observations);
            }
            *clear = Clear::Blind;
            context.out.observations.push(Observation::Opaque(protocol::Opaque::Tls));
        }
    }
}

impl Clear {
    fn bytes(&mut self, side: Side, at: Boottime, bytes: &[u8], context: &mut Context<'_>) -> Became {
        match self {
            _ if bytes.is_empty() => Became::Read,
            Self::Reading(_) => self.step(context, |dissector, out| dissector.bytes(side, at, bytes, out)),
            Self::Blind => Became::Unread(Opaque::default()),
            Self::Detecting(opening) => {
                let before = opening.client.len();
                opening.say(side, at, bytes);
                let first = opening.first();
                // Who speaks TLS from the first byte on speaks first.
                let tls = if first.server.is_empty() { tls::detect(first.client) } else { Detection::No };
                if tls == Detection::Yes(()) {
                    opening.client.truncate(before);
                    return Became::Tls(std::mem::take(&mut opening.client));
                }
                match protocol::detect(first) {
                    Detection::Incomplete => Became::Read,
                    Detection::No if tls == Detection::Incomplete => Became::Read,
                    Detection::No => {
                        opening.unsay(side);
                        Became::Unread(self.unrecognised(context))
                    }
                    Detection::Yes(found) => {
                        opening.unsay(side);
                        let before = std::mem::take(opening);
                        let dissector = found.dissector(context.limits);
                        Arc::make_mut(context.application).protocol = Some(dissector.protocol().name());
                        context.out.notices.push(Notice::Recognised(dissector.protocol().name()));
                        *self = Self::Reading(dissector);
                        let mut unread = Opaque::default();
                        before.replay(|side, at, piece| {
                            if let Became::Unread(_) = self.bytes(side, at, piece, context) {
                                unread.count(side, piece.len() as u64);
                            }
                        });
                        // These follow whole.
                        let became = self.bytes(side, at, bytes, context);
                        if let Became::Unread(_) = became { Became::Unread(unread) } else { became }
                    }
                }
            }
        }
    }

    /// Bytes were lost. Answers what is not read because of it, of what came before.
    fn gap(&mut self, side: Side, at: Boottime, length: u64, context: &mut Context<'_>) -> Opaque {
        match self {
            Self::Reading(_) => {
                self.step(context, |dissector, out| dissector.gap(side, at, length, out));
                Opaque::default()
            }
            Self::Detecting(_) => self.unrecognised(context),
            Self::Blind => Opaque::default(),
        }
    }

    /// Has the dissector do something, and goes on as what it observes demands.
    fn step(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(&mut dyn Dissector, &mut Vec<Observation>),
    ) -> Became {
        let Self::Reading(dissector) = self else { return Became::Unread(Opaque::default()) };
        let observations = &mut context.out.observations;
        let before = observations.len();
        step(&mut **dissector, observations);
        for observation in &mut observations[before..] {
            match observation {
                Observation::Encrypted { rest } => return Became::Agreed(*rest),
                Observation::Switched { client: (client, since), server } => {
                    let (client, server) = ((std::mem::take(client), *since), std::mem::take(server));
                    *self = Self::Detecting(Opening::default());
                    return Became::Switched { client, server };
                }
                Observation::Opaque(_) | Observation::Violation(_) => {
                    *self = Self::Blind;
                    break;
                }
                _ => {}
            }
        }
        Became::Read
    }

    /// Gives up. Answers what came before, which is not read.
    fn unrecognised(&mut self, context: &mut Context<'_>) -> Opaque {
        let before = if let Self::Detecting(opening) = self { opening.size() } else { Opaque::default() };
        *self = Self::Blind;
        Arc::make_mut(context.application).opaque = Some("unrecognised");
        context.out.notices.push(Notice::Unrecognised);
        before
    }
}
