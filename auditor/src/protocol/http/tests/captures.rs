//! Real conversations, recorded between real clients and real servers; see `testdata/http/README.md`.

use super::script::{LIMITS, line};
use crate::protocol::Protocol;
use crate::protocol::tests::captures::Captures;

const CAPTURES: Captures = Captures { protocol: Protocol::Http, limits: LIMITS, at_least: 6, line };

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
