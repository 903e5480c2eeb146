//! One TLS connection, seen from outside: bytes of both directions and secrets in, plaintext and facts out.
//!
//! Begins at the first byte that must be TLS, after a protocol's own request for encryption or at the connection's
//! beginning. Reads the handshake as both ends do, and knows from it which keys each record is under. A direction claims a
//! secret when the first record under it authenticates; until then its bytes wait, up to [`LONGEST_WAIT`], and application
//! data leaves in the order in which it came, over both directions. What cannot be read any more is opaque, with the reason,
//! from there to the end. Every byte is counted as one or the other.
//!
//! The state can be written down at any point: it has ciphertext, sequence numbers and numbers of secrets, never a key.
//! After it was read back, keys are derived again from the keyring.
//!
//! Everything is hostile, both ends at once included. A record that does not authenticate is told, never passed over;
//! plaintext where there should be records is a violation. What waits is tried once under each secret, the newest first, and only as far
//! as the keyring affords the work: an agent can make up secrets faster than anybody could try them. What there was no time for is
//! tried when the next bytes come, or is opaque where the answer cannot wait.
//! Not read: TLS before 1.2, ciphers other than AES and ChaCha20-Poly1305, compression (RFC 3749).

use zeroize::Zeroizing;

use super::direction::{Direction, Epoch, Keys, Live, Stage, Tried};
use super::handshake::{Early, Handshake};
use super::message::Messages;
use super::record::{self, Record};
use super::secret::{Keyring, Wanted};
use super::suite::Suite;
use crate::clock::Boottime;
use crate::interned::Name;
use crate::protocol::Side;
use crate::record::Tls;

/// Bytes of a direction that may wait for a secret.
pub const LONGEST_WAIT: usize = 256 << 10;
/// What it costs to derive keys, in bytes that could be decrypted meanwhile.
const DERIVATION: u64 = 8 << 10;
/// Bytes are looked at in pieces of this size, so that a buffer stays in the cache.
const PIECE: usize = 32 << 10;
/// Early data that the server may have passed over, in records, before the client's handshake must be found.
const MOST_EARLY_RECORDS: usize = 64;
const NO_SECRET: Name = "no-secret";
/// Records that may fail to authenticate before the rest is given up.
const MOST_FAILURES: u32 = 8;

/// What a connection gives.
#[derive(Debug)]
pub enum Event<'a> {
    /// The next application data of a direction. Never empty.
    Plaintext {
        /// Whose.
        side: Side,
        /// When the last byte of its record passed.
        at: Boottime,
        /// What was said.
        bytes: &'a [u8],
    },
    /// Application data of a direction is missing here.
    Gap {
        /// Whose.
        side: Side,
        /// When the next byte after it passed.
        at: Boottime,
        /// It is not longer than this.
        most: u64,
    },
    /// Something else is known of the connection; this is all of it.
    Facts(&'a Tls),
    /// A record has proven that this secret is this connection's. It must be kept until it is released.
    Bound {
        /// Whose records are under it.
        side: Side,
        /// Number of the secret.
        secret: u64,
    },
    /// This secret is not needed any more.
    Released {
        /// Its number.
        secret: u64,
    },
    /// A record does not authenticate: it was damaged or forged, or it is not what the other end received.
    Failed {
        /// Whose.
        side: Side,
        /// When it passed.
        at: Boottime,
    },
    /// This is not TLS, or not as it must be. What follows is opaque.
    Violation {
        /// Who does it.
        side: Side,
        /// In words.
        what: Name,
    },
    /// From here on the connection cannot be read. Comes once.
    Opaque {
        /// Why: `no-secret`, `too-many-secrets`, `secret-lost`, `version`, `cipher`, `compression`, `gap`, `violation`, `record-fails`,
        /// `early-data`, `handshake`, `key-updates`, `truncated`, or what [`Connection::give_up`] was told.
        reason: Name,
    },
}

