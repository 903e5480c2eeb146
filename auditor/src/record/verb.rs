//! A statement's verbs: of its tree where it was parsed ([`crate::statement`]), with the server's word beside them; else labels.
//!
//! For labels there are two witnesses: the first keyword of the text, and the server's command tags, one for each command that was completed.
//! The tags are the better one (`EXECUTE p` is completed as `DELETE 3`, and a message may hold several commands), but there
//! is none for what was not completed. Both are labels: `SELECT` may call a function that deletes, and its tag is `SELECT 1`.
//! Nothing may be allowed on the strength of a verb. Where even the labels are known not to say it all, the record says so.

use crate::protocol::{Outcome, Statement, StatementKind};
use crate::statement::Meaning;

/// Commands that carry others within them, or run what was defined elsewhere.
const CARRIERS: [&str; 8] = ["with", "do", "execute", "explain", "call", "function", "prepare", "copy"];

/// A statement's verbs as they stand in its text and in the server's tags; case is not told apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Verbs<'a> {
    /// First keyword of the text.
    pub first: Option<&'a str>,
    /// First words of the completed commands' tags, each once, in order; the first keyword where nothing was completed.
    pub all: Vec<&'a str>,
    /// `false` where these are known not to say what the statement does: it carries others (`WITH`, `DO`, `EXECUTE`, …),
    /// a command of several failed, the server's answer is missing, or part of the text.
    pub classified: bool,
}

impl<'a> Verbs<'a> {
    /// Of its meaning, with what the server's tags add: it may have been told by a rule to do something else. Where it is not
    /// classified, of its text and its results.
    pub fn of(statement: &'a Statement, meaning: Option<&'a Meaning>) -> Self {
        let labels = Self::labels(statement);
        let Some(meaning) = meaning else { return labels };
        let mut all: Vec<&str> = Vec::new();
        let parsed = meaning.commands.iter().flat_map(|command| &command.verbs).map(String::as_str);
        let told = labels
            .all
            .into_iter()
            .filter(|_| meaning.unclassified.is_some() || !statement.results.is_empty());
        for verb in parsed.chain(told) {
            if !all.iter().any(|known| known.eq_ignore_ascii_case(verb)) {
                all.push(verb);
            }
        }
        let own = meaning.commands.first().and_then(|command| command.verbs.first());
        let first = own.map(String::as_str).or(labels.first);
        Self { first, all, classified: meaning.unclassified.is_none() }
    }

    /// Reads a statement's text and its results.
    fn labels(statement: &'a Statement) -> Self {
        let first = first_keyword(&statement.text);
        let mut all: Vec<&str> = Vec::new();
        // A portal that was left before its end has no tag of the server's.
        let tags = statement.results.iter().map(|result| result.tag.as_str());
        for tag in tags.filter(|tag| *tag != "PortalSuspended") {
            let verb = first_keyword(tag.as_bytes());
            all.extend(verb.filter(|verb| !all.iter().any(|known| known.eq_ignore_ascii_case(verb))));
        }
        let completed = !all.is_empty();
        if !completed {
            all.extend(first);
        }
        let told = match statement.outcome {
            Outcome::Completed => {
                completed || statement.kind == StatementKind::Prepared || is_one_command(statement)
            }
            // The first one did not get through, so no other one was begun.
            Outcome::Failed(_) | Outcome::Skipped => !completed,
            Outcome::Unknown => false,
            // A text that is prepared is one command.
            Outcome::Prepared => statement.kind == StatementKind::Prepared,
        };
        let carries = |verb: &&str| CARRIERS.iter().any(|carrier| carrier.eq_ignore_ascii_case(verb));
        let classified =
            told && !statement.incomplete && first.is_some() && !first.iter().chain(&all).any(carries);
        Self { first, all, classified }
    }
}

/// Whether what was completed without a tag is certainly one command, of which the first keyword speaks: nothing in the text can
/// separate it from another, and no comment is executed by one server and skipped by another (`/*! */`).
fn is_one_command(statement: &Statement) -> bool {
    let [only] = &statement.results[..] else { return false };
    let text = statement.text.trim_ascii_end();
    let text = text.strip_suffix(b";").unwrap_or(text);
    let hides = |pair: &[u8]| pair == b"/*" || pair.first() == Some(&b';');
    only.tag.is_empty() && only.rows.is_some() && !text.windows(2).any(hides)
}

/// Longer words than this are no keyword of any dialect.
const LONGEST: usize = 32;

/// The first keyword of `text`, as it stands there: after white space, comments (`--` to the end of the line, `/* */`
/// nested as in PostgreSQL), empty statements and opening parentheses. `None` where no word of ASCII letters and
/// underscores follows, or the text ends within a comment.
pub fn first_keyword(text: &[u8]) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = match rest {
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | b';' | b'(', after @ ..] => after,
            [b'-', b'-', after @ ..] => after_line(after)?,
            [b'/', b'*', after @ ..] => after_block(after)?,
            _ => break,
        };
    }
    let length = rest.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'_').count();
    let word = rest.get(..length).filter(|word| (1..=LONGEST).contains(&word.len()))?;
    std::str::from_utf8(word).ok()
}

