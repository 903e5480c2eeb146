//! Builders of messages and a log of both sides, to be played into a dissector.

use crate::protocol::tests::events::{Daemons, Event, play};
use crate::protocol::{Limits, Observation, Protocol, Side, Statement};

/// Everything kept.
pub(super) const LIMITS: Limits = Limits { max_statement_bytes: 1 << 16, parameters: true, columns: true };

/// One message: type, length, body.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// A start-up packet.
pub(super) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// A StartupMessage of protocol 3.0.
pub(super) fn startup() -> Vec<u8> {
    packet(196_608, b"user\0ann\0database\0shop\0\0")
}

/// What a server says up to its first ReadyForQuery.
pub(super) fn welcome() -> Vec<u8> {
    [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0017\0"),
        message(b'S', b"session_authorization\0ann\0"),
        message(b'K', &[1; 8]),
        ready(b'I'),
    ]
    .concat()
}

pub(super) fn query(text: &str) -> Vec<u8> {
    message(b'Q', &zero(text))
}

pub(super) fn parse(name: &str, text: &str, types: &[u32]) -> Vec<u8> {
    let mut body = [zero(name), zero(text)].concat();
    body.extend(u16::try_from(types.len()).unwrap().to_be_bytes());
    body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
    message(b'P', &body)
}

pub(super) fn bind(portal: &str, statement: &str, formats: &[u16], values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut body = [zero(portal), zero(statement)].concat();
    body.extend(values_of(formats, values));
    body.extend(0_u16.to_be_bytes());
    message(b'B', &body)
}

pub(super) fn values_of(formats: &[u16], values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut body = u16::try_from(formats.len()).unwrap().to_be_bytes().to_vec();
    body.extend(formats.iter().flat_map(|format| format.to_be_bytes()));
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        body.extend(value.map_or(-1, |value| i32::try_from(value.len()).unwrap()).to_be_bytes());
        body.extend_from_slice(value.unwrap_or_default());
    }
    body
}

pub(super) fn describe(target: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{target}{name}\0").as_bytes())
}

pub(super) fn close(target: char, name: &str) -> Vec<u8> {
    message(b'C', format!("{target}{name}\0").as_bytes())
}

pub(super) fn execute(portal: &str) -> Vec<u8> {
    message(b'E', &[zero(portal), vec![0; 4]].concat())
}

pub(super) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(super) fn ready(state: u8) -> Vec<u8> {
    message(b'Z', &[state])
}

pub(super) fn complete(tag: &str) -> Vec<u8> {
    message(b'C', &zero(tag))
}

pub(super) fn error(code: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0Mno\0\0").as_bytes())
}

pub(super) fn row_description(columns: &[(&str, u32)]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for (name, oid) in columns {
        body.extend(zero(name));
        body.extend([0; 6]);
        body.extend(oid.to_be_bytes());
        body.extend([0; 8]);
    }
    message(b'T', &body)
}

pub(super) fn zero(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Answers without a body: `1`, `2`, `3`, `n`, `s`, `I`.
pub(super) fn bare(kinds: &str) -> Vec<u8> {
    kinds.bytes().flat_map(|kind| message(kind, b"")).collect()
}

/// Both sides in the order in which they spoke. Each entry is one nanosecond later than the one before.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) said: Vec<(Side, Vec<u8>)>,
}

impl Script {
    /// After the log-in.
    pub(super) fn session() -> Self {
        Self::default().client(&[startup()]).server(&[welcome()])
    }

    pub(super) fn client(mut self, messages: &[Vec<u8>]) -> Self {
        self.said.push((Side::Client, messages.concat()));
        self
    }

    pub(super) fn server(mut self, messages: &[Vec<u8>]) -> Self {
        self.said.push((Side::Server, messages.concat()));
        self
    }

    /// Played in one piece an entry, and checked against being played in bytes.
    pub(super) fn observations(&self) -> Vec<Observation> {
        self.observations_with(LIMITS)
    }

    pub(super) fn observations_with(&self, limits: Limits) -> Vec<Observation> {
        let whole = self.play(limits, |_| usize::MAX);
        assert_eq!(whole, self.play(limits, |_| 1), "cut into bytes");
        whole
    }

    /// Played in pieces as long as `cut` says for the n-th.
    pub(super) fn play(&self, limits: Limits, cut: impl FnMut(usize) -> usize) -> Vec<Observation> {
        let events: Vec<_> = self.said.iter().cloned().map(Event::from).collect();
        play(Protocol::Postgres, limits, &events, cut, Daemons::One)
    }

    /// The records only; nothing else may have come after the log-in.
    pub(super) fn statements(&self) -> Vec<Statement> {
        let mut observations = self.observations().into_iter();
        assert!(matches!(observations.next(), Some(Observation::Login(_))));
        assert!(matches!(observations.next(), Some(Observation::Authenticated)));
        let statements: Vec<_> = observations
            .map(|observation| match observation {
                Observation::Statement(statement) => *statement,
                other => panic!("not a statement: {other:?}"),
            })
            .collect();
        for (index, statement) in statements.iter().enumerate() {
            assert_eq!(statement.sequence, index as u64 + 1);
        }
        statements
    }

    /// Text, outcome in a word, tags, and transaction state of each record.
    pub(super) fn told(&self) -> Vec<String> {
        self.statements().iter().map(summary).collect()
    }
}

/// A record in a line.
pub(super) fn summary(statement: &Statement) -> String {
    use crate::protocol::Outcome;
    let outcome = match &statement.outcome {
        Outcome::Completed => "completed".into(),
        Outcome::Failed(error) => format!("failed {}", error.code),
        Outcome::Skipped => "skipped".into(),
        Outcome::Unknown => "unknown".into(),
    };
    let tags: Vec<_> = statement.results.iter().map(|result| result.tag.as_str()).collect();
    format!(
        "{:?} {} | {outcome} | {} | {}{}",
        statement.kind,
        statement.text.escape_ascii(),
        tags.join(", "),
        statement.transaction.unwrap_or('-'),
        if statement.incomplete { " | incomplete" } else { "" }
    )
}