/// Where events go.
pub type Output<'o> = dyn FnMut(Event<'_>) + 'o;

/// Bytes of a direction by what became of them. Those that wait are in neither.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Counted {
    /// Of records that were read, headers included.
    pub read: u64,
    /// Of all others.
    pub opaque: u64,
}

/// A TLS connection.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Connection {
    client: Direction,
    server: Direction,
    pub(super) handshake: Handshake,
    pub(super) facts: Tls,
    /// Pieces that have come.
    pieces: u64,
    failures: u32,
    /// Why no secret will come any more.
    #[serde(with = "crate::interned::option")]
    pub(super) hopeless: Option<Name>,
    #[serde(with = "crate::interned::option")]
    opaque: Option<Name>,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// A record was taken.
    Taken,
    /// There is no whole record.
    Idle,
    /// A record needs a secret that is not there.
    NoSecret,
    /// A record needs to know what the other direction says.
    NotYet,
    /// The rest is opaque.
    Over,
}

impl Connection {
    /// Begins where TLS must begin.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of one direction.
    pub fn bytes(
        &mut self,
        side: Side,
        at: Boottime,
        bytes: &[u8],
        keyring: &dyn Keyring,
        out: &mut Output<'_>,
    ) {
        self.pieces += 1;
        let mut pieces = bytes.chunks(PIECE);
        for piece in &mut pieces {
            let (opaque, order) = (self.opaque.is_some(), self.pieces);
            let direction = self.direction(side);
            let skip = if opaque { piece.len() } else { direction.skip.min(piece.len()) };
            direction.counted.opaque += skip as u64;
            direction.skip = direction.skip.saturating_sub(skip);
            let piece = piece.get(skip..).unwrap_or_default();
            if piece.is_empty() {
                continue;
            }
            direction.buffer.push(order, at, piece);
            self.read(keyring, out);
        }
        self.settle();
    }

    /// `length` bytes of one direction were lost here.
    pub fn gap(
        &mut self,
        side: Side,
        at: Boottime,
        length: u64,
        keyring: &dyn Keyring,
        out: &mut Output<'_>,
    ) {
        if length > 0 && self.opaque.is_none() {
            self.lost(side, at, length, out);
            self.read(keyring, out);
            self.settle();
        }
    }

    /// The keyring has new secrets.
    pub fn offer(&mut self, keyring: &dyn Keyring, out: &mut Output<'_>) {
        self.read(keyring, out);
        self.settle();
    }

    /// No secret will come any more. What is in the clear is still read; the rest is opaque, unless its secret is known.
    pub fn give_up(&mut self, reason: Name, keyring: &dyn Keyring, out: &mut Output<'_>) {
        self.hopeless.get_or_insert(reason);
        self.read(keyring, out);
        self.settle();
    }

    /// The connection has ended: what waits will not be read.
    pub fn close(&mut self, out: &mut Output<'_>) {
        if self.waits() {
            self.go_opaque(self.without_secret(), out);
        } else if self.client.buffer.len() + self.server.buffer.len() > 0 {
            self.go_opaque("truncated", out);
        }
        for side in [Side::Client, Side::Server] {
            let direction = self.direction(side);
            direction.counted.opaque += direction.buffer.clear() as u64;
            self.release(side, out);
        }
    }

    /// Whether a whole record waits for a secret: [`Self::offer`] may help.
    pub fn waits(&self) -> bool {
        self.waits_for(Side::Client) || self.waits_for(Side::Server)
    }

    /// The same for one direction. Early data waits for the server's word on it, not for a secret.
    pub fn waits_for(&self, side: Side) -> bool {
        let direction = self.direction_ref(side);
        let undecided = self.handshake.early == Early::Offered;
        matches!(
            &direction.epoch,
            Epoch::Protected(keys) if keys.secret.is_none() && !(undecided && keys.stage == Stage::Early)
        ) && matches!(direction.buffer.record(), Ok(Some(_)))
    }

