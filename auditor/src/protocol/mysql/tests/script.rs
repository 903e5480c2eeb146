//! A conversation between client and server, written down.

use crate::protocol::tests::events::{Daemons, Event, play};
use crate::protocol::{Limits, Login, Observation, Outcome, Protocol, Side, Statement};

pub(super) const LIMITS: Limits = Limits { max_statement_bytes: 100_000, parameters: true, columns: true };

/// Flags as both ends of a test have them, beside what it is about.
pub(super) const COMMON: u64 = 1 << 9 | 1 << 15 | 1 << 19;
pub(super) const MYSQL: u64 = 1;
pub(super) const WITH_DB: u64 = 1 << 3;
pub(super) const COMPRESS: u64 = 1 << 5;
pub(super) const SSL: u64 = 1 << 11;
pub(super) const ATTRS: u64 = 1 << 20;
pub(super) const TRACK: u64 = 1 << 23;
pub(super) const NEW_EOF: u64 = 1 << 24;
pub(super) const OPTIONAL: u64 = 1 << 25;
pub(super) const ZSTD: u64 = 1 << 26;
pub(super) const QUERY_ATTRIBUTES: u64 = 1 << 27;
pub(super) const CACHE: u64 = 1 << 36;

/// One packet.
pub(super) fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    assert_eq!(length[3], 0, "several packets");
    [&length[..3], &[sequence], payload].concat()
}

/// Packets with numbers from `first` on.
pub(super) fn packets(first: u8, payloads: &[&[u8]]) -> Vec<u8> {
    (first..).zip(payloads).flat_map(|(sequence, payload)| packet(sequence, payload)).collect()
}

/// A command.
pub(super) fn command(number: u8, arguments: &[u8]) -> Vec<u8> {
    packet(0, &[&[number], arguments].concat())
}

pub(super) fn query(text: &str) -> Vec<u8> {
    command(3, text.as_bytes())
}

/// COM_STMT_EXECUTE with these nulls, types and values.
pub(super) fn execute(number: u32, values: &[u8]) -> Vec<u8> {
    command(0x17, &[&number.to_le_bytes()[..], &[0, 1, 0, 0, 0], values].concat())
}

/// OK with a first byte.
pub(super) fn done(first: u8, affected: u8, status: u16, warnings: u8) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    vec![first, affected, 0, low, high, warnings, 0]
}

pub(super) fn ok(affected: u8) -> Vec<u8> {
    done(0, affected, 2, 0)
}

/// EOF as it was before.
pub(super) fn eof(status: u16) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    vec![0xfe, 0, 0, low, high]
}

pub(super) fn error(number: u16, state: &str, message: &str) -> Vec<u8> {
    [&[0xff][..], &number.to_le_bytes(), b"#", state.as_bytes(), message.as_bytes()].concat()
}

/// The definition of a column of VARCHAR.
pub(super) fn column(name: &str) -> Vec<u8> {
    let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let names: Vec<u8> = ["def", "d", "t", "t", name, name].iter().flat_map(|name| string(name)).collect();
    [&names[..], &[0x0c, 45, 0, 40, 0, 0, 0, 253, 0, 0, 0, 0, 0]].concat()
}

/// COM_STMT_PREPARE is done.
pub(super) fn prepared(number: u32, columns: u8, parameters: u8) -> Vec<u8> {
    [&[0][..], &number.to_le_bytes(), &[columns, 0, parameters, 0, 0, 0, 0]].concat()
}

/// What was said, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) said: Vec<(Side, Vec<u8>)>,
}

impl Script {
    /// Up to the greeting, of a server that offers these.
    pub(super) fn greeted(flags: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = (flags | COMMON).to_le_bytes();
        let mut greeting = b"\x0a10.11.0-test\0\x07\0\0\0saltsalt\0".to_vec();
        greeting.extend([a, b, 45, 2, 0, c, d, 21, 0, 0, 0, 0, 0, 0]);
        greeting.extend(if flags & MYSQL == 0 { [e, f, g, h] } else { [0; 4] });
        greeting.extend(b"saltsaltsalt\0mysql_native_password\0");
        Self::default().server(&packet(0, &greeting))
    }

    /// Up to the end of a login in which both ends have these flags.
    pub(super) fn session(flags: u64) -> Self {
        Self::greeted(flags).client(&packet(1, &response(flags))).server(&packet(2, &ok(0)))
    }

    pub(super) fn client(mut self, bytes: &[u8]) -> Self {
        self.said.push((Side::Client, bytes.to_vec()));
        self
    }

    pub(super) fn server(mut self, bytes: &[u8]) -> Self {
        self.said.push((Side::Server, bytes.to_vec()));
        self
    }

    /// What comes of it, each entry in pieces of the sizes that `cut` says.
    pub(super) fn play(&self, limits: Limits, cut: impl Fn(usize) -> usize) -> Vec<Observation> {
        let events: Vec<_> = self.said.iter().cloned().map(Event::from).collect();
        play(Protocol::Mysql, limits, &events, cut, Daemons::One)
    }

    pub(super) fn observations(&self) -> Vec<Observation> {
        let whole = self.play(LIMITS, |_| usize::MAX);
        assert_eq!(whole, self.play(LIMITS, |_| 1), "cut into bytes");
        assert_eq!(whole, self.play(LIMITS, |_| 3), "cut into pieces of three");
        whole
    }

    pub(super) fn statements(&self) -> Vec<Statement> {
        let statement = |observation| match observation {
            Observation::Statement(statement) => Some(*statement),
            Observation::Violation(reason) => panic!("{reason}"),
            _ => None,
        };
        self.observations().into_iter().filter_map(statement).collect()
    }

    pub(super) fn logins(&self) -> Vec<Login> {
        let login = |observation| match observation {
            Observation::Login(login) => Some(login),
            _ => None,
        };
        self.observations().into_iter().filter_map(login).collect()
    }

    pub(super) fn violation(&self) -> String {
        match self.observations().pop() {
            Some(Observation::Violation(reason)) => reason,
            other => panic!("not a violation: {other:?}"),
        }
    }
}

/// HandshakeResponse of ann, for the database shop where the flags say so.
pub(super) fn response(flags: u64) -> Vec<u8> {
    let [a, b, c, d, e, f, g, h] = (flags | COMMON).to_le_bytes();
    let mut response = vec![a, b, c, d, 0, 0, 0, 1, 45];
    response.resize(28, 0);
    response.extend(if flags & MYSQL == 0 { [e, f, g, h] } else { [0; 4] });
    response.extend(b"ann\0\x08PASSWORD");
    if flags & WITH_DB != 0 {
        response.extend(b"shop\0");
    }
    response.extend(b"mysql_native_password\0");
    if flags & ATTRS != 0 {
        response.extend(b"\x24\x0cprogram_name\x03cli\x04_pid\x0210\x08my_token\x01x");
    }
    if flags & ZSTD != 0 {
        response.push(3);
    }
    response
}

pub(super) fn failed(statement: &Statement) -> &str {
    match &statement.outcome {
        Outcome::Failed(error) => &error.code,
        other => panic!("{other:?}"),
    }
}
