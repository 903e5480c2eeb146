//! How what is said on a connection is read: TLS where both ends speak it, the protocol inside, or neither.
//!
//! Begins with nothing known. The client's first bytes tell the protocol, or that TLS comes first; a protocol may also agree on TLS
//! later. There is one layer of TLS at most, and what is inside is read as if it had been said in the clear.

use std::sync::Arc;

use crate::clock::Boottime;
use crate::protocol::{self, Detection, Dissector, Limits, Observation, Side};
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
    /// Not enough of the client's bytes are there to tell the protocol.
    Detecting(Vec<u8>),
    /// It is told.
    Reading(#[serde(with = "protocol::saved")] Box<dyn Dissector>),
    /// It cannot be told, or not be read: bytes are counted only.
    Blind,
}

/// What became of bytes.
enum Became {
    Read,
    Unread,
    /// They were read, and what follows is TLS.
    Agreed,
    /// They, and these before them, are TLS.
    Tls(Vec<u8>),
}

impl Opaque {
    fn count(&mut self, side: Side, bytes: u64) {
        match side {
            Side::Client => self.client += bytes,
            Side::Server => self.server += bytes,
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { tls: None, clear: Clear::Detecting(Vec::new()), opaque: Opaque::default() }
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
            Became::Unread => self.opaque.count(side, bytes.len() as u64),
            Became::Agreed => self.tls = Some(Box::default()),
            Became::Tls(before) => {
                self.tls = Some(Box::default());
                self.bytes(side, at, &before, context);
                self.bytes(side, at, bytes, context);
            }
        }
    }

    /// Rows of the server's that the kernel programs counted instead of copying them.
    pub(super) fn skipped(&mut self, side: Side, at: Boottime, skip: &Skip, context: &mut Context<'_>) {
        if self.tls.is_none() && side == Side::Server && matches!(self.clear, Clear::Reading(_)) {
            self.clear.step(context, |dissector, out| dissector.skipped(at, skip, out));
        } else {
            self.gap(side, at, u64::from(skip.length), context);
        }
    }

    /// Bytes were lost here.
    pub(super) fn gap(&mut self, side: Side, at: Boottime, length: u64, context: &mut Context<'_>) {
        let keyring = context.keyring;
        let (clear, opaque) = (&mut self.clear, &mut self.opaque);
        match &mut self.tls {
            None => clear.gap(side, at, length, context),
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
            Clear::Detecting(seen) => seen.len(),
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

    /// Whether rows of long answers may be counted instead of copied: nobody can under TLS.
    pub(super) fn counts_rows(&self) -> bool {
        self.tls.is_none() && matches!(&self.clear, Clear::Reading(dissector) if dissector.counts_rows())
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
            Became::Unread => opaque.count(side, bytes.len() as u64),
            // TLS within TLS is nobody's protocol here.
            Became::Agreed | Became::Tls(_) => {
                clear.unrecognised(context);
                opaque.count(side, bytes.len() as u64);
            }
        },
        tls::Event::Gap { side, at, most } => clear.gap(side, at, most, context),
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
            Self::Reading(_) => self.step(context, |dissector, out| dissector.bytes(side, at, bytes, out)),
            Self::Blind => Became::Unread,
            // The server speaks first: of the protocols that are known, none does.
            Self::Detecting(_) if side == Side::Server => {
                self.unrecognised(context);
                Became::Unread
            }
            Self::Detecting(seen) => {
                let before = seen.len();
                seen.extend_from_slice(&bytes[..bytes.len().min(protocol::DETECTION_BYTES)]);
                if tls::detect(seen) == Detection::Yes(()) {
                    seen.truncate(before);
                    return Became::Tls(std::mem::take(seen));
                }
                match protocol::detect(seen) {
                    Detection::Incomplete => Became::Read,
                    Detection::No if tls::detect(seen) == Detection::Incomplete => Became::Read,
                    Detection::No => {
                        self.unrecognised(context);
                        Became::Unread
                    }
                    Detection::Yes(found) => {
                        let mut dissector = found.dissector(context.limits);
                        Arc::make_mut(context.application).protocol = Some(dissector.name());
                        // What was seen before these bytes; they themselves follow whole.
                        dissector.bytes(side, at, &seen[..before], &mut context.out.observations);
                        *self = Self::Reading(dissector);
                        self.bytes(side, at, bytes, context)
                    }
                }
            }
        }
    }

    fn gap(&mut self, side: Side, at: Boottime, length: u64, context: &mut Context<'_>) {
        match self {
            Self::Reading(_) => {
                self.step(context, |dissector, out| dissector.gap(side, at, length, out));
            }
            Self::Detecting(_) => self.unrecognised(context),
            Self::Blind => {}
        }
    }

    /// Has the dissector do something, and goes on as what it observes demands.
    fn step(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(&mut dyn Dissector, &mut Vec<Observation>),
    ) -> Became {
        let Self::Reading(dissector) = self else { return Became::Unread };
        let observations = &mut context.out.observations;
        let before = observations.len();
        step(&mut **dissector, observations);
        for observation in &observations[before..] {
            match observation {
                Observation::Encrypted => return Became::Agreed,
                Observation::Opaque(_) | Observation::Violation(_) => {
                    *self = Self::Blind;
                    break;
                }
                _ => {}
            }
        }
        Became::Read
    }

    fn unrecognised(&mut self, context: &mut Context<'_>) {
        *self = Self::Blind;
        Arc::make_mut(context.application).opaque = Some("unrecognised");
        context.out.notices.push(Notice::Unrecognised);
    }
}