    /// What is known so far.
    pub const fn facts(&self) -> &Tls {
        &self.facts
    }

    /// Why the rest cannot be read, once that is so.
    pub const fn opaque(&self) -> Option<Name> {
        self.opaque
    }

    /// How many bytes of a direction were read, and how many were not.
    pub const fn counted(&self, side: Side) -> Counted {
        match side {
            Side::Client => self.client.counted,
            Side::Server => self.server.counted,
        }
    }

    /// Bytes that it keeps, roughly: what waits, and what is behind a gap.
    pub fn memory(&self) -> usize {
        [&self.client, &self.server].map(|direction| direction.memory()).iter().sum()
    }

    /// Numbers of the secrets that are in use; a keyring that was restored must still have them.
    pub fn secrets(&self) -> impl Iterator<Item = u64> {
        [&self.client, &self.server].into_iter().filter_map(|direction| direction.epoch.secret())
    }

    pub(super) const fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    pub(super) const fn direction_ref(&self, side: Side) -> &Direction {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// Why a secret is missing: there is none, or too many of which it could be one.
    fn without_secret(&self) -> Name {
        match self.hopeless.unwrap_or(NO_SECRET) {
            NO_SECRET if self.client.tried.left || self.server.tried.left => "too-many-secrets",
            reason => reason,
        }
    }

    /// Lets go of what was read: plaintext lies where its record was.
    fn settle(&mut self) {
        self.client.buffer.compact();
        self.server.buffer.compact();
    }

    /// Takes records as long as that is possible, those that came first first.
    fn read(&mut self, keyring: &dyn Keyring, out: &mut Output<'_>) {
        while self.opaque.is_none() {
            for side in [Side::Client, Side::Server] {
                self.find_record(side, keyring, out);
            }
            let order = |direction: &Direction| match direction.buffer.record() {
                _ if direction.resync.is_some() => None,
                Ok(Some(record)) => Some(record.order),
                // It came last: what was whole when it came has been taken already.
                Err(_) => Some(u64::MAX),
                Ok(None) => None,
            };
            let first = match (order(&self.client), order(&self.server)) {
                (None, None) => return,
                (Some(_), None) => Side::Client,
                (None, Some(_)) => Side::Server,
                (Some(client), Some(server)) if client <= server => Side::Client,
                (Some(_), Some(_)) => Side::Server,
            };
            let mut step = self.step(first, keyring, out);
            // Where no secret will come, what follows does not matter, whether it is there already or not.
            let hopeless = step == Step::NoSecret && self.hopeless.is_some();
            if matches!(step, Step::NoSecret | Step::NotYet) && !hopeless {
                let second = first.other();
                if self.may_overtake(second) {
                    match self.step(second, keyring, out) {
                        // What the first waits for may never be said.
                        Step::NoSecret => step = Step::NoSecret,
                        Step::Taken => step = Step::Taken,
                        _ => {}
                    }
                }
            }
            match step {
                Step::Taken => {}
                Step::Idle | Step::Over => return,
                Step::NoSecret | Step::NotYet => {
                    if step == Step::NoSecret && self.hopeless.is_some() {
                        self.go_opaque(self.without_secret(), out);
                    } else if self.client.buffer.len().max(self.server.buffer.len()) > LONGEST_WAIT {
                        let reason = if step == Step::NoSecret { self.without_secret() } else { "handshake" };
                        self.go_opaque(reason, out);
                    }
                    return;
                }
            }
        }
    }

    /// Whether the next record of this direction is no application data, so that nobody notices when it is read too early.
    fn may_overtake(&self, side: Side) -> bool {
        let direction = self.direction_ref(side);
        let Ok(Some(record)) = direction.buffer.record() else { return true };
        match &direction.epoch {
            Epoch::Clear | Epoch::Protected(Keys { stage: Stage::Handshake, .. }) => true,
            Epoch::Protected(Keys { stage: Stage::Session { .. }, .. }) => {
                record.header.kind != record::APPLICATION_DATA
            }
            Epoch::Protected(_) => false,
        }
    }

    fn step(&mut self, side: Side, keyring: &dyn Keyring, out: &mut Output<'_>) -> Step {
        let record = match self.direction(side).buffer.record() {
            Ok(Some(record)) => record,
            Ok(None) => return Step::Idle,
            Err(record::NotTls) => {
                let what = match (&self.direction_ref(side).epoch, side) {
                    (Epoch::Clear, Side::Client) => {
                        "the client's bytes are in the clear where TLS was agreed on"
                    }
                    (Epoch::Clear, Side::Server) => {
                        "the server's bytes are in the clear where TLS was agreed on"
                    }
                    _ => "bytes that are no record follow TLS records",
                };
                return self.violation(side, what, out);
            }
        };
        if self.direction_ref(side).closed && record.header.kind != record::ALERT {
            let protected = matches!(self.direction_ref(side).epoch, Epoch::Protected(_));
            if !protected || record.header.kind != record::APPLICATION_DATA {
                return self.violation(side, "records follow the end of TLS", out);
            }
        }
        match self.direction_ref(side).epoch {
            Epoch::Clear => self.clear_record(side, &record, out),
            Epoch::Protected(_) => self.protected_record(side, &record, keyring, out),
        }
    }

    fn clear_record(&mut self, side: Side, record: &Record, out: &mut Output<'_>) -> Step {
        let kind = record.header.kind;
        let early = self.handshake.client_random.is_some() && side == Side::Client;
        match kind {
            record::HANDSHAKE | record::ALERT => {
                let body = self.direction(side).buffer.body(record).to_vec();
                self.taken(side, record);
                self.content(side, kind, &body, out)
            }
            // Behind the server's answer, which tells what it is.
            record::CHANGE_CIPHER_SPEC | record::APPLICATION_DATA
                if early && self.handshake.server_random.is_none() && !self.handshake.retried =>
            {
                Step::NotYet
            }
            // RFC 8446 appendix D.4.
            record::CHANGE_CIPHER_SPEC if self.handshake.retried || self.handshake.tls13 => {
                self.taken(side, record);
                Step::Taken
            }
            record::CHANGE_CIPHER_SPEC => {
                let body = self.direction(side).buffer.body(record).to_vec();
                self.taken(side, record);
                self.content(side, kind, &body, out)
            }
            // Early data before the second hello, which the server passes over.
            record::APPLICATION_DATA if early && self.handshake.early == Early::Rejected => {
                self.passed_over(side, record);
                Step::Taken
            }
            _ => self.violation(side, "records are not protected where they must be", out),
        }
    }

    fn protected_record(
        &mut self,
        side: Side,
        record: &Record,
        keyring: &dyn Keyring,
        out: &mut Output<'_>,
    ) -> Step {
        let Epoch::Protected(keys) = &self.direction_ref(side).epoch else { return Step::Idle };
        let (stage, claimed) = (keys.stage, keys.secret.is_some());
        let tls13 = !matches!(stage, Stage::Session { .. });
        if tls13 && record.header.kind != record::APPLICATION_DATA {
            return match record.header.kind {
                record::CHANGE_CIPHER_SPEC if stage != Stage::Application => {
                    self.taken(side, record);
                    Step::Taken
                }
                // An end that could not derive keys says so in the clear.
                record::ALERT if stage != Stage::Application && !claimed => {
                    let body = self.direction(side).buffer.body(record).to_vec();
                    self.taken(side, record);
                    self.content(side, record::ALERT, &body, out)
                }
                _ => self.violation(side, "records are not protected where they must be", out),
            };
        }
        if stage == Stage::Early && self.handshake.early == Early::Offered {
            return Step::NotYet;
        }
        if !claimed {
            match self.claim(side, stage, keyring, out) {
                Ok(0) => {}
                Ok(_) => return Step::Taken,
                Err(step) => return step,
            }
        }
        if let Err(reason) = self.revive(side, keyring) {
            self.go_opaque(reason, out);
            return Step::Over;
        }
        let direction = self.direction(side);
        let (Epoch::Protected(keys), Some(live)) = (&mut direction.epoch, &direction.live) else {
            return Step::Over;
        };
        let sequence = keys.sequence;
        keys.sequence += 1;
        let body = direction.buffer.body_mut(record);
        let Ok(opened) = live.protection.open(sequence, record.header, body) else {
            return self.failed(side, record, out);
        };
        direction.unsure = false;
        if opened.kind == record::APPLICATION_DATA && stage != Stage::Handshake && !direction.closed {
            if !opened.plaintext.is_empty() {
                let bytes = body.get(opened.plaintext).unwrap_or_default();
                out(Event::Plaintext { side, at: record.at, bytes });
            }
            self.taken(side, record);
            return Step::Taken;
        }
        let content = Zeroizing::new(body.get(opened.plaintext).unwrap_or_default().to_vec());
        self.taken(side, record);
        if opened.kind == record::APPLICATION_DATA {
            return self.violation(side, "application data outside of its place in TLS", out);
        }
        self.content(side, opened.kind, &content, out)
    }

    /// Looks for the secret of a direction. Gives how many records were passed over before the first that it opens.
    fn claim(
        &mut self,
        side: Side,
        stage: Stage,
        keyring: &dyn Keyring,
        out: &mut Output<'_>,
    ) -> Result<usize, Step> {
        let Some(suite) = self.direction_ref(side).suite() else {
            self.go_opaque("cipher", out);
            return Err(Step::Over);
        };
        let passes_over =
            side == Side::Client && stage == Stage::Handshake && self.handshake.early == Early::Rejected;
        let most = if passes_over { MOST_EARLY_RECORDS } else { 1 };
        let wanted = match &stage {
            Stage::Session { client_random, server_random, .. } => {
                Wanted::Master { client_random, server_random }
            }
            _ => Wanted::Traffic(suite.hash),
        };
        let direction = self.direction(side);
        let mut found = None;
        let mut tried = direction.tried;
        let mut copy = Vec::new();
        let records = direction.buffer.whole_records(most);
        'records: for (index, record) in records.iter().enumerate() {
            if record.header.kind != record::APPLICATION_DATA && passes_over {
                continue;
            }
            let untried = direction.tried.untried(index).into_iter().flatten();
            let mut newest = 0;
            for secret in untried.flat_map(|numbers| keyring.candidates(wanted, numbers)) {
                newest = newest.max(secret.id());
                if !keyring.affords(DERIVATION + u64::from(record.header.length)) {
                    if index == 0 {
                        tried.stopped(secret.id(), newest);
                    }
                    tried.left = true;
                    break 'records;
                }
                if direction.spent == Some(secret.id()) && !matches!(stage, Stage::Session { .. }) {
                    continue;
                }
                let Some(live) = Live::derive(side, stage, suite, 0, secret) else { continue };
                copy.clear();
                copy.extend_from_slice(direction.buffer.body(record));
                let opened = live.protection.open(0, record.header, &mut copy);
                // Early data that the server passes over opens as well, under another secret.
                if opened.is_ok_and(|opened| stage.may_hold(opened.kind)) {
                    found = Some((index, secret.id(), live));
                    break 'records;
                }
            }
            tried.left = false;
        }
        if !tried.left {
            tried.all(keyring.newest(), records.len());
        }
        let stopped = tried.left;
        direction.tried = tried;
        let Some((index, secret, live)) = found else {
            if passes_over && records.len() == most && !stopped {
                self.go_opaque("early-data", out);
                return Err(Step::Over);
            }
            return Err(Step::NoSecret);
        };
        direction.live = Some(live);
        direction.tried = Tried::default();
        if let Epoch::Protected(keys) = &mut direction.epoch {
            keys.secret = Some(secret);
        }
        for record in records.iter().take(index) {
            self.passed_over(side, record);
        }
        out(Event::Bound { side, secret });
        if !matches!(stage, Stage::Handshake) && !self.facts.decrypted {
            self.facts.decrypted = true;
            out(Event::Facts(&self.facts));
        }
        Ok(index)
    }

