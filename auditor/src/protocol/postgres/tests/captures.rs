//! Real conversations, recorded between real clients and a real server; see `testdata/postgres/README.md`.

use super::script::LIMITS;
use crate::protocol::Protocol;
use crate::protocol::tests::captures::{Captures, line};

const CAPTURES: Captures = Captures { protocol: Protocol::Postgres, limits: LIMITS, at_least: 11, line };

#[test]
fn recordings_give_what_the_server_logged() {
    CAPTURES.give_what_is_expected();
}

#[test]
fn recordings_may_be_cut_anywhere() {
    CAPTURES.may_be_cut_anywhere();
}

#[test]
fn recordings_are_detected() {
    CAPTURES.are_detected();
}
