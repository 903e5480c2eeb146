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
//! plaintext where there should be records is a violation. Each byte that waits is tried at most once under each secret.
//! Not read: TLS before 1.2, ciphers other than AES and ChaCha20-Poly1305, compression (RFC 3749).

use zeroize::Zeroizing;

use super::alert;
use super::certificate;
use super::ja4;
use super::message::{self, ClientHello, Message, Messages, ServerHello};
use super::protection::Protection;
use super::record::{self, Buffer, Record};
use super::schedule;
use super::secret::{Keyring, LONGEST_SECRET, Secret, Wanted};
use super::suite::{self, Suite};
use crate::clock::Boottime;
use crate::interned::Name;
use crate::protocol::Side;
use crate::record::Tls;

/// Bytes of a direction that may wait for a secret.
pub const LONGEST_WAIT: usize = 256 << 10;
/// Bytes are looked at in pieces of this size, so that a buffer stays in the cache.
const PIECE: usize = 32 << 10;
/// Early data that the server may have passed over, in records, before the client's handshake must be found.
const MOST_EARLY_RECORDS: usize = 64;
/// Records that may fail to authenticate before the rest is given up.
const MOST_FAILURES: u32 = 8;
/// Key updates of a direction. Each must be derived again after a restart.
const MOST_KEY_UPDATES: u32 = 1 << 16;
/// Application protocols that are kept of a client's list.
const MOST_PROTOCOLS: usize = 32;

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
        /// Why: `no-secret`, `secret-lost`, `version`, `cipher`, `compression`, `gap`, `violation`, `record-fails`,
        /// `early-data`, `handshake`, or what [`Connection::give_up`] was told.
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
    handshake: Handshake,
    facts: Tls,
    /// Pieces that have come.
    pieces: u64,
    failures: u32,
    /// Why no secret will come any more.
    #[serde(with = "crate::interned::option")]
    hopeless: Option<Name>,
    #[serde(with = "crate::interned::option")]
    opaque: Option<Name>,
}

/// What the hellos agreed on. A renegotiation begins another.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Handshake {
    client_random: Option<[u8; 32]>,
    server_random: Option<[u8; 32]>,
    /// The session that the client asked for.
    session: Vec<u8>,
    suite: u16,
    tls13: bool,
    encrypt_then_mac: bool,
    retried: bool,
    early: Early,
}

/// Data before the handshake.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Early {
    #[default]
    None,
    Offered,
    Accepted,
    Rejected,
}

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Direction {
    buffer: Buffer,
    messages: Messages,
    epoch: Epoch,
    counted: Counted,
    /// Its own close_notify or fatal alert was read.
    closed: bool,
    #[serde(skip)]
    live: Option<Live>,
    #[serde(skip)]
    tried: Tried,
}

/// What the next record is protected with.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
enum Epoch {
    #[default]
    Clear,
    Protected(Keys),
}

/// Everything about a direction's keys but the keys.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Keys {
    stage: Stage,
    suite: u16,
    /// Number of the secret that they are from, once a record has proven it.
    secret: Option<u64>,
    /// Key updates since that secret.
    updates: u32,
    /// Number of the next record.
    sequence: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Stage {
    /// TLS 1.3: early data.
    Early,
    /// TLS 1.3: the handshake.
    Handshake,
    /// TLS 1.3: application data.
    Application,
    /// TLS 1.2, from ChangeCipherSpec on.
    Session { client_random: [u8; 32], server_random: [u8; 32], encrypt_then_mac: bool },
}

/// Keys that are derived.
#[derive(Debug)]
struct Live {
    protection: Protection,
    /// Under TLS 1.3 what the next key update is derived from.
    traffic: Option<TrafficSecret>,
}

struct TrafficSecret(Zeroizing<[u8; LONGEST_SECRET]>);

impl std::fmt::Debug for TrafficSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TrafficSecret")
    }
}