    /// Derives the keys of a direction that has claimed its secret, if they are not there.
    pub(super) fn revive(&mut self, side: Side, keyring: &dyn Keyring) -> Result<(), Name> {
        let direction = self.direction(side);
        let (Epoch::Protected(keys), None) = (&direction.epoch, &direction.live) else { return Ok(()) };
        let suite = Suite::of(keys.suite).ok_or("cipher")?;
        let secret = keys.secret.and_then(|id| keyring.get(id)).ok_or("secret-lost")?;
        direction.live = Live::derive(side, keys.stage, suite, keys.updates, secret);
        if direction.live.is_some() { Ok(()) } else { Err("secret-lost") }
    }

    pub(super) fn protect(&mut self, side: Side, stage: Stage, out: &mut Output<'_>) {
        self.release(side, out);
        let suite = self.handshake.suite;
        let direction = self.direction(side);
        direction.epoch = Epoch::Protected(Keys { stage, suite, secret: None, updates: 0, sequence: 0 });
        direction.tried = Tried::default();
    }

    /// Forgets the keys of a direction, and its secret where the other does not use the same.
    fn release(&mut self, side: Side, out: &mut Output<'_>) {
        let direction = self.direction(side);
        direction.live = None;
        let epoch = std::mem::take(&mut direction.epoch);
        direction.spent = epoch.secret().or(direction.spent);
        if let Some(secret) = epoch.secret()
            && self.direction_ref(side.other()).epoch.secret() != Some(secret)
        {
            out(Event::Released { secret });
        }
    }