fn after_line(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    text.get(end..)
}

fn after_block(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    let mut depth = 1_usize;
    while depth > 0 {
        rest = match rest {
            [b'*', b'/', after @ ..] => {
                depth -= 1;
                after
            }
            [b'/', b'*', after @ ..] => {
                depth += 1;
                after
            }
            [_, after @ ..] => after,
            [] => return None,
        };
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Boottime;
    use crate::protocol::{CommandResult, ServerError};

    fn statement(text: &str, tags: &[&str], outcome: Outcome) -> Statement {
        let result = |tag: &&str| CommandResult { tag: (*tag).to_owned(), rows: None };
        Statement {
            sequence: 1,
            kind: StatementKind::Simple,
            text: text.as_bytes().to_vec().into(),
            text_length: u64::try_from(text.len()).unwrap(),
            name: None,
            portal: None,
            parameters: Vec::new(),
            results: tags.iter().map(result).collect(),
            columns: Vec::new(),
            outcome,
            notices: Vec::new(),
            transaction: None,
            started: Boottime(0),
            finished: Boottime(0),
            request_bytes: 0,
            response_bytes: 0,
            incomplete: false,
        }
    }

    #[test]
    fn verbs_are_the_servers_word_where_there_is_one() {
        for (text, tags, all, classified) in [
            ("select 1", &["SELECT 1"][..], &["SELECT"][..], true),
            ("drop table a; create table a()", &["DROP TABLE", "CREATE TABLE"], &["DROP", "CREATE"], true),
            ("select 1; select 2", &["SELECT 1", "SELECT 1"], &["SELECT"], true),
            ("create table t as select 1", &["SELECT 1"], &["SELECT"], true),
            ("execute p", &["DELETE 3"], &["DELETE"], false),
            ("with d as (delete from t) select", &["SELECT 0"], &["SELECT"], false),
            ("begin; do $$ $$", &["BEGIN", "DO"], &["BEGIN", "DO"], false),
            ("select 1", &["PortalSuspended"], &["select"], false),
            ("function 42", &[], &["function"], false),
            ("", &[""], &[], false),
        ] {
            let statement = statement(text, tags, Outcome::Completed);
            let verbs = Verbs::of(&statement, None);
            assert_eq!((&verbs.all[..], verbs.classified), (all, classified), "{text}");
        }
        let suspended = Statement {
            kind: StatementKind::Prepared,
            ..statement("select 1", &["PortalSuspended"], Outcome::Completed)
        };
        assert!(Verbs::of(&suspended, None).classified, "one message, one command");
    }

    #[test]
    fn without_tags_one_result_of_one_command_is_enough() {
        for (text, results, classified) in [
            ("select 1", 1, true),
            ("select 1 ;", 1, true),
            ("select 1; drop table t", 1, false),
            ("select 1; drop table t", 2, false),
            ("/* /* */ drop table t -- */ */ select 1", 1, false),
            ("select 1 /*! into outfile 'x' */", 1, false),
            ("call p()", 1, false),
        ] {
            let mut statement = statement(text, &[], Outcome::Completed);
            let result = CommandResult { tag: String::new(), rows: Some(1) };
            statement.results = vec![result; results];
            assert_eq!(Verbs::of(&statement, None).classified, classified, "{text}");
        }
    }

    #[test]
    fn what_was_not_completed_goes_by_its_first_keyword() {
        let failed = || Outcome::Failed(ServerError::default());
        for (tags, outcome, all, classified) in [
            (&[][..], failed(), ["delete"], true),
            (&[], Outcome::Skipped, ["delete"], true),
            (&[], Outcome::Unknown, ["delete"], false),
            // Which one failed is not told.
            (&["DELETE 1"], failed(), ["DELETE"], false),
        ] {
            let statement = statement("delete from t; drop table u", tags, outcome);
            let verbs = Verbs::of(&statement, None);
            assert_eq!((&verbs.all[..], verbs.classified), (&all[..], classified), "{statement:?}");
        }
    }

    #[test]
    fn skips_what_is_no_keyword() {
        for (text, keyword) in [
            ("select 1", Some("select")),
            ("  \t\r\nDROP TABLE t", Some("DROP")),
            ("-- delete\nUPDATE t", Some("UPDATE")),
            ("-- delete\rUPDATE t", Some("UPDATE")),
            ("/* a /* b */ delete */insert into t", Some("insert")),
            ("((select 1))", Some("select")),
            (";; /**/ truncate", Some("truncate")),
            ("IDENTIFY_SYSTEM", Some("IDENTIFY_SYSTEM")),
            ("/* never closed", None),
            ("-- only a comment", None),
            ("", None),
            ("42", None),
            ("\u{e9}lan", None),
        ] {
            assert_eq!(first_keyword(text.as_bytes()), keyword, "{text:?}");
        }
        assert_eq!(first_keyword(&[b'x'; 4000]), None);
        assert_eq!(first_keyword(b"\xff\xfeselect"), None);
    }
}