/// What need not be tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    /// Secrets up to this number,
    secret: u64,
    /// on so many records.
    records: usize,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
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
            if self.opaque.is_some() {
                self.direction(side).counted.opaque += piece.len() as u64;
                continue;
            }
            let order = self.pieces;
            self.direction(side).buffer.push(order, at, piece);
            self.read(keyring, out);
        }
        self.client.buffer.compact();
        self.server.buffer.compact();
    }

    /// `length` bytes of one direction were lost here.
    pub fn gap(
        &mut self,
        _side: Side,
        _at: Boottime,
        length: u64,
        _keyring: &dyn Keyring,
        out: &mut Output<'_>,
    ) {
        if length > 0 {
            self.go_opaque("gap", out);
        }
    }

    /// The keyring has new secrets.
    pub fn offer(&mut self, keyring: &dyn Keyring, out: &mut Output<'_>) {
        self.read(keyring, out);
        self.client.buffer.compact();
        self.server.buffer.compact();
    }

    /// No secret will come any more. What is in the clear is still read; the rest is opaque, unless its secret is known.
    pub fn give_up(&mut self, reason: Name, keyring: &dyn Keyring, out: &mut Output<'_>) {
        self.hopeless.get_or_insert(reason);
        self.read(keyring, out);
    }

    /// The connection has ended: what waits will not be read.
    pub fn close(&mut self, out: &mut Output<'_>) {
        if self.opaque.is_none() && self.waits() {
            self.go_opaque(self.hopeless.unwrap_or("no-secret"), out);
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

    /// The same for one direction.
    pub fn waits_for(&self, side: Side) -> bool {
        let direction = self.direction_ref(side);
        matches!(&direction.epoch, Epoch::Protected(keys) if keys.secret.is_none())
            && matches!(direction.buffer.record(), Ok(Some(_)))
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

    /// Numbers of the secrets that are in use; a keyring that was restored must still have them.
    pub fn secrets(&self) -> impl Iterator<Item = u64> {
        [&self.client, &self.server].into_iter().filter_map(|direction| direction.epoch.secret())
    }

    const fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    const fn direction_ref(&self, side: Side) -> &Direction {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// Takes records as long as that is possible, those that came first first.
    fn read(&mut self, keyring: &dyn Keyring, out: &mut Output<'_>) {
        while self.opaque.is_none() {
            let order = |direction: &Direction| match direction.buffer.record() {
                Ok(Some(record)) => Some(record.order),
                // To be told at once.
                Err(_) => Some(0),
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
            if matches!(step, Step::NoSecret | Step::NotYet) {
                let second = first.other();
                if self.may_overtake(second) && self.step(second, keyring, out) == Step::Taken {
                    step = Step::Taken;
                }
            }
            match step {
                Step::Taken => {}
                Step::Idle | Step::Over => return,
                Step::NoSecret | Step::NotYet => {
                    if step == Step::NoSecret
                        && let Some(reason) = self.hopeless
                    {
                        self.go_opaque(reason, out);
                    } else if self.client.buffer.len().max(self.server.buffer.len()) > LONGEST_WAIT {
                        let reason = if step == Step::NoSecret { "no-secret" } else { "handshake" };
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
                self.content(side, kind, &body, record, out)
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
                self.content(side, kind, &body, record, out)
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
                    self.content(side, record::ALERT, &body, record, out)
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
        self.content(side, opened.kind, &content, record, out)
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
        for (index, record) in records.iter().enumerate() {
            if record.header.kind != record::APPLICATION_DATA && passes_over {
                continue;
            }
            for secret in keyring.candidates(wanted) {
                if index < direction.tried.records && secret.id() <= direction.tried.secret {
                    break;
                }
                tried.secret = tried.secret.max(secret.id());
                let Some(live) = Live::derive(side, stage, suite, 0, secret) else { continue };
                copy.clear();
                copy.extend_from_slice(direction.buffer.body(record));
                if live.protection.open(0, record.header, &mut copy).is_ok() {
                    found = Some((index, secret.id(), live));
                    break;
                }
            }
            if found.is_some() {
                break;
            }
        }
        tried.records = records.len();
        direction.tried = tried;
        let Some((index, secret, live)) = found else {
            if passes_over && records.len() == most {
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
    fn revive(&mut self, side: Side, keyring: &dyn Keyring) -> Result<(), Name> {
        let direction = self.direction(side);
        let (Epoch::Protected(keys), None) = (&direction.epoch, &direction.live) else { return Ok(()) };
        let suite = Suite::of(keys.suite).ok_or("cipher")?;
        let secret = keys.secret.and_then(|id| keyring.get(id)).ok_or("secret-lost")?;
        direction.live = Live::derive(side, keys.stage, suite, keys.updates, secret);
        if direction.live.is_some() { Ok(()) } else { Err("secret-lost") }
    }

    /// What a record holds, apart from application data.
    fn content(&mut self, side: Side, kind: u8, body: &[u8], record: &Record, out: &mut Output<'_>) -> Step {
        if kind != record::HANDSHAKE && !self.direction_ref(side).messages.is_empty() {
            return self.violation(side, "a handshake message is interrupted", out);
        }
        match kind {
            record::HANDSHAKE => self.messages(side, body, out),
            record::ALERT => self.alert(side, body, out),
            record::CHANGE_CIPHER_SPEC if body == [1] => self.change_cipher_spec(side, out),
            record::HEARTBEAT => Step::Taken,
            _ => {
                let _ = record;
                self.violation(side, "a record of no known type", out)
            }
        }
    }

    fn messages(&mut self, side: Side, mut rest: &[u8], out: &mut Output<'_>) -> Step {
        if rest.is_empty() {
            return self.violation(side, "an empty handshake record", out);
        }
        while !rest.is_empty() {
            let mut messages = std::mem::take(&mut self.direction(side).messages);
            let next = messages.next(&mut rest);
            self.direction(side).messages = messages;
            let Some(message) = next else { break };
            let last = rest.is_empty();
            let step = self.message(side, &message, last, out);
            if step != Step::Taken {
                return step;
            }
        }
        Step::Taken
    }

    fn message(&mut self, side: Side, message: &Message<'_>, last: bool, out: &mut Output<'_>) -> Step {
        let stage = match &self.direction_ref(side).epoch {
            Epoch::Clear => None,
            Epoch::Protected(keys) => Some(keys.stage),
        };
        let begun = match side {
            Side::Client => self.handshake.client_random.is_some(),
            Side::Server => self.handshake.server_random.is_some() || self.handshake.retried,
        };
        // The first message of each direction; a server may ask for a hello before it gives its own.
        let first = match side {
            Side::Client => message::CLIENT_HELLO,
            Side::Server => message::SERVER_HELLO,
        };
        if stage.is_none() && !begun && message.kind != first && message.kind != message::HELLO_REQUEST {
            return self.violation(side, "a handshake does not begin with a hello", out);
        }
        let negotiates = matches!(stage, None | Some(Stage::Session { .. }));
        let switches = match (message.kind, side) {
            (message::CLIENT_HELLO, Side::Client) if negotiates => {
                if stage.is_none() && begun && !self.handshake.retried {
                    return self.violation(side, "a second hello that nobody asked for", out);
                }
                return self.client_hello(&message.body, out);
            }
            (message::SERVER_HELLO, Side::Server) if negotiates => {
                if self.handshake.client_random.is_none() {
                    return Step::Taken;
                }
                let step = self.server_hello(&message.body, out);
                if step != Step::Taken {
                    return step;
                }
                self.handshake.tls13
            }
            (message::ENCRYPTED_EXTENSIONS, Side::Server) if stage == Some(Stage::Handshake) => {
                self.encrypted_extensions(&message.body, out);
                false
            }
            (message::CERTIFICATE | message::COMPRESSED_CERTIFICATE, _) if stage != Some(Stage::Early) => {
                self.certificate(side, message, !negotiates, out);
                false
            }
            (message::FINISHED, _) if stage == Some(Stage::Handshake) => {
                self.protect(side, Stage::Application, out);
                true
            }
            (message::END_OF_EARLY_DATA, Side::Client) if stage == Some(Stage::Early) => {
                self.protect(side, Stage::Handshake, out);
                true
            }
            (message::KEY_UPDATE, _) if stage == Some(Stage::Application) => {
                if !self.key_update(side) {
                    self.go_opaque("key-updates", out);
                    return Step::Over;
                }
                true
            }
            _ => false,
        };
        if switches && !last {
            return self.violation(side, "a record goes on behind a change of keys", out);
        }
        Step::Taken
    }

    fn client_hello(&mut self, body: &[u8], out: &mut Output<'_>) -> Step {
        let retried = self.handshake.retried && self.handshake.server_random.is_none();
        let early = if retried { self.handshake.early } else { Early::None };
        self.handshake = Handshake { retried, early, ..Handshake::default() };
        let Some(hello) = ClientHello::read(body) else {
            // Nothing is known of what it offers, so nothing behind it can be read.
            self.go_opaque("handshake", out);
            return Step::Over;
        };
        self.handshake.client_random = Some(hello.random);
        self.facts.ja4 = Some(ja4::ja4(&hello));
        self.facts.offered = hello.offered().map(message::version_name);
        if hello.early_data && !retried {
            self.handshake.early = Early::Offered;
        }
        let protocols = hello.protocols.iter().take(MOST_PROTOCOLS);
        self.facts.alpn = protocols.map(|name| message::text(name)).collect();
        self.facts.sni = hello.server_name;
        self.handshake.session = hello.session;
        out(Event::Facts(&self.facts));
        Step::Taken
    }

    fn server_hello(&mut self, body: &[u8], out: &mut Output<'_>) -> Step {
        let Some(hello) = ServerHello::read(body) else {
            self.go_opaque("handshake", out);
            return Step::Over;
        };
        self.facts.version = Some(message::version_name(hello.version));
        self.facts.cipher = Some(suite::name(hello.cipher));
        let tls13 = hello.version == 0x0304;
        if tls13 && hello.is_retry() {
            self.handshake.retried = true;
            if self.handshake.early == Early::Offered {
                self.early(Early::Rejected);
            }
            out(Event::Facts(&self.facts));
            return Step::Taken;
        }
        self.handshake.tls13 = tls13;
        self.handshake.server_random = Some(hello.random);
        self.handshake.suite = hello.cipher;
        self.handshake.encrypt_then_mac = hello.extensions.encrypt_then_mac;
        self.facts.resumed = if tls13 {
            hello.extensions.pre_shared_key
        } else {
            !self.handshake.session.is_empty() && self.handshake.session == hello.session
        };
        self.facts.protocol = hello.extensions.protocol;
        if !tls13 && self.handshake.early == Early::Offered {
            self.early(Early::Rejected);
        }
        out(Event::Facts(&self.facts));
        let reason = if hello.version < 0x0303 || hello.version > 0x0304 {
            Some("version")
        } else if hello.compression != 0 {
            Some("compression")
        } else if Suite::of(hello.cipher).is_none_or(|suite| suite.tls13 != tls13) {
            Some("cipher")
        } else {
            None
        };
        if let Some(reason) = reason {
            // In the clear it goes on, up to where it does not matter any more.
            self.hopeless = Some(reason);
        }
        if tls13 {
            self.protect(Side::Server, Stage::Handshake, out);
            let stage = if self.handshake.early == Early::Offered { Stage::Early } else { Stage::Handshake };
            self.protect(Side::Client, stage, out);
        }
        Step::Taken
    }

    fn encrypted_extensions(&mut self, body: &[u8], out: &mut Output<'_>) {
        let extensions = message::Extensions::read(body).unwrap_or_default();
        self.facts.protocol = extensions.protocol;
        if self.handshake.early == Early::Offered {
            if extensions.early_data {
                self.early(Early::Accepted);
            } else {
                self.early(Early::Rejected);
                self.protect(Side::Client, Stage::Handshake, out);
            }
        }
        out(Event::Facts(&self.facts));
    }

    fn early(&mut self, early: Early) {
        self.handshake.early = early;
        self.facts.early_data = Some(if early == Early::Accepted { "accepted" } else { "rejected" });
    }

    fn certificate(&mut self, side: Side, message: &Message<'_>, tls13: bool, out: &mut Output<'_>) {
        if message.kind == message::COMPRESSED_CERTIFICATE {
            return;
        }
        let Some(Some(leaf)) = message::leaf_certificate(&message.body, tls13) else { return };
        let read = Some(certificate::read(leaf));
        match side {
            Side::Client => self.facts.client = read,
            Side::Server => self.facts.server = read,
        }
        out(Event::Facts(&self.facts));
    }

    fn alert(&mut self, side: Side, body: &[u8], out: &mut Output<'_>) -> Step {
        let &[level, description] = body else {
            return self.violation(side, "an alert of the wrong length", out);
        };
        // Under TLS 1.3 all but two end the connection, whatever their level (RFC 8446 §6).
        let ends = match description {
            alert::CLOSE_NOTIFY => true,
            alert::USER_CANCELED => false,
            _ => self.handshake.tls13 || level == alert::FATAL,
        };
        if ends {
            self.direction(side).closed = true;
        }
        if ends && description != alert::CLOSE_NOTIFY {
            let name = Some(alert::name(description));
            match side {
                Side::Client => self.facts.client_alert = name,
                Side::Server => self.facts.server_alert = name,
            }
            out(Event::Facts(&self.facts));
        }
        Step::Taken
    }

    /// TLS 1.2: what follows in this direction is under the keys of the handshake.
    fn change_cipher_spec(&mut self, side: Side, out: &mut Output<'_>) -> Step {
        let (Some(client_random), Some(server_random)) =
            (self.handshake.client_random, self.handshake.server_random)
        else {
            return self.violation(side, "a change of keys without a handshake", out);
        };
        let encrypt_then_mac = self.handshake.encrypt_then_mac;
        self.protect(side, Stage::Session { client_random, server_random, encrypt_then_mac }, out);
        Step::Taken
    }

    /// TLS 1.3: what follows in this direction is under the next keys. `false`: there were too many.
    fn key_update(&mut self, side: Side) -> bool {
        let direction = self.direction(side);
        let suite = direction.suite();
        let (Epoch::Protected(keys), Some(live), Some(suite)) =
            (&mut direction.epoch, &mut direction.live, suite)
        else {
            return false;
        };
        keys.updates += 1;
        keys.sequence = 0;
        keys.updates <= MOST_KEY_UPDATES && live.update(suite)
    }

    fn protect(&mut self, side: Side, stage: Stage, out: &mut Output<'_>) {
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
        if let Some(secret) = epoch.secret()
            && self.direction_ref(side.other()).epoch.secret() != Some(secret)
        {
            out(Event::Released { secret });
        }
    }

    fn taken(&mut self, side: Side, record: &Record) {
        let direction = self.direction(side);
        direction.counted.read += direction.buffer.take(record) as u64;
    }

    fn passed_over(&mut self, side: Side, record: &Record) {
        let direction = self.direction(side);
        direction.counted.opaque += direction.buffer.take(record) as u64;
    }

    /// A record did not authenticate.
    fn failed(&mut self, side: Side, record: &Record, out: &mut Output<'_>) -> Step {
        self.passed_over(side, record);
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

    fn violation(&mut self, side: Side, what: Name, out: &mut Output<'_>) -> Step {
        out(Event::Violation { side, what });
        self.go_opaque("violation", out);
        Step::Over
    }

    fn go_opaque(&mut self, reason: Name, out: &mut Output<'_>) {
        if self.opaque.is_some() {
            return;
        }
        self.opaque = Some(reason);
        self.facts.reason = Some(reason);
        for side in [Side::Client, Side::Server] {
            let direction = self.direction(side);
            direction.counted.opaque += direction.buffer.clear() as u64;
            direction.messages = Messages::default();
            self.release(side, out);
        }
        out(Event::Facts(&self.facts));
        out(Event::Opaque { reason });
    }
}

impl Direction {
    fn suite(&self) -> Option<Suite> {
        match &self.epoch {
            Epoch::Clear => None,
            Epoch::Protected(keys) => Suite::of(keys.suite),
        }
    }
}

impl Epoch {
    const fn secret(&self) -> Option<u64> {
        match self {
            Self::Clear => None,
            Self::Protected(keys) => keys.secret,
        }
    }
}

impl Live {
    fn derive(side: Side, stage: Stage, suite: Suite, updates: u32, secret: &Secret) -> Option<Self> {
        if let Stage::Session { client_random, server_random, encrypt_then_mac } = stage {
            let protection = Protection::tls12(
                suite,
                secret.bytes(),
                &client_random,
                &server_random,
                side,
                encrypt_then_mac,
            )?;
            return Some(Self { protection, traffic: None });
        }
        let mut traffic = Zeroizing::new([0; LONGEST_SECRET]);
        traffic.get_mut(..secret.bytes().len())?.copy_from_slice(secret.bytes());
        for _ in 0..updates {
            schedule::next_traffic_secret(suite.hash, &mut traffic);
        }
        let protection = Protection::tls13(suite, &traffic[..suite.hash.length()])?;
        Some(Self { protection, traffic: Some(TrafficSecret(traffic)) })
    }

    fn update(&mut self, suite: Suite) -> bool {
        let Some(TrafficSecret(traffic)) = &mut self.traffic else { return false };
        schedule::next_traffic_secret(suite.hash, traffic);
        let next = Protection::tls13(suite, &traffic[..suite.hash.length()]);
        next.is_some_and(|protection| {
            self.protection = protection;
            true
        })
    }
}
