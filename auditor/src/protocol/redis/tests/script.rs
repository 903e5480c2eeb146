//! Builders of what both sides say, and what comes of it.

use crate::protocol::tests::events::{self, Daemons, Event};
pub(super) use crate::protocol::tests::events::{client, server};
use crate::protocol::{Limits, Observation, Outcome, Protocol, Statement};

pub(super) const LIMITS: Limits = Limits { max_statement_bytes: 1 << 16, parameters: true, columns: true };

/// A command as clients send it.
pub(super) fn command(words: &[&str]) -> String {
    let arguments: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{arguments}", words.len())
}

/// Plays events in pieces of `cut`, as if each were read by the next daemon.
pub(super) fn play(said: &[Event], cut: usize) -> Vec<Observation> {
    events::play(Protocol::Redis, LIMITS, said, |_| cut, Daemons::Many)
}

pub(super) fn statements(said: &[Event]) -> Vec<Statement> {
    let found = play(said, usize::MAX);
    assert_eq!(found, play(said, 1), "cut into bytes");
    found
        .into_iter()
        .filter_map(|observation| match observation {
            Observation::Statement(statement) => Some(*statement),
            _ => None,
        })
        .collect()
}

/// Text, outcome and tag of each command.
pub(super) fn told(said: &[Event]) -> Vec<String> {
    let tell = |(number, statement): (usize, Statement)| {
        assert_eq!(statement.sequence, number as u64 + 1);
        let outcome = match &statement.outcome {
            Outcome::Completed => {
                let tags: Vec<_> = statement.results.iter().map(|result| result.tag.as_str()).collect();
                tags.join(" ")
            }
            Outcome::Failed(error) => format!("-{} {}", error.code, error.message),
            Outcome::Skipped => "skipped".to_owned(),
            Outcome::Unknown => "unknown".to_owned(),
        };
        format!("{} => {outcome}", String::from_utf8_lossy(&statement.text))
    };
    statements(said).into_iter().enumerate().map(tell).collect()
}
