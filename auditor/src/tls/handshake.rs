//! What the two ends agree on, and when they change keys: the handshake as the auditor follows it.

use super::alert;
use super::certificate;
use super::connection::{Connection, Event, Output, Step};
use super::direction::{Epoch, Stage};
use super::ja4;
use super::message::{self, ClientHello, Message, ServerHello};
use super::record;
use super::suite::{self, Suite};
use crate::protocol::Side;

/// Key updates of a direction. Each must be derived again after a restart.
const MOST_KEY_UPDATES: u32 = 1 << 16;
/// Application protocols that are kept of a client's list.
const MOST_PROTOCOLS: usize = 32;

/// What the hellos agreed on. A renegotiation begins another.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Handshake {
    pub(super) client_random: Option<[u8; 32]>,
    pub(super) server_random: Option<[u8; 32]>,
    /// The session that the client asked for.
    pub(super) session: Vec<u8>,
    pub(super) suite: u16,
    pub(super) tls13: bool,
    pub(super) encrypt_then_mac: bool,
    pub(super) retried: bool,
    pub(super) early: Early,
}

/// Data before the handshake.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Early {
    #[default]
    None,
    Offered,
    Accepted,
    Rejected,
}

impl Connection {
    /// What a record holds, apart from application data.
    pub(super) fn content(&mut self, side: Side, kind: u8, body: &[u8], out: &mut Output<'_>) -> Step {
        if kind != record::HANDSHAKE && !self.direction_ref(side).messages.is_empty() {
            return self.violation(side, "a handshake message is interrupted", out);
        }
        match kind {
            record::HANDSHAKE => self.messages(side, body, out),
            record::ALERT => self.alert(side, body, out),
            record::CHANGE_CIPHER_SPEC if body == [1] && !self.handshake.tls13 => {
                self.change_cipher_spec(side, out)
            }
            record::HEARTBEAT => Step::Taken,
            _ => self.violation(side, "a record of no known type", out),
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
        // Of the first one: the second is what the server made of it.
        self.facts.ja4.get_or_insert_with(|| ja4::ja4(&hello));
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
}
