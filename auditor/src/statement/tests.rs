//! Each statement of the corpus with what is to be known of it.
//!
//! A case is a statement, and below it `->` with verbs, objects and classes, each sorted as found, and the functions that are told;
//! several commands of one text follow each other. `-> unclassified: reason` where nobody knows.

use super::*;

fn text(dialect: Dialect, text: &str) -> Text<'_> {
    Text { dialect, bytes: text.as_bytes(), incomplete: false, session: 1, at: Boottime(0) }
}

fn meaning(dialect: Dialect, sql: &str) -> Arc<Meaning> {
    Classifier::default().classify(text(dialect, sql), &mut Dialogue::default())
}

fn said(meaning: &Meaning) -> String {
    let mut said = String::new();
    for command in &meaning.commands {
        let classes: Vec<_> = command.classes.names().collect();
        let lists = [command.verbs.join(" "), command.objects.join(" "), classes.join(" "), command.functions.join(" ")];
        said += format!("-> {}", lists.join(" | ")).trim_end_matches([' ', '|']);
        said.push('\n');
    }
    if let Some(reason) = meaning.unclassified {
        said += &format!("-> unclassified: {reason}\n");
    }
    said
}

fn corpus(dialect: Dialect, cases: &str, least: usize) {
    let (mut count, mut wrong) = (0, String::new());
    for case in cases.split("\n\n").map(str::trim).filter(|case| !case.is_empty() && !case.starts_with("##")) {
        let (sql, expected) = case.split_once("\n->").map_or((case, String::new()), |(sql, rest)| (sql, format!("->{rest}")));
        let found = said(&meaning(dialect, sql));
        if expected.trim_end() != found.trim_end() {
            wrong += &format!("{sql}\n{found}\n");
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "found otherwise:\n{wrong}");
    assert!(count >= least, "{count} cases");
}

#[test]
fn postgres_statements_mean_what_the_corpus_says() {
    corpus(Dialect::Postgres, include_str!("corpus/postgres.sql"), 250);
}

#[test]
fn mysql_statements_mean_what_the_corpus_says() {
    corpus(Dialect::MySql, include_str!("corpus/mysql.sql"), 60);
}