    pub(super) fn taken(&mut self, side: Side, record: &Record) {
        let direction = self.direction(side);
        direction.counted.read += direction.buffer.take(record) as u64;
    }

    pub(super) fn passed_over(&mut self, side: Side, record: &Record) {
        let direction = self.direction(side);
        direction.counted.opaque += direction.buffer.take(record) as u64;
    }

    /// A record did not authenticate.
    fn failed(&mut self, side: Side, record: &Record, out: &mut Output<'_>) -> Step {
        self.passed_over(side, record);
        if self.direction_ref(side).unsure {
            // The gap took a change of keys, or more than was thought.
            self.go_opaque("gap", out);
            return Step::Over;
        }
        out(Event::Failed { side, at: record.at });
        self.failures += 1;
        let Epoch::Protected(keys) = &self.direction_ref(side).epoch else { return Step::Over };
        if self.failures >= MOST_FAILURES || matches!(keys.stage, Stage::Early | Stage::Handshake) {
            self.go_opaque("record-fails", out);
            return Step::Over;
        }
        out(Event::Gap { side, at: record.at, most: u64::from(record.header.length) });
        Step::Taken
    }

    pub(super) fn violation(&mut self, side: Side, what: Name, out: &mut Output<'_>) -> Step {
        out(Event::Violation { side, what });
        self.go_opaque("violation", out);
        Step::Over
    }

    pub(super) fn go_opaque(&mut self, reason: Name, out: &mut Output<'_>) {
        if self.opaque.is_some() {
            return;
        }
        self.opaque = Some(reason);
        self.facts.reason = Some(reason);
        for side in [Side::Client, Side::Server] {
            let direction = self.direction(side);
            direction.counted.opaque += direction.buffer.clear() as u64;
            direction.messages = Messages::default();
            direction.resync = None;
            self.release(side, out);
        }
        out(Event::Facts(&self.facts));
        out(Event::Opaque { reason });
    }
}
